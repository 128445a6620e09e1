"""The elastic-net attack (Chen et al., 2018, arXiv:1709.04114), algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
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

BETA = {"L1": 0.05, "L2": 0.01}


@dataclass(frozen=True)
class EAD:
    """Minimise ‖r‖² + β‖r‖₁ + c · max(0, κ − margin) by FISTA, for L1 and L2.

    A search for c for each sample; each of its rounds begins at the clean image. A step costs two
    forward passes and one backward pass: the gradient is taken at the extrapolated image, and the
    shrunken one is tested. That test is left out where the sample has a closer adversarial image
    and this round is known to find one. The extrapolated image is clipped into the box, unlike in
    the paper: nothing outside it is asked of a model.

    steps:        of FISTA in a round, with step sizes lr · √(1 − k/steps)
    search_steps: rounds, each with its own c
    lr:           the first step's size
    c:            the first round's; tenfold until one succeeds
    beta:         β, and the threshold below which a step leaves a pixel as it was; where it is
                  none, 0.05 (the thesis's) for L1 and 0.01 for L2
    rule:         which adversarial image is the best: that of the smallest ‖r‖² + β‖r‖₁ (EN), of
                  the smallest ‖r‖₁ (L1), or the closest in the norm of the threat (norm)
    confidence:   κ: another class must be ahead by so much, in scores, to count
    abort_early:  end a round where a tenth of its steps has not lowered the objective by 0.01 %
    """

    steps: Annotated[int, Ge(1)] = 100
    search_steps: Annotated[int, Ge(1)] = 9
    lr: Annotated[float, Gt(0)] = 0.05
    c: Annotated[float, Gt(0)] = 0.01
    beta: Annotated[float, Ge(0)] | None = None
    rule: Literal["EN", "L1", "norm"] = "norm"
    confidence: Annotated[float, Ge(0)] = 0.0
    abort_early: bool = True

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        beta = self.beta if self.beta is not None else BETA[threat.norm]
        schedule = Schedule(self.c, self.search_steps, self.steps, self.abort_early)
        loss = shortfall(self.confidence)
        gradient, scores = target.gradient(loss, x, y)
        shortage = loss(scores, y).to(x.dtype)
        rows = movable(finite(gradient), scores, y)
        best = Best(x)
        search = Search.begin(rows, shortage[rows], schedule)
        walk = _Walk.begin(x[rows], gradient[rows], shortage[rows])
        target, y = target.at(rows), y[rows]
        turn = 0
        while len(search):
            objective = walk.objective(search.c, beta)
            delta = walk.shrunken(search, self._rate(search.turn), beta)
            image = walk.extrapolate(delta, search, threat)
            size = self._size(image - walk.x, beta, threat)
            asked = ((size < best.distance[search.rows]) | ~search.found).nonzero()[:, 0]
            success = torch.zeros_like(search.found)
            if len(asked):
                scores = target.at(asked).scores(image[asked])
                success[asked] = fooled(scores, y[asked], self.confidence)
            best.note(image, size, success, search.rows)
            search.note(objective, success)
            turn += 1
            if turn % schedule.sync == 0:
                over = search.over(schedule)
                search.narrow(over)
                walk.restart(over, search.clean)
                stay = search.left.nonzero()[:, 0]
                if len(stay) < len(y):
                    search, walk = taken(search, stay), taken(walk, stay)
                    target, y = target.at(stay), y[stay]
            going = search.turn.nonzero()[:, 0]
            if len(going):
                gradient, scores = target.at(going).gradient(loss, walk.y[going], y[going])
                walk.gradient[going] = finite(gradient)
                walk.shortage[going] = loss(scores, y[going]).to(x.dtype)
        return best.x_adv

    def _rate(self, turn: Tensor) -> Tensor:
        """The size of the step after so many turns of a round, float64 (n,)."""
        return self.lr * (1 - turn.double() / self.steps).sqrt()

    def _size(self, delta: Tensor, beta: float, threat: Threat) -> Tensor:
        """By what the best image is chosen, (n,)."""
        if self.rule == "norm":
            return threat.geometry.size(delta)
        size = _l1(delta)
        return size if self.rule == "L1" else _square(delta) + beta * size


@dataclass
class _Walk:
    """Where n samples stand; images are (n, c, h, w).

    x:        the clean images
    first:    the gradient of the loss there
    at:       x⁽ᵏ⁾ of algorithm 1, the last image that was shrunken
    y:        y⁽ᵏ⁾, extrapolated, clipped into the box
    gradient: of the loss at y; shortage: that loss, (n,)
    """

    x: Tensor
    first: Tensor
    at: Tensor
    y: Tensor
    gradient: Tensor
    shortage: Tensor

    @classmethod
    def begin(cls, x: Tensor, gradient: Tensor, shortage: Tensor) -> _Walk:
        return cls(x, gradient.clone(), x, x, gradient, shortage.clone())

    def objective(self, c: Tensor, beta: float) -> Tensor:
        """‖r‖² + β‖r‖₁ + c · loss at y, (n,)."""
        delta = self.y - self.x
        return _square(delta) + beta * _l1(delta) + c * self.shortage

    def shrunken(self, search: Search, rate: Tensor, beta: float) -> Tensor:
        """The step from y, less β in every pixel's difference from the clean one."""
        delta = self.y - self.x
        move = self.gradient.mul_(as_rows(search.c, self.x)).add_(delta, alpha=2)
        delta.addcmul_(move, as_rows(-rate, self.x))
        delta -= delta.clamp(-beta, beta)
        return delta

    def extrapolate(self, delta: Tensor, search: Search, threat: Threat) -> Tensor:
        """Make it the image x⁽ᵏ⁺¹⁾, which is returned, and go k / (k + 3) of its way on."""
        k = search.turn.double()
        image = delta.add_(self.x).clamp_(threat.low, threat.high)
        share = as_rows(k / (k + 3), self.x)
        self.y = torch.addcmul(image, image - self.at, share).clamp_(threat.low, threat.high)
        self.at = image
        return image

    def restart(self, over: Tensor, clean: Tensor) -> None:
        """Put samples whose round is over back to their clean images."""
        back = as_rows(over, self.x) > 0
        self.at = torch.where(back, self.x, self.at)
        self.y = torch.where(back, self.x, self.y)
        self.gradient = torch.where(back, self.first, self.gradient)
        self.shortage = torch.where(over, clean, self.shortage)


def _square(delta: Tensor) -> Tensor:
    """‖r‖² of each row."""
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return length.square()


def _l1(delta: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), ord=1, dim=1)
    return length
