"""The tensor side of the contracts: what a defense or an attack is written against.

Images are float32 tensors (n, c, h, w) in [0, 1]; labels int64 (n,); scores float (n, k). Nothing
here is inherited from: a plugin is any class of the right shape.

A defense:  `build(info)` gives the untrained classifier and `fit(data, run)` the trained one; the
            harness keeps the trained one's state and loads it into `build(info)` later.
An attack:  a frozen dataclass whose fields are its hyper-parameters and whose call is the
            algorithm. Restarts, targets, EOT, batching, budgets, devices and time-outs belong to
            the harness: no attack implements them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from harness.best import Best
from harness.data import Info, TrainingSet
from harness.geometry import per_row
from harness.losses import LOSSES, Loss, cross_entropy, dlr, margin
from harness.predict import padded
from harness.rng import Rng, StreamRng
from harness.target import Active, Target
from harness.threat import Threat

__all__ = [
    "LOSSES",
    "Active",
    "Attack",
    "Best",
    "Info",
    "Loss",
    "Model",
    "PreparingAttack",
    "Rng",
    "Round",
    "Run",
    "StreamRng",
    "Target",
    "Threat",
    "TrainingSet",
    "cross_entropy",
    "dlr",
    "margin",
    "padded",
    "per_row",
]


class Model(Protocol):
    """A defense as a recipe."""

    def build(self, info: Info) -> nn.Module:
        """The classifier with weights of no meaning: images in [0, 1] to scores (n, k).

        Normalisation lives inside. It may offer `surrogate()` (a differentiable module) and
        `part(name)`, and says so in its spec.
        """
        ...

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        """The trained classifier, of the class and the shapes that `build` gives."""
        ...


class Attack(Protocol):
    """A fixed-budget or a minimum-norm attack."""

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        """Adversarial images of x's shape, for the labels y that x has.

        `threat.eps` is the budget, infinite for a minimum-norm attack, which returns the closest
        adversarial image that it found, or x itself. What is returned is judged by the harness.
        """
        ...


@dataclass(frozen=True)
class Round:
    """One round of a preparing attack, judged at every eps on the evaluated samples.

    attack:     what makes the adversarial images, at every eps
    substitute: the module they are made on; None: on the target itself
    info:       numbers worth keeping, by name (accuracy of the substitute, size of its set, …)
    """

    attack: Attack
    substitute: nn.Module | None = None
    info: Mapping[str, float] = field(default_factory=dict)


class PreparingAttack(Protocol):
    """An attack that spends queries before it has seen the samples it is judged on."""

    def prepare(self, target: Target, seeds: Tensor, rng: Rng) -> Iterator[Round]:
        """Yield rounds; the last is the row, all of them the trajectory.

        `target` takes any number of images and counts them; `seeds` are images of the test set
        that are not evaluated, (m, c, h, w), without labels. Options marked as references have
        been resolved in the attack's own fields.
        """
        ...


@dataclass(frozen=True)
class Run:
    """What the harness hands to a training.

    seed:     for generators of one's own; torch's, numpy's and random's globals are seeded too
    device:   where to train
    progress: `progress(done, total)`, as often as one likes
    """

    seed: int
    device: torch.device
    progress: Callable[[int, int], None] = lambda _done, _total: None
    _store: Callable[[Mapping[str, Tensor] | None], Mapping[str, Tensor] | None] = lambda _s: None
    _tell: Callable[[str], None] = lambda _text: None

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Keep a checkpoint of the training, replacing the last; tensors only."""
        self._store(state)

    def load(self) -> Mapping[str, Tensor] | None:
        """The last checkpoint of this very training, if one was kept."""
        return self._store(None)

    def note(self, text: str) -> None:
        """One line for the fit's record and for whoever runs it; of what a checkpoint spares a
        training that goes on, it has to be said again."""
        self._tell(" ".join(text.split()))

    def rng(self, *key: Any) -> Rng:
        """A stream of random numbers of one's own, fixed by the seed and the key."""
        return StreamRng.keyed(self.seed, *key)

    def generator(self) -> np.random.Generator:
        """A numpy generator fixed by the seed (for shuffles)."""
        return np.random.Generator(np.random.Philox(self.seed))
