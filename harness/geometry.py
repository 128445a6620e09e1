"""What an attack needs to know of a norm: size, projection, steepest direction, random points.

v and g are perturbations and gradients (n, *d), float32 or float64; every row is treated by itself,
and what comes back has their shape, type and device. L0 counts changed pixels, so it needs images
(n, c, h, w). Radii eps and sizes are in pixel values (8/255, not 8), for L0 in pixels.

Whatever a row holds, no row changes another's result: it is the same bits alone or in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from harness.errors import PluginError
from harness.plugin import NORMS
from harness.rng import Rng


class Geometry(Protocol):
    """One norm, and the ball {‖v‖ ≤ eps} it makes."""

    @property
    def dual(self) -> Geometry:
        """The geometry of ‖g‖* = max {⟨g, u⟩ : ‖u‖ ≤ 1}."""
        ...

    def size(self, v: Tensor) -> Tensor:
        """‖v‖ of each row, (n,)."""
        ...

    def project(self, v: Tensor, eps: float) -> Tensor:
        """The ball's point nearest to v in Euclidean distance; v itself, bit for bit, if inside."""
        ...

    def steepest(self, g: Tensor) -> Tensor:
        """The u with ‖u‖ = 1 for which ⟨g, u⟩ is greatest, so that ⟨g, u⟩ = ‖g‖*.

        0 where the row of g is 0. An entry that is NaN counts as 0.
        """
        ...

    def random(self, like: Tensor, eps: float, rng: Rng) -> Tensor:
        """Points uniform by volume in the ball around 0, in the form of `like`."""
        ...


@dataclass(frozen=True)
class Linf:
    """The greatest change of any entry."""

    @property
    def dual(self) -> Geometry:
        return L1()

    def size(self, v: Tensor) -> Tensor:
        return _rows(v).abs().amax(dim=1)

    def project(self, v: Tensor, eps: float) -> Tensor:
        return v.clamp(-eps, eps)

    def steepest(self, g: Tensor) -> Tensor:
        return g.sign()  # torch's sign of NaN is 0

    def random(self, like: Tensor, eps: float, rng: Rng) -> Tensor:
        return eps * _signed_uniform(like, rng)


@dataclass(frozen=True)
class L2:
    """Euclidean length."""

    @property
    def dual(self) -> Geometry:
        return self

    def size(self, v: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(_rows(v), dim=1)
        return length

    def project(self, v: Tensor, eps: float) -> Tensor:
        if eps == 0:  # not so below: the square of a tiny entry is 0
            return torch.zeros_like(v)
        size = self.size(v)
        scale = torch.where(size > eps, torch.full_like(size, eps) / size, 1.0)
        return v * per_row(scale, v)

    def steepest(self, g: Tensor) -> Tensor:
        # Divided by its greatest entry first: the squares of a saturated model's gradients, 1e-30
        # and less, would vanish in float32.
        g = g.nan_to_num(nan=0.0)
        g = g / per_row(_or_one(Linf().size(g)), g)
        return g / per_row(_or_one(self.size(g)), g)

    def random(self, like: Tensor, eps: float, rng: Rng) -> Tensor:
        """A normal vector's direction, at a distance whose d-th power is uniform."""
        direction = self.steepest(rng.normal(*like.shape[1:]).to(like))
        reach = rng.uniform().to(like) ** (1 / like.shape[1:].numel())
        return eps * per_row(reach, like) * direction


@dataclass(frozen=True)
class L1:
    """Sum of absolute changes."""

    @property
    def dual(self) -> Geometry:
        return Linf()

    def size(self, v: Tensor) -> Tensor:
        return _rows(v).abs().sum(dim=1)

    def project(self, v: Tensor, eps: float) -> Tensor:
        """Soft threshold at the θ that leaves size eps (Duchi et al., 2008, ICML, figure 1).

        In float64, since θ's rounding adds up over all entries, and counted from the greatest
        entry, since v may lie far outside. Cost: one sort of each row.
        """
        magnitude = _rows(v).abs().double()
        below = magnitude - magnitude.amax(dim=1, keepdim=True)
        largest = below.sort(dim=1, descending=True).values
        excess = largest.cumsum(dim=1) - eps
        count = torch.arange(1, largest.shape[1] + 1, device=v.device)
        support = (largest * count > excess).sum(dim=1, keepdim=True).clamp_min(1)  # ρ
        threshold = excess.gather(1, support - 1) / support  # θ
        shrunk = (below - threshold).clamp_min(0).to(v.dtype).view(v.shape)
        outside = magnitude.sum(dim=1) > eps
        return torch.where(per_row(outside, v), shrunk.copysign(v), v)

    def steepest(self, g: Tensor) -> Tensor:
        """The sign of the entry greatest in absolute value, the first where several are."""
        flat = _rows(g.nan_to_num(nan=0.0))
        first = flat.abs().argmax(dim=1, keepdim=True)
        chosen = torch.zeros_like(flat).scatter_(1, first, flat.gather(1, first).sign())
        return chosen.view(g.shape)

    def random(self, like: Tensor, eps: float, rng: Rng) -> Tensor:
        """d of d + 1 exponential numbers divided by their sum, with random signs.

        Without the last one's share they would lie on the sphere (Barthe et al., 2005, Annals of
        Probability 33(2), theorem 1, with p = 1).
        """
        entries = like.shape[1:].numel()
        exponential = -torch.log1p(-rng.uniform(entries + 1).to(like))
        share = exponential[:, :-1] / exponential.sum(dim=1, keepdim=True)
        signs = 2 * rng.integers(2, *like.shape[1:]).to(like) - 1
        return eps * share.view(like.shape) * signs


@dataclass(frozen=True)
class L0:
    """Number of changed pixels: a pixel counts once whatever its channels. Images (n, c, h, w).

    Not a norm: it has no dual, and its ball, the images with at most ⌊eps⌋ changed pixels, no
    volume.
    """

    @property
    def dual(self) -> Geometry:
        raise PluginError("L0 is not a norm: it has no dual")

    def size(self, v: Tensor) -> Tensor:
        return (v != 0).any(dim=1).flatten(1).sum(dim=1).to(v.dtype)

    def project(self, v: Tensor, eps: float) -> Tensor:
        """Keep the ⌊eps⌋ pixels that are longest over their channels, the first of equals."""
        return torch.where(_greatest(v.double().square().sum(dim=1), eps), v, 0.0)

    def steepest(self, g: Tensor) -> Tensor:
        """All channels by sign(g) at the one pixel with the greatest Σ|g| over its channels.

        That is the most that one pixel can do if no entry changes by more than 1: without such a
        limit ⟨g, u⟩ has no maximum.
        """
        g = g.nan_to_num(nan=0.0)
        strength = g.abs().sum(dim=1)
        first = _rows(strength).argmax(dim=1, keepdim=True)
        return torch.where(_pixels(first, strength), g.sign(), 0.0)

    def random(self, like: Tensor, eps: float, rng: Rng) -> Tensor:
        """⌊eps⌋ pixels, every set of them as likely, every channel moved uniformly in [-1, 1]."""
        chosen = _greatest(rng.uniform(*like.shape[2:]).to(like), eps)
        return torch.where(chosen, _signed_uniform(like, rng), 0.0)


GEOMETRIES: dict[str, Geometry] = {"Linf": Linf(), "L2": L2(), "L1": L1(), "L0": L0()}


def distances(x_adv: Tensor, x: Tensor) -> Tensor:
    """Sizes of x_adv − x, both (n, c, h, w), in the order of `NORMS`: float64 (n, 4).

    The difference too is taken in float64: it must not be rounded before it is measured.
    """
    delta = x_adv.double() - x.double()
    return torch.stack([GEOMETRIES[norm].size(delta) for norm in NORMS], dim=1)


def _rows(v: Tensor) -> Tensor:
    """(n, d), contiguous: the order of a sum, and so its last bit, must not follow the layout."""
    return v.flatten(1).contiguous()


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """(n,) as (n, 1, …), to go with `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _or_one(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1.0)


def _signed_uniform(like: Tensor, rng: Rng) -> Tensor:
    return 2 * rng.uniform(*like.shape[1:]).to(like) - 1


def _greatest(value: Tensor, eps: float) -> Tensor:
    """Where the ⌊eps⌋ greatest of the pixels' values (n, h, w) are, the first of equals."""
    order = _rows(value).argsort(dim=1, descending=True, stable=True)
    return _pixels(order[:, : int(min(eps, order.shape[1]))], value)


def _pixels(index: Tensor, like: Tensor) -> Tensor:
    """True at the pixels whose positions in h·w are in index (n, k): bool (n, 1, h, w), for `like`
    (n, h, w)."""
    mask = torch.zeros(len(like), like.shape[1:].numel(), dtype=torch.bool, device=like.device)
    return mask.scatter_(1, index, value=True).view(like.shape).unsqueeze(1)
