"""Carlini and Wagner's L2 attack (2017, arXiv:1608.04644, section V.A and VI.A)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from harness.api import Best, Rng, Target, Threat
from harness_plugins.attacks.penalty import (
    Schedule,
    Search,
    as_rows,
    finite,
    fooled,
    movable,
    shortfall,
    taken,
)

MOMENTUM, MEMORY, TINY = 0.9, 0.999, 1e-8  # Adam's β₁, β₂ and ε


@dataclass(frozen=True)
class CW:
    """Minimise ‖r‖² + c · max(0, κ − margin) by Adam over w, the image being tanh w, for L2.

    A search for c for each sample; each of its rounds begins at the clean image. Passes are at
    most 1 + search_steps · steps, forward and backward: the clean image's are made once for all
    rounds. Here, unlike in the authors' code, abort_early judges each sample by itself, by the
    smallest objective so far, and the clean images' pixels are kept exactly (see `_Descent`).

    steps:        of Adam in a round
    search_steps: rounds, each with its own c
    lr:           Adam's learning rate
    lr_end:       the last step's share of it, linearly; 1 in the authors' code
    c:            the first round's; tenfold until one succeeds
    confidence:   κ: another class must be ahead by so much, in scores, to count
    abort_early:  end a round where a tenth of its steps has not lowered the objective by 0.01 %
    shrink:       pixels 0 and 1 stand at ∓(1 − shrink) on the tanh's scale, where they can move.
                  The authors have 1e-6, with which such a pixel hardly moves in 100 steps
    """

    steps: Annotated[int, Ge(1)] = 100
    search_steps: Annotated[int, Ge(1)] = 9
    lr: Annotated[float, Gt(0)] = 0.05
    lr_end: Annotated[float, Gt(0), Le(1)] = 0.5
    c: Annotated[float, Gt(0)] = 0.01
    confidence: Annotated[float, Ge(0)] = 0.0
    abort_early: bool = True
    shrink: Annotated[float, Ge(1e-7), Lt(1)] = 0.1

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        schedule = Schedule(self.c, self.search_steps, self.steps, self.abort_early)
        space = _Space.of(threat, self.shrink)
        loss = shortfall(self.confidence)
        gradient, scores = target.gradient(loss, x, y)
        rows = movable(finite(gradient), scores, y)
        best = Best(x)
        search = Search.begin(rows, loss(scores, y)[rows].to(x.dtype), schedule)
        descent = _Descent.begin(x[rows], gradient[rows], space)
        target, y = target.at(rows), y[rows]
        turn = 0
        while len(search):
            descent.step(search, self._rate(search.turn), space)
            image, distance = descent.image(space)
            gradient, scores = target.gradient(loss, image, y)
            descent.gradient = finite(gradient)
            success = fooled(scores, y, self.confidence)
            best.note(image, distance, success, search.rows)
            objective = distance.square() + search.c * loss(scores, y).to(x.dtype)
            search.note(objective, success)
            turn += 1
            if turn % schedule.sync == 0:
                over = search.over(schedule)
                search.narrow(over)
                descent.restart(over)
                stay = search.left.nonzero()[:, 0]
                if len(stay) < len(y):
                    search, descent = taken(search, stay), taken(descent, stay)
                    target, y = target.at(stay), y[stay]
        return best.x_adv

    def _rate(self, turn: Tensor) -> Tensor:
        """The learning rate of the step after so many turns of a round, float64 (n,)."""
        return self.lr * (1 - (1 - self.lr_end) * turn.double() / max(self.steps - 1, 1))


@dataclass(frozen=True)
class _Space:
    """w stands for the image x + scale · (tanh w − tanh w₀), where w₀ stands for x; |w| ≤ limit."""

    low: float
    high: float
    scale: float
    limit: float

    @classmethod
    def of(cls, threat: Threat, shrink: float) -> _Space:
        half = (threat.high - threat.low) / 2
        return cls(threat.low, threat.high, half / (1 - shrink), math.atanh(1 - shrink))

    def of_image(self, x: Tensor) -> Tensor:
        """w₀. By logarithms: torch's atanh has not the same bits for a sample in every batch."""
        t = (x.double() - (self.low + self.high) / 2) / self.scale
        w = ((1 + t) / (1 - t)).log() / 2
        return w.to(x.dtype).clamp_(-self.limit, self.limit)


@dataclass
class _Descent:
    """Where n samples stand in w; all tensors are (n, c, h, w).

    A pixel that has not moved in w is the clean one bit for bit, which it would not be after a
    way there and back through the tanh.

    x, start:    the clean images, and w₀; origin: tanh w₀
    first:       the gradient of the loss at the clean images
    w, t, delta: where they are, tanh w, and r
    gradient:    of the loss, there
    m, v:        Adam's moments
    """

    x: Tensor
    start: Tensor
    origin: Tensor
    first: Tensor
    w: Tensor
    t: Tensor
    delta: Tensor
    gradient: Tensor
    m: Tensor
    v: Tensor

    @classmethod
    def begin(cls, x: Tensor, gradient: Tensor, space: _Space) -> _Descent:
        start, first, none = space.of_image(x), gradient.clone(), torch.zeros_like(x)
        w, t = start.clone(), start.tanh()
        return cls(x, start, t, first, w, t, none, gradient, none.clone(), none.clone())

    def step(self, search: Search, rate: Tensor, space: _Space) -> None:
        """Adam's next: in place throughout, since this is what an iteration adds to its passes."""
        count = (search.turn + 1).double()
        m_share, v_share = 1 - MOMENTUM**count, (1 - MEMORY**count).sqrt()
        gradient = self.gradient.mul_(as_rows(search.c, self.x)).add_(self.delta, alpha=2)
        gradient.mul_(self.t.square().neg_().add_(1).mul_(space.scale))
        self.m.lerp_(gradient, 1 - MOMENTUM)
        self.v.mul_(MEMORY).addcmul_(gradient, gradient, value=1 - MEMORY)
        length = self.v.sqrt().add_(as_rows(TINY * v_share, self.x))
        self.w.addcdiv_(self.m * as_rows(-rate * v_share / m_share, self.x), length)
        self.w.clamp_(-space.limit, space.limit)

    def image(self, space: _Space) -> tuple[Tensor, Tensor]:
        """The images, and their distances (n,)."""
        self.t = self.w.tanh()
        image = (self.t - self.origin).mul_(space.scale).add_(self.x)
        image.clamp_(space.low, space.high)
        self.delta = image - self.x
        return image, torch.linalg.vector_norm(self.delta.flatten(1), dim=1)

    def restart(self, over: Tensor) -> None:
        """Put samples whose round is over back to their clean images."""
        back = as_rows(over, self.x) > 0
        self.w = torch.where(back, self.start, self.w)
        self.t = torch.where(back, self.origin, self.t)
        self.gradient = torch.where(back, self.first, self.gradient)
        self.delta, self.m, self.v = (
            tensor.masked_fill(back, 0) for tensor in (self.delta, self.m, self.v)
        )
