"""Networks of sign units: MLP01 and SCD01, and majority and one-vs-all votes of them.

A network outputs 1 where Σ_k u_k a(w_k·x + b_k) + c > 0, and 0 elsewhere; a(z) is 1 where z > 0 and
`low`, which is 0 or −1, elsewhere. With one unit, u = 1 and c = −½ it is a linear classifier. All
products are linear algebra of float32; thresholds decide, so nothing here has a useful gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import PluginError
from harness_plugins.linear_models import Linear

# Steep enough for a smooth network to decide as the sharp one does on most images, flat enough for
# the units that an attack within reach could turn to have a gradient.
UNIT_SLOPE = 6.0
OUTPUT_SLOPE = 6.0
Low = Literal[0, -1]


@dataclass(frozen=True, eq=False)
class SignNetwork:
    """v networks of h sign units each on d pixels, as tensors. The part `sign_network`.

    hidden:     w, (v, h, d), rows of length 1; pixels as they lie in x.flatten(1)
    thresholds: b, (v, h)
    output:     u, (v, h)
    bias:       c, (v,)
    votes_for:  the class that a network's 1 is a vote for, (v,)
    classes:    k; two classes: a 0 is a vote for class 0; more: one against all
    low:        what a unit that is off puts out: 0 or −1
    """

    hidden: Tensor
    thresholds: Tensor
    output: Tensor
    bias: Tensor
    votes_for: Tensor
    classes: int
    low: Low = 0

    @property
    def runs(self) -> int:
        """Networks for each class that has votes of its own."""
        return len(self.bias) // (1 if self.classes == 2 else self.classes)

    def projections(self, x: Tensor) -> Tensor:
        """w_k·x + b_k for x (n, …): (n, v, h)."""
        v, h, _ = self.hidden.shape
        weights = self.hidden.flatten(0, 1)
        return functional.linear(x.flatten(1), weights, self.thresholds.flatten()).view(-1, v, h)

    def units(self, projections: Tensor) -> Tensor:
        """a of them."""
        on = (projections > 0).to(projections.dtype)
        return on if self.low == 0 else 2 * on - 1

    def outputs(self, units: Tensor) -> Tensor:
        """What the networks compare with 0, (n, v)."""
        return (units * self.output).sum(-1) + self.bias

    def votes(self, x: Tensor) -> Tensor:
        """The networks' ones and zeros, (n, v), float."""
        return (self.outputs(self.units(self.projections(x))) > 0).to(x.dtype)

    def fractions(self, votes: Tensor) -> Tensor:
        """Scores (n, k): the share of the votes for each class, from the votes (n, v).

        A tie of two classes, or of the first among more, goes to the lower one by argmax.
        """
        if self.classes == 2:
            ones = votes.mean(1)
            return torch.stack([1 - ones, ones], 1)
        scores = votes.new_zeros(len(votes), self.classes)
        return scores.index_add(1, self.votes_for, votes) / self.runs


class SignVotes(nn.Module):
    """The classifier: images (n, c, h, w) in [0, 1] to vote fractions (n, k).

    Buffers, no parameters: thresholds pass no gradient. `surrogate()` is a smooth stand-in.
    """

    def __init__(self, network: SignNetwork) -> None:
        super().__init__()
        for name in ("hidden", "thresholds", "output", "bias", "votes_for"):
            self.register_buffer(name, getattr(network, name))
        self.classes, self.low = network.classes, network.low

    @property
    def network(self) -> SignNetwork:
        tensors: Mapping[str, Tensor] = dict(self.named_buffers(recurse=False))
        return SignNetwork(**tensors, classes=self.classes, low=self.low)

    def forward(self, x: Tensor) -> Tensor:
        network = self.network
        return network.fractions(network.votes(x))

    def part(self, name: str) -> SignNetwork | Linear:
        """`sign_network`; and `linear`, where there is one unit alone. Raises PluginError."""
        network = self.network
        if name == "sign_network":
            return network
        if network.hidden.shape[:2] != (1, 1):
            v, h, _ = network.hidden.shape
            raise PluginError(
                f"{v} networks of {h} units are no linear classifier: the part `linear` is that of "
                "scd01 with votes=1 and two classes"
            )
        weight, bias = network.hidden[0, 0], network.thresholds[0, 0]
        return Linear(
            torch.stack([torch.zeros_like(weight), weight]),
            torch.stack([torch.zeros_like(bias), bias]),
        )

    def surrogate(self) -> nn.Module:
        return SmoothVotes(self.network)


class SmoothVotes(nn.Module):
    """Sigmoids in the place of the thresholds: images (n, c, h, w) to scores (n, k).

    A unit is σ(UNIT_SLOPE · its projection), a network's vote σ(OUTPUT_SLOPE · its output).
    """

    def __init__(self, network: SignNetwork) -> None:
        super().__init__()
        self.votes = SignVotes(network)

    def forward(self, x: Tensor) -> Tensor:
        network = self.votes.network
        low = float(network.low)
        units = low + (1 - low) * (UNIT_SLOPE * network.projections(x)).sigmoid()
        return network.fractions((OUTPUT_SLOPE * network.outputs(units)).sigmoid())
