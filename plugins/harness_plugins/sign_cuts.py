"""The best threshold of a projection under the 01 loss, for many projections at once.

Rows are samples. A unit is on where its projection q exceeds the threshold. Rows of the group UP
gain `up` when it is on, rows of DOWN lose `down`, the others do not care. The value of a threshold
is the sum over the rows that are on; what it is with the unit off everywhere is its zero. Only
thresholds that exist are scored: none between rows of one and the same projection.

Gains are integers, so that values are exact, and equal ones are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NONE, UP, DOWN = 0, 1, 2
UNIT = 2.0**40  # of an objective of 1: sums over a million rows stay below 2**63
LEAST = -(2**62)
BEYOND = 0.01  # how far a threshold is from the outermost row when there is none on its other side
INF = float("inf")


@dataclass(frozen=True, eq=False)
class Gains:
    """What a row of UP gains and a row of DOWN loses, int64 (v,)."""

    up: Tensor
    down: Tensor

    def of(self, v: int) -> tuple[int, int]:
        """Unit v's."""
        return int(self.up[v]), int(self.down[v])


@dataclass(frozen=True, eq=False)
class Cuts:
    """The best cuts of projections (…, m): `value` and the rank of the first row that is on, int64
    (…), m where all are off; `below`, the largest projection that is off, −∞ where all are on."""

    value: Tensor
    rank: Tensor
    below: Tensor


@dataclass(frozen=True, eq=False)
class Window:
    """Ranks `width` around `rank` (v,), of the `rows` first rows in order: the others are at +∞."""

    rank: Tensor
    width: int
    rows: int


def best_cuts(q: Tensor, group: Tensor, gains: Gains, window: Window | None = None) -> Cuts:
    """The best cut of every row of q, (v, c, m) float32, with groups (v, m); the lowest of equals.

    With a window, of the cuts within it: rank − width ≤ cut < rank + width.
    """
    keys = _sorted(_ordered(q).long() << 2 | group[:, None].long())
    table = torch.stack([torch.zeros_like(gains.up), gains.up, -gains.down], 1)
    gain = table[torch.arange(len(q), device=q.device)[:, None, None], keys & 3]
    value = torch.cat([gain.new_zeros((*gain.shape[:-1], 1)), gain.cumsum(-1)], -1)
    value = value[..., -1:] - value
    place = keys >> 2
    real = torch.ones_like(value, dtype=torch.bool)
    real[..., 1:-1] = place[..., 1:] > place[..., :-1]
    if window is not None:
        t = torch.arange(value.shape[-1], device=q.device)
        middle = window.rank[:, None, None]
        real &= (t >= middle - window.width) & (t < middle + window.width) & (t <= window.rows)
    value, rank = torch.where(real, value, LEAST).max(-1)
    below = _floats(place.gather(-1, (rank[..., None] - 1).clamp_min(0)))[..., 0]
    return Cuts(value, rank, torch.where(rank > 0, below, -INF))


def thresholds(q: Tensor, taken: Tensor, below: Tensor) -> Tensor:
    """Halfway from `below` (v,) to the next projection above among the rows `taken`, both (v, m).

    A row is on where q > threshold, also where there is no number halfway.
    """
    above = torch.where(taken & (q > below[:, None]), q, INF).amin(1)
    middle = below + (above - below) / 2
    middle = torch.where(middle < above, middle, below)
    middle = torch.where(below == -INF, above - BEYOND, middle)
    return torch.where(above == INF, below + BEYOND, middle)


def _ordered(q: Tensor) -> Tensor:
    """int32 in the order of the floats, and equal where they are."""
    bits = (q + 0.0).view(torch.int32)  # −0 becomes 0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _floats(ordered: Tensor) -> Tensor:
    bits = ordered.int()
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def _sorted(keys: Tensor) -> Tensor:
    """Along the last dimension: numpy's sort of integers is several times torch's on a CPU."""
    if keys.device.type == "cpu":
        return torch.from_numpy(np.sort(keys.numpy(), axis=-1))
    return keys.sort(dim=-1).values
