"""The Square attack (Andriushchenko et al., 2020, arXiv:1912.00049): random search by scores.

Every step proposes a change inside a small random square and keeps it if the loss grows. Two
departures from the authors' program: squares may touch the last row and column (there they never
do, so that the worst corner of the ball is out of reach), and every sample has squares of its own
in L2 as well, not one of the batch.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Annotated, Literal, Protocol

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from harness.api import LOSSES, Rng, Target, Threat
from harness_plugins.attacks.score_search import Search

HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # after so many ten-thousandths of steps
BLOCK = 64  # steps that are drawn at once: a generator's call costs as much as many numbers
TINY = 1e-12


@dataclass(frozen=True)
class Square:
    """The image of greatest loss of `steps` queries, from stripes (Linf) or bumps (L2); a sample
    that is fooled stops there.

    The schedule of p is the published one, stretched to `steps`, whatever the query budget: set
    both alike.

    steps: queries at most
    p:     share of the pixels that the first squares cover
    loss:  what has to grow: max_{j≠y} z_j − z_y (margin), or cross-entropy, the published choice
           for targeted runs
    """

    steps: Annotated[int, Ge(1)] = 5000
    p: Annotated[float, Gt(0), Le(1)] = 0.8
    loss: Literal["margin", "ce"] = "margin"

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        moves: Moves = Corners(threat) if threat.norm == "Linf" else Bumps(threat)
        search = Search(target, x, y, LOSSES[self.loss], until_fooled=target.judged)
        if len(search):
            search.ask(moves.start(search.x, rng.at(search.rows)))
        for part, steps in blocks(self.p, self.steps):
            if not len(search):
                break
            side = moves.side(part, *x.shape[2:])
            block = Block.drawn(rng, search.rows, x, (side, steps))
            for turn in range(steps):
                if not len(search):
                    break
                search.ask(moves.step(search.x, search.x_adv, block.at(search.rows, turn)))
        return search.result()


def share(p: float, step: int, steps: int) -> float:
    """The share of the pixels that a square covers at this step, halved again and again."""
    return p / 2.0 ** bisect_left(HALVED, step * 10_000 // steps)


def blocks(p: float, steps: int) -> Iterator[tuple[float, int]]:
    """The schedule, without the start, in runs of one share and at most BLOCK steps: the share, and
    how many."""
    for part, run in groupby(share(p, step, steps) for step in range(steps - 1)):
        count = len(list(run))
        yield from ((part, min(BLOCK, count - done)) for done in range(0, count, BLOCK))


@dataclass(frozen=True)
class Block:
    """Each sample's random squares and signs for t steps, drawn at once.

    rows:    the samples that they were drawn for, ascending, (n,)
    corners: upper left pixels of two squares, row and column of each, (n, t, 4)
    signs:   ±1 for each channel, (n, t, c)
    others:  such signs again, all but those, (n, t, c)
    choice:  0 or 1, (n, t)
    """

    side: int
    rows: Tensor
    corners: Tensor
    signs: Tensor
    others: Tensor
    choice: Tensor

    @classmethod
    def drawn(cls, rng: Rng, rows: Tensor, x: Tensor, extent: tuple[int, int]) -> Block:
        """For images like x; extent: side and steps."""
        few, (side, steps) = rng.at(rows), extent
        channels, height, width = x.shape[1:]
        room = torch.tensor([height - side + 1, width - side + 1] * 2, device=x.device)
        corners = (few.uniform(steps, 4) * room).long()
        code = few.integers(2 * 2**channels, steps)
        differs = 1 + few.integers(2**channels - 1, steps)
        signs, others = (_signs(c, channels).to(x) for c in (code, code ^ differs))
        return cls(side, rows, corners, signs, others, code >> channels)

    def at(self, rows: Tensor, turn: int) -> Draw:
        """Those of one step, for the samples that are still there."""
        parts = [v[:, turn] for v in (self.corners, self.signs, self.others, self.choice)]
        if len(rows) < len(self.rows):
            slot = torch.searchsorted(self.rows, rows)
            parts = [part[slot] for part in parts]
        corners, signs, others, choice = parts
        return Draw(self.side, corners, signs[:, :, None], others[:, :, None], choice)


def _signs(code: Tensor, channels: int) -> Tensor:
    """±1 for each channel, (…, c): + where its bit of the code is 1."""
    return 2 * ((code[..., None] >> torch.arange(channels, device=code.device)) & 1) - 1


@dataclass(frozen=True)
class Draw:
    """One step of a block: corners (n, 4), signs and others (n, c, 1), choice (n,)."""

    side: int
    corners: Tensor
    signs: Tensor
    others: Tensor
    choice: Tensor

    def square(self, which: int, x: Tensor) -> Tensor:
        """Positions of its pixels in the h · w of an image like x, for all its channels:
        (n, c, side²)."""
        width = x.shape[3]
        steps = torch.arange(self.side, device=x.device)
        offsets = (steps[:, None] * width + steps).flatten()
        first = self.corners[:, 2 * which] * width + self.corners[:, 2 * which + 1]
        return (first[:, None] + offsets)[:, None].expand(-1, x.shape[1], -1)

    def apart(self) -> Tensor:
        """Which pixels of the second square are not in the first, bool (n, 1, side²)."""
        steps = torch.arange(self.side, device=self.corners.device)
        offset = (self.corners[:, 2:] - self.corners[:, :2])[:, :, None] + steps
        within = (offset >= 0) & (offset < self.side)
        return ~(within[:, 0, :, None] & within[:, 1, None, :]).flatten(1)[:, None]


class Moves(Protocol):
    """How a norm's perturbations start and change. x and x_adv are (n, c, h, w)."""

    def start(self, x: Tensor, rng: Rng) -> Tensor:
        """The first proposals."""
        ...

    def side(self, part: float, height: int, width: int) -> int:
        """The side of a square that covers this part of the image."""
        ...

    def step(self, x: Tensor, x_adv: Tensor, draw: Draw) -> Tensor:
        """The next proposals."""
        ...


@dataclass(frozen=True)
class Corners:
    """Linf: every entry at an end of what ball and box allow, alike in a square's channel."""

    threat: Threat

    def start(self, x: Tensor, rng: Rng) -> Tensor:
        """Vertical stripes."""
        return self._ends(x, rng.integers(2, x.shape[1], 1, x.shape[3]) > 0)

    def side(self, part: float, height: int, width: int) -> int:
        return min(max(round(math.sqrt(part * height * width)), 1), height, width)

    def step(self, x: Tensor, x_adv: Tensor, draw: Draw) -> Tensor:
        """One sign for each channel of the square, drawn among those that change the image."""
        square = draw.square(0, x)
        clean, now = (v.flatten(2).gather(2, square) for v in (x, x_adv))
        tried = self._ends(clean, draw.signs > 0)
        same = (tried == now).flatten(1).all(dim=1)[:, None, None]
        moved = torch.where(same, self._ends(clean, draw.others > 0), tried)
        return x_adv.flatten(2).scatter(2, square, moved).view(x.shape)

    def _ends(self, x: Tensor, up: Tensor) -> Tensor:
        high = (x + self.threat.eps).clamp_max(self.threat.high)
        low = (x - self.threat.eps).clamp_min(self.threat.low)
        return torch.where(up, high, low)


@dataclass(frozen=True)
class Bumps:
    """L2: what two squares hold moves into a bump in the first of them.

    A step leaves ‖δ‖ at eps, so nothing has to be scaled as a whole; where the box cut it off, the
    next step makes up for that.
    """

    threat: Threat

    @property
    def reach(self) -> float:
        """eps, less what float32's rounding may add."""
        return self.threat.eps * (1 - 1e-6)

    def start(self, x: Tensor, rng: Rng) -> Tensor:
        """Bumps in a grid of tiles, five of them along the shorter side."""
        channels, height, width = x.shape[1:]
        tile = max(min(height, width) // 5, 1)
        row, down = _tiles(height, tile, x.device)
        column, across = _tiles(width, tile, x.device)
        grid = (height // tile, width // tile)
        choice = rng.integers(2, *grid)[:, row[:, None], column]
        signs = 2 * rng.integers(2, channels, *grid).to(x)[:, :, row[:, None], column] - 1
        edged = torch.nn.functional.pad(bumps(tile).to(x), (0, 1, 0, 1))
        delta = (edged[choice, down[:, None], across][:, None] * signs).flatten(1)
        delta = delta / delta.square().sum(dim=1, keepdim=True).sqrt()
        return self._boxed(x + self.reach * delta.view(x.shape))

    def side(self, part: float, height: int, width: int) -> int:
        """Odd, and 3 at least, as far as the image has room."""
        side = max(round(math.sqrt(part * height * width)), 3)
        return min(side + 1 - side % 2, height, width)

    def step(self, x: Tensor, x_adv: Tensor, draw: Draw) -> Tensor:
        """Algorithm 3: the length that both squares hold in a channel, and a channel's share of
        what is left of eps, go to a bump added to what the first square holds."""
        first, second = draw.square(0, x), draw.square(1, x)
        flat, now = x.flatten(2), x_adv.flatten(2)
        clean, cleared = flat.gather(2, first), flat.gather(2, second)
        held = now.gather(2, first) - clean
        other = (now.gather(2, second) - cleared) * draw.apart()
        left = self.reach**2 - (x_adv - x).flatten(1).square().sum(dim=1)[:, None, None]
        length = (left / x.shape[1] + _squares(held) + _squares(other)).clamp_min(0).sqrt()
        bump = bumps(draw.side).to(x).flatten(1)[draw.choice][:, None] * draw.signs
        moved = self._boxed(clean + length * _unit(bump + _unit(held)))
        return now.scatter(2, second, cleared).scatter_(2, first, moved).view(x.shape)

    def _boxed(self, x_adv: Tensor) -> Tensor:
        return x_adv.clamp(self.threat.low, self.threat.high)


def _squares(v: Tensor) -> Tensor:
    """Each channel's sum of squares, of (n, c, m): (n, c, 1)."""
    return v.square().sum(dim=2, keepdim=True)


def _unit(v: Tensor) -> Tensor:
    """Each channel at length 1; 0 where it is 0."""
    return v / _squares(v).sqrt().clamp_min(TINY)


def _tiles(length: int, tile: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each position, its tile, and its place in it; `tile` where it is in none."""
    count = length // tile
    position = torch.arange(length, device=device) - (length - count * tile) // 2
    outside = (position < 0) | (position >= count * tile)
    return (position // tile).clamp(0, count - 1), (position % tile).masked_fill(outside, tile)


@lru_cache(maxsize=64)
def bumps(side: int) -> Tensor:
    """Section 3.4's bump of a square, a positive half above a negative one, and its transpose:
    (2, side, side), of length 1."""
    upper = _half(side // 2, side)
    lower = _half(side - side // 2, side)
    bump = torch.cat([upper, -lower])
    bump = bump / bump.square().sum().sqrt()
    return torch.stack([bump, bump.T])


def _half(height: int, width: int) -> Tensor:
    """Squares around the centre, the i-th of radius i − 1 and height 1/i², piled up: length 1."""
    far = max(height // 2, width // 2)
    pile = (1 / torch.arange(1.0, far + 2).square()).flip(0).cumsum(0).flip(0)
    row = (torch.arange(height) - height // 2).abs()
    column = (torch.arange(width) - width // 2).abs()
    half = pile[torch.maximum(row[:, None], column)]
    return half / half.square().sum().sqrt().clamp_min(TINY)
