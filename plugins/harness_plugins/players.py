"""A network that is being trained, with what trains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Player:
    """A network, its optimiser, and the learning rate that a schedule multiplies."""

    net: nn.Module
    optimiser: torch.optim.Optimizer
    lr: float

    def set_rate(self, factor: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr * factor

    def descend(self, loss: Tensor) -> None:
        """One step. Other players' weights in the loss's graph get no gradient of it."""
        self.optimiser.zero_grad()
        weights = [p for p in self.net.parameters() if p.requires_grad]
        loss.backward(inputs=weights)  # type: ignore[no-untyped-call]
        self.optimiser.step()

    def finite(self) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in self.net.state_dict().values())

    def tensors(self) -> dict[str, Tensor]:
        """By name: `net.<name>`, `optimiser.<parameter's index>.<name>`."""
        moments = {
            f"optimiser.{i}.{name}": tensor
            for i, state in self.optimiser.state_dict()["state"].items()
            for name, tensor in state.items()
        }
        return {f"net.{name}": t for name, t in self.net.state_dict().items()} | moments

    def take_up(self, kept: Mapping[str, Tensor]) -> None:
        """Go on from `tensors()`."""
        self.net.load_state_dict(under("net.", kept))
        moments: dict[int, dict[str, Tensor]] = {}
        parameters = list(self.net.parameters())
        for key, tensor in under("optimiser.", kept).items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = _laid_out_as(parameters[int(index)], tensor)
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": moments})


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Eval mode for a while: adversarial images are made against the net as it will be used."""
    before = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(before)


def under(prefix: str, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in kept.items() if k.startswith(prefix)}


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The tensor in the parameter's memory format, which the fused step takes for granted."""
    return torch.empty_like(parameter).copy_(tensor) if tensor.ndim else tensor
