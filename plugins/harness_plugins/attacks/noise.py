"""Random noise: the controls that every board needs.

A model that falls to noise needs no adversary, and an attack no stronger than noise has told
nothing: both are visible only where noise stands beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from harness.api import Rng, Target, Threat


@dataclass(frozen=True)
class GaussianNoise:
    """clip(x + σ · N(0, I)), σ the severity (`threat.eps`), in pixel values. Asks no model."""

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        noise = rng.normal(*x.shape[1:])
        return (x + threat.eps * noise).clamp(threat.low, threat.high)


@dataclass(frozen=True)
class UniformNoise:
    """The first of `draws` random points of the ball that is misclassified, else the last.

    draws: points tried, one forward pass each
    """

    draws: Annotated[int, Ge(1)] = 10

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        x_adv = x.clone()
        holding = torch.arange(len(x), device=x.device)  # rows that no draw has fooled
        for _ in range(self.draws):
            x_adv[holding] = tried = threat.random_start(x[holding], rng.at(holding))
            labels = target.at(holding).labels(tried)
            holding = holding[labels == y[holding]]
            if not len(holding):
                break
        return x_adv
