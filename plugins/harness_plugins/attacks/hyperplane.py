"""The point of a hyperplane inside the box that is nearest to an image, in three norms.

For an image z the smallest ‖δ‖ with gap + ⟨w, δ⟩ = 0 and low ≤ z + δ ≤ high (Croce and Hein, 2020,
arXiv:1907.02044). With g ≥ 0 for |gap|, a for |w| and every entry moved by m ≥ 0 the
way that brings the hyperplane nearer, where the box leaves it the room t:

    minimise ‖m‖ subject to ⟨a, m⟩ = g, 0 ≤ m ≤ t.

If ⟨a, t⟩ < g the box does not reach the hyperplane: the answer is then m = t, its nearest corner.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.api import Threat

TINY = 1e-18  # its square is still a normal number in float32
FULL = 1 / TINY  # a level above every stop; infinity times 0 would be none


def reach(threat: Threat, points: Tensor, normal: Tensor, gap: Tensor) -> Tensor:
    """The smallest δ that takes each point into its hyperplane, in the box: (n, p, d).

    points: in the box, (n, p, d): p points for each of n hyperplanes
    normal: w, (n, d), finite; where it is 0 nothing moves
    gap:    of each point, (n, p)
    """
    size = normal.abs().amax(dim=1, keepdim=True)
    unit = (normal / torch.where(size > 0, size, 1.0))[:, None]  # (n, 1, d)
    gap = gap / torch.where(size > 0, size, 1.0)
    way = unit.sign() * -gap.sign()[:, :, None]
    room = torch.where(way > 0, threat.high - points, points - threat.low).mul_(way != 0)
    return _MOVES[threat.norm](unit.abs(), room, gap.abs()).mul_(way)


def _move_linf(a: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """m = min(τ, t)."""
    tau = _level(a, room, a * room, gap)
    return torch.minimum(room, tau[:, :, None])


def _move_l2(a: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """m = min(τ a, t): stationary in every entry that its room does not stop."""
    tau = _level(a * a, room / a.clamp_min(TINY), a * room, gap)
    return torch.minimum(room, a * tau[:, :, None])


def _move_l1(a: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """As far as there is room, the entries with the greatest a first."""
    a, order = a.sort(dim=2, descending=True, stable=True)
    order = order.expand_as(room)
    room = room.gather(2, order)
    gain = a * room
    left = gap[:, :, None] - gain.cumsum(dim=2).sub_(gain)  # to go before this entry moves
    move = torch.minimum(left.div_(a.clamp_min(TINY)).clamp_min_(0), room)
    return torch.empty_like(move).scatter_(2, order, move)


def _level(weight: Tensor, stop: Tensor, product: Tensor, gap: Tensor) -> Tensor:
    """τ with Σ weight · min(τ, stop) = gap; FULL where no τ is enough. (n, p).

    product: weight · stop

    By Newton's method. The sum is concave in τ, increasing, and linear between the stops, so from
    the left the iterates rise to the solution and reach it exactly, a stop or more in each step. A
    row that has its solution keeps it, whatever the others still do.
    """
    tau = gap / weight.sum(dim=2).clamp_min(TINY)
    for _ in range(weight.shape[2] + 1):
        before = tau
        for _ in range(4):  # so many between two looks at whether all are done
            free = stop > tau[:, :, None]
            slope = torch.where(free, weight, 0.0).sum(dim=2)
            rest = gap - product.masked_fill(free, 0.0).sum(dim=2)
            tau = torch.where(slope > 0, torch.maximum(tau, rest / slope), FULL)
        if torch.equal(tau, before):
            break
    return tau


_MOVES = {"Linf": _move_linf, "L2": _move_l2, "L1": _move_l1}
