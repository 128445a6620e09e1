"""A linear model, on which the optimal perturbation is known in every norm, and images for it."""

from __future__ import annotations

import math

import torch
from torch import nn

from harness.api import Threat

SHAPE = (2, 3, 4)


class Linear(nn.Module):
    """Scores W x + b, of images that `seen` has passed on."""

    def __init__(self, classes, seen=None, seed=0, shape=SHAPE):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.w = torch.randn(classes, math.prod(shape), generator=rng)
        self.b = -(self.w @ torch.full((math.prod(shape),), 0.5))
        self.seen = seen or (lambda x: x)

    def forward(self, x):
        flat = self.seen(x).flatten(1)
        return flat @ self.w.T.to(flat) + self.b.to(flat)


def inner(n, seed=1, shape=SHAPE, spread=0.1):
    """Images far from the box's walls, and not too near a boundary: some `spread` in L2."""
    rng = torch.Generator().manual_seed(seed)
    x = 0.5 + spread * torch.randn(n, *shape, generator=rng)
    return x.clamp(0.5 - 2 * spread, 0.5 + 2 * spread)


def optimum(net, x, norm):
    """The least distance to another class, (n,), by Hölder; in L0 by giving each pixel its all."""
    y = net(x).argmax(dim=1)
    scores, flat = net(x).double(), x.double().flatten(1)
    least = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for j in range(scores.shape[1]):
        gap = scores.gather(1, y[:, None])[:, 0] - scores[:, j]
        normal = (net.w[j] - net.w[y]).double()
        if norm == "L0":
            most = torch.where(normal > 0, 1 - flat, -flat) * normal  # what each entry can give
            pixels = most.view(x.shape).sum(dim=1).flatten(1)
            gains = pixels.sort(dim=1, descending=True).values
            distance = 1.0 + (gains.cumsum(dim=1) <= gap[:, None]).sum(dim=1)
        else:
            dual = Threat(norm, 0.0).geometry.dual
            distance = gap / dual.size(normal)
        least = torch.where(y == j, least, torch.minimum(least, distance.double()))
    return least


def shares(net, x, x_adv, threat):
    """How far the margin to each class fell, (n, k), of what ‖δ‖ ≤ ε allows: ε‖w_j − w_y‖*.

    0 for the label's own class. Where the whole ball is in the box, 1 can be reached.
    """
    y = net(x).argmax(dim=1)
    falls = (net(x_adv) - net(x)).double()
    falls = falls - falls.gather(1, y[:, None])
    normals = (net.w[None] - net.w[y][:, None]).double()
    most = threat.eps * threat.geometry.dual.size(normals.flatten(0, 1)).view_as(falls)
    return torch.where(most > 0, falls / most, 0.0)
