"""What the tests of the unrolled attack and of the critic share: networks and images in float64."""

from __future__ import annotations

import torch
from torch import nn

from harness_plugins.unrolled import nearest_class


def linear_scores(w, b):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, len(b))).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.as_tensor(w))
        net[1].bias.copy_(torch.as_tensor(b))
    return net


def network(scale=2.0, seed=0):
    """Smooth, of four classes, in float64."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    with torch.no_grad():
        for weights in net.parameters():
            weights.mul_(scale)
    return net


def images(n=12, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 3, 4, generator=rng, dtype=torch.float64)


def goals(net, x):
    x = x.clone().requires_grad_()
    return nearest_class(net(x), x)
