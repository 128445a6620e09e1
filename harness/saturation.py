"""Saturation of a model's input: x^(p) = ½ sign(2x − 1) |2x − 1|^(2/p) + ½, p from 2 to inf.

2 changes nothing, inf binarises, and ½ stays ½. `harness.splits.saturated` does the same to a data
set; here it is part of the classifier, so an attacker's images are saturated too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

LEAST = 1 / 255  # |2x − 1| counts as no less in the derivative: exact on every 8-bit image


class _Saturate(torch.autograd.Function):
    """The derivative is (2/p) |2x − 1|^(2/p − 1), which is infinite at ½ for p > 2.

    For p = inf it would be 0 nearly everywhere, and an attack by gradients would seem to fail: the
    gradient is passed on as it comes, as in BPDA (Athalye et al., 2018, arXiv:1802.00420, section
    4.1), for the identity is the stand-in that the binarisation is nearest to.

    In float64: the last bit of a power depends on the number's place in memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.p = p
        ctx.save_for_backward(x)
        u = 2 * x.double() - 1
        return (u.abs().pow_(2 / p).mul_(u.sign()) / 2 + 0.5).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        if ctx.p == math.inf:
            return gradient, None
        (x,) = ctx.saved_tensors
        slope = (2 * x.double() - 1).abs_().clamp_(min=LEAST).pow_(2 / ctx.p - 1).mul_(2 / ctx.p)
        return gradient * slope.to(x.dtype), None


def saturate(x: Tensor, p: float) -> Tensor:
    """x^(p) of each pixel of x in [0, 1], with a gradient that is finite everywhere."""
    if p == 2:
        return x
    saturated: Tensor = _Saturate.apply(x, p)  # type: ignore[no-untyped-call]
    return saturated


class Saturated(nn.Module):
    """A classifier behind the saturation of its input; randomised and with a surrogate as it is."""

    def __init__(self, inner: nn.Module, p: float) -> None:
        super().__init__()
        self.inner, self.p = inner, p

    def forward(self, x: Tensor, *rng: Any) -> Tensor:
        scores: Tensor = self.inner(saturate(x, self.p), *rng)
        return scores

    def surrogate(self) -> nn.Module:
        return Saturated(self.inner.surrogate(), self.p)  # type: ignore[operator]
