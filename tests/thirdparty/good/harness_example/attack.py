"""Random corners of the Linf ball: as far from the image as the budget allows, in any direction."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from harness.api import Rng, Target, Threat


@dataclass(frozen=True)
class RandomCorners:
    """Keeps the first corner that is misclassified. Asks for labels alone: any model will do.

    tries: corners per image, one query each
    """

    tries: Annotated[int, Ge(1)] = 20

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        x_adv = x.clone()
        left = torch.arange(len(x), device=x.device)  # rows of images that no corner has fooled
        for _ in range(self.tries):
            signs = 2 * rng.at(left).integers(2, *x.shape[1:]) - 1
            corner = threat.project(x[left] + threat.eps * signs, x[left])
            fooled = target.at(left).labels(corner) != y[left]
            x_adv[left[fooled]] = corner[fooled]
            left = left[~fooled]
            if not len(left):
                break
        return x_adv
