"""DeepFool (Moosavi-Dezfooli et al., 2016, arXiv:1511.04599): from boundary to boundary.

Each step goes to the nearest of the decision boundaries as the network's linear expansion has them
(algorithm 2): to the class j with the smallest |z_j − z_y| / ‖w_j‖*, w_j = ∇z_j − ∇z_y, over that
distance, in the norm's steepest direction, w_j/‖w_j‖₂ or sign(w_j) (section 3.3 for Linf).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from harness.api import Rng, Target, Threat, per_row
from harness_plugins.attacks.boundaries import Boundaries, boundaries

Box = Literal["test", "step", "image"]

FAR = 1e10  # a boundary that far away is none: all images of the box lie on this side of it
LEAST = 1e-6  # of a step's length, so that an image that lies on a boundary moves


@dataclass(frozen=True)
class Rule:
    """How to walk; r is the sum of the steps, o the overshoot.

    steps:     at most so many
    overshoot: an image is tested at x + (1 + o) r, clipped to the box
    max_step:  a step is cut down to this length
    extra:     and then lengthened by this
    box:       whether r is made anew from the clipped image (`step`) or not (`test`), the next
               expansion being at x + r; or the next expansion is at the tested image (`image`)
    classes:   how many other classes are looked at, those that score highest; None: all
    """

    steps: int = 50
    overshoot: float = 0.02
    max_step: float = math.inf
    extra: float = 0.0
    box: Box = "image"
    classes: int | None = None


@dataclass(frozen=True)
class DeepFool:
    """The first image found beyond a boundary; one forward pass and one backward pass for every
    class looked at in each step, and one forward pass more for the test of a step, unless the box
    is `image`.

    The thesis's variants A (chapter 3), B (chapter 4) and C (chapter 5) are presets, and the
    default is one of this project's: B with longer steps, a quarter of its passes for nearly its
    distances. Here A keeps to the box in what it asks, since no image outside it counts; and after
    a step that was cut short, which leads to no boundary, an image is tested by the next
    expansion's scores alone.

    preset:     short, A, B or C: what the options are that are none
    steps:      at most; short 100, A 50, B 500, C 50
    overshoot:  the sum of the steps is lengthened by this share of itself: 0.02
    max_step:   the most that a step may be long, 0 for any length; short 0.5 (Linf 0.1), A 0.5,
                B 0.1, C 0
    extra_step: then added to its length; short and B 1e-4 (Linf 0), A 0, C 0 (from November 2020
                on 1e-4, as in other libraries)
    box:        step: the sum of steps is cut to the box (short, B); test: the tested image alone
                is (A); image: that image is where the network is expanded next (C)
    classes:    how many other classes are looked at, those that score highest; all where it is none
    bisections: how often the way back to the clean image is halved at the end, a forward pass each
    """

    preset: Literal["short", "A", "B", "C"] = "short"
    steps: Annotated[int, Ge(1)] | None = None
    overshoot: Annotated[float, Ge(0)] | None = None
    max_step: Annotated[float, Ge(0)] | None = None
    extra_step: Annotated[float, Ge(0)] | None = None
    box: Box | None = None
    classes: Annotated[int, Ge(1)] | None = None
    bisections: Annotated[int, Ge(0)] = 0

    def rule(self, norm: str) -> Rule:
        """The preset's, with what was given in its place."""
        preset = PRESETS[self.preset, norm]
        longest = preset.max_step if self.max_step is None else self.max_step or math.inf
        return Rule(
            steps=self.steps or preset.steps,
            overshoot=preset.overshoot if self.overshoot is None else self.overshoot,
            max_step=longest,
            extra=preset.extra if self.extra_step is None else self.extra_step,
            box=self.box or preset.box,
            classes=self.classes,
        )

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        x_adv = walk(target, x, y, threat, self.rule(threat.norm)).x_adv
        return _halved(target, x, y, x_adv, self.bisections) if self.bisections else x_adv


PRESETS: dict[tuple[str, str], Rule] = {
    ("short", "L2"): Rule(steps=100, max_step=0.5, extra=1e-4, box="step"),
    ("short", "Linf"): Rule(steps=100, max_step=0.1, box="step"),
    ("A", "L2"): Rule(max_step=0.5, box="test"),
    ("A", "Linf"): Rule(max_step=0.5, box="test"),
    ("B", "L2"): Rule(steps=500, max_step=0.1, extra=1e-4, box="step"),
    ("B", "Linf"): Rule(steps=500, max_step=0.1, box="step"),
    ("C", "L2"): Rule(),
    ("C", "Linf"): Rule(),
}


@dataclass(frozen=True)
class Walk:
    """Where n walks ended.

    x_adv: the images that fooled, x itself where none did
    r:     the sum of the steps, without overshoot
    label: the class that won; where none did, the one that was headed for
    """

    x_adv: Tensor
    r: Tensor
    label: Tensor


def walk(target: Target, x: Tensor, y: Tensor, threat: Threat, rule: Rule) -> Walk:
    """From x on until the label is another than y; samples that are there leave the batch."""
    walkers = _Walkers(target, x, y, threat, rule)
    for turn in range(rule.steps):
        near = boundaries(walkers.target, walkers.here, walkers.y, rule.classes)
        walkers.arrive(walkers.here, near.scores)
        walkers.go(toward(near, threat, rule))
        last = turn == rule.steps - 1
        if last or rule.box != "image":
            walkers.test(walkers.going if last else walkers.going & ~walkers.short)
        walkers.leave()
        if not len(walkers):
            break
    return walkers.ended()


@dataclass(frozen=True)
class Step:
    """To the nearest boundary: step (n, c, h, w), 0 where none is within reach; label (n,), the
    class beyond it; short (n,), where the step was cut short of it."""

    step: Tensor
    label: Tensor
    short: Tensor


def toward(near: Boundaries, threat: Threat, rule: Rule) -> Step:
    """The next step of each sample."""
    n, m = near.gap.shape
    slope = threat.geometry.dual.size(near.normal.flatten(0, 1)).view(n, m)
    distance = (near.gap.abs().to(slope.dtype) / slope).nan_to_num(nan=torch.inf)
    least, nearest = distance.min(dim=1)
    each = torch.arange(n, device=nearest.device)
    length = (least.clamp_max(rule.max_step) + rule.extra).clamp_min(LEAST)
    length = torch.where(least < FAR, length, 0.0)
    way = threat.geometry.steepest(near.normal[each, nearest])
    return Step(way * per_row(length, way), near.classes[each, nearest], least > length)


class _Walkers:
    """The samples of a batch that are on their way.

    x, y:  clean images and labels
    image: what may be tested, x + (1 + o) r in the box
    here:  where the network is expanded next
    going: False for those that are there, or at an end, and have yet to leave
    short: where the last step was cut short of the boundary
    """

    def __init__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rule: Rule) -> None:
        self.target, self.x, self.y = target, x, y
        self.image = self.here = x
        self.going = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self.short = ~self.going
        self._threat, self._rule = threat, rule
        self._r, self._label = torch.zeros_like(x), y.clone()
        self._rows = torch.arange(len(x), device=x.device)
        self._ended = Walk(x.clone(), torch.zeros_like(x), y.clone())

    def __len__(self) -> int:
        return len(self._rows)

    def arrive(self, image: Tensor, scores: Tensor, rows: Tensor | None = None) -> None:
        """Those of the rows (of all) whose image these scores show fooled are there."""
        rows = torch.arange(len(self), device=scores.device) if rows is None else rows
        won = scores.argmax(dim=1)
        there = self.going[rows] & (won != self.y[rows])
        rows = rows[there]
        self._ended.x_adv[self._rows[rows]] = image[there]
        self._label[rows] = won[there]
        self.going[rows] = False

    def go(self, step: Step) -> None:
        """Take the step; one that is 0 is the end of a walk."""
        self.going = self.going & (step.step != 0).flatten(1).any(dim=1)
        self.short = step.short
        self._r = torch.where(per_row(self.going, self._r), self._r + step.step, self._r)
        self._label = torch.where(self.going, step.label, self._label)
        ahead = 1 + self._rule.overshoot
        self.image = self._at(ahead)
        if self._rule.box == "step":
            self._r = (self.image - self.x).div_(ahead)
        self.here = self.image if self._rule.box == "image" else self._at(1.0)

    def test(self, which: Tensor) -> None:
        """Ask for the images of some."""
        rows = which.nonzero()[:, 0]
        if len(rows):
            image = self.image[rows]
            self.arrive(image, self.target.at(rows).scores(image), rows)

    def leave(self) -> None:
        """Cut those that are not going out of the batch."""
        stay = self.going.nonzero()[:, 0]
        if len(stay) == len(self._rows):
            return
        self._record()
        self.target = self.target.at(stay)
        self.x, self.y, self.here = self.x[stay], self.y[stay], self.here[stay]
        self._r, self._label, self._rows = self._r[stay], self._label[stay], self._rows[stay]
        self.going = self.going[stay]

    def ended(self) -> Walk:
        self._record()
        return self._ended

    def _record(self) -> None:
        self._ended.r[self._rows], self._ended.label[self._rows] = self._r, self._label

    def _at(self, share: float) -> Tensor:
        moved = torch.add(self.x, self._r, alpha=share)
        return moved.clamp_(self._threat.low, self._threat.high)


def _halved(target: Target, x: Tensor, y: Tensor, x_adv: Tensor, times: int) -> Tensor:
    """The last image that fools as the way from x to x_adv is halved again and again."""
    rows = (x_adv != x).flatten(1).any(dim=1).nonzero()[:, 0]
    if not len(rows):
        return x_adv
    target, y, near, far = target.at(rows), y[rows], x[rows], x_adv[rows]
    for _ in range(times):
        middle = (near + far) / 2
        fooled = per_row(target.scores(middle).argmax(dim=1) != y, middle)
        near, far = torch.where(fooled, near, middle), torch.where(fooled, middle, far)
    x_adv[rows] = far
    return x_adv
