"""DAA, the distributionally adversarial attack, by its blob method (Zheng, Chen and Ren, 2019,
arXiv:1808.05537)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from harness.api import LOSSES, Active, Rng, Target, Threat, margin
from harness_plugins.attacks.pgd import REACH, LossName


@dataclass(frozen=True)
class DAA:
    """PGD of several particles that a kernel K couples (DAA-BLOB): particle i climbs

        gᵢ + coupling / M · Σⱼ (K(xᵢ, xⱼ) gⱼ − ∇_{xⱼ} K(xᵢ, xⱼ)),

    by its sign, with gᵢ the gradient of its loss. It follows its neighbours' gradients, and the
    second term draws it to them; the signs are those of the authors' program.

    The paper's particles are the M images of a batch. Here an image must not depend on its batch:
    the particles are M copies of the one image, each from a random point of the ball of its own.
    Returned is the first that fools, else the most adversarial of the last step's.

    steps:     each a forward and a backward pass for every particle
    particles: M; with one this is pgd
    coupling:  weight of the kernel's terms; with 0 this is pgd with M starts
    rel_step:  length of a step as a share of eps; 2.5 / steps where it is none
    loss:      what is climbed: cross-entropy, max_{j≠y} z_j − z_y (margin), its ratio (dlr), −z_y
    """

    steps: Annotated[int, Ge(1)] = 200
    particles: Annotated[int, Ge(1)] = 10
    coupling: Annotated[float, Ge(0)] = 1.1
    rel_step: Annotated[float, Gt(0)] | None = None
    loss: LossName = "ce"

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        m, size = self.particles, threat.eps * (self.rel_step or REACH / self.steps)
        left = torch.arange(len(x), device=x.device)  # rows that are still attacked
        copies = left.repeat_interleave(m)
        x_adv = threat.random_start(x[copies], rng.at(copies)).view(len(x), m, *x.shape[1:])
        level = torch.zeros(len(x), m, dtype=x.dtype, device=x.device)  # margins of x_adv
        for turn in range(1, self.steps + 1):
            here, start = x_adv[left], x[left.repeat_interleave(m)]
            gradient, level[left] = self._ask(target.at(left), here, y[left], max(len(x), m))
            along = pull(here, gradient).mul_(self.coupling / m).add_(gradient)
            moved = threat.step(here.flatten(0, 1), along.flatten(0, 1), start, size).view_as(here)
            if target.judged:  # an image that fools does so again: its row may leave at any turn
                stands = level[left].amax(dim=1) < 0
                moved = torch.where(stands.view(-1, *[1] * x.ndim), moved, here)
            x_adv[left] = moved
            if target.judged and (x.device.type == "cpu" or turn % Active.SYNC_EVERY == 0):
                left = left[stands]
                if not len(left):
                    break
        if m > 1 and len(left):
            copies = left.repeat_interleave(m)
            scores = target.at(copies).scores(x_adv[left].flatten(0, 1))
            level[left] = _level(scores, y[copies]).view(-1, m).to(level.dtype)
        return x_adv[torch.arange(len(x), device=x.device), level.argmax(dim=1)]

    def _ask(self, target: Target, x_adv: Tensor, y: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """The particles' gradients, with 0 for what is not finite, and their levels (n, m).

        At most `batch` images go into one pass.
        """
        n, m = x_adv.shape[:2]
        flat, copies = x_adv.flatten(0, 1), torch.arange(n, device=y.device).repeat_interleave(m)
        gradient, level = torch.empty_like(flat), flat.new_empty(n * m)
        for rows in torch.split(torch.arange(n * m, device=y.device), batch):
            own = copies[rows]
            gradient[rows], scores = target.at(own).gradient(LOSSES[self.loss], flat[rows], y[own])
            level[rows] = _level(scores, y[own]).to(level.dtype)
        return gradient.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0).view_as(x_adv), level.view(
            n, m
        )


def pull(x: Tensor, gradient: Tensor) -> Tensor:
    """Σⱼ (K(xᵢ, xⱼ) gⱼ − ∇_{xⱼ} K(xᵢ, xⱼ)) of the particles i of each sample, (n, m, c, h, w).

    K(x, z) = exp(−‖x − z‖₂² / 2h²), where 2h² is the median squared distance, each particle's from
    itself among them, over log m. Sums go from particle to particle: the bits of a matrix product
    could depend on how many samples there are.
    """
    m = x.shape[1]
    flat, slope = x.flatten(2), gradient.flatten(2)
    squared = torch.stack(
        [(flat - flat[:, j : j + 1]).square_().sum(dim=2) for j in range(m)], dim=2
    )
    ordered = squared.flatten(1).sort(dim=1).values
    median = (ordered[:, (m * m - 1) // 2] + ordered[:, m * m // 2]) / 2
    rate = torch.where(median > 0, math.log(m) / median, 0.0)[:, None, None]  # 1 / 2h²
    kernel = torch.exp(-rate * squared)
    # ∇_{xⱼ} K(xᵢ, xⱼ) = 2 rate K(xᵢ, xⱼ) (xᵢ − xⱼ)
    carried = slope + 2 * rate * flat
    total = -2 * rate * kernel.sum(dim=2, keepdim=True) * flat
    for j in range(m):
        total.addcmul_(kernel[:, :, j : j + 1], carried[:, j : j + 1])
    return total.view_as(x)


def _level(scores: Tensor, y: Tensor) -> Tensor:
    """The margin, but negative wherever the label is y, a tie of scores included."""
    value = margin(scores, y)
    tiny = torch.finfo(value.dtype).tiny
    return torch.where(scores.argmax(dim=1) != y, value, value.clamp_max(-tiny))
