"""Changes of training images that leave their labels what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from harness.api import Rng

SHIFT = 1 / 8  # of the shorter side at most: 4 pixels of 32, as usual


def unchanged(x: Tensor, rng: Rng) -> Tensor:
    return x


def flipped_and_shifted(x: Tensor, rng: Rng) -> Tensor:
    """Each image (c, h, w) mirrored or not, and moved by 1/8 of its side at most; 0 comes in."""
    n, c, h, w = x.shape
    most = round(min(h, w) * SHIFT)
    down, right = rng.integers(2 * most + 1, 2).unbind(1)
    columns = torch.arange(w, device=x.device).expand(n, w)
    mirrored = rng.integers(2, 1).bool()
    columns = torch.where(mirrored, columns.flip(1), columns) + right[:, None]
    rows = torch.arange(h, device=x.device) + down[:, None]
    padded = functional.pad(x, (most,) * 4)
    image = torch.arange(n, device=x.device).view(n, 1, 1, 1)
    channel = torch.arange(c, device=x.device).view(1, c, 1, 1)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


AUGMENTATIONS: Mapping[str, Callable[[Tensor, Rng], Tensor]] = {
    "none": unchanged,
    "flip-shift": flipped_and_shifted,
}
