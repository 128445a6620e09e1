"""Proximal operators: prox(u, μ) = argmin_z μ f(z) + ½‖z − u‖² (Parikh and Boyd, 2014, §1.1).

u is (n, *d), μ ≥ 0 is (n,), one for each sample, and what comes back is a new tensor of u's shape.
The L0 operators count pixels and take images (n, c, h, w). Where two points are as good, which
the L0 operators know, it is the one nearer to 0.

Nothing here but +, −, ×, ÷ and √: torch's vectorised `pow` and its scalar one, for the entries that
are left over, round differently, and a sample's result would depend on the batch it came in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.api import per_row

Prox = Callable[[Tensor, Tensor], Tensor]

SYNC_EVERY = 8  # a GPU is asked so often whether all rows have converged: each question waits
NEWTON = 5  # from a start within 26 %, which is where it is worst, to 1e-11


def project_l1(v: Tensor, radius: Tensor) -> Tensor:
    """The nearest point of the L1 ball, v itself where it is inside; a radius for each sample.

    Soft thresholding at the θ that leaves `radius` (Duchi et al., 2008, ICML, section 4).
    """
    magnitude = v.flatten(1).abs()
    outside = magnitude.sum(1, keepdim=True) > radius[:, None]
    _, below = _lowered(magnitude)
    shrunk = below.sub_(_threshold(below, radius)).clamp_min_(0)
    shrunk = torch.minimum(shrunk, magnitude, out=shrunk)
    return torch.where(outside, shrunk, magnitude).view(v.shape).copysign_(v)


def prox_linf(u: Tensor, mu: Tensor) -> Tensor:
    """Cut the largest entries to a common height.

    By Moreau's decomposition it is u less its projection onto the L1 ball of radius μ; soft
    thresholding takes what is above θ away, so that u clipped to ±θ is left.
    """
    magnitude = u.flatten(1).abs()
    outside = magnitude.sum(1, keepdim=True) > mu[:, None]
    top, below = _lowered(magnitude)
    height = torch.where(outside, top + _threshold(below, mu), 0.0).clamp_min_(0)
    height = per_row(height[:, 0], u)
    return torch.clamp(u, -height, height)


def prox_l2(u: Tensor, mu: Tensor) -> Tensor:
    """Shorten u by μ, to 0 at most."""
    length = torch.linalg.vector_norm(u.flatten(1), dim=1)
    left = (length - mu).clamp_min_(0)
    return u * per_row(torch.where(left > 0, left / length, 0.0), u)


def prox_l1(u: Tensor, mu: Tensor) -> Tensor:
    """Soft threshold: every entry nearer to 0 by μ, to 0 at most."""
    return (u.abs() - per_row(mu, u)).clamp_min_(0).copysign_(u)


def prox_entries(u: Tensor, mu: Tensor) -> Tensor:
    """Of the number of entries that are not 0: keep those with |u| > √(2μ)."""
    return torch.where(u.abs() > per_row((2 * mu).sqrt(), u), u, 0.0)


def prox_pixels(u: Tensor, mu: Tensor) -> Tensor:
    """Of the number of pixels that are not 0: keep those whose L2 norm is above √(2μ)."""
    return torch.where(_length(u) > per_row((2 * mu).sqrt(), u), u, 0.0)


def prox_pixels_max(u: Tensor, mu: Tensor) -> Tensor:
    """The paper's rule for pixels: keep those whose largest channel is above √(2μ).

    `prox_pixels` for one channel, and not the operator of anything for more.
    """
    return torch.where(_largest(u) > per_row((2 * mu).sqrt(), u), u, 0.0)


def prox_two_thirds(u: Tensor, mu: Tensor) -> Tensor:
    """Of the quasi-norm Σ |z|^⅔ over entries; see `_shrunk`."""
    return _shrunk(u.abs(), per_row(mu, u)).copysign_(u)


def prox_two_thirds_pixels(u: Tensor, mu: Tensor) -> Tensor:
    """Of Σ ‖z_p‖₂^⅔ over pixels p: each keeps its direction, and its length is shrunk."""
    length = _length(u)
    kept = _shrunk(length, per_row(mu, u))
    return u * torch.where(kept > 0, kept / length, 0.0)


def prox_two_thirds_max(u: Tensor, mu: Tensor) -> Tensor:
    """The paper's rule for pixels: a pixel's largest channel is shrunk and takes the others with
    it where it becomes 0; else they stay. `prox_two_thirds` for one channel, and not the operator
    of anything for more."""
    magnitude = u.abs()
    largest = magnitude.amax(1, keepdim=True)
    kept = _shrunk(largest, per_row(mu, u))
    shrunk = torch.where(magnitude == largest, kept.expand_as(u), magnitude)
    return torch.where(kept > 0, shrunk, 0.0).copysign_(u)


PROXES: dict[str, Prox] = {
    "linf": prox_linf,
    "l2": prox_l2,
    "l1": prox_l1,
    "entries": prox_entries,
    "pixels": prox_pixels,
    "two_thirds": prox_two_thirds,
    "two_thirds_pixels": prox_two_thirds_pixels,
}


def _shrunk(a: Tensor, mu: Tensor) -> Tensor:
    """argmin_z μ z^⅔ + ½(z − a)² over z ≥ 0, for a ≥ 0: 0 unless a > 2(⅔μ)^¾.

    Where z > 0 the derivative is 0: with c = ⅔μ, z = c^¾ s³ and a = c^¾ v that is s⁴ − vs + 1 = 0,
    whose greatest root is 1 at the threshold v = 2 and nears v^⅓ above. Newton's method from
    v^(21/64), which six square roots give, goes to that root and to no other: the quartic is
    convex, and rises there.
    """
    c = mu * (2 / 3)
    unit = c.sqrt() * c.sqrt().sqrt()
    v = (a / unit).clamp_(2.0, 1e12)  # 0 / 0 is NaN, which goes the way of what is kept whole
    quarter = v.sqrt().sqrt_()
    sixteenth = quarter.sqrt().sqrt_()
    s = quarter.mul_(sixteenth).mul_(sixteenth.sqrt().sqrt_())
    for _ in range(NEWTON):
        cube = s.square().mul_(s)
        s.mul_(cube).mul_(3).sub_(1).div_(cube.mul_(4).sub_(v))
    z = s.square().mul_(s).mul_(unit)
    return torch.where(v < 1e12, torch.where(v > 2, z, 0.0), a)


def _lowered(magnitude: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's greatest entry (n, 1), and the row less it: what is near 0 is known best."""
    top = magnitude.amax(1, keepdim=True)
    return top, magnitude - top


def _threshold(below: Tensor, budget: Tensor) -> Tensor:
    """τ ≤ 0, (n, 1), with Σ max(b − τ, 0) = budget over each row b of `below`, whose maximum is 0.

    Newton's method on that sum, which is convex and piecewise linear: it starts at a lower bound
    and rises to the root in finitely many steps, then stands still (Condat, 2016, Mathematical
    Programming 158, section 3.2, tells where it comes from: Michelot's algorithm).
    """
    budget = budget[:, None]
    entries = below.shape[1]
    tau = torch.maximum((below.sum(1, keepdim=True) - budget) / entries, -budget)
    active, kept = torch.empty_like(below), torch.empty_like(below)
    for turn in range(entries):
        torch.gt(below, tau, out=active)
        total = torch.mul(below, active, out=kept).sum(1, keepdim=True)
        count = active.sum(1, keepdim=True).clamp_min_(1)
        previous, tau = tau, torch.maximum(tau, (total - budget) / count)
        asked = not below.is_cuda or turn % SYNC_EVERY == SYNC_EVERY - 1
        if asked and torch.equal(tau, previous):
            break
    return tau


def _largest(u: Tensor) -> Tensor:
    """Of each pixel the largest channel's absolute value, (n, 1, h, w)."""
    return u.abs().amax(1, keepdim=True)


def _length(u: Tensor) -> Tensor:
    """Of each pixel the L2 norm over its channels, (n, 1, h, w)."""
    if u.shape[1] == 1:
        return u.abs()
    length: Tensor = torch.linalg.vector_norm(u, dim=1, keepdim=True)
    return length
