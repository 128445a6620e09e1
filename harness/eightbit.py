"""Adversarial images as a file would hold them: every pixel k/255.

An attack that lives between the grey levels of a real image is not an attack on real images. The
8-bit result stands beside the float one: changed pixels are rounded, and where rounding left the
ball, stepped toward the clean image on that grid until inside. Unchanged pixels are kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.outcome import ABSOLUTE_SLACK, RELATIVE_SLACK

LEVELS = 255


def on_grid(x: Tensor) -> bool:
    """Every pixel of x is k/255, to float32's precision."""
    scaled = x.double() * LEVELS
    return bool(((scaled - scaled.round()).abs() < 1e-4).all())


def to_eight_bit(x_adv: Tensor, x: Tensor, norm: str, eps: float) -> Tensor:
    """x_adv (n, c, h, w), inside the ball of x, on the 8-bit grid and still inside it.

    `eps` is infinite for a minimum-norm attack, whose rounded image has its own distance. L0 and
    infinite budgets need no step: rounding changes no pixel that was not changed.
    """
    clean = (x.double() * LEVELS).round()
    wished = (x_adv.double() - x.double()) * LEVELS
    offset = torch.where(x_adv != x, (x_adv.double() * LEVELS).round() - clean, 0.0)
    if math.isfinite(eps) and norm != "L0":
        limit = (eps * (1 + RELATIVE_SLACK) + ABSOLUTE_SLACK) * LEVELS
        offset = _inside(offset, wished, norm, limit)
    rounded = ((clean + offset) / LEVELS).to(x.dtype)
    return torch.where(offset != 0, rounded, x)


def _inside(offset: Tensor, wished: Tensor, norm: str, limit: float) -> Tensor:
    if norm == "Linf":
        most = math.floor(limit + 1e-9)
        return offset.clamp(-most, most)
    # A pixel that was rounded away from x is stepped back by one, the one that was rounded
    # furthest first. With all of them stepped back no pixel is further than x_adv's own.
    flat, back = offset.flatten(1), (offset.abs() - wished.abs()).flatten(1)
    order = back.argsort(dim=1, descending=True, stable=True)
    size = flat.gather(1, order).abs()
    relief = torch.where(back.gather(1, order) > 0, 1.0 if norm == "L1" else 2 * size - 1, 0.0)
    total = flat.abs().sum(1) if norm == "L1" else flat.square().sum(1)
    goal = limit if norm == "L1" else limit**2
    before = total[:, None] - relief.cumsum(dim=1) + relief
    step = (before > goal) & (relief > 0)
    stepped = torch.zeros_like(step).scatter(1, order, step)
    return (flat - stepped * flat.sign()).view_as(offset)
