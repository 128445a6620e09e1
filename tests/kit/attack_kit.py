"""What the tests of attacks share: targets and draws as a cell has them, networks, and images."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from harness.api import Target, Threat
from harness.rng import SampleRng
from harness.target import Ledger, Source

CPU = torch.device("cpu")
SHAPE = (1, 6, 6)


def draws(n, key="test", restart=0):
    return SampleRng.keyed(key, ids=range(n), restart=restart, device=CPU)


def judged(net, n, classes=5, level="gradients"):
    """A target as an attack cell has it: samples may leave, queries are counted by sample."""
    rows, weight = np.arange(n), np.ones(n, np.int64)
    return Target(Source(net, classes, 512), level, Ledger(n), rows, weight, judged=True)


def run(attack, net, x, y=None, norm="L2", restart=0):
    """The images that an attack finds where no distance is too far, and what they cost."""
    scores = net(x)
    target = judged(net, len(x), scores.shape[1])
    y = scores.argmax(dim=1) if y is None else y
    rng = draws(len(x), restart=restart)
    return attack(target, x, y, Threat(norm, math.inf), rng), target.ledger


class Halfspace(nn.Module):
    """Scores (−z, z) with z = w · (x − centre) + b: class 1 until w · x falls."""

    def __init__(self, w, b=0.0, centre=0.5):
        super().__init__()
        self.w, self.b, self.centre = w, b, centre

    def forward(self, x):
        z = (x - self.centre).flatten(1) @ self.w.to(x) + self.b
        return torch.stack([-z, z], dim=1)


class Affine(nn.Module):
    """Scores W x + b."""

    def __init__(self, w, b):
        super().__init__()
        self.w, self.b = w, b

    def forward(self, x):
        return x.flatten(1) @ self.w.to(x).T + self.b.to(x)


class Double(nn.Module):
    def forward(self, x):
        return x.double()


class Patchy(nn.Module):
    """Constant where the first pixel is 0, and without a gradient there where it is 1/2."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        first = x[:, 0, 0, 0]
        scores = self.net(x) + 0 * (first - 0.5).abs().sqrt()[:, None]
        flat = torch.tensor([1.0, 0, 0, 0, 0], dtype=x.dtype)
        return torch.where((first == 0)[:, None], flat, scores)


def halfspace(n=12):
    """A linear model of two classes, images near its boundary, and their classes."""
    rng = torch.Generator().manual_seed(3)
    net = Halfspace(torch.randn(12, generator=rng))
    x = 0.5 + 0.02 * torch.randn(n, 1, 3, 4, generator=rng)
    return net, x, net(x).argmax(dim=1)


def star(classes, shape=SHAPE):
    """An affine model whose boundaries all meet near the grey image."""
    rng = torch.Generator().manual_seed(0)
    w = torch.randn(classes, math.prod(shape), generator=rng)
    return Affine(w, 0.3 * torch.randn(classes, generator=rng) - w.sum(dim=1) / 2)


def curved(last=1):
    """A small network in double precision, whose boundaries are curved."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(96, 5))
    with torch.no_grad():
        net[0].weight *= 4
        net[3].weight *= last
    return net.double().requires_grad_(requires_grad=False)


def small(features=144):
    """A network of five classes; 144 features for images of 8 × 8 pixels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(features, 5)
    ).requires_grad_(requires_grad=False)


def grey(n=10, shape=SHAPE):
    """Images in the middle of the box."""
    return 0.45 + 0.1 * torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


def corners(n=10, seed=1, shape=SHAPE):
    """Images of which most pixels are exactly 0 or 1."""
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))
    return (1.6 * x - 0.3).clamp(0, 1)


@functools.cache
def digits(n=32):
    """A network that has learnt the digits, and images of them that it has right; 8 × 8 pixels,
    half of them 0 or 1."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.from_numpy(raw.images[:, None] / 16).float()
    y = torch.from_numpy(raw.target).long()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    for _ in range(150):
        parameters = list(net.parameters())
        loss = functional.cross_entropy(net(x[:1200]), y[:1200])
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, g in zip(parameters, gradients, strict=True):
                parameter.sub_(g)
    net.requires_grad_(requires_grad=False)
    right = 1200 + (net(x[1200:]).argmax(dim=1) == y[1200:]).nonzero()[:n, 0]
    return net, x[right], y[right]
