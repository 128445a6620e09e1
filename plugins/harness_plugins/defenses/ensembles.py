"""Undefended networks that vote, trained together: by mean probability, or by majority.

The defaults are the setting of `lenet` and `simplenet` in the 01-loss papers: skorch's training of
100 epochs on 80 % of the images, the rest a validation set that decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Lt
from torch import Tensor, nn

from harness.api import Info, Run, TrainingSet
from harness.plugin import OneOf
from harness_plugins.architectures import ARCHITECTURES, Architecture, LeNet
from harness_plugins.optimisation import SCHEDULES, Exponential, Schedule
from harness_plugins.samples import without
from harness_plugins.training import Beside, Settings, Step, train
from harness_plugins.votes import Members, Votes, Voting, together


@dataclass(frozen=True)
class Average(Settings):
    """Networks that differ by their initial weights and see the same batches. The scores are the
    logarithms of their mean probabilities.

    votes:   networks; the first of many are those of few
    holdout: share of each class that is left out of the training
    """

    arch: Annotated[Architecture, OneOf(ARCHITECTURES)] = LeNet()
    epochs: Annotated[int, Ge(1)] = 100
    batch: Annotated[int, Ge(1)] = 64
    schedule: Annotated[Schedule, OneOf(SCHEDULES)] = Exponential(decay=1.0)
    votes: Annotated[int, Ge(1)] = 1
    holdout: Annotated[float, Ge(0), Lt(1)] = 0.2

    voting: ClassVar[Voting] = "soft"

    def build(self, info: Info) -> nn.Module:
        return Votes(Members(self.arch.build(info) for _ in range(self.votes)), self.voting)

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        net = self.build(data.info)
        train(
            net,
            without(data, self.holdout),
            run,
            self,
            _each_its_own,
            Beside(plain=_each_its_own),
        )
        return net


@dataclass(frozen=True)
class Majority(Average):
    """The same networks, each with one vote. The scores are the shares of the votes."""

    voting: ClassVar[Voting] = "hard"


def _each_its_own(net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
    return together(net.networks.children(), x, y)  # type: ignore[union-attr]
