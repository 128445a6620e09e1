"""Losses that attacks climb: scores (n, k) and labels (n,) to one number per sample, (n,).

`margin` and `dlr` are positive exactly where the sample is misclassified.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from harness.errors import PluginError

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    """−log softmax(scores)_y."""
    return functional.cross_entropy(scores, y, reduction="none")


def margin(scores: Tensor, y: Tensor) -> Tensor:
    """max_{j≠y} z_j − z_y (Carlini and Wagner, 2017, f₆ without its κ)."""
    others = scores.scatter(1, y[:, None], -torch.inf).amax(dim=1)
    return others - scores.gather(1, y[:, None])[:, 0]


def dlr(scores: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein, 2020, eq. 7): margin / (z_π1 − z_π3), k ≥ 3."""
    if scores.shape[1] < 3:
        raise PluginError(f"loss dlr needs 3 classes or more, not {scores.shape[1]}; use margin")
    top = scores.topk(3, dim=1).values
    return margin(scores, y) / (top[:, 0] - top[:, 2] + 1e-12)


def score(scores: Tensor, y: Tensor) -> Tensor:
    """−z_y, whatever the other classes do."""
    return -scores.gather(1, y[:, None])[:, 0]


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr, "score": score}
