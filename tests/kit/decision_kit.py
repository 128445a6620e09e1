"""What the tests of attacks that see labels alone share."""

from __future__ import annotations

import math

import numpy as np
import torch
from attack_kit import Halfspace
from torch import nn

from harness.api import Threat
from harness.target import Ledger, Source, Target

UNBOUND = {norm: Threat(norm, math.inf) for norm in ("L2", "Linf")}


def labelled(net, n, classes=2, budget=None, **more):
    """A target that shows labels alone."""
    rows, weight = np.arange(n), np.ones(n, np.int64)
    source = Source(net, classes, 512, eot=more.pop("eot", 1))
    return Target(source, "labels", Ledger(n, budget), rows, weight, judged=True, **more)


def optimum(net, x, norm):
    """|w · (x − c) + b| / ‖w‖*, by Hölder."""
    dual = UNBOUND[norm].geometry.dual
    return net(x).double()[:, 1].abs() / dual.size(net.w.double()[None])


def art_classifier(net, asked):
    """ART's handle on the network; `asked` is told the number of images of each call."""
    from art.estimators.classification import PyTorchClassifier

    class Cast(nn.Module):
        def forward(self, x):
            asked.append(len(x))
            return net(x.float())  # ART's query attacks pass doubles

    return PyTorchClassifier(Cast(), nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1))


def inside(n=12):
    """A linear model of two classes, images some 0.1 from its boundary and inside the box, and
    their classes."""
    rng = torch.Generator().manual_seed(4)
    net = Halfspace(torch.randn(12, generator=rng))
    x = 0.5 + 0.1 * torch.randn(n, 1, 3, 4, generator=rng)
    return net, x, net(x).argmax(dim=1)
