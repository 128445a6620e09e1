"""The input gradients of all differences of scores at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from harness_plugins.attacks.boundaries import others


def gap_gradients(scores: Tensor, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The k − 1 classes j other than each image's label, int64 (n, k − 1), in their order, and
    ∂(z_j − z_label)/∂x, (k − 1, n, …), without graph of their own; scores (n, k) of x.

    One batched backward pass; the graph of the scores stays.
    """
    k = scores.shape[1]
    classes = others(scores.detach(), labels, k - 1)
    weights = functional.one_hot(classes.T, k) - functional.one_hot(labels, k)
    (gradients,) = torch.autograd.grad(
        scores, x, weights.to(scores.dtype), retain_graph=True, is_grads_batched=True
    )
    return classes, gradients
