"""Which coordinate of a unit to move, and which way: every candidate is judged by its best cut.

A candidate is q = base ± step · column; dividing it by its weights' length would not change the
order of its rows, so nothing is divided here.

On a CPU few candidates are sorted. A histogram of a candidate's rows bounds what its best cut can
be worth, from below by the cuts between bins, from above by letting each bin's gains come before
its losses; who cannot reach the best lower bound is out. The result is that of sorting all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness_plugins.sign_cuts import DOWN, LEAST, NONE, Gains, Window, best_cuts
from harness_plugins.sign_pixels import Pixels

Array = np.ndarray[Any, Any]

BINS = 192
MOST = 2**24  # projections that are sorted at once where ranks matter
ROUNDING = 2.0**-20
EXACT = 2**24  # whole numbers below are exact in float32
AT_ONCE = 2**16  # numbers of a block of candidates: it stays in a core's second cache


@dataclass(frozen=True, eq=False)
class Candidates:
    """Moves of v units: base (v, n), groups (v, n), step > 0; of the columns that `features` (v, f)
    name in `source`, of all units or of each its own.

    Candidate 2j adds `step` · column j, candidate 2j + 1 takes it away.
    """

    base: Tensor
    source: Pixels | Tensor
    features: Tensor
    step: float
    group: Tensor
    gains: Gains

    def sorted_out(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """q (v, 2f, m) of those rows (v, m) of each unit, and their groups."""
        f = self.features.shape[1]
        at = rows[:, None].expand(-1, f, -1)
        if isinstance(self.source, Pixels):
            columns = self.source.gathered(self.features, at)
        else:
            full = self.features[..., None].expand(-1, -1, self.base.shape[1])
            columns = self.source.gather(1, full).gather(2, at)
        moves, base = self.step * columns, self.base.gather(1, rows)[:, None]
        q = torch.stack([base + moves, base - moves], 2).flatten(1, 2)
        return q, self.group.gather(1, rows)

    @property
    def q(self) -> Tensor:
        """(v, 2f, n)."""
        v, n = self.base.shape
        return self.sorted_out(torch.arange(n, device=self.base.device).expand(v, n))[0]


def best_moves(candidates: Candidates, ties: Tensor, window: Window | None = None) -> Tensor:
    """The candidate with the best cut, (v,); among equals the one of the largest `ties` (v, 2f)."""
    if candidates.base.device.type == "cpu" and window is None:
        values = torch.stack([_screened(candidates, v) for v in range(len(candidates.base))])
    else:
        values = _sorted_values(candidates, window)
    return torch.where(values == values.amax(1, keepdim=True), ties, -1.0).argmax(1)


def _sorted_values(candidates: Candidates, window: Window | None) -> Tensor:
    """The values of all candidates, (v, 2f): of the rows that matter, unless ranks do."""
    if window is not None:
        q = candidates.q
        size = max(1, MOST // (q.shape[0] * q.shape[2]))
        parts = [
            best_cuts(some, candidates.group, candidates.gains, window).value
            for some in q.split(size, dim=1)
        ]
        return torch.cat(parts, 1)
    active = candidates.group != NONE
    most = max(1, int(active.sum(1).max()))
    rows = active.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :most]
    q, group = candidates.sorted_out(rows)
    return best_cuts(q, group, candidates.gains).value


def _screened(candidates: Candidates, v: int) -> Tensor:
    """The values of unit v's candidates, (2f,); of those that cannot be the best, a lower bound."""
    group, features = candidates.group[v].numpy(), candidates.features[v].numpy()
    rows = group.nonzero()[0]
    if not len(rows):
        return torch.zeros(2 * len(features), dtype=torch.int64)
    if isinstance(candidates.source, Pixels):
        columns = candidates.source.columns(features, rows)
    else:
        columns = candidates.source[v].numpy()[features].take(rows, axis=1)
    gains = candidates.gains.of(v)
    base, step = candidates.base[v].numpy()[rows], np.float32(candidates.step)
    moves = Moves(base, columns, step, group[rows] == DOWN, gains)
    return torch.from_numpy(moves.values(*moves.bins()))


@dataclass(frozen=True, eq=False)
class Moves:
    """One unit's candidates, its rows of UP and DOWN alone: base (m,), columns (f, m), down (m,)
    bool, and what a row of UP gains and one of DOWN loses."""

    base: Array
    columns: Array
    step: np.float32
    down: Array
    gains: tuple[int, int]

    def bins(self) -> tuple[Array, Array]:
        """The bin of each row under each candidate, uint8 (2f, m), and how many rows of UP and of
        DOWN are in each, (2f, 2, BINS). Bins follow from the very q: between two is a cut.
        """
        f, m = self.columns.shape
        reach = float(self.step) * float(max(self.columns.max(), -self.columns.min()))
        low, high = float(self.base.min()) - reach, float(self.base.max()) + reach
        beyond = ROUNDING * (abs(low) + abs(high)) + 1e-30  # no q is outside, whatever is rounded
        low, high = low - beyond, high + beyond
        scale = np.float32((BINS - 1) / (high - low))
        block = min(max(1, AT_ONCE // (2 * m)), EXACT // (4 * BINS))
        shift = np.arange(2 * block, dtype=np.float32).reshape(block, 2, 1) * (2 * BINS)
        shift = shift + np.where(self.down, np.float32(BINS), np.float32(0))
        q, at = np.empty((block, 2, m), np.float32), np.empty((block, 2, m), np.intp)
        bins, counts = np.empty((f, 2, m), np.uint8), np.empty((f, 2, 2, BINS), np.int64)
        for start in range(0, f, block):
            moves = self.columns[start : start + block] * self.step
            k = len(moves)
            np.add(self.base, moves, out=q[:k, 0])
            np.subtract(self.base, moves, out=q[:k, 1])
            q[:k] -= np.float32(low)
            q[:k] *= scale
            np.floor(q[:k], out=q[:k])
            np.copyto(bins[start : start + k], q[:k], casting="unsafe")
            q[:k] += shift[:k]
            np.copyto(at[:k], q[:k], casting="unsafe")
            told = np.bincount(at[:k].ravel(), minlength=4 * k * BINS)
            counts[start : start + k] = told.reshape(k, 2, 2, BINS)
        return bins.reshape(2 * f, m), counts.reshape(2 * f, 2, BINS)

    def values(self, bins: Array, counts: Array) -> Array:
        """The candidates' best cuts; where it cannot be the best of all, a lower bound of it.

        What a cut within a bin may be worth is bounded by letting the bin's gains be on and its
        losses off. Only where that is as much as the best cut between bins is worth do the bin's
        rows have to be sorted.
        """
        up, loss = self.gains
        worth = up * counts[:, 0] - loss * counts[:, 1]
        between = worth[:, ::-1].cumsum(1)[:, ::-1]  # of the cut below each bin
        above = between - worth  # and above it
        values: Array = between.max(1).clip(0)
        alive = above + up * counts[:, 0] >= values.max()
        left = alive.any(1).nonzero()[0]
        c, row = alive[left[:, None], bins[left]].nonzero()
        if not len(c):
            return values
        chosen = left[c]
        sign = np.where(chosen % 2, -self.step, self.step)
        q = self.base[row] + self.columns[chosen // 2, row] * sign
        part = chosen * BINS + bins[chosen, row]
        key = part << 33 | ordered(q) + 2**31 << 1 | self.down[row]
        key.sort()
        part, gain = key >> 33, np.where(key & 1, -loss, up)
        ahead = gain[::-1].cumsum()[::-1]
        first = np.concatenate([[True], part[1:] > part[:-1]])
        last = np.flatnonzero(np.concatenate([first[1:], [True]]))
        beyond = np.concatenate([ahead[1:], [0]])[last]
        number = first.cumsum() - 1
        value = above.ravel()[part] + ahead - beyond[number]
        real = first | np.concatenate([[True], key[1:] >> 1 > key[:-1] >> 1])
        np.maximum.at(values, part[real] // BINS, value[real])
        return values


def best_cut(q: Array, down: Array, gains: tuple[int, int]) -> tuple[int, np.float32]:
    """`best_cuts` of one projection q (m,), its rows of UP and DOWN alone: value and below."""
    if not len(q):
        return 0, np.float32(-np.inf)
    key = ordered(q).astype(np.int64) << 1 | down
    key.sort()
    value = np.where(key & 1, -gains[1], gains[0])[::-1].cumsum()[::-1]
    place = key >> 1
    value[1:][place[1:] == place[:-1]] = LEAST
    best = int(value.argmax())
    if value[best] < 0:
        return 0, floats(place[-1:])[0]
    return int(value[best]), floats(place[best - 1 : best])[0] if best else np.float32(-np.inf)


def ordered(q: Array) -> Array:
    """int64 in the order of the floats, and equal where they are."""
    bits: Array = (q + np.float32(0)).view(np.int32)  # −0 becomes 0
    place: Array = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
    return place


def floats(place: Array) -> Array:
    """The inverse of `ordered`."""
    bits = place.astype(np.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)
