"""The players of PDGD and PDPGD: who moves the perturbation r, and who moves the multipliers λ.

A player of r is called once a step and may change what it is given; what it returns is clipped to
the box by its caller. Perturbations are (n, c, h, w), values for each sample (n,).

Every operation here rounds alike in vectorised loops and in what these leave over, so that a sample
moves alike in every batch: √ and softmax do, pow, sigmoid and softplus do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from harness.api import per_row
from harness_plugins.attacks.prox import Prox

SMOOTHING = 0.1  # what a new value weighs in the moving average of the multipliers
LEAST = 1e-6  # of a multiplier
BETA1, BETA2 = 0.9, 0.999
INNER_STEPS, INNER_TOLERANCE = 5, 1e-2


@dataclass(frozen=True)
class Pull:
    """What pulls at r in one step.

    fall:        −∇ℓ, the direction in which the loss falls, (n, c, h, w)
    norm:        λ₁; constraint: λ₂, both (n,)
    size:        ‖r‖, (n,)
    lr:          the learning rate
    """

    fall: Tensor
    norm: Tensor
    constraint: Tensor
    size: Tensor
    lr: float


class Player(Protocol):
    """The one who moves r."""

    def __call__(self, r: Tensor, pull: Pull) -> Tensor: ...


class Box:
    """The perturbations that keep x inside the box."""

    def __init__(self, x: Tensor, low: float, high: float) -> None:
        self._lowest, self._highest = low - x, high - x

    def clip_(self, r: Tensor) -> Tensor:
        return torch.clamp(r, self._lowest, self._highest, out=r)


class Adam:
    """Adam's moments (Kingma and Ba, 2015, arXiv:1412.6980, algorithm 1)."""

    def __init__(self, like: Tensor, eps: float) -> None:
        self._first, self._second = torch.zeros_like(like), torch.zeros_like(like)
        self._eps = eps
        self._turn = 0

    def step_(self, r: Tensor, fall: Tensor, lr: float) -> Tensor:
        """Move r in place; gives √v̂ + eps, what each entry's step was divided by."""
        self._turn += 1
        self._first.lerp_(fall, 1 - BETA1)
        self._second.mul_(BETA2).addcmul_(fall, fall, value=1 - BETA2)
        root = self._second.sqrt().div_(math.sqrt(1 - BETA2**self._turn)).add_(self._eps)
        r.addcdiv_(self._first, root, value=lr / (1 - BETA1**self._turn))
        return root


class AdamDescent:
    """PDGD: r goes down λ₁‖r‖₂ + λ₂ℓ by Adam, or where `ratio` is set down that over λ₂.

    ‖r‖₂ has no gradient at 0: there it counts as 0.
    """

    def __init__(self, like: Tensor, *, ratio: bool) -> None:
        self._adam = Adam(like, 1e-8)
        self._ratio = ratio

    def __call__(self, r: Tensor, pull: Pull) -> Tensor:
        norm = pull.norm / pull.constraint if self._ratio else pull.norm
        fall = pull.fall if self._ratio else pull.fall.mul_(per_row(pull.constraint, r))
        inward = torch.where(pull.size > 0, norm / pull.size, 0.0)
        fall.addcmul_(r, per_row(inward, r), value=-1)
        self._adam.step_(r, fall, pull.lr)
        return r


class ProximalDescent:
    """PDPGD: r ← prox(r − lr ∇ℓ), with μ = lr λ₁ / λ₂; where `by_sign` is set, ∇ℓ's sign."""

    def __init__(self, prox: Prox, *, by_sign: bool) -> None:
        self._prox = prox
        self._by_sign = by_sign

    def __call__(self, r: Tensor, pull: Pull) -> Tensor:
        fall = pull.fall.sign_() if self._by_sign else pull.fall
        return self._prox(r.add_(fall, alpha=pull.lr), pull.norm / pull.constraint * pull.lr)


class ProximalAdam:
    """PDPGD: Adam's step down ℓ, and the prox in Adam's own metric ψ (Melchior et al., 2019,
    arXiv:1910.10094), by a few proximal steps inside."""

    def __init__(self, like: Tensor, box: Box, prox: Prox) -> None:
        self._adam = Adam(like, 1e-7)
        self._box, self._prox = box, prox

    def __call__(self, r: Tensor, pull: Pull) -> Tensor:
        metric = self._adam.step_(r, pull.fall, pull.lr)
        greatest = metric.flatten(1).amax(1)
        mu = pull.norm / pull.constraint * pull.lr / greatest
        metric.div_(per_row(greatest, r))
        z = self._box.clip_(self._prox(r, mu))
        moving = torch.ones_like(mu, dtype=torch.bool)
        for _ in range(INNER_STEPS - 1):
            new = self._box.clip_(self._prox(torch.addcmul(z, metric, z - r, value=-1), mu))
            change = _length(new - z)
            z = torch.where(per_row(moving, z), new, z)
            moving &= change > INNER_TOLERANCE * _length(z)
            if not z.is_cuda and not moving.any():
                break
        return z


class Multipliers:
    """λ₁ of the norm and λ₂ of the constraint, as a moving average.

    They add up to 1 and are LEAST or more. Their logarithms' projection onto that, which takes
    log(e^λ₁ + e^λ₂) off both, leaves the ratio λ₂ / λ₁ as it was: it alone is kept.
    """

    def __init__(self, ratio: Tensor) -> None:
        """`ratio`: λ₁ / λ₂ to start from, (n,)."""
        self._odds = 1 / ratio
        self.norm, self.constraint = self._now()

    def step(self, margin: Tensor, rate: float) -> None:
        """λ₂ up where the margin is negative, the sample classified correctly, down where it is
        positive; by `rate` in its logarithm."""
        factor = torch.ones_like(self._odds)
        factor.masked_fill_(margin < 0, math.exp(rate)).masked_fill_(margin > 0, math.exp(-rate))
        self._odds.mul_(factor).clamp_(LEAST / (1 - LEAST), (1 - LEAST) / LEAST)
        norm, constraint = self._now()
        self.norm = self.norm.lerp(norm, SMOOTHING)
        self.constraint = self.constraint.lerp(constraint, SMOOTHING)

    @property
    def ratio(self) -> Tensor:
        """λ₁ / λ₂ of the averages, (n,)."""
        return self.norm / self.constraint

    def _now(self) -> tuple[Tensor, Tensor]:
        return 1 / (1 + self._odds), self._odds / (1 + self._odds)


def slope(loss: str, margin: Tensor) -> Tensor:
    """ℓ's derivative by m, (n,), where m is −margin."""
    if loss == "hinge":
        return (margin < 0).to(margin.dtype)
    correct = torch.stack([-margin, torch.zeros_like(margin)], dim=1)
    return correct.softmax(1)[:, 0] / math.log(2)


def _length(v: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(v.flatten(1), dim=1)
    return length
