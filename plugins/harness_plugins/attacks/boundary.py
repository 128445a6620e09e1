"""The boundary attack (Brendel, Rauber and Bethge, 2018, arXiv:1712.04248), from labels alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from harness.api import Rng, Target, Threat, per_row
from harness_plugins.attacks.decision import Decisions

HALVINGS = 10  # of the way from the start to the clean image
LEAST = 1e-6  # length of a step in L2: a sample that takes shorter ones has arrived, or is stuck
MOST = 0.5  # of the distance, the longest step


@dataclass(frozen=True)
class Boundary:
    """A random walk that stays where images fool: sideways, on the sphere around the clean image,
    and, where that fools, towards the clean image. Each step is one query.

    The lengths follow what each sample meets: longer by 1/`adapt` after a step that fools, shorter
    by `adapt` after one that does not, so that half of each kind do. Other than in the paper, a
    step sideways that fools is kept though the one towards the image should not: that costs
    nothing, and brings the walk further. The walk is L2's in either norm; for Linf, which the paper
    has not, of all images on the way the closest in Linf is returned. A sample without a start
    stays as it is.

    steps:    of the walk, one query each
    sideways: length of a sample's first step on the sphere, as a share of its distance
    towards:  share of the distance that its first step towards the clean image takes
    adapt:    by how much the lengths change
    starts:   random images that are tried for one that fools
    """

    steps: Annotated[int, Ge(0)] = 10_000
    sideways: Annotated[float, Gt(0), Le(0.5)] = 0.01
    towards: Annotated[float, Gt(0), Le(0.5)] = 0.01
    adapt: Annotated[float, Gt(0), Lt(1)] = 0.667
    starts: Annotated[int, Ge(1)] = 100

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        asked = Decisions.of(target, x, y, threat, rng)
        rows, here = asked.starts(self.starts)
        here = asked.search(rows, here, HALVINGS)
        # A sample's lengths are (sideways, towards), `inward` says which is next: 1 is towards.
        share = torch.tensor([self.sideways, self.towards], device=x.device).repeat(len(rows), 1)
        inward = torch.zeros_like(rows)
        for _ in range(self.steps):
            distance = torch.linalg.vector_norm((here - x[rows]).flatten(1), dim=1)
            going = (asked.left(rows) > 0) & (share.amin(dim=1) * distance > LEAST)
            if not going.all():
                rows, here, share, inward = rows[going], here[going], share[going], inward[going]
            if not len(rows):
                break
            tried = _step(asked, rows, here, share, inward)
            fooled = asked.fools(rows, tried)
            asked.best.note(tried, asked.distance(rows, tried), fooled, rows)
            here = torch.where(per_row(fooled, here), tried, here)
            factor = torch.where(fooled, 1 / self.adapt, self.adapt)
            share[torch.arange(len(rows), device=x.device), inward] *= factor
            share.clamp_max_(MOST)
            inward = (fooled & (inward == 0)).long()
        return asked.best.x_adv


def _step(asked: Decisions, rows: Tensor, here: Tensor, share: Tensor, inward: Tensor) -> Tensor:
    """The images to ask about: each sample's step sideways or towards the clean image."""
    clean = asked.x[rows]
    tried = torch.lerp(here, clean, per_row(share[:, 1], here))
    aside = (inward == 0).nonzero()[:, 0]
    if len(aside):
        noise = asked.rng.at(rows[aside]).normal(*here.shape[1:]).to(here)
        tried[aside] = _sideways(here[aside], clean[aside], share[aside, 0], noise)
    return tried.clamp_(asked.threat.low, asked.threat.high)


def _sideways(here: Tensor, clean: Tensor, share: Tensor, noise: Tensor) -> Tensor:
    """A point as far from the clean image as `here`, a share of that distance from it along the
    tangent that the noise gives."""
    size = torch.linalg.vector_norm
    away, noise = (here - clean).flatten(1), noise.flatten(1)
    distance = size(away, dim=1, keepdim=True)
    outward = away / distance
    tangent = noise - (noise * outward).sum(dim=1, keepdim=True) * outward
    length = share[:, None] * distance / size(tangent, dim=1, keepdim=True)
    moved = torch.addcmul(away, length, tangent)
    moved *= distance / size(moved, dim=1, keepdim=True)
    return clean + moved.view_as(clean)
