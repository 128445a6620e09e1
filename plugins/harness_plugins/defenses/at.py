"""Adversarial training (Madry et al., 2018, arXiv:1706.06083, eq. 2.1).

The strongest simple defense, and the yardstick of the others. What it gives holds for the norm and
the budget that it was trained with, and little beyond.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional

from harness.api import Attack, Info, Run, Target, Threat, TrainingSet
from harness.plugin import AttackRef, OneOf, ref
from harness_plugins.optimisation import SCHEDULES, OneCycle, Schedule
from harness_plugins.players import evaluating
from harness_plugins.training import Settings, Step, train


@dataclass(frozen=True)
class AdversarialTraining(Settings):
    """Cross-entropy on the adversarial images alone, made anew for every batch.

    eps rises from 0 in a straight line: at the full budget from the first batch on, a network on
    MNIST may learn to answer the same whatever it sees.

    inner: the attack that makes them, on the network in eval mode
    norm:  of the budget
    eps:   the budget, in pixel values
    ramp:  epochs until the budget is reached
    """

    inner: Annotated[Attack, AttackRef()] = ref("pgd:steps=5,rel_step=0.3")
    norm: Literal["Linf", "L2", "L1"] = "Linf"
    eps: Annotated[float, Ge(0)] = 0.3
    ramp: Annotated[float, Ge(0)] = 1.0
    epochs: Annotated[int, Ge(1)] = 8
    batch: Annotated[int, Ge(1)] = 128
    lr: Annotated[float, Gt(0)] = 2e-3
    schedule: Annotated[Schedule, OneOf(SCHEDULES)] = OneCycle()

    def build(self, info: Info) -> nn.Module:
        return self.arch.build(info)

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        classes = data.info.classes

        def worst_case(net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
            threat = Threat(self.norm, self._eps(step.epochs))
            with evaluating(net):
                x_adv = self.inner(Target.around(net, classes), x, y, threat, step.rng)
            return functional.cross_entropy(net(x_adv), y)

        net = self.build(data.info)
        train(net, data, run, self, worst_case)
        return net

    def _eps(self, epochs: float) -> float:
        return self.eps if epochs >= self.ramp else self.eps * epochs / self.ramp
