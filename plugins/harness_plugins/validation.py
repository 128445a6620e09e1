"""Validation: which epoch's weights are kept, and when a training has had enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from harness.api import Attack, Run, StreamRng, Target, Threat, TrainingSet
from harness.errors import UsageError
from harness.plugin import AttackRef
from harness_plugins.players import evaluating, under
from harness_plugins.samples import parted

CHUNK = 500  # images at a time


@dataclass(frozen=True)
class Best:
    """The best epoch so far, counted from 1, its accuracy on the held-out images, its weights."""

    epoch: int
    accuracy: float
    weights: Mapping[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        numbers = {"epoch": torch.tensor(self.epoch), "accuracy": torch.tensor(self.accuracy)}
        named = numbers | {f"net.{name}": tensor for name, tensor in self.weights.items()}
        return {f"best.{name}": tensor for name, tensor in named.items()}

    @classmethod
    def among(cls, kept: Mapping[str, Tensor]) -> Best | None:
        """What a checkpoint says of it."""
        own = under("best.", kept)
        if not own:
            return None
        return cls(int(own["epoch"]), float(own["accuracy"]), under("net.", own))


@dataclass(frozen=True)
class HeldOut:
    """The weights of the epoch that did best on images held out of the training; of equally good
    ones the first.

    share:    of each class's training images that is held out
    attack:   none, or the attack whose images they are judged on: robust accuracy
    norm:     of its budget
    eps:      its budget, in pixel values
    patience: stop after so many epochs without a better one; none: train them all
    """

    share: Annotated[float, Gt(0), Lt(1)] = 0.1
    attack: Annotated[Attack | None, AttackRef()] = None
    norm: Literal["Linf", "L2", "L1"] = "Linf"
    eps: Annotated[float, Ge(0)] = 0.3
    patience: Annotated[int, Ge(1)] | None = None

    def split(self, data: TrainingSet) -> tuple[TrainingSet, TrainingSet]:
        """What is trained on, and what is held out. Raises UsageError where either is nothing."""
        what = f"validation: share={self.share:g}"
        rest, held = parted(data, self.share, f"those that {what} leaves")
        if not len(held.x):
            raise UsageError(f"{what} of {len(data.x)} training images is none; hold out more")
        return rest, held

    def over(self, epoch: int, best: Best | None) -> bool:
        """Whether so many epochs are enough."""
        return bool(self.patience and best and epoch - best.epoch >= self.patience)

    def better(
        self, net: nn.Module, epoch: int, best: Best | None, held: TrainingSet, run: Run
    ) -> Best:
        """The best, this epoch included."""
        accuracy = self.accuracy(net, held, run)
        if best is not None and accuracy <= best.accuracy:
            return best
        weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        return Best(epoch, accuracy, weights)

    def accuracy(self, net: nn.Module, held: TrainingSet, run: Run) -> float:
        """Share of the images on which the net, in eval mode, is right, attacked or not.

        The attack draws the same in every epoch: epochs differ by the net alone.
        """
        rng, right = StreamRng.keyed(run.seed, "validation", device=run.device), 0
        with evaluating(net):
            for start in range(0, len(held.x), CHUNK):
                part = slice(start, start + CHUNK)
                x, y = held.x[part].to(run.device), held.y[part].to(run.device)
                survives = _right(net, x, y)
                if self.attack is not None:
                    target = Target.around(net, held.info.classes)
                    threat = Threat(self.norm, self.eps)
                    x_adv = self.attack(target, x, y, threat, rng.sized(len(x)))
                    survives &= _right(net, x_adv, y)
                right += int(survives.sum())
        return right / len(held.x)


@torch.no_grad()
def _right(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return torch.as_tensor(net(x).argmax(dim=1) == y)
