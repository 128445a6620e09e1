"""Linear classifiers as a part of a model: what attacks on them are told. The part `linear`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Linear:
    """Scores W x + b. Of a two-class model that has only z = w·x + b: W = (0, w), bias (0, b).

    weight: W, (k, d); pixels as they lie in x.flatten(1)
    bias:   b, (k,)
    """

    weight: Tensor
    bias: Tensor

    def scores(self, x: Tensor) -> Tensor:
        """Of images (n, …): (n, k)."""
        return x.flatten(1) @ self.weight.to(x).T + self.bias.to(x)
