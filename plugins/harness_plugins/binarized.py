"""Binarized networks: signs for weights and signs for hidden units.

One hidden layer, as Larq (Geiger and Team, 2020, JOSS 5(45)) would build it: real inputs, a dense
layer of binary weights, batch normalisation without scale, the sign, a dense layer of binary
weights without bias. sign(0) is 1. A bias before the normalisation would cancel, and is left out.

Training holds real (latent) weights in [−1, 1] and descends through an estimator: the sign goes
forward, another function's derivative back. What is left of it afterwards, signs and thresholds,
has no useful gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness_plugins.votes import Votes

EPS = 1e-3  # of the normalisation, as in Keras
MOMENTUM = 0.1  # the weight of what is new; Keras calls it 0.9

Quantiser = Literal["approx", "ste"]


def sign(u: Tensor) -> Tensor:
    """1 where u ≥ 0, −1 elsewhere."""
    return (u >= 0).to(u.dtype).mul_(2).sub_(1)


class _Approximate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return sign(u)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        u: Tensor = ctx.saved_tensors[0]
        return u.abs().mul_(-2).add_(2).clamp_min_(0).mul_(gradients[0])


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return sign(u)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        u: Tensor = ctx.saved_tensors[0]
        return gradients[0] * (u.abs() <= 1)


def approx_sign(u: Tensor) -> Tensor:
    """The sign; backward, (2 − 2|u|) where |u| ≤ 1 (Liu et al., 2018, arXiv:1808.00278)."""
    signs: Tensor = _Approximate.apply(u)  # type: ignore[no-untyped-call]
    return signs


def ste_sign(u: Tensor) -> Tensor:
    """The sign; backward, 1 where |u| ≤ 1 (Courbariaux et al., 2016, arXiv:1602.02830)."""
    signs: Tensor = _StraightThrough.apply(u)  # type: ignore[no-untyped-call]
    return signs


QUANTISERS: Mapping[Quantiser, Callable[[Tensor], Tensor]] = {
    "approx": approx_sign,
    "ste": ste_sign,
}


class Latent(nn.Module):
    """v networks in training, as one computation: images (n, …) to scores (n, v, k).

    Images stand last within it: sums over them are then those of a network alone, bit for bit.

    hidden: latent weights (v, h, d); output: (v, k, h)
    """

    def __init__(self, hidden: Tensor, output: Tensor, quantiser: Quantiser) -> None:
        super().__init__()
        self.hidden, self.output = nn.Parameter(hidden), nn.Parameter(output)
        self.shift = nn.Parameter(torch.zeros(hidden.shape[:2]))
        self.mean = nn.Buffer(torch.zeros(hidden.shape[:2]))
        self.variance = nn.Buffer(torch.ones(hidden.shape[:2]))
        self.quantise = QUANTISERS[quantiser]

    def forward(self, x: Tensor) -> Tensor:
        z = functional.linear(self.quantise(self.hidden).flatten(0, 1), x.flatten(1))
        u = self._normalised(z.view(*self.shift.shape, -1)) + self.shift[..., None]
        return (self.quantise(self.output) @ self.quantise(u)).permute(2, 0, 1)

    def _normalised(self, z: Tensor) -> Tensor:
        """By the batch's mean and variance, and in eval mode by their running averages.

        Of a last batch of one image there is no variance: it is treated as in eval mode.
        """
        if not self.training or z.shape[-1] == 1:
            return (z - self.mean[..., None]) / (self.variance + EPS).sqrt()[..., None]
        variance, mean = torch.var_mean(z, -1, correction=0, keepdim=True)
        with torch.no_grad():
            self.mean.lerp_(mean[..., 0], MOMENTUM)
            self.variance.lerp_(variance[..., 0], MOMENTUM)
        return (z - mean) / (variance + EPS).sqrt()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of the networks' cross-entropies: each descends its own, as if it were alone."""
        scores = self(x)
        labels = y[:, None].expand(scores.shape[:2])
        return functional.cross_entropy(scores.mT, labels, reduction="sum") / len(x)

    @torch.no_grad()
    def clip(self) -> None:
        """Latent weights back into [−1, 1], beyond which no gradient would move them."""
        self.hidden.clamp_(-1, 1)
        self.output.clamp_(-1, 1)

    @torch.no_grad()
    def binarized(self) -> Binarized:
        """The networks that eval mode computes; the normalisation becomes offset and scale."""
        spread = (self.variance + EPS).sqrt()
        offset = self.shift * spread - self.mean
        return Binarized(sign(self.hidden), offset, 1 / spread, sign(self.output))


class Binarized(nn.Module):
    """v networks, trained: images (n, …) to scores (n, v, k), integers.

    hidden: ±1, (v, h, d)
    offset: (v, h), added to the products with the pixels
    scale:  (v, h), 1 / standard deviation of them, for the estimator: a sign needs none
    output: ±1, (v, k, h)
    quantise: what makes units of the scaled sums; one with an estimator lets gradients through
    """

    def __init__(
        self,
        hidden: Tensor,
        offset: Tensor,
        scale: Tensor,
        output: Tensor,
        quantise: Callable[[Tensor], Tensor] = sign,
    ) -> None:
        super().__init__()
        self.register_buffer("hidden", hidden)
        self.register_buffer("offset", offset)
        self.register_buffer("scale", scale)
        self.register_buffer("output", output)
        self.quantise = quantise

    def forward(self, x: Tensor) -> Tensor:
        tensors = self.tensors
        v, h, _ = tensors["hidden"].shape
        z = functional.linear(
            x.flatten(1), tensors["hidden"].flatten(0, 1), tensors["offset"].flatten()
        )
        units = self.quantise(z.view(-1, v, h) * tensors["scale"])
        return torch.einsum("nvh,vkh->nvk", units, tensors["output"])

    @property
    def tensors(self) -> dict[str, Tensor]:
        return dict(self.named_buffers(recurse=False))


class BinarizedVotes(Votes):
    """The classifier: log-probabilities of one network, vote fractions of more."""

    networks: Binarized

    def __init__(self, networks: Binarized) -> None:
        super().__init__(networks, "soft" if len(networks.tensors["hidden"]) == 1 else "hard")

    def surrogate(self) -> nn.Module:
        """The networks' mean probability with the approximate sign's gradient, whatever they were
        trained with: through a straight-through or tanh's slope PGD finds no more, mostly less."""
        return Votes(Binarized(**self.networks.tensors, quantise=approx_sign), "soft")
