"""Training images laid out pixel by pixel, as coordinate descent reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]

FEW = 256  # different values that fit a byte
SOME = 2**22  # numbers that are turned into floats at once


@dataclass(frozen=True, eq=False)
class Pixels:
    """n images of d pixels. `laid` (d, n) holds them as float32 or, where no more than 256 values
    occur, as bytes that `values` (k,) translates: a quarter of the memory to read in each step.
    """

    laid: Tensor
    values: Tensor | None

    @classmethod
    def of(cls, x: Tensor) -> Pixels:
        """From images (n, …), float32."""
        flat = x.flatten(1)
        values = flat[:64].unique()
        for part in flat.split(max(1, SOME // flat.shape[1])):
            if len(values) > FEW:
                return cls(flat.T.contiguous(), None)
            values = torch.cat([values, part.unique()]).unique()
        if len(values) > FEW:
            return cls(flat.T.contiguous(), None)
        laid = torch.empty(flat.shape[1], len(flat), dtype=torch.uint8, device=x.device)
        for i, part in enumerate(flat.T.split(max(1, SOME // len(flat)))):
            start = i * max(1, SOME // len(flat))
            laid[start : start + len(part)] = torch.searchsorted(values, part.contiguous())
        return cls(laid, values)

    @property
    def shape(self) -> torch.Size:
        """(d, n)."""
        return self.laid.shape

    def __getitem__(self, features: Tensor) -> Tensor:
        """Those pixels of all images, float32 (*features.shape, n)."""
        chosen = self.laid[features]
        return chosen if self.values is None else self.values[chosen.long()]

    def gathered(self, features: Tensor, rows: Tensor) -> Tensor:
        """Pixels (v, f) of images (v, f, m), float32 (v, f, m)."""
        chosen = self.laid[features].gather(2, rows)
        return chosen if self.values is None else self.values[chosen.long()]

    def columns(self, features: Array, rows: Array) -> Array:
        """Those pixels (f,) of those images (m,), float32 (f, m), on a CPU."""
        # whole columns first: they are read in one go, single numbers would miss every cache
        chosen: Array = self.laid.numpy()[features].take(rows, axis=1)
        return chosen if self.values is None else self.values.numpy().take(chosen)

    def project(self, weights: Tensor) -> Tensor:
        """weights (h, d) times the images: (h, n)."""
        step = max(1, SOME // self.shape[1])
        total = weights.new_zeros(len(weights), self.shape[1])
        every = torch.arange(self.shape[0], device=weights.device)
        for features in every.split(step):
            total.addmm_(weights[:, features], self[features])
        return total
