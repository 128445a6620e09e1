"""Attack cells: run one attack on one fitted model, batch by batch, and have it judged.

What a sample is given depends on the sample alone: its random numbers are keyed by its id, its
scores do not depend on the batch, and its queries are counted on its own row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.api import Attack
from harness.bind import TargetOf, bind, bind_attack
from harness.errors import BudgetSpent
from harness.fit import seeded
from harness.options import Resolved
from harness.plugin import ModelSpec
from harness.predict import MULTIPLE, Predictor
from harness.rng import SampleRng, StreamRng, derive
from harness.target import Closest, Ledger, Source, Target
from harness.threat import Threat
from harness.verify import Samples

Made = tuple[Tensor, Ledger]


@dataclass(frozen=True)
class Victim:
    """A fitted model under attack.

    predictor: the model as the referee reads it
    others:    the fitted modules that the attack's options refer to, by label
    """

    spec: ModelSpec
    predictor: Predictor
    surrogate: nn.Module | None = None

    def source(self, gradient: str, eot: int) -> Source:
        p = self.predictor
        exact = Source(p.module, p.classes, p.chunk, p.randomised, eot=eot)
        if gradient == "surrogate" and self.surrogate is not None:
            return replace(exact, module=self.surrogate, randomised=False)
        if gradient == "bpda":
            return replace(exact, backward=self.surrogate)
        return exact


@dataclass(frozen=True)
class Assault:
    """One attack as it is run in a cell.

    seed:      of the board; the samples' random numbers are keyed by it
    batch:     rows crafted at a time, halved where memory runs out
    target_of: gives the free-standing target of a model that an option names, for given rows
    """

    attack: Resolved
    victim: Victim
    seed: int
    batch: int
    modules: Callable[[Resolved], tuple[nn.Module, ModelSpec]]

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.seed, self.attack.identity["name"])

    def craft(self, samples: Samples, threat: Threat, restart: int = 0) -> Made:
        """Adversarial images of the samples under the threat, and what they cost."""
        given = self.attack.given
        source = self.victim.source(given.gradient, given.eot)
        judged = given.gradient == "exact" and not source.randomised
        return self._batched(
            samples, lambda part: self._one_batch(part, threat, source, restart, judged=judged)
        )

    def craft_on(
        self, attack: Attack, substitute: nn.Module | None, samples: Samples, threat: Threat
    ) -> Made:
        """The same with an attack of a preparing attack's round, made on its substitute."""
        source = self.victim.source("exact", 1)
        if substitute is not None:
            source = replace(source, module=substitute.eval(), randomised=False)

        def one_batch(part: Samples) -> Made:
            target, ledger = self._target(part, threat, source)
            if substitute is not None:  # its passes cost no query of the model attacked
                own = Ledger(len(part.x))
                target = replace(target, level="gradients", closest=None, ledger=own)
            rng = self._rng(part, 0)
            return attack(target, part.x, self._labels(target, part), threat, rng), ledger

        return self._batched(samples, one_batch)

    def prepare(self, seeds: Tensor, device: torch.device) -> tuple[Iterator[Any], Ledger]:
        """The rounds of a preparing attack, and the ledger of its own queries."""
        ledger = Ledger(1, self.attack.given.query_budget)
        stream = StreamRng.keyed(*self.key, "prepare", n=len(seeds), device=device)
        source = self.victim.source("exact", 1)
        target = Target(source, self.attack.entry.spec.needs, ledger, rng=stream)
        component = bind(self.attack, self._target_of(None))
        return component.prepare(target, seeds, stream), ledger

    def _batched(self, samples: Samples, one_batch: Callable[[Samples], Made]) -> Made:
        """Run over batches; a batch that memory cannot hold is halved and tried again."""
        images, counts = [samples.x[:0]], Ledger(len(samples.x))
        size = 1 if self.attack.entry.spec.one_by_one else self.batch
        start = 0
        while start < len(samples.x):
            rows = torch.arange(start, min(start + size, len(samples.x)), device=samples.x.device)
            try:
                x_adv, ledger = one_batch(samples.at(rows))
            except RuntimeError as error:
                if not out_of_memory(error) or size <= MULTIPLE:
                    raise
                size = max(MULTIPLE, size // 2)
                continue
            counts.forward[start : start + len(rows)] = ledger.forward
            counts.backward[start : start + len(rows)] = ledger.backward
            images.append(x_adv)
            start += size
        # One odd shape or type is the attack's, and the referee's to refuse.
        odd = [i for i in images if not isinstance(i, Tensor) or i.shape[1:] != samples.x.shape[1:]]
        return (odd[0] if odd else torch.cat(images)), counts

    def _one_batch(
        self, part: Samples, threat: Threat, source: Source, restart: int, *, judged: bool
    ) -> Made:
        target, ledger = self._target(part, threat, source)
        target = replace(target, judged=judged)
        attack = bind_attack(self.attack, self._target_of(part))
        y = self._labels(target, part)
        try:
            with self._globals(part):
                x_adv = attack(target, part.x, y, threat, self._rng(part, restart))
        except BudgetSpent:
            x_adv = target.closest.best if target.closest is not None else part.x
        return x_adv, ledger

    def _target(self, part: Samples, threat: Threat, source: Source) -> tuple[Target, Ledger]:
        spec, given = self.attack.entry.spec, self.attack.given
        n = len(part.x)
        ledger = Ledger(n, given.query_budget)
        capped = given.query_budget is not None
        wanted = self._wanted(part)
        target = Target(
            source=source,
            level=spec.needs,
            ledger=ledger,
            rows=np.arange(n),
            weight=np.ones(n, np.int64),
            parts=spec.parts,
            rng=self._forward_rng(part) if source.randomised else None,
            wanted=wanted,
            closest=Closest(part.x, part.y, threat, wanted) if capped else None,
        )
        return target, ledger

    def _target_of(self, part: Samples | None) -> TargetOf:
        """Targets of other models, for a batch's samples, or free where there is no batch."""

        def target_of(other: Resolved) -> Target:
            module, spec = self.modules(other)
            source = replace(self.victim.source("exact", 1), module=module, randomised=False)
            if part is None:
                return Target(source, spec.offers, Ledger(1))
            n = len(part.x)
            rows, weight = np.arange(n), np.ones(n, np.int64)
            return Target(source, spec.offers, Ledger(n), rows, weight, spec.parts)

        return target_of

    def _wanted(self, part: Samples) -> Tensor | None:
        """The label each sample is driven to, or None where any other label will do."""
        if part.wanted is not None:
            return part.wanted
        mode = self.attack.given.target
        return None if mode == "none" else wanted_labels(mode, part, self.victim, self.seed)

    @staticmethod
    def _labels(target: Target, part: Samples) -> Tensor:
        return part.y if target.wanted is None else torch.zeros_like(part.y)

    def _rng(self, part: Samples, restart: int) -> SampleRng:
        return SampleRng.keyed(*self.key, ids=part.ids, restart=restart, device=part.x.device)

    def _forward_rng(self, part: Samples) -> SampleRng:
        return SampleRng.keyed(*self.key, "forward", ids=part.ids, restart=0, device=part.x.device)

    def _globals(self, part: Samples) -> Any:
        return seeded(derive(*self.key, "globals", part.ids[0] if len(part.ids) else 0) % 2**63)


def wanted_labels(mode: str, samples: Samples, victim: Victim, seed: int) -> Tensor:
    """Labels to reach, (n,): `random` and `next` among the others, `least` likely by the scores."""
    k, y = victim.predictor.classes, samples.y
    if mode == "next":
        return (y + 1) % k
    if mode == "random":
        rng = SampleRng.keyed(seed, "wanted", ids=samples.ids, restart=0, device=y.device)
        return (y + 1 + rng.integers(k - 1)) % k
    source, size = victim.source("exact", 1), victim.predictor.chunk
    everyone = torch.arange(len(y), device=y.device)
    rows = [everyone[i : i + size] for i in range(0, len(y), size)]
    with torch.no_grad():
        scores = torch.cat([_clean_scores(source, samples.at(r), seed) for r in rows])
    return scores.scatter(1, y[:, None], torch.inf).argmin(dim=1)


def _clean_scores(source: Source, samples: Samples, seed: int) -> Tensor:
    rng = SampleRng.keyed(seed, "clean", ids=samples.ids, restart=0, device=samples.x.device)
    return source.scores(samples.x, rng)


def out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "not enough memory" in str(error) or "can't allocate memory" in str(error)
    )
