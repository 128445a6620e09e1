"""Architectures by name, an option of the defenses: `standard:arch=(mlp:width=400)`.

`build(info, dropout)` gives an untrained network from images (n, c, h, w) in [0, 1] to scores
(n, k). `dropout` is the probability with which training drops a hidden unit; at 0 there is no
dropout layer, but in an architecture that has dropout of its own (`nin`). The layers that hold
tensors are named (conv1, fc1, …): a checkpoint that is to be loaded calls its tensors conv1.weight,
conv1.bias, ….

Weights are drawn from Glorot and Bengio's uniform distribution (2010, AISTATS, eq. 16) where an
architecture says nothing else, biases are zero. Convolutions are kept in channels-last memory, a
quarter faster on a CPU, forward and back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn
from torch.nn import functional

from harness.api import Info
from harness.errors import PluginError
from harness.plugin import Added

Layer = tuple[str, nn.Module]
Activation = Literal["relu", "tanh", "sigmoid"]
Init = Literal["glorot", "he"]

ACTIVATIONS: Mapping[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class Architecture(Protocol):
    """A network as a plan."""

    def build(self, info: Info, dropout: float = 0.0) -> nn.Module: ...


@dataclass(frozen=True)
class Linear:
    """One linear map from pixels to scores: the model whose robustness is known in closed form."""

    def build(self, info: Info, dropout: float = 0.0) -> nn.Module:
        if dropout:
            raise PluginError("architecture linear has no hidden unit to drop; use mlp")
        return _net(("flatten", nn.Flatten()), ("fc1", nn.Linear(_entries(info), info.classes)))


@dataclass(frozen=True)
class MLP:
    """Fully connected: `depth` hidden layers of `width` units.

    The default, two layers of 200, is the network of CleverHans's tutorial on substitute models:
    small, quick, and known.

    width:      units of a hidden layer
    depth:      hidden layers
    activation: what follows each of them
    init:       glorot, or he: He et al.'s normal distribution (2015, arXiv:1502.01852, eq. 10)
    """

    width: Annotated[int, Ge(1)] = 200
    depth: Annotated[int, Ge(1)] = 2
    activation: Activation = "relu"
    init: Annotated[Init, Added()] = "glorot"

    def build(self, info: Info, dropout: float = 0.0) -> nn.Module:
        layers: list[Layer] = [("flatten", nn.Flatten())]
        inputs = _entries(info)
        for i in range(1, self.depth + 1):
            layers += [
                (f"fc{i}", nn.Linear(inputs, self.width)),
                (f"{self.activation}{i}", ACTIVATIONS[self.activation]()),
                *_dropout(i, dropout),
            ]
            inputs = self.width
        head = (f"fc{self.depth + 1}", nn.Linear(inputs, info.classes))
        return _net(*layers, head, draw=DRAWS[self.init])


@dataclass(frozen=True)
class LeNet5:
    """Two 5×5 convolutions without padding, 32 and 64 maps, each pooled 2×2, and 512 units.

    The plan is LeCun et al.'s (1998, Proc. IEEE 86(11)), the widths are those usual for MNIST in
    robustness papers. Images must be 16×16 or larger. Dropout: after the second pool and after
    the 512 units.

    init: as of `mlp`
    """

    init: Annotated[Init, Added()] = "glorot"

    def build(self, info: Info, dropout: float = 0.0) -> nn.Module:
        channels, height, width = info.shape
        if min(height, width) < 16:
            raise PluginError(
                f"architecture lenet5 needs images of 16x16 or larger, not {height}x{width}; "
                "smallconv works from 4x4"
            )
        rows, columns = (_valid_and_pooled(_valid_and_pooled(side)) for side in (height, width))
        return _net(
            ("conv1", nn.Conv2d(channels, 32, 5)),
            ("relu1", nn.ReLU()),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Conv2d(32, 64, 5)),
            ("relu2", nn.ReLU()),
            ("pool2", nn.MaxPool2d(2)),
            *_dropout(1, dropout),
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(64 * rows * columns, 512)),
            ("relu3", nn.ReLU()),
            *_dropout(2, dropout),
            ("fc2", nn.Linear(512, info.classes)),
            draw=DRAWS[self.init],
        )


@dataclass(frozen=True)
class SmallConv:
    """Two 3×3 convolutions that keep the size, 32 and 64 maps, each pooled 2×2, and 128 units.

    For images too small for LeNet-5, such as 8×8 digits; 4×4 is the least. Dropout as there.
    """

    def build(self, info: Info, dropout: float = 0.0) -> nn.Module:
        channels, height, width = info.shape
        if min(height, width) < 4:
            raise PluginError(
                f"architecture smallconv needs images of 4x4 or larger, not {height}x{width}"
            )
        return _net(
            ("conv1", nn.Conv2d(channels, 32, 3, padding=1)),
            ("relu1", nn.ReLU()),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Conv2d(32, 64, 3, padding=1)),
            ("relu2", nn.ReLU()),
            ("pool2", nn.MaxPool2d(2)),
            *_dropout(1, dropout),
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(64 * (height // 4) * (width // 4), 128)),
            ("relu3", nn.ReLU()),
            *_dropout(2, dropout),
            ("fc2", nn.Linear(128, info.classes)),
        )


@dataclass(frozen=True)
class Madry:
    """The network of Madry et al. (2018, arXiv:1706.06083) for MNIST, attacked ever since.

    Two 5×5 convolutions that keep the size, 32 and 64 maps, each pooled 2×2, and 1024 units. 4×4
    is the least. Dropout as in `lenet5`.
    """

    def build(self, info: Info, dropout: float = 0.0) -> nn.Module:
        channels, height, width = info.shape
        if min(height, width) < 4:
            raise PluginError(
                f"architecture madry needs images of 4x4 or larger, not {height}x{width}"
            )
        return _net(
            ("conv1", nn.Conv2d(channels, 32, 5, padding=2)),
            ("relu1", nn.ReLU()),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Conv2d(32, 64, 5, padding=2)),
            ("relu2", nn.ReLU()),
            ("pool2", nn.MaxPool2d(2)),
            *_dropout(1, dropout),
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(64 * (height // 4) * (width // 4), 1024)),
            ("relu3", nn.ReLU()),
            *_dropout(2, dropout),
            ("fc2", nn.Linear(1024, info.classes)),
        )


@dataclass(frozen=True)
class AllConv:
    """The CIFAR-10 network of Croce and Hein's papers (2020, arXiv:1907.02044), without pooling.

    Seven 3×3 convolutions, 96 96 192/2 192 192 192/2 192 maps (/2: stride 2), one of 2×2 with 384
    maps and stride 2, and 1200 units. 8×8 is the least. Dropout before and after the 1200 units.
    """

    def build(self, info: Info, dropout: float = 0.0) -> nn.Module:
        channels, height, width = info.shape
        if min(height, width) < 8:
            raise PluginError(
                f"architecture allconv needs images of 8x8 or larger, not {height}x{width}"
            )
        layers: list[Layer] = []
        for i, (maps, stride) in enumerate(
            [(96, 1), (96, 1), (192, 2), (192, 1), (192, 1), (192, 2), (192, 1)], start=1
        ):
            convolution = nn.Conv2d(channels, maps, 3, stride, padding=1)
            layers += [(f"conv{i}", convolution), (f"relu{i}", nn.ReLU())]
            channels = maps
        rows, columns = (((side + 1) // 2 + 1) // 2 // 2 for side in (height, width))
        return _net(
            *layers,
            ("conv8", nn.Conv2d(channels, 384, 2, 2)),
            ("relu8", nn.ReLU()),
            *_dropout(1, dropout),
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(384 * rows * columns, 1200)),
            ("relu9", nn.ReLU()),
            *_dropout(2, dropout),
            ("fc2", nn.Linear(1200, info.classes)),
        )


@dataclass(frozen=True)
class LeNet:
    """The small LeNet of PyTorch's CIFAR-10 tutorial, here with padding.

    Two 5×5 convolutions that keep the size, 6 and 16 maps, each pooled 2×2, then 120 and 84 units.
    4×4 is the least. Weights as in `SimpleNet`. Dropout: after the second pool and the units.
    """

    def build(self, info: Info, dropout: float = 0.0) -> nn.Module:
        return _two_convolutions("lenet", (120, 84), info, dropout)


@dataclass(frozen=True)
class SimpleNet:
    """`lenet` with one layer of `width` units.

    Convolutions' weights are drawn from He et al.'s normal distribution (2015, arXiv:1502.01852,
    eq. 14, fan-out), the others' from Glorot and Bengio's.

    width: units of the hidden layer
    """

    width: Annotated[int, Ge(1)] = 80

    def build(self, info: Info, dropout: float = 0.0) -> nn.Module:
        return _two_convolutions("simplenet", (self.width,), info, dropout)


@dataclass(frozen=True)
class NIN:
    """Network in Network (Lin, Chen and Yan, 2014, arXiv:1312.4400), the one for CIFAR-10.

    Convolutions 5×5, 5×5 and 3×3 of 192 maps that keep the size, each followed by two of 1×1, of
    160 and 96, 192 and 192, and 192 and k maps, the mean of each of the last being its score. A
    ReLU follows every convolution, the last one too: no score is below 0. Between the three blocks
    stand a maximum and an average over 3×3 with stride 2, without padding; windows are cut where
    the image ends (32 → 16 → 8). 4×4 is the least. Where all scores are 0 there is no gradient to
    learn from: Adam at 1e-3 was seen to end so, at 3e-4 not.

    dropout: after each of the two pools; another probability that a defense asks for replaces it
    """

    dropout: Annotated[float, Ge(0), Lt(1)] = 0.5

    def build(self, info: Info, dropout: float = 0.0) -> nn.Module:
        channels, height, width = info.shape
        if min(height, width) < 4:
            raise PluginError(
                f"architecture nin needs images of 4x4 or larger, not {height}x{width}"
            )
        probability = dropout or self.dropout
        return _net(
            *_block(1, channels, 5, (192, 160, 96)),
            ("pool1", nn.MaxPool2d(3, 2, ceil_mode=True)),
            *_dropout(1, probability),
            *_block(4, 96, 5, (192, 192, 192)),
            ("pool2", nn.AvgPool2d(3, 2, ceil_mode=True)),
            *_dropout(2, probability),
            *_block(7, 192, 3, (192, 192, info.classes)),
            ("pool3", nn.AdaptiveAvgPool2d(1)),
            ("flatten", nn.Flatten()),
        )


ARCHITECTURES: Mapping[str, type] = {
    "linear": Linear,
    "mlp": MLP,
    "lenet5": LeNet5,
    "smallconv": SmallConv,
    "madry": Madry,
    "allconv": AllConv,
    "lenet": LeNet,
    "simplenet": SimpleNet,
    "nin": NIN,
}


class _Pointwise(nn.Conv2d):
    """A 1×1 convolution as one matrix product: that of few maps, such as k, else depends in its
    last bits on how many images there are."""

    def forward(self, x: Tensor) -> Tensor:
        product = functional.linear(x.movedim(1, 3), self.weight[:, :, 0, 0], self.bias)
        return product.movedim(3, 1)


def _block(first: int, inputs: int, side: int, maps: tuple[int, ...]) -> list[Layer]:
    """A convolution that keeps the size and those of 1×1 that follow it, numbered from `first`."""
    layers: list[Layer] = []
    for i, outputs in enumerate(maps, start=first):
        convolution = (
            nn.Conv2d(inputs, outputs, side, padding=side // 2)
            if i == first
            else _Pointwise(inputs, outputs, 1)
        )
        layers += [(f"conv{i}", convolution), (f"relu{i}", nn.ReLU())]
        inputs = outputs
    return layers


def _two_convolutions(name: str, units: tuple[int, ...], info: Info, dropout: float) -> nn.Module:
    """LeNet's convolutions, and layers of so many units."""
    channels, height, width = info.shape
    if min(height, width) < 4:
        raise PluginError(
            f"architecture {name} needs images of 4x4 or larger, not {height}x{width}"
        )
    layers: list[Layer] = []
    for i, maps in enumerate((6, 16), start=1):
        convolution = nn.Conv2d(channels, maps, 5, padding=2)
        layers += [
            (f"conv{i}", convolution),
            (f"relu{i}", nn.ReLU()),
            (f"pool{i}", nn.MaxPool2d(2)),
        ]
        channels = maps
    layers += [*_dropout(1, dropout), ("flatten", nn.Flatten())]
    inputs = channels * (height // 4) * (width // 4)
    for i, outputs in enumerate(units, start=1):
        layers += [
            (f"fc{i}", nn.Linear(inputs, outputs)),
            (f"relu{i + 2}", nn.ReLU()),
            *_dropout(i + 1, dropout),
        ]
        inputs = outputs
    head = (f"fc{len(units) + 1}", nn.Linear(inputs, info.classes))
    return _net(*layers, head, draw=_normal)


def _entries(info: Info) -> int:
    channels, height, width = info.shape
    return channels * height * width


def _valid_and_pooled(side: int) -> int:
    """A side after a 5×5 convolution without padding and a 2×2 pool."""
    return (side - 4) // 2


def _dropout(index: int, probability: float) -> list[Layer]:
    return [(f"dropout{index}", nn.Dropout(probability))] if probability else []


def _uniform(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.xavier_uniform_(layer.weight)


def he_normal(layer: nn.Linear | nn.Conv2d) -> None:
    """He et al.'s normal distribution (2015, arXiv:1502.01852, eq. 10), by fan-in."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


def _normal(layer: nn.Linear | nn.Conv2d) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    else:
        nn.init.xavier_normal_(layer.weight)


DRAWS: Mapping[Init, Callable[[nn.Linear | nn.Conv2d], None]] = {
    "glorot": _uniform,
    "he": he_normal,
}


def _net(*layers: Layer, draw: Callable[[nn.Linear | nn.Conv2d], None] = _uniform) -> nn.Module:
    net = nn.Sequential(OrderedDict(layers))
    for module in net:
        if isinstance(module, nn.Linear | nn.Conv2d):
            draw(module)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
