"""SLIDE, sparse L1 descent: PGD with L1 steps that many entries share (Tramèr and Boneh, 2019,
arXiv:1904.13000).

The steepest L1 step moves one entry alone: of the same length, and so as far from x, one that
moves several of the steepest reaches a network's boundary in far fewer passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from annotated_types import Ge, Gt, Le
from torch import Tensor

from harness.api import LOSSES, Active, Rng, Target, Threat
from harness_plugins.attacks.pgd import REACH, LossName, climb


@dataclass(frozen=True)
class SLIDE:
    """PGD whose step is shared equally by the entries with the greatest gradients, by its signs.

    Entries that the box stops are not among them. From a random point of the ball, as PGD, and
    with its exact projection.

    steps:    forward and backward passes
    rel_step: length of a step as a share of eps; 2.5 / steps where it is none
    share:    of all entries, those that move in a step; one at least. The thesis's MNIST value
    loss:     what is climbed: cross-entropy, max_{j≠y} z_j − z_y (margin), its ratio (dlr), −z_y
    """

    steps: Annotated[int, Ge(1)] = 100
    rel_step: Annotated[float, Gt(0)] | None = None
    share: Annotated[float, Gt(0), Le(1)] = 0.01
    loss: LossName = "ce"

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        size = threat.eps * (self.rel_step or REACH / self.steps)
        entries = math.ceil(self.share * x.shape[1:].numel())
        move = partial(step, threat=threat, size=size, entries=entries)
        start = threat.random_start(x, rng)
        return climb(Active(target, x, y, start), LOSSES[self.loss], self.steps, move)


def step(
    x_adv: Tensor, gradient: Tensor, x: Tensor, threat: Threat, size: float, entries: int
) -> Tensor:
    """x_adv moved by `size` in L1, by the `entries` steepest and any as steep, and projected."""
    gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    gradient.masked_fill_((x_adv <= threat.low) & (gradient < 0), 0.0)
    gradient.masked_fill_((x_adv >= threat.high) & (gradient > 0), 0.0)
    steepness = gradient.flatten(1).abs()
    least = steepness.topk(entries, dim=1).values[:, -1:]
    moves = (steepness >= least) & (steepness > 0)
    length = size / moves.sum(dim=1, keepdim=True).clamp_min(1)
    direction = gradient.sign().mul_((moves * length).view_as(gradient))
    return threat.project(x_adv + direction, x)
