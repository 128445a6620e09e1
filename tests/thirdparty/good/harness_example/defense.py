"""Bit-depth reduction (Xu et al., 2018, arXiv:1704.01155) in front of a linear classifier."""

from dataclasses import dataclass
from math import prod
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from harness.api import Info, Run, TrainingSet


class Rounded(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * 7).round() / 7)  # 8 levels; the gradient is 0 nearly everywhere

    def surrogate(self) -> nn.Module:
        return nn.Sequential(*self)  # the same without the rounding


@dataclass(frozen=True)
class BitDepth:
    """steps: of training, each on all images"""

    steps: Annotated[int, Ge(1)] = 200

    def build(self, info: Info) -> nn.Module:
        return Rounded(nn.Flatten(), nn.Linear(prod(info.shape), info.classes))

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        net, x, y = (item.to(run.device) for item in (self.build(data.info), data.x, data.y))
        optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
        for step in range(self.steps):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimiser.step()
            run.progress(step + 1, self.steps)
        return net
