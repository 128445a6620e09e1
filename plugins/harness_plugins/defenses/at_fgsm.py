"""Adversarial training with FGSM as in Matyasko's thesis (2020, Nanyang Technological University,
sections 3.5 and 4.5), after Goodfellow et al. (2015, arXiv:1412.6572).

Cross-entropy on the clean image plus that on the adversarial one, which is a constant and is not
clipped. It holds against one step, and against more of them less than `at` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional

from harness.api import Info, Run, TrainingSet
from harness_plugins.training import Settings, Step, train


@dataclass(frozen=True)
class FGSMTraining(Settings):
    """Cross-entropy at x + weight · cross-entropy at x + eps · sign of its gradient at x.

    eps:    0.2 in chapter 3, 0.1 in chapter 4
    weight: of the second term: a sum, not a mean
    """

    eps: Annotated[float, Gt(0)] = 0.2
    weight: Annotated[float, Ge(0)] = 1.0
    epochs: Annotated[int, Ge(1)] = 100

    def suspects(self) -> Mapping[str, float]:
        return {"weight": self.weight, "lr": self.lr}

    def build(self, info: Info) -> nn.Module:
        return self.arch.build(info)

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        def objective(net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
            x = x.detach().requires_grad_()
            clean = functional.cross_entropy(net(x), y)
            (gradient,) = torch.autograd.grad(clean, x, retain_graph=True)
            x_adv = x.detach() + self.eps * gradient.sign()
            return clean + self.weight * functional.cross_entropy(net(x_adv), y)

        net = self.build(data.info)
        train(net, data, run, self, objective)
        return net
