"""What attacks share that minimise size(r) + c · loss(x + r): the search for each sample's own c.

The smaller c is, the smaller the perturbation r that a minimisation ends with, until it no longer
fools. So c is raised tenfold until a round of the minimisation has found an adversarial image, and
bisected from then on, as in the code of Carlini and Wagner (2017, arXiv:1608.04644).

Every sample searches by itself: where its round ends it begins its next at once, whatever rounds
the others are in, and where its rounds are over it leaves the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.api import Loss, margin, per_row

HELD = 0.9999  # a round goes on while each tenth of it brings its objective below this share

S = TypeVar("S", bound=Any)


@dataclass(frozen=True)
class Schedule:
    """How many rounds a sample has, of how many turns, and from which c.

    abort_early: a round ends where a tenth of its turns has not lowered its objective
    """

    c: float
    rounds: int
    turns: int
    abort_early: bool

    @property
    def tenth(self) -> int:
        return math.ceil(self.turns / 10)

    @property
    def sync(self) -> int:
        """Rounds end at multiples of so many turns: a device is waited for then, and not before."""
        return math.gcd(self.turns, self.tenth)


@dataclass
class Search:
    """Where n samples are in their searches; all tensors are (n,).

    rows:  which of the batch these samples are
    clean: the loss of their clean images
    c:     the weight of this round, in (low, high)
    turn:  turns since this round began
    left:  rounds that are not over, this one included
    found: this round has found an adversarial image
    least: the smallest objective of this round; mark: what it was a tenth of a round ago
    """

    rows: Tensor
    clean: Tensor
    c: Tensor
    low: Tensor
    high: Tensor
    turn: Tensor
    left: Tensor
    found: Tensor
    least: Tensor
    mark: Tensor

    @classmethod
    def begin(cls, rows: Tensor, clean: Tensor, schedule: Schedule) -> Search:
        """The first rounds of those rows of the batch; their clean images have r = 0."""
        c, none = torch.full_like(clean, schedule.c), torch.zeros_like(rows)
        bounds = torch.zeros_like(clean), torch.full_like(clean, torch.inf)
        objective = c * clean
        found = torch.zeros_like(rows, dtype=torch.bool)
        left = none + schedule.rounds
        return cls(rows, clean, c, *bounds, none, left, found, objective, objective)

    def __len__(self) -> int:
        return len(self.rows)

    def note(self, objective: Tensor, found: Tensor) -> None:
        """A turn is made: what its image came to, and whether it is adversarial."""
        self.turn = self.turn + 1
        self.least = torch.minimum(self.least, objective)
        self.found = self.found | found

    def over(self, schedule: Schedule) -> Tensor:
        """Whose rounds end here, bool (n,). Near the boundary the objective swings, so that its
        smallest value, not its last, is what must have fallen."""
        over = self.turn >= schedule.turns
        if schedule.abort_early:
            looked = self.turn % schedule.tenth == 0
            over = over | (looked & (self.least > HELD * self.mark))
            self.mark = torch.where(looked, self.least, self.mark)
        return over

    def narrow(self, over: Tensor) -> None:
        """Where a round is over, begin the next with another c."""
        self.high = torch.where(over & self.found, self.c, self.high)
        self.low = torch.where(over & ~self.found, self.c, self.low)
        further = torch.where(self.high.isinf(), self.c * 10, (self.low + self.high) / 2)
        self.c = torch.where(over, further, self.c)
        self.left = self.left - over.long()
        self.turn = self.turn.masked_fill(over, 0)
        self.found = self.found & ~over
        self.least = torch.where(over, self.c * self.clean, self.least)
        self.mark = torch.where(over, self.least, self.mark)


def taken(state: S, rows: Tensor) -> S:
    """A dataclass of tensors with those rows alone."""
    return replace(state, **{f.name: getattr(state, f.name)[rows] for f in fields(state)})


def shortfall(confidence: float) -> Loss:
    """max(0, κ − margin): f₆ of Carlini and Wagner (2017), for any class but y."""

    def loss(scores: Tensor, y: Tensor) -> Tensor:
        return (confidence - margin(scores, y)).clamp_min(0)

    return loss


def fooled(scores: Tensor, y: Tensor, confidence: float) -> Tensor:
    """Where another class is ahead, by at least κ, bool (n,)."""
    return (scores.argmax(dim=1) != y) & (margin(scores, y) >= confidence)


def finite(gradient: Tensor) -> Tensor:
    """The gradient with 0 for what is not finite, in place."""
    return gradient.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def as_rows(values: Tensor, like: Tensor) -> Tensor:
    """(n,) as (n, 1, …), of the type of `like`."""
    return per_row(values.to(like.dtype), like)


def movable(gradient: Tensor, scores: Tensor, y: Tensor) -> Tensor:
    """Samples that a descent from their clean images can help, int64 (m,): those classified
    correctly whose gradient there is not 0."""
    return ((scores.argmax(dim=1) == y) & (gradient != 0).flatten(1).any(dim=1)).nonzero()[:, 0]
