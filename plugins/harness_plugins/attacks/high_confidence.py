"""The high-confidence attack: into the nearest class, until the network is as sure of it.

Matyasko and Chau, 2018, arXiv:1810.12576, in the form of their evaluation: a class t is chosen at
the clean image, and log p_t, p_t its softmax probability, is raised to log C by Newton's steps for
that one equation. (4.8) of the thesis (Matyasko, 2020) prints the step without its direction and
with one power of the norm too few; algorithm 1 there has it right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from harness.api import Active, Rng, Target, Threat, cross_entropy
from harness_plugins.attacks.boundaries import Boundaries, boundaries

EXTRA = 1e-4  # added to a step's length


@dataclass(frozen=True)
class HighConfidence:
    """The first image that is classified as t with probability C or more; x where none was found.

    t is the class whose boundary is nearest to x: smallest |z_j − z_y| / ‖∇z_j − ∇z_y‖₂.

    steps:      at most; a forward and a backward pass each, besides one of both for the last test,
                and a forward pass and a backward pass for every other class at the start
    confidence: C; the network's own confidence in its label of the clean image where it is none
    overshoot:  every step is lengthened by this share of itself
    max_step:   the most that a step, without overshoot, may be long; 0 for any length
    floor:      added to the gradient's squared norm; 1e-8 in the paper's code, where the attack
                comes to a halt before the confidence of a saturated network
    """

    steps: Annotated[int, Ge(1)] = 500
    confidence: Annotated[float, Gt(0), Le(1)] | None = None
    overshoot: Annotated[float, Ge(0)] = 0.02
    max_step: Annotated[float, Ge(0)] = 0.1
    floor: Annotated[float, Gt(0)] = 1e-12

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        near = boundaries(target, x, y)
        out, rows = x.clone(), (near.scores.argmax(dim=1) == y).nonzero()[:, 0]
        target, x_adv, goal = target.at(rows), x[rows], nearest_class(near)[rows]
        log_c, done = self._log_confidence(near.scores)[rows], torch.zeros_like(rows).bool()
        longest = self.max_step or math.inf
        for turn in range(self.steps + 1):
            if not len(rows):
                break
            gradient, scores = target.gradient(log_probability, x_adv, goal)
            log_p = log_probability(scores, goal)
            there = ~done & (scores.argmax(dim=1) == goal) & (log_p >= log_c)
            out[rows] = torch.where(there.view(-1, 1, 1, 1), x_adv, out[rows])
            gradient.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            done |= there | (gradient == 0).flatten(1).all(dim=1)
            r = step(log_p, gradient, log_c, self.floor, longest)
            x_adv = x_adv.add(r, alpha=1 + self.overshoot).clamp_(threat.low, threat.high)
            if x.device.type == "cpu" or (turn + 1) % Active.SYNC_EVERY == 0:
                stay = (~done).nonzero()[:, 0]
                if len(stay) < len(rows):
                    target, rows, goal = target.at(stay), rows[stay], goal[stay]
                    x_adv, log_c, done = x_adv[stay], log_c[stay], done[stay]
        return out

    def _log_confidence(self, scores: Tensor) -> Tensor:
        if self.confidence is None:
            return scores.log_softmax(dim=1).amax(dim=1)
        return torch.full_like(scores[:, 0], math.log(self.confidence))


def nearest_class(near: Boundaries) -> Tensor:
    """The class whose boundary is nearest in L2, int64 (n,); the first where none has a slope."""
    slope = torch.linalg.vector_norm(near.normal.flatten(2), dim=2)
    distance = (near.gap.abs() / slope).nan_to_num(nan=torch.inf)
    return near.classes.gather(1, distance.argmin(dim=1, keepdim=True))[:, 0]


def log_probability(scores: Tensor, label: Tensor) -> Tensor:
    """log softmax(scores)_label, (n,)."""
    return -cross_entropy(scores, label)


def step(
    log_p: Tensor,
    gradient: Tensor,
    log_confidence: Tensor,
    floor: float = 1e-8,
    longest: float = math.inf,
) -> Tensor:
    """r = (|log C − log p| / ‖g‖ + 1e-4) g / ‖g‖, ‖g‖ = (‖g‖₂² + floor)^½, cut to the longest.

    log_p and log_confidence (n,), gradient g = ∇ log p (n, c, h, w). Derivatives flow through all
    three, finite where g is 0, and so is r.
    """
    norm = (gradient.flatten(1).contiguous().square().sum(dim=1) + floor).sqrt()
    length = ((log_confidence - log_p).abs() / norm + EXTRA).clamp_max(longest)
    return gradient * (length / norm).to(gradient.dtype).view(-1, 1, 1, 1)
