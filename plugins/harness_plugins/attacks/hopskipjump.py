"""HopSkipJump (Chen, Jordan and Wainwright, 2020, arXiv:1904.02144), from labels alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from harness.api import Rng, Target, Threat, per_row
from harness_plugins.attacks.decision import Decisions

BLOCK = 64  # probes of a sample that are drawn and asked together
HALVINGS = 20  # of a step, before the sample stays where it is for this turn


@dataclass(frozen=True)
class HopSkipJump:
    """To the boundary, along its normal as the labels of random probes tell it, and back.

    Step t (from 1) asks about `probes`·√t images around the boundary point, goes the point's
    distance over √t along the direction that they tell, half as far until that fools, and searches
    the way back to the clean image. The searches are as fine as the probes can tell: in L2 a
    `delta`/√d of the way, in Linf a `delta`/d, d the number of an image's values.

    Left out of the paper: the first step's probes as long as a tenth of the box. A sample without
    a start stays as it is.

    steps:  50 of them ask some 24,000 times with the other defaults
    probes: B₀ of the paper
    most:   probes of one step, at most
    delta:  length of a probe as a share of the point's distance
    starts: random images that are tried for one that fools
    """

    steps: Annotated[int, Ge(0)] = 50
    probes: Annotated[int, Ge(1)] = 100
    most: Annotated[int, Ge(1)] = 10_000
    delta: Annotated[float, Gt(0), Le(1)] = 0.01
    starts: Annotated[int, Ge(1)] = 100

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        asked = Decisions.of(target, x, y, threat, rng)
        values = x.shape[1:].numel()
        fineness = self.delta / (values if threat.norm == "Linf" else math.sqrt(values))
        halvings = math.ceil(-math.log2(fineness))
        rows, here = asked.starts(self.starts)
        here = asked.search(rows, here, halvings)
        for step in range(1, self.steps + 1):
            # What a sample has left must do for probes, and for one query of a step at least.
            going = asked.left(rows) > 1
            rows, here = rows[going], here[going]
            if not len(rows):
                break
            size = asked.distance(rows, here)
            count = min(int(self.probes * math.sqrt(step)), self.most)
            way = _normal(asked, rows, here, self.delta * size, count)
            here = _step(asked, rows, here, way, size / math.sqrt(step))
            here = asked.search(rows, here, halvings)
        return asked.best.x_adv


def _normal(asked: Decisions, rows: Tensor, here: Tensor, length: Tensor, count: int) -> Tensor:
    """The direction in which labels change, of unit size: (n, c, h, w).

    Mean of (φ − mean φ)·u over the probes u, φ = ±1 where they fool or not; of φ·u where all φ are
    alike. A sample with less than so many queries asks as often as it can, but for one.

    length: of the probes, (n,)
    """
    counts = (asked.left(rows) - 1).clamp_max(count)
    signed, plain = torch.zeros_like(here), torch.zeros_like(here)
    balance = torch.zeros_like(length)
    rng = asked.rng.at(rows)
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        probes = _probes(asked, rng, here, length, size)
        asks = torch.arange(first, first + size, device=rows.device) < counts[:, None]
        every = rows[:, None].expand_as(asks)
        votes = torch.zeros_like(probes[:, :, 0, 0, 0])
        fooled = asked.fools(every[asks], probes[asks])
        votes[asks] = torch.where(fooled, 1.0, -1.0).to(votes)
        probes.sub_(here[:, None])
        probes.mul_(asks[:, :, None, None, None])
        plain += probes.sum(dim=1)
        signed += probes.mul_(votes[:, :, None, None, None]).sum(dim=1)
        balance += votes.sum(dim=1)
    mean = balance / counts
    mean = torch.where(mean.abs() == 1, 0.0, mean)
    return asked.threat.geometry.steepest(signed - per_row(mean, plain) * plain)


def _probes(asked: Decisions, rng: Rng, here: Tensor, length: Tensor, size: int) -> Tensor:
    """Images around `here`, (n, size, c, h, w): of normal directions, for Linf of uniform ones."""
    shape = (size, *here.shape[1:])
    if asked.threat.norm == "Linf":
        probes = rng.uniform(*shape).to(here).mul_(2).sub_(1)
    else:
        probes = rng.normal(*shape).to(here)
    scale = length[:, None] / torch.linalg.vector_norm(probes.flatten(2), dim=2)
    probes.mul_(scale[:, :, None, None, None]).add_(here[:, None])
    return probes.clamp_(asked.threat.low, asked.threat.high)


def _step(asked: Decisions, rows: Tensor, here: Tensor, way: Tensor, length: Tensor) -> Tensor:
    """As far along the way, or half as far as often as it takes to fool; else `here`."""
    moved, length = here.clone(), length.clone()
    going = torch.arange(len(rows), device=rows.device)
    for _ in range(HALVINGS):
        going = going[asked.left(rows[going]) > 0]
        if not len(going):
            break
        tried = torch.addcmul(here[going], per_row(length[going], here), way[going])
        tried.clamp_(asked.threat.low, asked.threat.high)
        fooled = asked.fools(rows[going], tried)
        moved[going[fooled]] = tried[fooled]
        length[going] /= 2
        going = going[~fooled]
    return moved
