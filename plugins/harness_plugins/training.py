"""The one training loop of the built-in defenses.

A defense is an objective: what the loop descends, batch by batch. Others may play beside the
network, such as a critic; they train in the same loop and are gone after it. All chance of an epoch
(its order, dropped units, random starts) is keyed by the run's seed and the epoch's number, so a
checkpoint needs no generator's state, and a training that was killed after any epoch and goes on
ends with the very bits of one that was not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional

from harness.api import Rng, Run, StreamRng, TrainingSet
from harness.errors import PluginError
from harness.plugin import Added, OneOf
from harness_plugins.architectures import ARCHITECTURES, MLP, Architecture
from harness_plugins.augmentation import AUGMENTATIONS
from harness_plugins.optimisation import (
    OPTIMISERS,
    SCHEDULES,
    Adam,
    Exponential,
    Optimiser,
    Schedule,
)
from harness_plugins.players import Player, under
from harness_plugins.samples import refuse_absent
from harness_plugins.validation import Best, HeldOut

VALIDATIONS: Mapping[str, type] = {"held-out": HeldOut}


@dataclass(frozen=True)
class Step:
    """Where in a training a batch stands.

    epochs: how many are done, with the fraction of the current one
    rng:    draws for the samples of this batch
    """

    epochs: float
    rng: Rng


class Objective(Protocol):
    """What training descends: a scalar for the batch x (n, c, h, w), y (n,), with graph."""

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor: ...


def cross_entropy(net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
    """The objective of a training without defense."""
    return functional.cross_entropy(net(x), y)


@dataclass(frozen=True)
class Beside:
    """What a training has besides its network and its objective.

    plain:   the objective of the plain epochs
    players: by name, what the objective descends itself: the loop sets their learning rates by
             the schedule and keeps them in the checkpoints
    """

    plain: Objective = cross_entropy
    players: Mapping[str, Player] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """Options that every trained defense has: it inherits these fields and changes defaults.

    arch:         the network
    epochs:       passes over the training images
    batch:        images per step
    lr:           learning rate, which the schedule multiplies
    optimiser:    how a step is made of the gradient
    schedule:     the learning rate's course over the epochs
    plain_epochs: so many of the epochs, the first, are without the defense
    augment:      flip-shift: images are mirrored at random and moved by up to 1/8 of their side
    validation:   none, or held-out: the weights of the best epoch on images that are not trained on
    """

    arch: Annotated[Architecture, OneOf(ARCHITECTURES)] = MLP()
    epochs: Annotated[int, Ge(1)] = 10
    batch: Annotated[int, Ge(1)] = 100
    lr: Annotated[float, Gt(0)] = 1e-3
    optimiser: Annotated[Optimiser, OneOf(OPTIMISERS)] = Adam()
    schedule: Annotated[Schedule, OneOf(SCHEDULES)] = Exponential()
    plain_epochs: Annotated[int, Ge(0), Added()] = 0
    augment: Annotated[Literal["none", "flip-shift"], Added()] = "none"
    validation: Annotated[HeldOut | None, OneOf(VALIDATIONS), Added()] = None

    def suspects(self) -> Mapping[str, float]:
        """What may make the training diverge, where it is too large."""
        return {"lr": self.lr}


def train(
    net: nn.Module,
    data: TrainingSet,
    run: Run,
    settings: Settings,
    objective: Objective,
    beside: Beside = Beside(),
) -> None:
    """Train the net, in place, from the run's last checkpoint on; it is left in eval mode.

    With the weights of the last epoch or, with validation, of the best. Raises UsageError where a
    class has no image, and PluginError after an epoch that met a loss, or left weights, that are
    not finite; the checkpoint of the epoch before it stays.
    """
    refuse_absent(data, "the training images")
    held, watched = settings.validation, data
    if held is not None:
        data, watched = held.split(data)
    own = Player(net, settings.optimiser.over(net.parameters(), settings.lr), settings.lr)
    players = {"": own, **beside.players}
    for player in players.values():
        player.net.to(run.device).train()
    loop = _Loop(players, data, run, settings, objective, beside.plain)
    epoch, best = _restore(players, run.load())
    while epoch < settings.epochs and not (held and held.over(epoch, best)):
        with _seeded(run, epoch):
            loop.epoch(epoch)
        epoch += 1
        if held is not None:
            best = held.better(net, epoch, best, watched, run)
        run.save(_snapshot(players, epoch, best))
    if best is not None:
        net.load_state_dict(best.weights)
    net.eval()


@dataclass(frozen=True)
class _Loop:
    """What an epoch needs."""

    players: Mapping[str, Player]
    data: TrainingSet
    run: Run
    settings: Settings
    objective: Objective
    plain: Objective

    def epoch(self, epoch: int) -> None:
        """One pass over the images. Raises PluginError if it diverged."""
        settings, device = self.settings, self.run.device
        x, y = self.data.x.to(device), self.data.y.to(device)
        stream = _stream(self.run, "draws", epoch)
        order = _stream(self.run, "order", epoch).uniform(len(x))[0].argsort(stable=True)
        batches = torch.split(order, settings.batch)
        change = AUGMENTATIONS[settings.augment]
        losses = []
        for i, rows in enumerate(batches):
            step = Step(epoch + i / len(batches), stream.sized(len(rows)))
            losses.append(self._descend(change(x[rows], step.rng), y[rows], step))
            self.run.progress(epoch * len(batches) + i + 1, settings.epochs * len(batches))
        self._refuse_divergence(epoch, torch.stack(losses))

    def _descend(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        settings = self.settings
        factor = settings.schedule.factor(step.epochs, settings.epochs)
        for player in self.players.values():
            player.set_rate(factor)
        objective = self.plain if step.epochs < settings.plain_epochs else self.objective
        loss = objective(self.players[""].net, x, y, step)
        self.players[""].descend(loss)
        return loss.detach()

    def _refuse_divergence(self, epoch: int, losses: Tensor) -> None:
        """The losses are looked at once an epoch: a GPU need not be waited for at every step."""
        bad = (~losses.isfinite()).nonzero()[:, 0].tolist()
        if not bad and all(player.finite() for player in self.players.values()):
            return
        settings = self.settings
        where = f"in step {bad[0] + 1} of {len(losses)}" if bad else "after its last step"
        what = "the loss" if bad else "a weight"
        blamed = " or ".join(f"{name}={value:g}" for name, value in settings.suspects().items())
        kept = f"the weights of epoch {epoch} are kept as its checkpoint" if epoch else "none kept"
        raise PluginError(
            f"training diverged in epoch {epoch + 1} of {settings.epochs}: {what} is not finite "
            f"{where}; try a smaller value than {blamed} ({kept})"
        )


def _stream(run: Run, purpose: str, epoch: int) -> StreamRng:
    return StreamRng.keyed(run.seed, purpose, epoch, device=run.device)


@contextmanager
def _seeded(run: Run, epoch: int) -> Iterator[None]:
    """torch's own generators, which dropout draws from, fixed for an epoch and put back after."""
    cuda = run.device.type == "cuda"
    with torch.random.fork_rng(devices=[run.device] if cuda else []):
        torch.manual_seed(int(_stream(run, "dropout", epoch).integers(2**62)))
        yield


def _snapshot(
    players: Mapping[str, Player], epochs: int, best: Best | None
) -> Mapping[str, Tensor]:
    """Tensors by name: `epochs`, each player's under its name, and the best epoch's."""
    kept = {"epochs": torch.tensor(epochs), **(best.tensors() if best else {})}
    for name, player in players.items():
        kept |= {_prefix(name) + key: tensor for key, tensor in player.tensors().items()}
    return kept


def _restore(
    players: Mapping[str, Player], kept: Mapping[str, Tensor] | None
) -> tuple[int, Best | None]:
    """Take up a snapshot, if there is one. Returns the number of epochs done, and the best."""
    if kept is None:
        return 0, None
    for name, player in players.items():
        player.take_up(under(_prefix(name), kept))
    return int(kept["epochs"]), Best.among(kept)


def _prefix(player: str) -> str:
    return f"{player}." if player else ""
