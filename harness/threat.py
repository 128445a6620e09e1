"""A threat model at one budget: the ball of a norm around each clean image, inside a box.

x are clean images (n, c, h, w) and lie in the box; x_adv are proposals of the same form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.errors import PluginError
from harness.geometry import GEOMETRIES, Geometry
from harness.outcome import ABSOLUTE_SLACK, RELATIVE_SLACK
from harness.plugin import CORRUPTION, NORMS
from harness.rng import Rng


@dataclass(frozen=True)
class Threat:
    """What an attacker may do to an image.

    norm: one of `NORMS`, or `corruption`, which the box alone limits
    eps:  the budget; infinite for a minimum-norm attack; for a corruption its severity σ
    """

    norm: str
    eps: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in (*NORMS, CORRUPTION):
            raise PluginError(f"norm {self.norm!r} is not one of {(*NORMS, CORRUPTION)}")
        if not self.eps >= 0:
            raise PluginError(f"eps {self.eps} is not 0 or more")

    @property
    def geometry(self) -> Geometry:
        if self.norm == CORRUPTION:
            raise PluginError("a corruption has no norm: it has neither distances nor directions")
        return GEOMETRIES[self.norm]

    @property
    def bounded(self) -> bool:
        """There is a ball. A minimum-norm attack and a corruption have the box alone."""
        return self.norm != CORRUPTION and math.isfinite(self.eps)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """x_adv brought into the ball of x, then clipped into the box.

        Clipping keeps it in the ball: x is in the box, so every entry is clipped toward x. Except
        for Linf that need not be the nearest point of ball and box together.
        """
        if not self.bounded:
            return x_adv.clamp(self.low, self.high)
        if self.norm == "Linf":  # both at once, in the fewest passes: PGD's inner loop
            lowest = (x - self.eps).clamp_min_(self.low)
            highest = (x + self.eps).clamp_max_(self.high)
            return torch.clamp(x_adv, lowest, highest)
        delta = x_adv - x
        nearest = self.geometry.project(delta, self.eps)
        moved = torch.where(nearest == delta, x_adv, _no_further(x, nearest))
        return moved.clamp_(self.low, self.high)

    def step(self, x_adv: Tensor, gradient: Tensor, x: Tensor, size: float) -> Tensor:
        """x_adv moved by `size` in the direction of steepest ascent, and projected.

        What the box would clip is left out of the gradient, lest L1 and L0 choose entries that
        cannot move and L2 spend length on them. Linf moves every entry by itself.
        """
        if self.norm != "Linf":
            gradient = gradient.masked_fill(self._blocked(x_adv, gradient), 0.0)
        direction = self.geometry.steepest(gradient)
        return self.project(torch.add(x_adv, direction, alpha=size), x)

    def random_start(self, x: Tensor, rng: Rng) -> Tensor:
        """A uniformly random point of the ball of x, clipped into the box."""
        if not self.bounded:
            raise PluginError(f"no ball to start in: {self.norm}, eps {self.eps}")
        start = _no_further(x, self.geometry.random(x, self.eps, rng))
        return start.clamp_(self.low, self.high)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Distances in this norm, float64 (n,)."""
        return self.geometry.size(x_adv.double() - x.double())

    def within(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Which images lie in the ball, by the rule of `harness.outcome.within`, bool (n,)."""
        if self.norm == CORRUPTION:
            return torch.ones(len(x), dtype=torch.bool, device=x.device)
        limit = self.eps * (1 + RELATIVE_SLACK) + ABSOLUTE_SLACK if self.eps else 0.0
        return self.distance(x_adv, x) <= limit

    def allows(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Which images keep to the rules, bool (n,): in the box, exactly, and in the ball.

        No entry that is not finite is in the box.
        """
        boxed = (x_adv >= self.low) & (x_adv <= self.high)
        return boxed.flatten(1).all(dim=1) & self.within(x_adv, x)

    def _blocked(self, x_adv: Tensor, gradient: Tensor) -> Tensor:
        """Where ascent would leave the box at once."""
        falling, rising = gradient < 0, gradient > 0
        return ((x_adv <= self.low) & falling) | ((x_adv >= self.high) & rising)


def _no_further(x: Tensor, delta: Tensor) -> Tensor:
    """x + delta, rounded toward x: no entry moves further than delta says, so no norm grows.

    Rounded to nearest, a thousand entries moved by a millionth each would leave their L1 ball.
    """
    moved = x + delta
    too_far = (moved - x).abs() > delta.abs()
    return torch.where(too_far, torch.nextafter(moved, x), moved)
