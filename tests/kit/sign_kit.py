"""Small sign networks with random weights, and targets that give them as a part."""

from __future__ import annotations

import dataclasses
import math

import torch
from attack_kit import judged
from torch.nn import functional

from harness_plugins.sign_networks import SignNetwork, SignVotes


def random_network(v, h, d, *, classes=2, low=0, seed=0):
    """Networks whose thresholds lie where images are, all outputs possible."""
    rng = torch.Generator().manual_seed(seed)
    hidden = functional.normalize(torch.randn(v, h, d, generator=rng), dim=2)
    near = torch.rand(v, h, d, generator=rng)  # an image that each hyperplane goes through
    output = functional.normalize(torch.randn(v, h, generator=rng), dim=1)
    bias = -(output.sum(1) * (1 + low) / 2) + 0.2 * torch.randn(v, generator=rng) / math.sqrt(h)
    votes_for = torch.ones(v) if classes == 2 else torch.arange(classes).repeat(v // classes)
    return SignNetwork(
        hidden, -(hidden * near).sum(2), output, bias, votes_for.long(), classes, low
    )


def images(n, shape, seed=0):
    """Half of them with most pixels at 0 or 1."""
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))
    x[::2] = (3 * x[::2] - 1).clamp(0, 1)
    return x


def target_of(network, n):
    """As an attack cell has it, for attacks that ask for labels and the part."""
    target = judged(SignVotes(network), n, network.classes, level="labels")
    return dataclasses.replace(target, parts=("sign_network",))


def labels(network, x):
    return SignVotes(network)(x).argmax(dim=1)
