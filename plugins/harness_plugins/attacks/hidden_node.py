"""The white-box attack on MLP01 that its authors gave: across one hidden unit's hyperplane.

Xue, Xie and Roshan, On the transferability of adversarial examples between convex and 01 loss
models (ICMLA 2020), supplement. A heuristic: it knows nothing of how units combine, and of the many
ways to another output it tries as many as there are units. `sign_search` shows how weak it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.api import Rng, StreamRng, Target, Threat, padded
from harness_plugins.sign_networks import SignNetwork


@dataclass(frozen=True)
class HiddenNode:
    """x − ε sign(w_k·x + b_k) sign(w_k) for one hidden unit k after the other, in random order.

    The first of these images that the target misclassifies is taken, or, if none is, that of the
    order's first unit; an image that is misclassified already goes the same way. Of a vote the
    units of all networks are visited, and the vote is what has to be wrong. One forward pass for
    every unit visited. A projection of exactly 0 counts as negative, as it does in the network.

    pixels: `permuted` is what the published code does: it puts sign(w_k) on the image with the
            pixels in the order in which that network was trained, a random one for each network
    """

    pixels: Literal["own", "permuted"] = "own"

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        network: SignNetwork = target.part("sign_network")
        away = torch.where(padded(network.projections, x).flatten(1) > 0, -1.0, 1.0).to(x)
        signs = self._signs(network, rng.restart).to(x)
        order = rng.uniform(len(signs)).argsort(dim=1, stable=True)
        x_adv = x.clone()
        holding = torch.arange(len(x), device=x.device)  # rows that no unit has fooled
        for turn in range(len(signs)):
            if not len(holding):
                break
            unit = order[holding, turn]
            step = signs[unit] * (threat.eps * away[holding, unit, None])
            tried = threat.project(x[holding] + step.view_as(x[holding]), x[holding])
            fooled = target.at(holding).labels(tried) != y[holding]
            taken = fooled if turn else torch.ones_like(fooled)
            x_adv[holding[taken]] = tried[taken]
            holding = holding[~fooled]
        return x_adv

    def _signs(self, network: SignNetwork, restart: int) -> Tensor:
        """sign(w_k) of all units as the images are given them, (v h, d)."""
        signs = network.hidden.sign()
        if self.pixels == "permuted":
            v, _, d = signs.shape
            keys = [StreamRng.keyed("columns", restart, i).uniform(d) for i in range(v)]
            columns = torch.stack(keys).argsort(dim=2).to(signs.device)  # (v, 1, d)
            signs = signs.gather(2, columns.expand_as(signs))
        return signs.flatten(0, 1)
