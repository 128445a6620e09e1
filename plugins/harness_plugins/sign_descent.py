"""Stochastic coordinate descent of networks of sign units under the 01 loss (Xue, Xie and Roshan,
2020, and the supplement of 'On the transferability of adversarial examples between convex and 01
loss models'): SCD01 with one unit, MLP01 with more.

All networks here share the images and the labels, and differ by their seeds: one batched
computation, with v in front. Projections of all images are kept, and follow a move of one
coordinate without a matrix product. What an iteration draws is fixed by seed and iteration, so
networks are the same whatever they are trained beside, and wherever a training was interrupted.

The weights of the output are kept to multiples of 2⁻¹⁶: sums of them are exact in float32, in any
order, so that the output's ties and thresholds are the same here and in every later forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from harness_plugins.sign_cuts import (
    DOWN,
    INF,
    UNIT,
    UP,
    Cuts,
    Gains,
    Window,
    best_cuts,
    thresholds,
)
from harness_plugins.sign_moves import Candidates, best_cut, best_moves
from harness_plugins.sign_pixels import Pixels

Objective = Literal["unbalanced", "balanced", "sum"]
GRID = 2.0**16
START = 0  # the draw before the first iteration's


@dataclass(frozen=True)
class Rule:
    """How a network is trained. Symbols of METHODS: F, nrows, η₁, η₂, I.

    units:    of the hidden layer; 0: a linear classifier
    features: coordinates of a unit that are tried in an iteration, each both ways
    share:    of each class's images that an iteration looks at
    step:     of a coordinate of a unit; output_step: of the output's
    window:   ranks on each side of the current cut that candidates may cut at; None: all
    init:     of the units' thresholds: at the median projection and left there where no cut is
              better, or as in the published code, the mean's negative, and 0 there
    low:      what a unit that is off puts out
    """

    units: int
    features: int
    share: float
    step: float
    output_step: float
    window: int | None
    init: Literal["median", "code"]
    low: Literal[0, -1]


@dataclass(eq=False)
class Nets:
    """The state of v networks of h units on n images of d pixels.

    hidden (v, h, d), level (v, h): a unit is on where its projection (v, h, n) exceeds its level;
    on (v, h, n): what it puts out; output (v, h), cut (v,): a network says 1 where total (v, n),
    the sum of output · on, exceeds the cut.
    """

    hidden: Tensor
    level: Tensor
    projection: Tensor
    on: Tensor
    output: Tensor
    cut: Tensor
    total: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(eq=False)
class Best:
    """The best networks seen, and what they were worth: `score` int64 (v,)."""

    score: Tensor
    hidden: Tensor
    level: Tensor
    output: Tensor
    cut: Tensor

    @classmethod
    def of(cls, nets: Nets) -> Best:
        none = torch.full_like(nets.cut, -1, dtype=torch.int64)
        return cls(none, *(getattr(nets, name).clone() for name in WEIGHTS))

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def note(self, score: Tensor, nets: Nets) -> None:
        """Keep the networks that are strictly better."""
        better = (score > self.score).nonzero()[:, 0]
        if len(better):
            self.score[better] = score[better]
            for name in WEIGHTS:
                getattr(self, name)[better] = getattr(nets, name)[better]


WEIGHTS = ("hidden", "level", "output", "cut")


@dataclass(frozen=True, eq=False)
class Draws:
    """What an iteration draws for each network: batch keys (v, n), features (v, f), unit (v,), and
    numbers that break ties among the candidates of a unit (v, 2f) and of the output (v, 2h)."""

    keys: Tensor
    features: Tensor
    unit: Tensor
    ties: Tensor
    output_ties: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows an iteration looks at, (v, n), and what one of each class is worth, (2,) ints."""

    taken: Tensor
    worth: Tensor
    rows: int


@dataclass(frozen=True, eq=False)
class Descent:
    """Networks in training on images x, labels y (n,) bool."""

    x: Pixels
    y: Tensor
    rule: Rule
    seeds: tuple[int, ...]

    @cached_property
    def wants(self) -> Tensor:
        """The group of each row where it is the output that is cut, int8 (n,)."""
        return torch.where(self.y, UP, DOWN).to(torch.int8)

    @cached_property
    def classes(self) -> tuple[Tensor, Tensor]:
        """The rows of class 0, and those of class 1."""
        return (~self.y).nonzero()[:, 0], self.y.nonzero()[:, 0]

    # --- an iteration -------------------------------------------------------------------------

    def start(self, objective: Objective) -> Nets:
        """The networks before the first iteration, their thresholds set on a first batch."""
        v, (d, n), h = len(self.seeds), self.x.shape, max(self.rule.units, 1)
        rngs = [_generator(seed, START) for seed in self.seeds]
        hidden = _unit_rows(self._stack([g.standard_normal((h, d), np.float32) for g in rngs]))
        projection = torch.stack([self.x.project(w) for w in hidden])
        output = torch.ones(v, 1, device=self.y.device)
        if self.rule.units:
            drawn = self._stack([g.standard_normal(h, np.float32) for g in rngs])
            output = on_grid(_unit_rows(drawn))
        batch = self._batch(self._stack([g.random(n) for g in rngs]), objective)
        level = self._first_levels(projection, batch)
        nets = Nets(
            hidden,
            level,
            projection,
            torch.where(projection > level[..., None], 1.0, float(self.rule.low)),
            output,
            torch.full((v,), 0.5, device=self.y.device),
            torch.empty(0),
        )
        nets.total = _total(nets.output, nets.on)
        if self.rule.units:
            self._cut_output(nets, batch)
            orders = self._stack([g.permutation(h) for g in rngs])
            self._greedy(nets, batch, orders)
        return nets

    def iterate(self, nets: Nets, iteration: int, objective: Objective) -> Tensor:
        """One iteration, in place; the networks' scores on all images under the objective."""
        draws = self._draw(iteration)
        batch = self._batch(draws.keys, objective)
        if self.rule.units:
            self._move_output(nets, batch, draws.output_ties)
        self._move_unit(nets, batch, draws)
        return self.score(nets.total > nets.cut[:, None], objective)

    def score(self, says: Tensor, objective: Objective) -> Tensor:
        """What predictions (v, n) are worth on all images, int64 (v,)."""
        worth = _worth(objective, int((~self.y).sum()), int(self.y.sum()))
        right = says == self.y
        ones = (right & self.y).sum(1)
        return worth[0] * (right.sum(1) - ones) + worth[1] * ones

    # --- the output ---------------------------------------------------------------------------

    def _cut_output(self, nets: Nets, batch: Batch) -> None:
        """Set the output's threshold where it serves the batch best."""
        cuts = self._full(nets.total, *self._output_groups(batch), batch)
        nets.cut = thresholds(nets.total, batch.taken, cuts.below)

    def _output_groups(self, batch: Batch) -> tuple[Tensor, Gains]:
        v = len(self.seeds)
        gains = Gains(batch.worth[1].expand(v), batch.worth[0].expand(v))
        return self.wants * batch.taken, gains

    def _move_output(self, nets: Nets, batch: Batch, ties: Tensor) -> None:
        """Move one weight of the output, if that is better on the batch."""
        v, h = nets.output.shape
        group, gains = self._output_groups(batch)
        now = self._full(nets.total, group, gains, batch)
        step = float(on_grid(torch.tensor(self.rule.output_step)))
        window = self._window(now, batch)
        base = self._outside(nets.total, batch)
        each = torch.arange(v, device=base.device)
        all_units = torch.arange(h, device=base.device).expand(v, h)
        candidates = Candidates(base, nets.on, all_units, step, group, gains)
        best = best_moves(candidates, ties, window)
        output = nets.output.clone()
        output[each, best // 2] += torch.where(best % 2 == 0, step, -step)
        output = on_grid(_unit_rows(output))
        total = _total(output, nets.on)
        cuts = self._full(total, group, gains, batch, window)
        better = cuts.value > now.value
        nets.output = torch.where(better[:, None], output, nets.output)
        nets.total = torch.where(better[:, None], total, nets.total)
        below = torch.where(better, cuts.below, now.below)
        nets.cut = thresholds(nets.total, batch.taken, below)

    # --- a unit -------------------------------------------------------------------------------

    def _unit_groups(self, nets: Nets, batch: Batch, unit: Tensor) -> tuple[Tensor, Gains]:
        """The rows whose output the unit decides, all others fixed."""
        each = torch.arange(len(unit), device=unit.device)
        weight = nets.output[each, unit][:, None]
        base = nets.total - weight * nets.on[each, unit]
        off = base + weight * self.rule.low > nets.cut[:, None]
        on = base + weight > nets.cut[:, None]
        decided = batch.taken & (on != off)
        group = decided * (DOWN - (on == self.y).to(torch.int8))
        positive = nets.output[each, unit] > 0
        zeros, ones = batch.worth
        return group, Gains(torch.where(positive, ones, zeros), torch.where(positive, zeros, ones))

    def _move_unit(self, nets: Nets, batch: Batch, draws: Draws) -> None:
        """Cut one unit anew, and move one of its coordinates if that is better on the batch."""
        unit, each = draws.unit, torch.arange(len(draws.unit), device=draws.unit.device)
        group, gains = self._unit_groups(nets, batch, unit)
        q = nets.projection[each, unit]
        now = self._full(q, group, gains, batch)
        window = self._window(now, batch)
        base = self._outside(q, batch)
        candidates = Candidates(base, self.x, draws.features, self.rule.step, group, gains)
        best = best_moves(candidates, draws.ties, window)

        feature = draws.features[each, best // 2]
        step = torch.where(best % 2 == 0, self.rule.step, -self.rule.step)
        hidden = nets.hidden[each, unit]
        hidden[each, feature] += step
        length = torch.linalg.vector_norm(hidden, dim=1, keepdim=True)
        moved = (q + step[:, None] * self.x[feature]) / length
        cuts = self._full(moved, group, gains, batch, window)
        better = cuts.value > now.value
        q = torch.where(better[:, None], moved, q)
        rows = better.nonzero()[:, 0]
        nets.hidden[rows, unit[rows]] = (hidden / length)[rows]
        nets.projection[rows, unit[rows]] = moved[rows]
        below = torch.where(better, cuts.below, now.below)
        self._set_level(nets, unit, thresholds(q, batch.taken, below))

    def _set_level(self, nets: Nets, unit: Tensor, level: Tensor) -> None:
        each = torch.arange(len(unit), device=unit.device)
        nets.level[each, unit] = level
        on = torch.where(nets.projection[each, unit] > level[:, None], 1.0, float(self.rule.low))
        weight = nets.output[each, unit][:, None]
        nets.total = nets.total + weight * (on - nets.on[each, unit])
        nets.on[each, unit] = on

    # --- thresholds ---------------------------------------------------------------------------

    def _full(
        self, q: Tensor, group: Tensor, gains: Gains, batch: Batch, window: Window | None = None
    ) -> Cuts:
        """The best cut of each network's q (v, n), over the rows taken."""
        if q.device.type == "cpu" and self.rule.window is None:
            return _each_cut(q, group, gains)
        cuts = best_cuts(self._outside(q, batch)[:, None], group, gains, window)
        return Cuts(cuts.value[:, 0], cuts.rank[:, 0], cuts.below[:, 0])

    def _window(self, now: Cuts, batch: Batch) -> Window | None:
        width = self.rule.window
        return None if width is None else Window(now.rank, width, batch.rows)

    def _first_levels(self, projection: Tensor, batch: Batch) -> Tensor:
        inside = torch.where(batch.taken[:, None], projection, torch.nan)
        if self.rule.init == "code":
            return -inside.nanmean(-1)
        middle = inside.nanmedian(-1).values
        units = zip(projection.unbind(1), middle.unbind(1), strict=True)
        return torch.stack([thresholds(q, batch.taken, m) for q, m in units], 1)

    def _greedy(self, nets: Nets, batch: Batch, orders: Tensor) -> None:
        """Cut each unit once, in random order, where that is better on the batch."""
        for unit in orders.T:
            each = torch.arange(len(unit), device=unit.device)
            group, gains = self._unit_groups(nets, batch, unit)
            q, level = nets.projection[each, unit], nets.level[each, unit]
            cuts = self._full(q, group, gains, batch)
            on = q > level[:, None]
            up, down = ((on & (group == g)).sum(1) for g in (UP, DOWN))
            better = cuts.value > gains.up * up - gains.down * down
            kept = level if self.rule.init == "median" else torch.zeros_like(level)
            new = thresholds(q, batch.taken, cuts.below)
            self._set_level(nets, unit, torch.where(better, new, kept))

    # --- draws --------------------------------------------------------------------------------

    def _draw(self, iteration: int) -> Draws:
        rngs = [_generator(seed, START + 1 + iteration) for seed in self.seeds]
        (d, n), h, f = self.x.shape, max(self.rule.units, 1), self.rule.features
        return Draws(
            keys=self._stack([g.random(n) for g in rngs]),
            features=self._stack([g.choice(d, f, replace=False) for g in rngs]),
            unit=self._stack([g.integers(h) for g in rngs]),
            ties=self._stack([g.random(2 * f) for g in rngs]),
            output_ties=self._stack([g.random(2 * h) for g in rngs]),
        )

    def _batch(self, keys: Tensor, objective: Objective) -> Batch:
        """Of each class the share of its rows with the smallest keys, two at least."""
        taken = torch.zeros_like(keys, dtype=torch.bool)
        sizes = []
        for rows in self.classes:
            size = min(max(2, int(self.rule.share * len(rows))), len(rows))
            own = keys[:, rows]
            taken[:, rows] = own <= own.kthvalue(size, dim=1, keepdim=True).values
            sizes.append(size)
        return Batch(taken, _worth(objective, *sizes).to(self.y.device), sum(sizes))

    def _outside(self, q: Tensor, batch: Batch) -> Tensor:
        """q with the rows that are not looked at behind all others, if ranks matter."""
        return q if self.rule.window is None else torch.where(batch.taken, q, INF)

    def _stack(self, draws: list[Any]) -> Tensor:
        return torch.from_numpy(np.stack(draws)).to(self.y.device)


def _each_cut(q: Tensor, group: Tensor, gains: Gains) -> Cuts:
    """The networks' cuts one by one, over the rows that matter; without ranks."""
    found = []
    for v in range(len(q)):
        own = group[v].numpy()
        rows = own.nonzero()[0]
        found.append(best_cut(q[v].numpy()[rows], own[rows] == DOWN, gains.of(v)))
    values, below = zip(*found, strict=True)
    return Cuts(torch.tensor(values), torch.empty(0), torch.from_numpy(np.array(below)))


def _total(output: Tensor, on: Tensor) -> Tensor:
    """(v, n): exact, whatever the order of the sum."""
    total: Tensor = (output[:, None] @ on)[:, 0]
    return total


def on_grid(output: Tensor) -> Tensor:
    """Rounded to multiples of 2⁻¹⁶."""
    return (output * GRID).round() / GRID


def _unit_rows(rows: Tensor) -> Tensor:
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)


def _worth(objective: Objective, zeros: int, ones: int) -> Tensor:
    """What a correct row of class 0 and one of class 1 is worth, int64 (2,), in units of 2⁻⁴⁰."""
    plain = 1 / (zeros + ones)
    each = {
        "unbalanced": (plain, plain),
        "balanced": (0.5 / zeros, 0.5 / ones),
        "sum": (plain + 0.5 / zeros, plain + 0.5 / ones),
    }[objective]
    return torch.tensor([round(part * UNIT) for part in each])


def _generator(seed: int, draw: int) -> np.random.Generator:
    """Fixed by the network's seed and which of its draws it is."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, draw))))
