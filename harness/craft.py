"""Attack cells: run one attack on one fitted model, batch by batch, and have it judged.

What a sample is given depends on the sample alone: its random numbers are keyed by its id, its
scores do not depend on the batch, and its queries are counted on its own row. The attack works on
a module of its own: whatever it does to it, the referee reads another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.api import Round
from harness.bind import TargetOf, bind, bind_attack
from harness.closest import Closest
from harness.compatibility import inside
from harness.errors import BudgetSpent
from harness.fit import seeded
from harness.options import Resolved
from harness.plugin import AttackSpec, ModelSpec
from harness.predict import Predictor, in_batches
from harness.rng import SampleRng, StreamRng, derive
from harness.target import Ledger, Source, Target
from harness.threat import Threat
from harness.verify import Samples, structure

Made = tuple[Tensor, Ledger]


@dataclass(frozen=True)
class Victim:
    """A fitted model under attack.

    predictor: the model as the referee reads it
    module:    the same weights again, for the attack; surrogate: its differentiable stand-in
    identity:  of the model, by which a source is known to be this very one
    """

    spec: ModelSpec
    predictor: Predictor
    module: nn.Module
    surrogate: nn.Module | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)

    def source(self, gradient: str, eot: int) -> Source:
        p, surrogate = self.predictor, self.surrogate
        stand_in = None if surrogate is None else lambda: surrogate
        whole = Source(self.module, p.classes, p.chunk, p.randomised, stand_in=stand_in)
        return whole.seen(gradient, eot)


@dataclass(frozen=True)
class Assault:
    """One attack as it is run in a cell.

    seed:    of the board; the samples' random numbers are keyed by it
    batch:   rows crafted at a time, halved where memory runs out
    modules: gives the fitted module of a model that an option names, and its spec
    asked:   what each batch asked of such models
    """

    attack: Resolved
    victim: Victim
    seed: int
    batch: int
    modules: Callable[[Resolved], tuple[nn.Module, ModelSpec]]
    asked: list[Ledger] = field(default_factory=list)

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.seed, inside(self.attack).identity["name"])

    def image_by_image(self, samples: Samples) -> bool:
        """Whether another library's attack is given one image at a time: where its queries are to
        be told apart."""
        spec, given = self.attack.entry.spec, self.attack.given
        aimed = given.target != "none" or samples.wanted is not None
        others = [r.resolved.entry.spec for r in self.attack.refs if r.kind == "model"]
        random = self.victim.predictor.randomised or any(spec.randomised for spec in others)
        personal = aimed or given.query_budget is not None or random
        return spec.one_by_one or (spec.pooled and personal)

    def craft(self, samples: Samples, threat: Threat, restart: int = 0) -> Made:
        """Adversarial images of the samples under the threat, and what they cost."""
        return self._batched(samples, lambda part: self._one_batch(part, threat, restart))

    def craft_on(self, turn: Round, samples: Samples, threat: Threat) -> Made:
        """The images of a preparing attack's round. What is asked of its substitute costs nothing;
        budgets are for preparing."""
        source = self.victim.source("exact", 1)
        if turn.substitute is not None:
            module = turn.substitute.eval()
            source = replace(source, module=module, randomised=False, stand_in=None)

        def one_batch(part: Samples) -> Made:
            target = self._target(part, threat, source)
            target = replace(target, ledger=Ledger(len(part.x)), closest=None)
            if turn.substitute is not None:  # fooling it ends nothing: it is not judged
                target = replace(target, level="gradients", judged=False)
            y = self._labels(target, part)
            x_adv = turn.attack(target, part.x.clone(), y, threat, self._rng(part, 0))
            return x_adv, target.ledger if turn.substitute is None else Ledger(len(part.x))

        return self._batched(samples, one_batch)

    def prepare(self, seeds: Tensor) -> tuple[Iterator[Round], Ledger]:
        """The rounds of a preparing attack, and the ledger of its own queries."""
        ledger = Ledger(1, self.attack.given.query_budget)
        stream = StreamRng.keyed(*self.key, "prepare", n=len(seeds), device=seeds.device)
        source = self.victim.source("exact", 1)
        target = Target(source, self.attack.entry.spec.needs, ledger, rng=stream)
        component = bind(self.attack, self._target_of(None))
        return self._seeded(component.prepare(target, seeds.clone(), stream)), ledger

    def _seeded(self, rounds: Iterator[Round]) -> Iterator[Round]:
        """The rounds, each made under global generators of its own seed."""
        for turn in range(10**9):
            with seeded(derive(*self.key, "round", turn) % 2**63):
                made = next(rounds, None)
            if made is None:
                return
            yield made

    def _batched(self, samples: Samples, one_batch: Callable[[Samples], Made]) -> Made:
        """Run over batches and put the images and the counts together."""
        n = len(samples.x)

        def run(start: int, stop: int) -> Made:
            part = samples.at(torch.arange(start, stop, device=samples.x.device))
            x_adv, ledger = one_batch(part)
            structure(x_adv, part.x)
            return x_adv.detach(), ledger

        made = in_batches(n, 1 if self.image_by_image(samples) else self.batch, run)
        return torch.cat([samples.x[:0], *(x_adv for x_adv, _ in made)]), _joined(made)

    def _one_batch(self, part: Samples, threat: Threat, restart: int) -> Made:
        given, spec = self.attack.given, self.attack.entry.spec
        source = self.victim.source(given.gradient, given.eot)
        self.victim.module.eval()
        target = self._target(part, threat, source)
        attack = bind_attack(self.attack, self._target_of(part))
        y = self._labels(target, part)
        try:
            with self._globals(part, restart):
                x_adv = attack(target, part.x.clone(), y, threat, self._rng(part, restart))
        except BudgetSpent:
            if len(part.x) > 1:  # one sample's budget must not end its neighbours' attack
                rows = torch.arange(len(part.x), device=part.x.device)
                alone = [self._one_batch(part.at(r[None]), threat, restart) for r in rows]
                return torch.cat([x_adv for x_adv, _ in alone]), _joined(alone)
            x_adv = target.closest.best if target.closest is not None else part.x
        if target.closest is not None and asks_only(spec) and not spec.pooled:
            target.ledger.curve = target.closest.curve
        return x_adv, target.ledger

    def _target(self, part: Samples, threat: Threat, source: Source) -> Target:
        spec, given = self.attack.entry.spec, self.attack.given
        n = len(part.x)
        wanted = self._wanted(part)
        exact = given.gradient == "exact" and not source.randomised
        noted = given.query_budget is not None or (asks_only(spec) and not spec.pooled)
        return Target(
            source=source,
            level=spec.needs,
            ledger=Ledger(n, given.query_budget),
            rows=np.arange(n),
            weight=np.ones(n, np.int64),
            parts=spec.parts,
            rng=self._forward_rng(part) if source.randomised else None,
            wanted=wanted,
            closest=Closest(part.x.clone(), part.y, threat, wanted) if noted else None,
            judged=exact,
            referee=None if exact else (self.victim.predictor, part.ids),
        )

    def _target_of(self, part: Samples | None) -> TargetOf:
        """Targets of other models, for a batch's samples, or free where there is no batch."""

        def target_of(other: Resolved) -> Target:
            module, spec = self.modules(other)
            p = self.victim.predictor
            stand_in = partial(surrogate_of, module, self.seed) if spec.surrogate else None
            source = Source(module, p.classes, p.chunk, spec.randomised, stand_in=stand_in)
            if part is None:
                stream = StreamRng.keyed(*self.key, other.label)
                return Target(source, spec.offers, self._asking(1), rng=stream)
            n = len(part.x)
            like = bool(self.attack.entry.spec.like)
            own = like and other.identity == self.victim.identity  # then it is no other model
            whose = "" if own else other.label
            return Target(
                source=source,
                level=spec.offers,
                ledger=self._asking(n),
                rows=np.arange(n),
                weight=np.ones(n, np.int64),
                parts=spec.parts,
                rng=self._forward_rng(part, whose) if spec.randomised else None,
                wanted=self._wanted(part),
                judged=own and not spec.randomised,
                referee=(replace(p, module=module, randomised=spec.randomised), part.ids),
            )

        return target_of

    def _asking(self, n: int) -> Ledger:
        ledger = Ledger(n)
        self.asked.append(ledger)
        return ledger

    def _wanted(self, part: Samples) -> Tensor | None:
        """The label each sample is driven to, or None where any other label will do."""
        if part.wanted is not None:
            return part.wanted
        mode = self.attack.given.target
        return None if mode == "none" else wanted_labels(mode, part, self.victim, self.seed)

    @staticmethod
    def _labels(target: Target, part: Samples) -> Tensor:
        return part.y.clone() if target.wanted is None else torch.zeros_like(part.y)

    def _rng(self, part: Samples, restart: int) -> SampleRng:
        return SampleRng.keyed(*self.key, ids=part.ids, restart=restart, device=part.x.device)

    def _forward_rng(self, part: Samples, whose: str = "") -> SampleRng:
        key = (*self.key, "forward", whose)
        return SampleRng.keyed(*key, ids=part.ids, restart=0, device=part.x.device)

    def _globals(self, part: Samples, restart: int) -> Any:
        return seeded(derive(*self.key, "globals", *part.ids[:1], restart) % 2**63)


def asks_only(spec: AttackSpec) -> bool:
    """Whether all that the attack does is ask the judged model for labels or scores: then its
    strength is a matter of queries."""
    return spec.needs != "gradients" and not (spec.parts or spec.like or spec.prepares)


def surrogate_of(module: nn.Module, seed: int) -> nn.Module:
    """The classifier's own stand-in, frozen; whatever it draws, it draws alike each time."""
    with seeded(seed):
        surrogate: nn.Module = module.surrogate()  # type: ignore[operator]
    here = next(iter(module.state_dict().values()))
    return surrogate.to(here.device).eval().requires_grad_(requires_grad=False)


def _joined(made: list[Made]) -> Ledger:
    ledgers = [ledger for _, ledger in made]
    joined = Ledger(sum(len(ledger.forward) for ledger in ledgers))
    if ledgers:
        joined.forward = np.concatenate([ledger.forward for ledger in ledgers])
        joined.backward = np.concatenate([ledger.backward for ledger in ledgers])
        curves = [ledger.curve for ledger in ledgers if ledger.curve is not None]
        joined.curve = np.concatenate(curves) if curves else None
    return joined


def wanted_labels(mode: str, samples: Samples, victim: Victim, seed: int) -> Tensor:
    """Labels to reach, (n,): `random` and `next` among the others, `least` likely by the scores."""
    k, y = victim.predictor.classes, samples.y
    if mode == "next":
        return (y + 1) % k
    if mode == "random":
        rng = SampleRng.keyed(seed, "wanted", ids=samples.ids, restart=0, device=y.device)
        return (y + 1 + rng.integers(k - 1)) % k
    source = victim.source("exact", 1)

    def scores(start: int, stop: int) -> Tensor:
        part = samples.at(torch.arange(start, stop, device=y.device))
        rng = SampleRng.keyed(seed, "clean", ids=part.ids, restart=0, device=y.device)
        return source.scores(part.x, rng).double()

    with torch.no_grad():
        parts = in_batches(len(y), victim.predictor.chunk, scores)
    if not parts:
        return y.clone()
    return torch.cat(parts).scatter(1, y[:, None], torch.inf).argmin(dim=1)
