"""Box-constrained L-BFGS (Szegedy et al., 2014, arXiv:1312.6199, section 4.1).

The minimiser is a projected quasi-Newton method for a batch, each row by itself: an entry that
stands at a bound and is pushed against it is held, the others go along the L-BFGS direction made
of their own history (two-loop recursion: Nocedal and Wright, 2006, algorithm 7.4), and every trial
is projected into the box (Bertsekas, 1982, SIAM J. Control Optim. 20(2)).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from harness.api import Best, Rng, Target, Threat
from harness_plugins.attacks.penalty import Schedule, Search, as_rows, finite, movable, taken

# Of those rows, at those points: f and its gradient.
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

SLOPE = (
    1e-4  # of the decrease that the gradient promises, the share that a step must bring (Armijo)
)
SHORTEST = 2.0**-14  # a row whose step had to be shortened so far is at its minimum, in float32
CURVED = 1e-10  # sᵀy must exceed this share of ‖s‖‖y‖ for a pair to enter the history


def other_than(scores: Tensor, y: Tensor) -> Tensor:
    """−log(1 − p_y): cross-entropy to 'any other class', which in a targeted run, where the scores
    are those of the rest and of t, is the paper's cross-entropy to t."""
    others = scores.scatter(1, y[:, None], -torch.inf).logsumexp(dim=1)
    return scores.logsumexp(dim=1) - others


@dataclass(frozen=True)
class LBFGS:
    """Minimise ‖r‖² + c · loss(x + r) in the box, for the smallest c that fools, for L2.

    The paper minimises c|r| + loss; here c weighs the loss instead, and is found by bisection for
    each sample. The loss is −log(1 − p_y), the cross-entropy to 'any class but y'. Each round
    starts from the clean image. Every trial point costs a forward and a backward pass.

    steps:        trial points in a round, at most
    search_steps: rounds, each with its own c
    c:            the first round's; tenfold until one succeeds
    memory:       pairs of steps and gradient changes that the direction is made of
    tolerance:    a round ends where the projected gradient has no entry greater than this
    """

    steps: Annotated[int, Ge(1)] = 50
    search_steps: Annotated[int, Ge(1)] = 9
    c: Annotated[float, Gt(0)] = 0.01
    memory: Annotated[int, Ge(1)] = 10
    tolerance: Annotated[float, Ge(0)] = 1e-4

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        schedule = Schedule(self.c, self.search_steps, self.steps, abort_early=False)
        gradient, scores = target.gradient(other_than, x, y)
        best, rows = Best(x), movable(finite(gradient), scores, y)
        clean = other_than(scores, y)
        search = Search.begin(rows, clean[rows].to(x.dtype), schedule)
        minimise = Minimiser(threat.low, threat.high, self.steps, self.memory, self.tolerance)
        while len(search):
            rows = search.rows
            minimise(_Penalised(target.at(rows), x[rows], y[rows], search, best), x[rows])
            search.narrow(torch.ones_like(search.found))
            search = taken(search, search.left.nonzero()[:, 0])
        return best.x_adv


@dataclass(frozen=True)
class _Penalised:
    """‖r‖² + c · loss of one round. Whatever is asked is looked at: it may be adversarial."""

    target: Target
    x: Tensor
    y: Tensor
    search: Search
    best: Best

    def __call__(self, at: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        y, c = self.y[at], self.search.c[at]
        gradient, scores = self.target.at(at).gradient(other_than, image, y)
        delta = image - self.x[at]
        distance = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        success = scores.argmax(dim=1) != y
        self.best.note(image, distance, success, self.search.rows[at])
        self.search.found[at] |= success
        value = distance.square() + c * other_than(scores, y).to(c.dtype)
        return value, finite(gradient).mul_(as_rows(c, image)).add_(delta, alpha=2)


@dataclass(frozen=True)
class Minimiser:
    """Projected L-BFGS in the box [low, high].

    trials:    points at which the objective is asked, at most
    memory:    pairs in the history
    tolerance: of the projected gradient's greatest entry
    """

    low: float
    high: float
    trials: int = 100
    memory: int = 10
    tolerance: float = 1e-5

    def __call__(self, objective: Objective, start: Tensor) -> Tensor:
        """The minimisers reached from `start` (n, …), each row for itself."""
        result = start.clone()
        shape = (-1, *start.shape[1:])
        state = self._begin(objective, start)
        for turn in range(self.trials - 1):
            moving = self._moving(state)
            if not len(moving):
                break
            if len(moving) < len(state.rows):
                state = taken(state, moving)
            trial = torch.addcmul(state.x, state.direction, state.share[:, None])
            trial.clamp_(self.low, self.high)
            value, gradient = objective(state.rows, trial.view(shape))
            self._judge(state, trial, value, gradient.flatten(1), turn % self.memory)
            result[state.rows] = state.x.view(shape)
        return result

    def _begin(self, objective: Objective, start: Tensor) -> _Stand:
        rows = torch.arange(len(start), device=start.device)
        value, gradient = objective(rows, start)
        x, gradient = start.flatten(1).contiguous(), gradient.flatten(1)
        size = torch.linalg.vector_norm(gradient, dim=1)
        direction = -gradient / size.clamp_min(1)[:, None]
        history = x.new_zeros(len(x), self.memory, x.shape[1])
        share = torch.ones_like(value)
        return _Stand(rows, x, value, gradient, direction, share, history, history.clone())

    def _judge(
        self, state: _Stand, trial: Tensor, value: Tensor, gradient: Tensor, slot: int
    ) -> None:
        """Go to the trial points that bring enough; of the others' steps, try half as much."""
        step, turn = trial - state.x, gradient - state.gradient
        promised = _dot(state.gradient, step)
        good = (promised < 0) & (value <= state.value + SLOPE * promised)
        accepted = good[:, None]
        state.steps[:, slot] = step.masked_fill_(~accepted, 0)
        state.turns[:, slot] = turn.masked_fill_(~accepted, 0)
        state.x = torch.where(accepted, trial, state.x)
        state.value = torch.where(good, value, state.value)
        state.gradient = torch.where(accepted, gradient, state.gradient)
        state.direction = torch.where(accepted, self._direction(state, slot), state.direction)
        state.share = torch.where(good, 1.0, state.share / 2)

    def _direction(self, state: _Stand, newest: int) -> Tensor:
        """−H g over the entries that are free, H by the two-loop recursion over their parts of the
        history alone."""
        free = (~self._held(state)).to(state.x.dtype)
        q = state.gradient * free
        pairs = []
        scale = torch.ones_like(state.value)
        for age in range(self.memory):
            slot = (newest - age) % self.memory
            s, t = state.steps[:, slot] * free, state.turns[:, slot] * free
            st, tt = _dot(s, t), _dot(t, t)
            fit = st > CURVED * (_dot(s, s) * tt).sqrt()
            rho = torch.where(fit, 1 / st, 0.0)
            scale = torch.where(fit & (scale == 1), st / tt, scale)  # the newest pair's
            alpha = rho * _dot(s, q)
            q = q - alpha[:, None] * t
            pairs.append((s, t, rho, alpha))
        d = q * scale[:, None]
        for s, t, rho, alpha in reversed(pairs):
            d = d + (alpha - rho * _dot(t, d))[:, None] * s
        return d.mul_(free).neg_()

    def _held(self, state: _Stand) -> Tensor:
        """Entries that stand at a bound and are pushed against it."""
        x, gradient = state.x, state.gradient
        return ((x <= self.low) & (gradient > 0)) | ((x >= self.high) & (gradient < 0))

    def _moving(self, state: _Stand) -> Tensor:
        """Rows that are not at a minimum, int64 (m,)."""
        steep = state.gradient.masked_fill(self._held(state), 0).abs().amax(dim=1)
        return ((steep > self.tolerance) & (state.share > SHORTEST)).nonzero()[:, 0]


@dataclass
class _Stand:
    """Where n rows stand: value and gradient at x, the direction, and how much of it is tried.

    rows:         which of the batch these are
    steps, turns: s and y of the history, (n, memory, d); 0 where a trial was not accepted
    """

    rows: Tensor
    x: Tensor
    value: Tensor
    gradient: Tensor
    direction: Tensor
    share: Tensor
    steps: Tensor
    turns: Tensor


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=1)
