"""Networks that stand in for a black box, an option of `substitute`: `net=(dual:activation=relu)`.

They are architectures like those of the defenses, with the initial weights of the papers' code:
Glorot and Bengio's normal distribution (2010, AISTATS) and zero biases.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from harness.api import Info
from harness.errors import PluginError

MAPS = (32, 64, 128, 256)
# Of CIFAR-10's training images, by channel.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Dual:
    """Two hidden layers.

    width:      units of each
    activation: what follows each; sigmoid in the papers' text, relu in their code
    """

    width: Annotated[int, Ge(1)] = 200
    activation: Literal["relu", "sigmoid"] = "relu"

    def build(self, info: Info, dropout: float = 0.0) -> nn.Module:
        unit = nn.ReLU if self.activation == "relu" else nn.Sigmoid
        return _drawn(
            nn.Sequential(
                nn.Flatten(),
                nn.Linear(prod(info.shape), self.width),
                unit(),
                nn.Linear(self.width, self.width),
                unit(),
                nn.Linear(self.width, info.classes),
            )
        )


@dataclass(frozen=True)
class Blocks:
    """3×3 convolutions of 32, 64, 128 and 256 maps, their average over the image, a linear map.

    variant: pool 2×2 after each of the first three, with batch normalisation and averages (code,
             the published one of 2020); maxima without normalisation, of standardised images of
             three channels (earlier, the code before it); or maxima and normalisation in all four
             blocks (text)
    """

    variant: Literal["code", "earlier", "text"] = "code"

    def build(self, info: Info, dropout: float = 0.0) -> nn.Module:
        channels, height, width = info.shape
        least = 16 if self.variant == "text" else 8
        if min(height, width) < least:
            raise PluginError(
                f"substitute blocks:variant={self.variant} needs images of {least}x{least} or "
                f"larger, not {height}x{width}"
            )
        layers: list[tuple[str, nn.Module]] = []
        if self.variant == "earlier":
            if channels != len(MEAN):
                raise PluginError(
                    "substitute blocks:variant=earlier standardises three channels, the images "
                    f"have {channels}"
                )
            layers.append(("standard", Standardised()))
        for i, maps in enumerate(MAPS, start=1):
            layers.append((f"conv{i}", nn.Conv2d(channels, maps, 3, padding=1)))
            channels, pooled = maps, i < len(MAPS) or self.variant == "text"
            if pooled and self.variant != "earlier":
                layers.append((f"norm{i}", nn.BatchNorm2d(maps)))
            layers.append((f"relu{i}", nn.ReLU()))
            if pooled:
                pool = nn.AvgPool2d(2) if self.variant == "code" else nn.MaxPool2d(2)
                layers.append((f"pool{i}", pool))
        head = nn.Linear(channels, info.classes)
        layers += [("mean", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("head", head)]
        return _drawn(nn.Sequential(OrderedDict(layers)))


class Standardised(nn.Module):
    """Pixels less CIFAR-10's means, in its standard deviations."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = (x.new_tensor(v).view(-1, 1, 1) for v in (MEAN, STD))
        return (x - mean) / std


NETS: Mapping[str, type] = {"dual": Dual, "blocks": Blocks}


def _drawn(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
