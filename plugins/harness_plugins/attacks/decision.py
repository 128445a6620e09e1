"""What attacks that see labels alone share: an adversarial start, and the way back to the boundary.

Of an image that fools, everything on the way to the clean image is asked in halves: along the line
between them, or for Linf by clipping the image into ever smaller balls around the clean one.
A sample whose queries are spent is left where it stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.api import Best, Rng, Target, Threat, per_row

UNLIMITED = 2**62


@dataclass(frozen=True)
class Decisions:
    """n samples of one call, of which labels alone are asked.

    `rows` are samples by their place in the call, each once unless it says otherwise, and images
    stand in the order of their rows.
    """

    target: Target
    x: Tensor
    y: Tensor
    threat: Threat
    rng: Rng
    best: Best

    @classmethod
    def of(cls, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Decisions:
        return cls(target, x, y, threat, rng, Best(x))

    def fools(self, rows: Tensor, images: Tensor) -> Tensor:
        """Whether the images are misclassified, bool; one query each, rows may repeat."""
        return self.target.at(rows).labels(images) != self.y[rows]

    def left(self, rows: Tensor) -> Tensor:
        """How many images each may still be asked about, int64."""
        remaining = self.target.remaining
        if remaining is None:
            return torch.full_like(rows, UNLIMITED)
        return remaining.to(rows.device)[rows]

    def able(self, rows: Tensor) -> Tensor:
        """Those that may be asked about one image more."""
        return rows[self.left(rows) > 0]

    def distance(self, rows: Tensor, images: Tensor) -> Tensor:
        """In the threat's norm, of x's type."""
        return self.threat.geometry.size(images - self.x[rows])

    def standing(self) -> Tensor:
        """The samples that are classified correctly: one query each."""
        rows = self.able(torch.arange(len(self.x), device=self.x.device))
        return rows[~self.fools(rows, self.x[rows])]

    def starts(self, tries: int) -> tuple[Tensor, Tensor]:
        """For each sample that stands the first of so many random images that fools: rows, images.

        Noise in the first draw; after it the noise is in squares of 2, 4, … pixels, up to one
        colour, and begins again: all noise may look like one class, which has samples too. Where a
        label is to be reached, many samples may be without a start.
        """
        rows, images = self.standing(), self.x.clone()
        found = torch.zeros_like(self.y, dtype=torch.bool)
        sides = 1 + math.ceil(math.log2(max(self.x.shape[2:])))
        for turn in range(tries):
            rows = self.able(rows[~found[rows]])
            if not len(rows):
                break
            drawn = self.threat.low + (self.threat.high - self.threat.low) * coarse(
                self.rng.at(rows).uniform(*self.x.shape[1:]), 2 ** (turn % sides)
            )
            images[rows] = drawn.to(self.x)
            found[rows] = self.fools(rows, images[rows])
        rows = found.nonzero()[:, 0]
        return rows, images[rows]

    def search(self, rows: Tensor, images: Tensor, halvings: int) -> Tensor:
        """Images that fool, drawn towards the clean ones: those nearest to them that still fool.

        Halves the way so many times, one query each. What it ends with is noted as a candidate for
        the closest.
        """
        clean, far, near = self.x[rows], images, images.clone()
        low, high = (torch.full((len(rows),), v, device=near.device) for v in (0.0, 1.0))
        size = self.distance(rows, far)
        going = torch.arange(len(rows), device=near.device)
        for _ in range(halvings):
            going = going[self.left(rows[going]) > 0]
            if not len(going):
                break
            middle = (low[going] + high[going]) / 2
            tried = self._between(clean[going], far[going], middle, size[going])
            fooled = self.fools(rows[going], tried)
            near[going[fooled]] = tried[fooled]
            high[going] = torch.where(fooled, middle, high[going])
            low[going] = torch.where(fooled, low[going], middle)
        everywhere = torch.ones_like(rows, dtype=torch.bool)
        self.best.note(near, self.distance(rows, near), everywhere, rows)
        return near

    def _between(self, clean: Tensor, far: Tensor, share: Tensor, size: Tensor) -> Tensor:
        """`far`, at that share of its distance."""
        if self.threat.norm == "Linf":
            radius = per_row(share * size, clean)
            between = torch.clamp(far, clean - radius, clean + radius)
        else:
            between = torch.lerp(clean, far, per_row(share, clean))
        return between.clamp_(self.threat.low, self.threat.high)


def coarse(noise: Tensor, side: int) -> Tensor:
    """(n, c, h, w) in squares of that many pixels: each has what its first corner had."""
    h, w = (torch.arange(s, device=noise.device) // side * side for s in noise.shape[2:])
    return noise[:, :, h][:, :, :, w]
