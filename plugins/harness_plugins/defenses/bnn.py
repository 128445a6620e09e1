"""Binarized networks, one or a vote of several (Courbariaux et al., 2016, arXiv:1602.02830).

Thresholds stop gradients, and no adversary who knows it: `surrogate()` passes them on as training
does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from harness.api import Info, Run, TrainingSet
from harness_plugins.binarized import Binarized, BinarizedVotes, Latent, Quantiser
from harness_plugins.optimisation import Exponential
from harness_plugins.training import Settings, Step, train

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class BNN:
    """Binary weights and `hidden` sign units between real pixels and the scores, Adam throughout.

    The networks of a vote differ by their initial weights, drawn from Glorot and Bengio's uniform
    distribution, and see the same batches; their majority decides.

    hidden:    sign units of a network
    quantiser: whose derivative stands in for the sign's: approximate sign or straight-through
    votes:     networks; the first of many are those of few
    epochs:    passes over the training images
    batch:     images per step
    lr:        learning rate, constant
    """

    hidden: Annotated[int, Ge(1)] = 20
    quantiser: Quantiser = "approx"
    votes: Annotated[int, Ge(1)] = 1
    epochs: Annotated[int, Ge(1)] = 20
    batch: Annotated[int, Ge(1)] = 100
    lr: Annotated[float, Gt(0)] = 1e-3

    def build(self, info: Info) -> nn.Module:
        c, h, w = info.shape
        hidden, output = self._shapes(c * h * w, info.classes)
        units = torch.zeros(hidden[:2])
        networks = Binarized(torch.ones(hidden), units, units + 1, torch.ones(output))
        return BinarizedVotes(networks)

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        hidden, output = self._shapes(data.x[0].numel(), data.info.classes)
        net = Latent(self._drawn(hidden, run), self._drawn(output, run), self.quantiser)
        settings = Settings(
            epochs=self.epochs, batch=self.batch, lr=self.lr, schedule=Exponential(decay=1.0)
        )
        train(net, data, run, settings, _descent)
        return BinarizedVotes(net.binarized())

    def _shapes(self, inputs: int, classes: int) -> tuple[Shape, Shape]:
        return (self.votes, self.hidden, inputs), (self.votes, classes, self.hidden)

    def _drawn(self, shape: Shape, run: Run) -> Tensor:
        """Glorot-uniform weights (v, outputs, inputs), those of a vote by its own stream."""
        votes, *layer = shape
        bound = (6 / sum(layer)) ** 0.5
        draws = [run.rng("weights", *layer, i).uniform(*layer)[0] for i in range(votes)]
        return torch.stack(draws).mul_(2).sub_(1).mul_(bound)


def _descent(net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
    """Before the step that is to come, what the last one may have pushed out comes back."""
    net.clip()  # type: ignore[operator]
    return net.loss(x, y)  # type: ignore[operator,no-any-return]
