"""The one training loop of the built-in defenses.

A defense is an objective: what the loop descends, batch by batch. All chance of an epoch (its
order, dropped units, random starts) is keyed by the run's seed and the epoch's number, so a
checkpoint needs no generator's state, and a training that was killed after any epoch and goes on
ends with the very bits of one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn import functional

from harness.api import Rng, Run, StreamRng, TrainingSet
from harness.errors import PluginError
from harness.plugin import OneOf
from harness_plugins.architectures import ARCHITECTURES, MLP, Architecture


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


class Optimiser(Protocol):
    def over(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer: ...


@dataclass(frozen=True)
class Adam:
    """Kingma and Ba (2015, arXiv:1412.6980), with the moments that they suggest."""

    def over(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=lr, fused=True)


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
class OneCycle:
    """Rise in a straight line from 0 for the share `rise` of the training, then fall to 0.

    Smith and Topin (2018, arXiv:1708.07120), without the momentum's cycle.
    """

    rise: Annotated[float, Gt(0), Lt(1)] = 0.3

    def factor(self, epochs: float, total: int) -> float:
        done = epochs / total
        return done / self.rise if done < self.rise else (1 - done) / (1 - self.rise)


OPTIMISERS: Mapping[str, type] = {"adam": Adam, "sgd": SGD}
SCHEDULES: Mapping[str, type] = {"exponential": Exponential, "one-cycle": OneCycle}


@dataclass(frozen=True)
class Settings:
    """Options that every trained defense has: it inherits these fields and changes defaults.

    arch:      the network
    epochs:    passes over the training images
    batch:     images per step
    lr:        learning rate, which the schedule multiplies
    optimiser: how a step is made of the gradient
    schedule:  the learning rate's course over the epochs
    """

    arch: Annotated[Architecture, OneOf(ARCHITECTURES)] = MLP()
    epochs: Annotated[int, Ge(1)] = 10
    batch: Annotated[int, Ge(1)] = 100
    lr: Annotated[float, Gt(0)] = 1e-3
    optimiser: Annotated[Optimiser, OneOf(OPTIMISERS)] = Adam()
    schedule: Annotated[Schedule, OneOf(SCHEDULES)] = Exponential()


def train(
    net: nn.Module, data: TrainingSet, run: Run, settings: Settings, objective: Objective
) -> None:
    """Train the net, in place, from the run's last checkpoint on; it is left in eval mode.

    Raises PluginError after an epoch that left numbers which are not finite.
    """
    net.to(run.device).train()
    optimiser = settings.optimiser.over(net.parameters(), settings.lr)
    loop = _Loop(net, data, run, settings, objective, optimiser)
    for epoch in range(_restore(net, optimiser, run.load()), settings.epochs):
        with _seeded(run, epoch):
            loss = loop.epoch(epoch)
        if not _all_finite([loss, *net.state_dict().values()]):
            raise PluginError(
                f"training diverged in epoch {epoch + 1} of {settings.epochs}: its loss or its "
                f"weights are not finite; try a smaller learning rate than lr={settings.lr:g}"
            )
        run.save(_snapshot(net, optimiser, epoch + 1))
    net.eval()


@dataclass(frozen=True)
class _Loop:
    """What an epoch needs."""

    net: nn.Module
    data: TrainingSet
    run: Run
    settings: Settings
    objective: Objective
    optimiser: torch.optim.Optimizer

    def epoch(self, epoch: int) -> Tensor:
        """One pass over the images; the sum of the batches' losses."""
        x, y = self.data.x.to(self.run.device), self.data.y.to(self.run.device)
        stream = _stream(self.run, "draws", epoch)
        order = _stream(self.run, "order", epoch).uniform(len(x))[0].argsort(stable=True)
        batches = torch.split(order, self.settings.batch)
        total = torch.zeros((), device=self.run.device)
        for i, rows in enumerate(batches):
            done = epoch + i / len(batches)
            total += self._descend(x[rows], y[rows], Step(done, stream.sized(len(rows))))
            self.run.progress(epoch * len(batches) + i + 1, self.settings.epochs * len(batches))
        return total

    def _descend(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        settings = self.settings
        for group in self.optimiser.param_groups:
            group["lr"] = settings.lr * settings.schedule.factor(step.epochs, settings.epochs)
        loss = self.objective(self.net, x, y, step)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return loss.detach()


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Eval mode for a while: adversarial images are made against the net as it will be used."""
    before = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(before)


def _stream(run: Run, purpose: str, epoch: int) -> StreamRng:
    return StreamRng.keyed(run.seed, purpose, epoch, device=run.device)


@contextmanager
def _seeded(run: Run, epoch: int) -> Iterator[None]:
    """torch's own generators, which dropout draws from, fixed for an epoch and put back after."""
    cuda = run.device.type == "cuda"
    with torch.random.fork_rng(devices=[run.device] if cuda else []):
        torch.manual_seed(int(_stream(run, "dropout", epoch).integers(2**62)))
        yield


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _snapshot(
    net: nn.Module, optimiser: torch.optim.Optimizer, epochs: int
) -> Mapping[str, Tensor]:
    """Tensors by name: `epochs`, `net.<name>`, `optimiser.<parameter's index>.<name>`."""
    moments = {
        f"optimiser.{i}.{name}": tensor
        for i, state in optimiser.state_dict()["state"].items()
        for name, tensor in state.items()
    }
    weights = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    return {"epochs": torch.tensor(epochs), **weights, **moments}


def _restore(
    net: nn.Module, optimiser: torch.optim.Optimizer, kept: Mapping[str, Tensor] | None
) -> int:
    """Take up a snapshot, if there is one. Returns the number of epochs done."""
    if kept is None:
        return 0
    net.load_state_dict(_under("net.", kept))
    moments: dict[int, dict[str, Tensor]] = {}
    parameters = list(net.parameters())
    for key, tensor in _under("optimiser.", kept).items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = _laid_out_as(parameters[int(index)], tensor)
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    return int(kept["epochs"])


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The tensor in the parameter's memory format, which the fused step takes for granted."""
    return torch.empty_like(parameter).copy_(tensor) if tensor.ndim else tensor


def _under(prefix: str, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in kept.items() if k.startswith(prefix)}
