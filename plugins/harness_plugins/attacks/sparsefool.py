"""SparseFool (Modas et al., 2019, arXiv:1811.02248): few entries, by a plane and the box.

DeepFool finds a point of the decision boundary, the network's gradient there is a normal of the
boundary, and the plane through the point is crossed with the fewest entries that the box allows
(algorithm 1, the linear solver); from there again, until the label is another (algorithm 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from harness.api import Rng, Target, Threat
from harness_plugins.attacks.deepfool import Rule, walk

BEYOND = 1e-3  # how far a plane is crossed, in L2


@dataclass(frozen=True)
class SparseFool:
    """The first image that fools.

    steps:       planes, at most; each costs a run of DeepFool, two forward passes and a backward
    inner_steps: of DeepFool, at most
    lam:         the plane goes through x + λ r, where x + r is on the boundary
    overshoot:   an image is tested, and kept, where all changes are longer by this share
    classes:     how many other classes DeepFool looks at, those that score highest; all where it
                 is none
    """

    steps: Annotated[int, Ge(1)] = 20
    inner_steps: Annotated[int, Ge(1)] = 50
    lam: Annotated[float, Ge(1)] = 1.0
    overshoot: Annotated[float, Ge(0)] = 0.02
    classes: Annotated[int, Ge(1)] | None = None

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        rule = Rule(steps=self.inner_steps, extra=1e-4, box="step", classes=self.classes)
        euclidean = Threat("L2", threat.eps, threat.low, threat.high)
        out, here, rows = x.clone(), x, torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            near = walk(target, here, y, euclidean, rule)
            r, label, goes = near.r, near.label, (near.r != 0).flatten(1).any(dim=1)
            there = ~goes & (label != y)  # without a step: misclassified where it stands
            out[rows[there]] = here[there]
            target, rows, x, y = target.at(goes.nonzero()[:, 0]), rows[goes], x[goes], y[goes]
            here, r, label = here[goes], r[goes], label[goes]
            if not len(rows):
                break

            normal = _normal(target, here + r, y, label)
            moved = crossed(here, normal, self.lam * r, threat)
            x_adv = torch.lerp(x, moved, 1 + self.overshoot).clamp_(threat.low, threat.high)
            fooled = target.scores(x_adv).argmax(dim=1) != y
            out[rows[fooled]] = x_adv[fooled]
            goes = ~fooled & (moved != here).flatten(1).any(dim=1)
            target, rows, x, y = target.at(goes.nonzero()[:, 0]), rows[goes], x[goes], y[goes]
            here = moved[goes]
            if not len(rows):
                break
        return out


def _normal(target: Target, x: Tensor, y: Tensor, label: Tensor) -> Tensor:
    """∇(z_label − z_y)."""

    def ahead(scores: Tensor, y: Tensor) -> Tensor:
        return (scores.gather(1, label[:, None]) - scores.gather(1, y[:, None]))[:, 0]

    normal, _ = target.gradient(ahead, x, y)
    return normal.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def crossed(x: Tensor, normal: Tensor, r: Tensor, threat: Threat) -> Tensor:
    """x moved across the plane through x + r with that normal, by the fewest entries.

    The entry with the steepest slope goes as far as it must, or as the box lets it, then the next.
    All of them (n, c, h, w).
    """
    w, start = normal.flatten(1).double(), x.flatten(1).double()
    need = (w * r.flatten(1)).sum(dim=1, keepdim=True).clamp_min(0)
    need += BEYOND * torch.linalg.vector_norm(w, dim=1, keepdim=True)
    slope, order = w.abs().sort(dim=1, descending=True, stable=True)
    room = torch.where(w > 0, threat.high - start, start - threat.low).gather(1, order)
    gained = (slope * room).cumsum(dim=1)
    still = need - torch.cat([torch.zeros_like(need), gained[:, :-1]], dim=1)
    change = torch.where(slope > 0, still / slope, 0.0).clamp_min(0)
    delta = torch.zeros_like(w).scatter_(1, order, change) * w.sign()
    moved = (start + delta).to(x.dtype).view(x.shape)
    return moved.clamp_(threat.low, threat.high)
