"""Random corners of the Linf ball: as far from the image as the budget allows, in any direction."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from harness.api import Rng, Target, Threat


@dataclass(frozen=True)
class RandomCorners:
    """tries: corners per image, one query each; the first that is misclassified is kept"""

    tries: Annotated[int, Ge(1)] = 20

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        x_adv, left = x.clone(), torch.arange(len(x), device=x.device)  # left: rows not yet fooled
        for _ in range(self.tries):
            signs = 2 * rng.at(left).integers(2, *x.shape[1:]) - 1
            corner = threat.project(x[left] + threat.eps * signs, x[left])
            fooled = target.at(left).labels(corner) != y[left]
            x_adv[left[fooled]] = corner[fooled]
            left = left[~fooled]
            if not len(left):
                break
        return x_adv
