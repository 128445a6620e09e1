"""The decision boundaries around an image, as the network's linear expansion sees them.

With z the scores and y the label, f_j = z_j − z_y is negative while class j loses. To first order
its boundary is the hyperplane f_j(x) + ⟨∇f_j, r⟩ = 0, and by Hölder the nearest point of it lies
|f_j| / ‖∇f_j‖* away, ‖·‖* being the dual norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.api import Target


@dataclass(frozen=True)
class Boundaries:
    """Of n samples and m of their other classes.

    scores:  (n, k)
    classes: which other classes these are, int64 (n, m)
    gap:     f_j, (n, m): positive where class j is ahead of y
    normal:  ∇f_j, (n, m, c, h, w); entries that are not finite are 0
    """

    scores: Tensor
    classes: Tensor
    gap: Tensor
    normal: Tensor


def boundaries(target: Target, x: Tensor, y: Tensor, most: int | None = None) -> Boundaries:
    """Of all other classes, or of the `most` that score highest: one forward pass, m backward.

    Highest first where `most` is given, else in the order of the classes.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        scores = target(x)
        k = scores.shape[1]
        classes = others(scores.detach(), y, k - 1 if most is None else min(most, k - 1))
        gap = scores.gather(1, classes) - scores.gather(1, y[:, None])
        last = classes.shape[1] - 1
        normal = [
            torch.autograd.grad(gap[:, j].sum(), x, retain_graph=j < last)[0]
            for j in range(last + 1)
        ]
    stacked = torch.stack(normal, dim=1)
    return Boundaries(
        scores.detach(),
        classes,
        gap.detach(),
        stacked.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0),
    )


def others(scores: Tensor, y: Tensor, m: int) -> Tensor:
    """m classes other than y, int64 (n, m)."""
    k = scores.shape[1]
    if m < k - 1:
        return scores.scatter(1, y[:, None], -torch.inf).topk(m, dim=1).indices
    all_but_last = torch.arange(k - 1, device=y.device).expand(len(y), -1)
    return all_but_last + (all_but_last >= y[:, None])
