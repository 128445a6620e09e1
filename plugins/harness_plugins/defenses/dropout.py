"""Dropout (Srivastava et al., 2014, JMLR 15), as the regulariser that it is.

Units are dropped in training alone, so the trained network is a deterministic one, with gradients,
and owes an attacker no more than an undefended one. Dropout at test time is another, randomised
defense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Lt
from torch import nn

from harness.api import Info, Run, TrainingSet
from harness_plugins.training import Settings, cross_entropy, train


@dataclass(frozen=True)
class Dropout(Settings):
    """Cross-entropy while each hidden unit is dropped with probability p.

    The units are those of the fully connected layers and of the last convolution.

    p: probability that a unit is dropped
    """

    p: Annotated[float, Gt(0), Lt(1)] = 0.5

    def build(self, info: Info) -> nn.Module:
        return self.arch.build(info, self.p)

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        net = self.build(data.info)
        train(net, data, run, self, cross_entropy)
        return net
