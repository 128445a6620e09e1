"""FAB, the fast adaptive boundary attack (Croce and Hein, 2020, arXiv:1907.02044)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from harness.api import Best, Rng, Target, Threat, margin, per_row
from harness_plugins.attacks.boundaries import boundaries
from harness_plugins.attacks.hyperplane import reach

ALMOST = 0.99  # the final search stops short of the secant's root, where no class is ahead


@dataclass(frozen=True)
class Plane:
    """The hyperplane that stands for the decision boundary near n images.

    scores: at the images, (n, k)
    gap:    value of the linearised class difference at the images, (n,)
    normal: its gradient, (n, d)
    """

    scores: Tensor
    gap: Tensor
    normal: Tensor

    def at(self, rows: Tensor) -> Plane:
        return Plane(self.scores[rows], self.gap[rows], self.normal[rows])


Linearise = Callable[[Target, Tensor, Tensor], Plane]


@dataclass(frozen=True)
class FAB:
    """Projections onto the linearised boundary, drawn towards the clean image (algorithm 1).

    The first run starts at the image. A restart starts at random, at half the distance of what an
    earlier run found in the paper; here, where no run knows the others, at half the distance of
    the boundary as linearised at the image.

    steps:     of the loop: two forward passes each and a backward pass for every other class;
               a restart linearises once more, at the image
    alpha_max: the most by which a step is drawn to the clean image's own projection
    eta:       overshoot of both projections
    beta:      where on the way from the clean image to an adversarial one the loop goes on
    radius:    the most that a restart takes for the boundary's distance; unlimited where it is none
    towards:   FAB-T: that many runs of the loop, each with the boundary of one class alone, of the
               highest scores; one backward pass a step. All classes at once where it is none
    search:    steps of the final search on the way to the closest image, one forward pass each
    """

    steps: Annotated[int, Ge(1)] = 100
    alpha_max: Annotated[float, Ge(0), Le(1)] = 0.1
    eta: Annotated[float, Gt(0)] = 1.05
    beta: Annotated[float, Ge(0), Le(1)] = 0.9
    radius: Annotated[float, Gt(0)] | None = None
    towards: Annotated[int, Ge(1)] | None = None
    search: Annotated[int, Ge(0)] = 3

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        here = nearest(threat)(target, x, y) if self.towards is None else None
        scores = target.scores(x) if here is None else here.scores
        right = (scores.argmax(dim=1) == y).nonzero()[:, 0]
        x_adv = x.clone()
        if len(right):
            at = _Start(target.at(right), x[right], y[right], threat, rng.at(right))
            runs = _Runs(self, at)
            if here is not None:
                runs.run(nearest(threat), here.at(right))
            else:
                for wanted in _highest(scores[right], at.y, self.towards or 0):
                    runs.run(of_class(wanted), of_class(wanted)(at.target, at.x, at.y))
            runs.search(margin(scores, y)[right].to(x.dtype))
            x_adv[right] = runs.best.x_adv
        return x_adv


@dataclass(frozen=True)
class _Start:
    """Samples that are classified correctly, and what an attack was given with them."""

    target: Target
    x: Tensor
    y: Tensor
    threat: Threat
    rng: Rng


class _Runs:
    """What the runs of one call have found.

    level: the margin that each sample's closest image was found with
    """

    def __init__(self, attack: FAB, at: _Start) -> None:
        self.attack, self.at = attack, at
        self.best = Best(at.x)
        self.level = torch.zeros_like(self.best.distance)

    def run(self, linearise: Linearise, here: Plane) -> None:
        """Algorithm 1's inner loop; `here` is the linearisation at the clean images.

        x and x_adv are rows (n, d), the p of `points` are 2: where the run stands, and x.
        """
        attack, threat, size = self.attack, self.at.threat, self.at.threat.geometry.size
        first = self.at.rng.restart == 0
        x, x_adv = self.at.x.flatten(1), self._start(here).flatten(1)
        for step in range(attack.steps):
            if step > 0 or not first:
                here = linearise(self.at.target, x_adv.view_as(self.at.x), self.at.y)
            from_x = here.gap + (here.normal * (x - x_adv)).sum(dim=1)
            points, gaps = torch.stack([x_adv, x], dim=1), torch.stack([here.gap, from_x], dim=1)
            way = reach(threat, points, here.normal, gaps)
            length = size(way.flatten(0, 1)).view(-1, 2)
            alpha = (length[:, 0] / _or_one(length.sum(dim=1))).clamp_max(attack.alpha_max)
            points.add_(way, alpha=attack.eta)
            x_adv = points[:, 0].lerp(points[:, 1], alpha[:, None])
            x_adv.clamp_(threat.low, threat.high)
            fooled = self._note(x_adv.view_as(self.at.x))
            x_adv = x_adv.lerp(x, torch.where(fooled, 1 - attack.beta, 0.0).to(x.dtype)[:, None])

    def search(self, below: Tensor) -> None:
        """The final search: where the margin crosses 0 between the image and the closest
        adversarial one, by the secant through the nearest known points on either side.

        below: margin of the clean images, (n,)
        """
        rows = self.best.found.nonzero()[:, 0]
        if not self.attack.search or not len(rows):
            return
        target, threat = self.at.target.at(rows), self.at.threat
        x, y, far = self.at.x[rows], self.at.y[rows], self.best.x_adv[rows]
        below, above = below[rows], self.level[rows]
        low, high = torch.zeros_like(below), torch.ones_like(below)
        for _ in range(self.attack.search):
            share = high - ALMOST * above / _or_one(above - below) * (high - low)
            tried = torch.lerp(x, far, per_row(share, x)).clamp_(threat.low, threat.high)
            scores = target.scores(tried)
            value, fooled = margin(scores, y).to(x.dtype), scores.argmax(dim=1) != y
            self.best.note(tried, threat.geometry.size(tried - x), fooled, rows)
            high, above = torch.where(fooled, share, high), torch.where(fooled, value, above)
            low, below = torch.where(fooled, low, share), torch.where(fooled, below, value)

    def _start(self, here: Plane) -> Tensor:
        """The image; in a restart a random point within half the boundary's distance, for which
        the size of the box is taken where no gradient tells."""
        threat, x, rng = self.at.threat, self.at.x, self.at.rng
        if rng.restart == 0:
            return x
        size = threat.geometry.size
        way = reach(threat, x.flatten(1)[:, None], here.normal, here.gap[:, None])
        known = size(way[:, 0])
        known = torch.where(known > 0, known, size(torch.full_like(x, threat.high - threat.low)))
        if self.attack.radius is not None:
            known = known.clamp_max(self.attack.radius)
        start = torch.addcmul(x, per_row(known / 2, x), threat.geometry.random(x, 1.0, rng))
        return start.clamp_(threat.low, threat.high)

    def _note(self, x_adv: Tensor) -> Tensor:
        """Ask whether these fool, and keep the closest: bool (n,)."""
        scores = self.at.target.scores(x_adv)
        fooled = scores.argmax(dim=1) != self.at.y
        distance = self.at.threat.geometry.size(x_adv - self.at.x)
        closer = self.best.note(x_adv, distance, fooled)
        self.level = torch.where(closer, margin(scores, self.at.y).to(x_adv.dtype), self.level)
        return fooled


def nearest(threat: Threat) -> Linearise:
    """The boundary that is nearest among those of all other classes."""
    dual = threat.geometry.dual

    def linearise(target: Target, x: Tensor, y: Tensor) -> Plane:
        seen = boundaries(target, x, y)
        gap = seen.gap.to(x.dtype)
        steepness = dual.size(seen.normal.flatten(0, 1)).view_as(gap)
        distance = torch.where(steepness > 0, gap.abs() / steepness, torch.inf)
        first = distance.argmin(dim=1)
        every = torch.arange(len(x), device=x.device)
        return Plane(seen.scores, gap[every, first], seen.normal[every, first].flatten(1))

    return linearise


def of_class(wanted: Tensor) -> Linearise:
    """The boundary of one class for each sample, int64 (n,)."""

    def gap(scores: Tensor, y: Tensor) -> Tensor:
        return (scores.gather(1, wanted[:, None]) - scores.gather(1, y[:, None]))[:, 0]

    def linearise(target: Target, x: Tensor, y: Tensor) -> Plane:
        normal, scores = target.gradient(gap, x, y)
        normal = normal.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return Plane(scores, gap(scores, y).to(x.dtype), normal.flatten(1))

    return linearise


def _highest(scores: Tensor, y: Tensor, most: int) -> Tensor:
    """The other classes by rank, those with the highest scores first: int64 (m, n), m ≤ most."""
    others = scores.scatter(1, y[:, None], -torch.inf)
    return others.topk(min(most, scores.shape[1] - 1), dim=1).indices.T


def _or_one(value: Tensor) -> Tensor:
    return torch.where(value > 0, value, 1.0)
