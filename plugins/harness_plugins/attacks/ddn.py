"""Decoupled direction and norm (Rony et al., 2019, arXiv:1811.09600, algorithm 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from harness.api import LOSSES, Best, Rng, Target, Threat

LAST = 0.01  # the length of a step is annealed from 1 to this


@dataclass(frozen=True)
class DDN:
    """Steps up the loss, each brought back onto a sphere around x, which shrinks while the image
    fools and grows while it does not.

    Every sample that is correct at first costs all passes. A gradient that is 0 leaves the
    direction as it is.

    steps:     forward and backward passes, the clean image's among them
    gamma:     share by which the radius changes in a step (γ)
    init_norm: the first radius (ε₀)
    levels:    images are rounded to so many grey levels, 256 in the paper; none: they are not
    loss:      what is climbed: cross-entropy, or the margin max_{j≠y} z_j − z_y
    """

    steps: Annotated[int, Ge(1)] = 100
    gamma: Annotated[float, Gt(0), Lt(1)] = 0.05
    init_norm: Annotated[float, Gt(0)] = 1.0
    levels: Annotated[int, Ge(2)] | None = None
    loss: Literal["ce", "margin"] = "ce"

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        best, loss, size = Best(x), LOSSES[self.loss], threat.geometry.size
        rows = torch.arange(len(x), device=x.device)
        gradient, scores = target.gradient(loss, x, y)
        fooled = scores.argmax(dim=1) != y
        if fooled.any():  # at a distance of 0: nothing to look for
            rows = (~fooled).nonzero()[:, 0]
            target, x, y, gradient = target.at(rows), x[rows], y[rows], gradient[rows]
            fooled = fooled[rows]
        x_adv = x
        radius = torch.full((len(x),), self.init_norm, dtype=x.dtype, device=x.device)
        farthest = size(torch.maximum(x - threat.low, threat.high - x))
        for turn in range(1, self.steps):
            if not len(rows):
                break
            narrower, wider = radius * (1 - self.gamma), radius * (1 + self.gamma)
            radius = torch.where(fooled, narrower, wider).minimum(farthest)
            gradient.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            direction = threat.geometry.steepest(gradient)
            delta = (x_adv - x).add_(direction, alpha=self._length(turn - 1))
            delta.mul_(_factor(radius, size(delta)))
            x_adv = self._rounded(delta.add_(x).clamp_(threat.low, threat.high), threat)
            gradient, scores = target.gradient(loss, x_adv, y)
            fooled = scores.argmax(dim=1) != y
            best.note(x_adv, size(x_adv - x), fooled, rows)
        return best.x_adv

    def _length(self, turn: int) -> float:
        """Of a step: cosine annealing."""
        return LAST + (1 - LAST) * (1 + math.cos(math.pi * turn / self.steps)) / 2

    def _rounded(self, x_adv: Tensor, threat: Threat) -> Tensor:
        if self.levels is None:
            return x_adv
        width = (threat.high - threat.low) / (self.levels - 1)
        on_grid = (x_adv - threat.low).div_(width).round_().mul_(width).add_(threat.low)
        return on_grid.clamp_(threat.low, threat.high)


def _factor(radius: Tensor, length: Tensor) -> Tensor:
    """What brings vectors of that length to the radius; 0 for those of length 0."""
    return torch.where(length > 0, radius / length, 0.0).view(-1, 1, 1, 1)
