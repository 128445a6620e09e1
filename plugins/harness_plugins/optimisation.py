"""How a training moves: optimisers and schedules by name, options of the defenses."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import nn

from harness.plugin import Added


class Optimiser(Protocol):
    def over(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer: ...


@dataclass(frozen=True)
class Adam:
    """Kingma and Ba (2015, arXiv:1412.6980).

    beta1: decay of the mean gradient; that of its square is 0.999
    """

    beta1: Annotated[float, Ge(0), Lt(1), Added()] = 0.9

    def over(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=lr, betas=(self.beta1, 0.999), fused=True)


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with Nesterov's momentum; weight decay acts on every tensor."""

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    weight_decay: Annotated[float, Ge(0)] = 0.0

    def over(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters,
            lr=lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum > 0,
            fused=True,
        )


class Schedule(Protocol):
    """The learning rate over a training, as a factor of `lr`."""

    def factor(self, epochs: float, total: int) -> float:
        """After so many of the `total` epochs, fractions included."""
        ...


@dataclass(frozen=True)
class Exponential:
    """Multiply by `decay` after every epoch."""

    decay: Annotated[float, Gt(0), Le(1)] = 0.95

    def factor(self, epochs: float, total: int) -> float:
        return self.decay ** math.floor(epochs)


@dataclass(frozen=True)
class Steps:
    """Multiply by `by` after each of the epochs `at`."""

    at: tuple[Annotated[int, Ge(1)], ...] = (40, 80)
    by: Annotated[float, Gt(0), Le(1)] = 0.5

    def factor(self, epochs: float, total: int) -> float:
        return float(self.by ** bisect_right(sorted(self.at), epochs))


@dataclass(frozen=True)
class OneCycle:
    """Rise in a straight line from 0 for the share `rise` of the training, then fall to 0.

    Smith and Topin (2018, arXiv:1708.07120), without the momentum's cycle.
    """

    rise: Annotated[float, Gt(0), Lt(1)] = 0.3

    def factor(self, epochs: float, total: int) -> float:
        done = epochs / total
        return done / self.rise if done < self.rise else (1 - done) / (1 - self.rise)


OPTIMISERS: Mapping[str, type] = {"adam": Adam, "sgd": SGD}
SCHEDULES: Mapping[str, type] = {"exponential": Exponential, "steps": Steps, "one-cycle": OneCycle}
