"""MI-FGSM, the momentum iterative fast gradient sign method (Dong et al., 2018,
arXiv:1710.06081)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from harness.api import LOSSES, Active, Rng, Target, Threat
from harness_plugins.attacks.pgd import LossName


@dataclass(frozen=True)
class MIFGSM:
    """g ← decay · g + ∇ₓ loss / ‖∇ₓ loss‖₁, and a step of eps / steps along g, from x itself
    (algorithm 1; Linf: along its sign, L2: along g / ‖g‖₂).

    What the box would stop is left out of an L2 step, as in PGD. A sample stops at the first image
    that fools, where the target is the model that is judged.

    steps: forward and backward passes
    decay: of the sum of gradients; with 0 this is bim with rel_step = 1 / steps
    loss:  what is climbed: cross-entropy, max_{j≠y} z_j − z_y (margin), its ratio (dlr), −z_y
    """

    steps: Annotated[int, Ge(1)] = 10
    decay: Annotated[float, Ge(0)] = 1.0
    loss: LossName = "ce"

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        x_adv, momentum = x.clone(), torch.zeros_like(x)
        left = torch.arange(len(x), device=x.device)  # rows that are still attacked
        for turn in range(1, self.steps + 1):
            here, start = x_adv[left], x[left]
            gradient, scores = target.at(left).gradient(LOSSES[self.loss], here, y[left])
            along = momentum[left].mul_(self.decay).add_(_unit(gradient))
            moved = threat.step(here, along, start, threat.eps / self.steps)
            momentum[left] = along
            if target.judged:  # an image that fools does so again: its row may leave at any turn
                stands = scores.argmax(dim=1) == y[left]
                moved = torch.where(stands.view(-1, *[1] * (x.ndim - 1)), moved, here)
            x_adv[left] = moved
            if target.judged and (x.device.type == "cpu" or turn % Active.SYNC_EVERY == 0):
                left = left[stands]
                if not len(left):
                    break
        return x_adv


def _unit(gradient: Tensor) -> Tensor:
    """Of L1 norm 1; 0 where it is 0."""
    gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    size = gradient.flatten(1).abs().sum(dim=1)
    size = torch.where(size > 0, size, 1.0)
    return gradient / size.view(-1, *[1] * (gradient.ndim - 1))
