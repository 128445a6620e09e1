"""Whether an image of a box makes a network of sign units, or a vote of them, answer otherwise.

Whatever output is wanted of a network, every unit has a good side, and the network gives that
output once its units on their good sides weigh enough: which of the others are good does not
matter. So the question is a mixed integer one, over the image in the box, over the units asked to
be good (g_k = 1 demands s_k(w_k·x + b_k) > 0, s_k = ±1) and over the networks asked for their
output. It is answered by branch and bound over linear programs, exactly but for sides that no image
reaches by more than `TOLERANCE`, unless the nodes run out. Float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linprog

from harness_plugins.sign_networks import SignNetwork

Array = np.ndarray[Any, Any]

# A unit is good if its projection passes the threshold by so much of Σ|w x| + |b|: what float32
# rounds away. The same of a network's Σ|u| + |c|, where its output has to be more than 0.
TOLERANCE = 2.0**-23

# The most units that may be open where more than two networks have to agree: with more of them,
# `nodes` programs leave most searches undecided. Measured on four votes for each of ten classes and
# 100 of the digits at eps 0.05: 28 take 7 s and leave 62 % robust, 32 take 20 s and leave 61 %, 40
# take 71 s and leave 60 %; the ascent alone leaves 65 %.
VOTED = 28


@dataclass(frozen=True)
class Goal:
    """What the networks have to put out. One of its goals is enough for a sample.

    want:  of each network, 1 or 0, or −1 where it does not matter; (v,)
    rows:  which networks count in each of the demands, 0 or 1; (q, v)
    least: how many of those have to do as wanted, (q,)
    """

    want: Array
    rows: Array
    least: Array


def goals(network: SignNetwork, y: int, wanted: int | None) -> Iterator[Goal]:
    """The ways to another label than y, or to the label wanted; ties go to the lower class."""
    k, votes_for = network.classes, network.votes_for.cpu().numpy()
    v, runs = len(votes_for), network.runs
    if k == 2:
        label = 1 - y if wanted is None else wanted
        least = v // 2 + 1 if label else v - v // 2
        yield Goal(np.full(v, label), np.ones((1, v)), np.array([least]))
    elif wanted is None:
        for j in range(k):
            if j != y:
                want = np.where(votes_for == j, 1, np.where(votes_for == y, 0, -1))
                yield Goal(want, (want >= 0)[None] * 1.0, np.array([runs + (j > y)]))
    else:
        own = votes_for == wanted
        others = np.array([j for j in range(k) if j != wanted])
        rows = own | (votes_for == others[:, None])
        yield Goal(own.astype(int), rows * 1.0, runs + (others < wanted))


@dataclass(frozen=True)
class Structure:
    """A sign network in float64: w (v, h, d), |w|, b and u (v, h), c (v,), and a unit's slack."""

    w: Array
    size: Array
    b: Array
    u: Array
    c: Array
    slack: Array
    low: int

    @classmethod
    def of(cls, network: SignNetwork) -> Structure:
        w, b, u, c = (
            t.double().cpu().numpy()
            for t in (network.hidden, network.thresholds, network.output, network.bias)
        )
        size = np.abs(w)
        return cls(w, size, b, u, c, TOLERANCE * (size.sum(axis=2) + np.abs(b)), network.low)


@dataclass(frozen=True)
class Box:
    """The images mid + z · radius, −1 ≤ z ≤ 1, (d,); their projections: centre ± reach, (v, h)."""

    mid: Array
    radius: Array
    centre: Array
    reach: Array

    @classmethod
    def of(cls, net: Structure, low: Array, high: Array) -> Box:
        mid, radius = (low + high) / 2, (high - low) / 2
        return cls(mid, radius, net.w @ mid + net.b, net.size @ radius)


@dataclass(frozen=True)
class Sides:
    """A structure as a goal sees it.

    side: s_k, 1 where a unit is good when it is on, and −1, (v, h)
    gain: what being good adds to its network's way to the output wanted; 0: does not matter
    need: how much gain makes the network do as wanted, (v,)
    """

    net: Structure
    goal: Goal
    side: Array
    gain: Array
    need: Array

    @classmethod
    def of(cls, net: Structure, goal: Goal) -> Sides:
        up = np.where(goal.want == 1, 1.0, -1.0)  # which way the output has to go
        side = np.where(net.u * up[:, None] > 0, 1.0, -1.0)
        bad = np.where(side > 0, net.low, 1)  # what a unit puts out that is not good
        worst = up * ((net.u * bad).sum(axis=1) + net.c)
        scale = TOLERANCE * (np.abs(net.u).sum(axis=1) + np.abs(net.c))
        gain = np.abs(net.u) * (1 - net.low) * (goal.want >= 0)[:, None]
        need = np.where(up > 0, scale, -scale / 2) - worst  # more than 0, or 0 at most
        return cls(net, goal, side, gain, need)

    def met(self, good: Array) -> bool:
        """Whether these units on their good sides, bool (v, h), are enough."""
        done = (self.gain * good).sum(axis=1) >= self.need
        return bool((self.goal.rows @ done >= self.goal.least).all())


def search(sides: Sides, box: Box, nodes: int, size: int) -> Array | None:
    """An image of the box that meets the goal, or None where there is none.

    None as well where `nodes` linear programs do not settle it, where the units that the box can
    switch, times the pixels, are more than `size`, or, of more than two networks, than `VOTED`.
    """
    centre, slack = sides.side * box.centre, sides.net.slack
    surely, perhaps = centre - box.reach > slack, centre + box.reach > slack
    if not sides.met(perhaps):
        return None
    if sides.met(surely):
        return box.mid
    free = perhaps & ~surely & (sides.gain > 0)
    open_units, networks = int(free.sum()), int(free.any(axis=1).sum())
    if open_units * len(box.mid) > size or (networks > 2 and open_units > VOTED):
        return None
    units = Units.of(sides, box, free)
    left = sides.need - (sides.gain * surely).sum(axis=1)
    program = _Program.of(sides, units, left)
    possible = (sides.gain * perhaps).sum(axis=1) >= sides.need
    stack = [(np.zeros(len(units.gain) + len(left)), np.r_[np.ones(len(units.gain)), possible])]
    for _ in range(nodes):
        if not stack:
            break
        low, high = stack.pop()
        solution = program.solve(low, high)
        if solution is None:
            continue
        z, chosen = solution
        switched = units.depth(z) > -units.slack / 2
        good = surely.copy()
        good[free] = switched
        if sides.met(good):
            return np.asarray(box.mid + box.radius * units.at(switched).deepest(z))
        fraction = np.minimum(chosen, 1 - chosen) + 1e-12 * (chosen > 0.5)
        j = int(np.where(low < high, fraction, -1.0).argmax())
        if low[j] < high[j] and fraction[j] > 0:
            off, on = high.copy(), low.copy()
            off[j], on[j] = 0, 1
            stack += [(low, off), (on, high)]
    return None


@dataclass(frozen=True)
class Units:
    """k units that the box can switch. A unit is good where slopes · z + middle ≥ 0.

    slopes: s_k w_k · radius, (k, d)
    middle: s_k (w_k · mid + b_k) − slack, (k,)
    gain, slack, owner: the unit's, and the network it belongs to, (k,)
    """

    slopes: Array
    middle: Array
    gain: Array
    slack: Array
    owner: Array

    @classmethod
    def of(cls, sides: Sides, box: Box, free: Array) -> Units:
        side, slack = sides.side[free], sides.net.slack[free]
        slopes = side[:, None] * sides.net.w[free] * box.radius
        middle = side * box.centre[free] - slack
        return cls(slopes, middle, sides.gain[free], slack, np.nonzero(free)[0])

    def at(self, chosen: Array) -> Units:
        parts = (self.slopes, self.middle, self.gain, self.slack, self.owner)
        return Units(*(part[chosen] for part in parts))

    def depth(self, z: Array) -> Array:
        """How far they are on their good sides, (k,)."""
        return np.asarray(self.slopes @ z + self.middle)

    def deepest(self, z: Array) -> Array:
        """The z that has the worst of these units the farthest on its good side; else this z."""
        k, d = self.slopes.shape
        rows = np.hstack([self.slopes, -np.ones((k, 1))])
        bounds = np.tile([-1.0, 1.0], (d + 1, 1))
        found = _maximum(np.r_[np.zeros(d), 1.0], rows, -self.middle, bounds)
        return z if found is None else found[:-1]


@dataclass(frozen=True)
class _Program:
    """Maximise bonus · (z, g, r), rows · (z, g, r) ≥ least, for z in [−1, 1]^d, the image, and the
    binaries g, of the units, and r, of the networks."""

    rows: Array
    least: Array
    bonus: Array
    pixels: int

    @classmethod
    def of(cls, sides: Sides, units: Units, left: Array) -> _Program:
        """left: the gain that each network lacks when none of the units is good."""
        (k, d), v, demands = units.slopes.shape, len(left), sides.goal.rows
        most = np.maximum(np.abs(units.slopes).sum(axis=1) - units.middle, 1e-9)  # at worst
        unit = np.hstack([units.slopes / most[:, None], -np.eye(k), np.zeros((k, v))])
        gains = np.where(np.arange(v)[:, None] == units.owner, units.gain, 0.0)
        network = np.hstack([np.zeros((v, d)), gains, -np.diag(left)])[left > 0]
        demand = np.hstack([np.zeros((len(demands), d + k)), demands])
        least = np.r_[-units.middle / most - 1, np.zeros(len(network)), sides.goal.least]
        bonus = np.r_[np.zeros(d), units.gain, np.zeros(v)]
        return cls(np.vstack([unit, network, demand]), least, bonus, d)

    def solve(self, low: Array, high: Array) -> tuple[Array, Array] | None:
        """(z, binaries), the binaries real numbers between those bounds; None: impossible."""
        ones = np.ones(self.pixels)
        bounds = np.c_[np.r_[-ones, low], np.r_[ones, high]]
        found = _maximum(self.bonus, self.rows, self.least, bounds)
        return None if found is None else (found[: self.pixels], found[self.pixels :])


def _maximum(gain: Array, rows: Array, least: Array, bounds: Array) -> Array | None:
    """The v within the bounds with rows · v ≥ least and the greatest gain · v, or None."""
    options = {"presolve": False, "primal_feasibility_tolerance": 1e-9}
    found = linprog(
        -gain, A_ub=-rows, b_ub=-least, bounds=bounds, method="highs-ds", options=options
    )
    return np.asarray(found.x) if found.status == 0 else None
