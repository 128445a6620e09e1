"""Projected gradient descent, and what one loop makes of it: FGSM, BIM and PGD.

x ← Π(x + α · s(∇ₓ loss)), where Π projects into the ball and the box and s is the norm's steepest
direction: the sign for Linf, the gradient's own for L2, the one greatest entry for L1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import Tensor

from harness.api import LOSSES, Active, Loss, Rng, Target, Threat

LossName = Literal["ce", "margin", "dlr", "score"]

# x_adv, the loss's gradient there and the clean images to the next x_adv, inside ball and box
Step = Callable[[Tensor, Tensor, Tensor], Tensor]

REACH = 2.5  # all steps together go this many eps, so that any two points of the ball can be joined


@dataclass(frozen=True)
class FGSM:
    """One step of length eps from x (Goodfellow et al., 2015, arXiv:1412.6572, section 4).

    The paper's case is Linf.

    loss: what is climbed: cross-entropy, max_{j≠y} z_j − z_y (margin), its ratio (dlr), −z_y
    """

    loss: LossName = "ce"

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        gradient, _ = target.gradient(LOSSES[self.loss], x, y)
        return threat.step(x, gradient, x, threat.eps)


@dataclass(frozen=True)
class BIM:
    """PGD from x itself, without chance (Kurakin et al., 2017, arXiv:1607.02533, section 2.2).

    steps:    forward and backward passes
    rel_step: length of a step as a share of eps; 2.5 / steps where it is none
    loss:     what is climbed: cross-entropy, max_{j≠y} z_j − z_y (margin), its ratio (dlr), −z_y
    """

    steps: Annotated[int, Ge(1)] = 40
    rel_step: Annotated[float, Gt(0)] | None = None
    loss: LossName = "ce"

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        size = threat.eps * (self.rel_step or REACH / self.steps)
        step = partial(threat.step, size=size)
        return climb(Active(target, x, y, x), LOSSES[self.loss], self.steps, step)


@dataclass(frozen=True)
class PGD:
    """Steps from a random point of the ball (Madry et al., 2018, arXiv:1706.06083, section 2.1).

    The last step's image is returned, not the best of all, as in the paper; where the target is
    the model that is judged, a sample stops at the first image that fools.

    steps:    forward and backward passes
    rel_step: length of a step as a share of eps; 2.5 / steps where it is none
    loss:     what is climbed: cross-entropy, max_{j≠y} z_j − z_y (margin), its ratio (dlr), −z_y
    """

    steps: Annotated[int, Ge(1)] = 40
    rel_step: Annotated[float, Gt(0)] | None = None
    loss: LossName = "ce"

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        size = threat.eps * (self.rel_step or REACH / self.steps)
        start = threat.random_start(x, rng)
        step = partial(threat.step, size=size)
        return climb(Active(target, x, y, start), LOSSES[self.loss], self.steps, step)


def climb(active: Active, loss: Loss, steps: int, step: Step) -> Tensor:
    """`steps` steps up the loss, from where the samples stand."""
    for _ in range(steps):
        if not len(active):
            break
        gradient, scores = active.target.gradient(loss, active.x_adv, active.y)
        active.move(step(active.x_adv, gradient, active.x), scores)
    return active.result()
