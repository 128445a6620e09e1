"""What a minimum-norm attack remembers: of each sample the closest image that fooled so far."""

from __future__ import annotations

import torch
from torch import Tensor


class Best:
    """Each sample's closest adversarial image so far; the clean image until there is one.

    x_adv:    the images, (n, c, h, w)
    distance: what they were noted with, (n,); infinite until one was found
    """

    def __init__(self, x: Tensor) -> None:
        self.x_adv = x.clone()
        self.distance = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)

    @property
    def found(self) -> Tensor:
        """Where there is an adversarial image, bool (n,)."""
        return self.distance < torch.inf

    def note(
        self, x_adv: Tensor, distance: Tensor, fooled: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """Keep the images that fooled and are closer than what was kept: bool, where that was so.

        rows: which samples these are, each once; all of them where it is None
        """
        known = self.distance if rows is None else self.distance[rows]
        closer = fooled & (distance < known)
        keep = closer.view(-1, *[1] * (x_adv.ndim - 1))
        if rows is None:
            self.x_adv = torch.where(keep, x_adv, self.x_adv)
            self.distance = torch.where(closer, distance.to(known.dtype), known)
        else:
            self.x_adv[rows] = torch.where(keep, x_adv, self.x_adv[rows])
            self.distance[rows] = torch.where(closer, distance.to(known.dtype), known)
        return closer
