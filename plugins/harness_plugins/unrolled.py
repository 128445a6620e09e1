"""The high-confidence attack as a part of a loss: unrolled, and differentiable in the weights.

Matyasko and Chau, 2018, arXiv:1810.12576, section 3 and algorithm 1. What `high_confidence` is for
judging, this is for training: few steps, no box, and every perturbation with its graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness_plugins.attacks.high_confidence import step
from harness_plugins.class_gradients import gap_gradients


def nearest_class(scores: Tensor, x: Tensor) -> Tensor:
    """Of each image, the class other than the predicted one whose boundary is nearest, (n,).

    To first order: argmin_j |z_j − z_ŷ| / ‖∂(z_j − z_ŷ)/∂x‖₂. It carries no gradient. Where no
    class has a slope it is the first other one.
    """
    predicted = scores.detach().argmax(dim=1)
    classes, slopes = gap_gradients(scores, x, predicted)
    gaps = scores.detach().gather(1, classes) - scores.detach().gather(1, predicted[:, None])
    far = (gaps.abs() / slopes.flatten(2).norm(dim=2).T).nan_to_num(nan=torch.inf)
    return classes.gather(1, far.argmin(dim=1, keepdim=True))[:, 0]


def reach(
    net: nn.Module, x: Tensor, goal: Tensor, confidence: Tensor, steps: int, overshoot: float
) -> Tensor:
    """x + (1 + overshoot) Σ s_i r_i, images (n, c, h, w) that the net calls `goal` (n,) with the
    confidence (n,), or that are on the way there after the last step.

    r_i is the attack's step at the point that was reached, which is a constant: gradients flow
    into the weights, and into `confidence`, through r_i and s_i, not through earlier steps.
    s_i = Π_{k≤i} [p_k < confidence], p_k the probability of the goal before step k, is 1 until the
    image has arrived; each factor has the slope of σ(confidence − p_k), which is the paper's
    straight-through rounding of σ.

    An image that has arrived leaves: its later s_i are 0, and so are their slopes.
    """
    total = torch.zeros_like(x)
    rows, going = torch.arange(len(x), device=x.device), torch.ones_like(confidence)
    for _ in range(steps):
        point = (x + (1 + overshoot) * total).detach()[rows].requires_grad_()
        log_p = net(point).log_softmax(dim=1).gather(1, goal[rows][:, None])[:, 0]
        (gradient,) = torch.autograd.grad(log_p.sum(), point, create_graph=True)
        wanted = confidence[rows]
        going = going * _positive(wanted - log_p.exp())
        r = step(log_p, gradient, wanted.log())
        total = total.index_add(0, rows, r * going.view(-1, 1, 1, 1))
        stays = (going.detach() > 0).nonzero()[:, 0]
        if not len(stays):
            break
        rows, going = rows[stays], going[stays]
    return x + (1 + overshoot) * total


def _positive(v: Tensor) -> Tensor:
    """1 where v > 0, else 0, with the slope of σ(v)."""
    smooth = v.sigmoid()
    return smooth + ((v > 0).to(v.dtype) - smooth).detach()
