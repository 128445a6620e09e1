"""What both libraries' attacks are run with: a model made of the target, and a quiet, seeded room.

A library's code does not know the target. It asks a model about any number of images in any order.
Where the harness has given one sample, they are that sample's, and counts, budgets, targets and
random streams are its own; where it has given a batch, `target.pooled()` spreads them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from harness.api import Rng, Target, Threat, per_row
from harness_plugins.adapters.members import GIVEN, MINIMUM, Member
from harness_plugins.adapters.signatures import OPAQUE, REQUIRED, Parameter, parameters

REACH = 2.5  # all steps together go this many eps, as in the attacks of the harness's own
ROUNDING = 1e-6  # entries that move less were scaled to and fro, and are not changed pixels
BELOW = 10.0  # the scores of classes that are made up, so far below the model's least


@dataclass(frozen=True)
class Oracle:
    """The model as a library may ask it, no more than the attack has declared.

    target: of the one sample, or pooled
    image:  one that the attack started from, for type and device
    """

    target: Target
    member: Member
    image: Tensor

    @property
    def classes(self) -> int:
        """The k that the library is told."""
        return max(self.target.classes, self.member.classes)

    def __call__(self, x: Tensor) -> Tensor:
        """Scores (m, k), probabilities, or the predicted label as 1 among 0."""
        x = x.to(self.image.device, self.image.dtype)  # libraries fall into double precision
        target = self.target  # the handle for so many images, of the one sample or of whichever
        if target.rows is not None:
            target = target.at(torch.zeros(len(x), dtype=torch.int64))
        if self.member.needs == "labels":
            return torch.nn.functional.one_hot(target.labels(x), self.classes).to(x.dtype)
        graph = self.member.needs == "gradients" and torch.is_grad_enabled() and x.requires_grad
        scores = target(x) if graph else target.scores(x)
        if (missing := self.classes - target.classes) > 0:
            never = scores.amin(dim=1, keepdim=True) - BELOW
            scores = torch.cat([scores, never.expand(-1, missing)], dim=1)
        return scores.softmax(dim=1) if self.member.asks == "probabilities" else scores


class Run(Protocol):
    """A library's attack: the options that were given, images that are to be fooled, and so on."""

    def __call__(self, chosen: dict[str, Any], oracle: Oracle, assault: Assault) -> Tensor: ...


@dataclass(frozen=True)
class Assault:
    """What an attack is called with, for those samples that the target does not misclassify."""

    target: Target
    x: Tensor
    y: Tensor
    threat: Threat
    rng: Rng

    @property
    def order(self) -> float:
        """The norm as numpy writes it."""
        return {"Linf": np.inf, "L2": 2, "L1": 1, "L0": 0}[self.threat.norm]

    def at(self, rows: Tensor) -> Assault:
        target, rng = self.target.at(rows), self.rng.at(rows)
        return Assault(target, self.x[rows], self.y[rows], self.threat, rng)


@dataclass(frozen=True)
class Kind:
    """One attack of a library: where its signature is, and how it is run."""

    package: str
    name: str
    member: Member
    run: Run

    @property
    def module(self) -> str:
        """The library's module that defines it."""
        return f"{self.package}.{self.member.file.removesuffix('.py').replace('/', '.')}"

    @property
    def taken(self) -> tuple[Parameter, ...]:
        return parameters(self.package, self.member.file, self.name)

    @property
    def options(self) -> Iterator[Parameter]:
        """The parameters that are options here."""
        member = self.member
        for parameter in self.taken:
            name = parameter.name
            if name in member.instead:
                instead = member.instead[name]
                yield Parameter(name, instead.type, instead.default, instead.doc)
            elif not (
                name in GIVEN
                or name in member.withheld
                or name in member.fixed
                or name == member.budget
                or parameter.type is None
                or parameter.default is OPAQUE
            ):
                yield parameter

    def arguments(self, chosen: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """What the library is called with: what it takes of what is given, and the options."""
        known = {parameter.name for parameter in self.taken} - set(self.member.withheld)
        ours = {**given, **self.member.fixed}
        return {**{k: v for k, v in ours.items() if k in known}, **chosen}

    def dataclass(self) -> type:
        """The attack as a plugin's factory: a frozen dataclass whose fields are its options."""
        options = list(self.options)
        fields = [
            (o.name, o.type)
            if o.default is REQUIRED
            else (o.name, o.type if o.default is not None else o.type | None, _field(o))
            for o in options
        ]
        docs = "\n".join(f"{o.name}: {o.doc}" for o in options if o.doc)

        def call(
            self: Any, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng
        ) -> Tensor:
            return kind.attack(dict(vars(self)), Assault(target, x, y, threat, rng))

        kind = self
        made = make_dataclass(self.name, fields, frozen=True, namespace={"__call__": call})
        made.__doc__ = f"{self.package}'s {self.name}: {self.member.summary}.\n\n{docs}\n"
        made.__module__ = f"harness_plugins.adapters.{self.package}"
        return made

    def attack(self, chosen: dict[str, Any], assault: Assault) -> Tensor:
        """The library's images, in the box; of a minimum-norm attack those that fool, and x."""
        x, threat = assault.x.detach(), assault.threat
        minimum = self.member.kind == MINIMUM
        if self.member.single and len(x) > 1:  # inside another attack, which is not one by one
            rows = torch.arange(len(x), device=x.device)
            return torch.cat([self.attack(chosen, assault.at(row[None])) for row in rows])
        if threat.eps == 0:
            return x.clone()
        if not minimum:
            return self._made(chosen, assault)
        out = x.clone()
        standing = (assault.target.labels(x) == assault.y).nonzero()[:, 0]
        if not len(standing):
            return out
        few = assault.at(standing)
        x_adv = self._made(chosen, few)
        finite = torch.isfinite(x_adv).flatten(1).all(dim=1)
        x_adv = torch.where(per_row(finite, x), x_adv, few.x)
        if threat.norm == "L0":
            x_adv = torch.where((x_adv - few.x).abs() < ROUNDING, few.x, x_adv)
        fooled = few.target.labels(x_adv) != few.y
        out[standing] = torch.where(per_row(fooled, x), x_adv, few.x)
        return out

    def _made(self, chosen: dict[str, Any], assault: Assault) -> Tensor:
        x, threat = assault.x.detach(), assault.threat
        target = assault.target if len(x) == 1 else assault.target.pooled()
        oracle = Oracle(target, self.member, x[:1])
        with _undisturbed():
            importlib.import_module(self.module)
        with _room(), torch.enable_grad():
            x_adv = self.run(chosen, oracle, assault)
        return x_adv.detach().to(x.device, x.dtype).clamp(threat.low, threat.high)

    def step(self, chosen: dict[str, Any], eps: float) -> dict[str, Any]:
        """The length of a step, where the attack has one and it was not given."""
        chosen = dict(chosen)
        for name in ("eps_step", "step_size", "eps_iter"):
            if self.member.step and name in chosen and chosen[name] is None:
                turns = chosen.get("max_iter") or chosen.get("nb_iter") or 1
                part = 1.0 if self.member.step == "all" else min(REACH / turns, 1.0)
                chosen[name] = part * eps
        return chosen


def _field(option: Parameter) -> Any:
    return field(default=option.default)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """The global generators put back: importing ART draws from them, and a process imports once."""
    python, legacy, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(torchs)


class _Alike(type):
    """A generator of numpy's own is an instance of the class that stands in for it."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _RandomState)


_RandomState = np.random.RandomState


class Seeded(_RandomState, metaclass=_Alike):
    """A generator that takes its seed from the global one where it is given none."""

    def __init__(self, seed: Any = None) -> None:
        super().__init__(np.random.randint(2**31) if seed is None else seed)


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """Where a library runs: what it prints is dropped, and what it draws is seeded.

    The harness seeds the global generators around every batch. ART also makes generators of no
    seed; here they take one from the global generator. numpy 2 has dropped `np.mat`, which ART's
    GeoDA uses.
    """
    fresh, logger = np.random.RandomState, logging.getLogger("art")
    level, had = logger.level, "mat" in vars(np)
    np.random.RandomState = Seeded  # type: ignore[misc]
    if not had:
        np.mat = np.asmatrix  # type: ignore[attr-defined]
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        np.random.RandomState = fresh  # type: ignore[misc]
        if not had:
            del np.mat  # type: ignore[attr-defined]
        logger.setLevel(level)
