"""The worst images of a linear classifier, in one step.

For two classes x − ε y sign(w), y = ±1: the attack on linear models in Xue, Xie and Roshan, On the
transferability of adversarial examples between convex and 01 loss models (ICMLA 2020). For more,
with scores z = W x + b, z_j − z_y is greatest over the ball at x + ε sign(w_j − w_y), entry by
entry also where the box cuts the ball; so the best of these k − 1 images has the greatest margin
max_{j≠y} z_j − z_y that ball and box allow. That is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.api import Rng, Target, Threat, margin, padded
from harness_plugins.linear_models import Linear


@dataclass(frozen=True)
class LinearSign:
    """clip(x + ε sign(w_j − w_y)) for the class j whose margin over y grows the highest.

    The true label is what it moves away from, also where the image is misclassified already, as
    FGSM does. It asks the target nothing. Where a class t is asked for, the images that raise z_t
    against each other class are compared by min_{j≠t} z_t − z_j: exact for two classes alone.
    """

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        linear: Linear = target.part("linear")
        aim = y if target.wanted is None else target.wanted
        away = 1.0 if target.wanted is None else -1.0  # from the label, or toward it
        x_adv, best = x.clone(), away * margin(padded(linear.scores, x), aim)
        for j in range(len(linear.weight)):
            direction = (linear.weight[j] - linear.weight[aim]).sign().to(x)
            moved = threat.project(x + (away * threat.eps) * direction.view_as(x), x)
            reached = away * margin(padded(linear.scores, moved), aim)
            better = (reached > best) & (aim != j)
            x_adv = torch.where(better.view(-1, *[1] * (x.ndim - 1)), moved, x_adv)
            best = torch.where(better, reached, best)
        return x_adv
