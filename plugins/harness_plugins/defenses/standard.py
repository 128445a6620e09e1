"""No defense: a network trained with cross-entropy, the row that others are compared with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from harness.api import Info, Run, TrainingSet
from harness_plugins.training import Settings, cross_entropy, train


@dataclass(frozen=True)
class Standard(Settings):
    """Cross-entropy on the training images, no augmentation."""

    def build(self, info: Info) -> nn.Module:
        return self.arch.build(info)

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        net = self.build(data.info)
        train(net, data, run, self, cross_entropy)
        return net
