"""Bit-depth reduction (Xu et al., 2018, arXiv:1704.01155) in front of another model."""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from harness.api import Info, Model, Run, TrainingSet
from harness.plugin import RecipeRef, ref


class Rounded(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * 7).round() / 7)  # 8 levels; the gradient is 0 nearly everywhere

    def surrogate(self) -> nn.Module:
        return nn.Sequential(*self)  # the same without the rounding


@dataclass(frozen=True)
class BitDepth:
    inner: Annotated[Model, RecipeRef()] = ref("linear")

    def build(self, info: Info) -> nn.Module:
        return Rounded(self.inner.build(info))

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        return Rounded(self.inner.fit(data, run))
