"""Laws that every attack of this distribution is held to, in every norm that it claims.

A new attack is under them as soon as it is registered. `REACH` says how near an attack comes to
the optimum of a linear model, where that is known in every norm.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest
import torch
from attack_kit import draws, judged
from laws import SHAPE, Linear, inner, optimum, shares
from torch import nn

from harness.api import Target, Threat
from harness.options import AttackOptions, resolve
from harness.plugin import CORRUPTION
from harness.registry import discover
from harness.selection import parse_selection
from harness_plugins.attacks import harness_attacks

BUDGETS = {"Linf": 0.05, "L2": 0.2, "L1": 0.5, "L0": 2.0}

# At most so many times the distance that is needed; of a fixed-budget attack, at least such a share
# of the fall that is possible.
REACH: dict[tuple[str, str], float] = {
    ("high_confidence", "L2"): 2.05,  # goes on to where the other class is as sure: twice as far
    ("ead", "L1"): 1.4,  # minimises ‖r‖² + β‖r‖₁
    ("ead", "L2"): 1.2,
    ("sparsefool", "L1"): 1.1,
    ("lbfgs", "L2"): 1.25,  # descends the loss to all classes, not to the nearest
    ("ddn", "L2"): 1.25,
    ("simba", "L2"): 4.0,  # k random ones of d entries, alike: some √(d/k) of the optimum
    ("square", "L2"): 0.5,  # no square is smaller than 3 × 3, which is most of these images
    ("hopskipjump", "L2"): 1.25,  # of more than two classes, to a boundary near its random start
    ("hopskipjump", "Linf"): 1.2,
    ("boundary", "L2"): 1.1,
    ("boundary", "Linf"): 2.0,  # walks towards the nearest point in L2
}

# What the laws that are not about strength run: the same code in fewer steps.
QUICK = {
    "square": "square:steps=60",
    "boundary": "boundary:steps=80",
    "cw": "cw:steps=50,search_steps=6",
    "daa": "daa:steps=20,particles=3",
    "ddn": "ddn:steps=20",
    "ead": "ead:steps=20,search_steps=4",
    "fab": "fab:steps=8",
    "hopskipjump": "hopskipjump:steps=3",
    "lbfgs": "lbfgs:steps=10,search_steps=4",
    "pdgd": "pdgd:steps=40",
    "pdpgd": "pdpgd:steps=40",
}
NO_AIM = {"uniform_noise"}  # controls: nothing says how near they come


def cases(kind):
    return [
        pytest.param(spec.name, norm, id=f"{spec.name}-{norm}")
        for spec in harness_attacks()
        if spec.kind == kind and CORRUPTION not in spec.norms
        if not (spec.like or spec.parts)  # these need another model, or one with such a part
        for norm in spec.norms
    ]


FIXED, MINIMUM = cases("fixed-budget"), cases("minimum-norm")


@functools.cache
def attack_called(name):
    catalogue = discover()
    selection = parse_selection(name, "test")
    entry = catalogue.attack(selection.name)
    return resolve(selection, entry, AttackOptions, catalogue, "test").component


def budget(name, norm):
    minimum = next(s for s in harness_attacks() if s.name == name).kind == "minimum-norm"
    return Threat(norm, math.inf if minimum else BUDGETS[norm])


class Curved(nn.Module):
    """A small network with a bend: what is quick on hyperplanes has to iterate here."""

    def __init__(self, classes, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, classes)
        ).requires_grad_(requires_grad=False)
        for layer in (self.net[1], self.net[3]):
            layer.weight *= 3

    def forward(self, x):
        return self.net(x - 0.5)


def far(net, n):
    """Those of many such images whose boundaries are the farthest: what is hard to resolve close
    by, where every step is long against the distance, is no matter here."""
    x = inner(10 * n)
    return x[optimum(net, x, "L2").topk(n).indices]


def corners(n, seed=2):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed)).round()


def attacked(name, norm, net, x, y=None, rng=None):
    attack = attack_called(QUICK.get(name, name))
    y = net(x).argmax(dim=1) if y is None else y
    target = judged(net, len(x), net(x).shape[1])
    return attack(target, x, y, budget(name, norm), rng or draws(len(x), "laws"))


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(("name", "norm"), MINIMUM)
def test_comes_near_the_optimum_of_a_linear_model_and_never_below(name, norm, classes):
    net = Linear(classes)
    x = far(net, 8)
    y, threat = net(x).argmax(dim=1), budget(name, norm)
    x_adv = attack_called(name)(judged(net, 8, classes), x, y, threat, draws(8, "laws"))
    assert (net(x_adv).argmax(dim=1) != y).all()
    ratio = threat.distance(x_adv, x) / optimum(net, x, norm)
    assert (ratio >= 1 - 1e-5).all()
    assert ratio.mean() <= REACH.get((name, norm), 1.05)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(("name", "norm"), [c for c in FIXED if c.values[1] != "L0"])
def test_falls_nearly_as_far_as_the_budget_allows(name, norm, classes):
    """Over ‖δ‖ ≤ ε the margin to class j can fall by ε‖w_j − w_y‖*, and the box is out of reach."""
    net, x = Linear(classes), inner(8)
    y, threat = net(x).argmax(dim=1), budget(name, norm)
    target = Target.around(net, classes)  # not judged: no sample stops at the first success
    x_adv = attack_called(name)(target, x, y, threat, draws(8, "laws"))
    assert threat.allows(x_adv, x).all()
    share = shares(net, x, x_adv, threat)
    assert (share <= 1 + 1e-4).all()
    if classes == 2 and name not in NO_AIM:
        assert share.amax(dim=1).mean() >= REACH.get((name, norm), 0.95)


@pytest.mark.parametrize(("name", "norm"), [*FIXED, *MINIMUM])
def test_a_sample_does_not_depend_on_its_neighbours(name, norm):
    net, x = Curved(4), inner(9)
    whole, rng = attacked(name, norm, net, x), draws(9, "laws")
    for rows in ([7, 0, 3], [5]):
        at = torch.tensor(rows)
        few = attacked(name, norm, net, x[at], rng=rng.at(at))
        assert torch.equal(few, whole[at])


@pytest.mark.parametrize(("name", "norm"), [*FIXED, *MINIMUM])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(
    "images",
    [
        corners(6),
        torch.stack([torch.full(SHAPE, v) for v in (0.0, 0.3, 1.0)]),
        inner(4).transpose(2, 3).contiguous().transpose(2, 3),
    ],
    ids=["corners", "constant", "non-contiguous"],
)
def test_keeps_to_the_rules_wherever_it_starts(name, norm, classes, images):
    net, before = Curved(classes), images.clone()
    x_adv = attacked(name, norm, net, images)
    threat = budget(name, norm)
    assert x_adv.shape == images.shape
    assert x_adv.dtype == images.dtype
    assert threat.allows(x_adv, images).all()
    assert torch.equal(images, before)


@pytest.mark.parametrize(("name", "norm"), MINIMUM)
def test_moves_an_image_only_where_that_fools(name, norm):
    """Also from the corners of the box, where half of all directions are barred."""
    for x in (corners(12), inner(12)):
        net = Curved(4)
        x_adv, y = attacked(name, norm, net, x), net(x).argmax(dim=1)
        moved = (x_adv != x).flatten(1).any(dim=1)
        assert torch.equal(moved, net(x_adv).argmax(dim=1) != y)
        assert moved.float().mean() > 0.7


@pytest.mark.parametrize(("name", "norm"), MINIMUM)
def test_an_image_that_is_misclassified_already_is_the_closest(name, norm):
    net, x = Curved(4), inner(6)
    y = net(x).argmax(dim=1)
    y[2] = (y[2] + 1) % 4
    x_adv = attacked(name, norm, net, x, y)
    assert torch.equal(x_adv[2], x[2])
    others = torch.tensor([0, 1, 3, 4, 5])
    assert (x_adv != x).flatten(1).any(dim=1)[others].all()


class Broken(torch.autograd.Function):
    """The identity, whose gradient is of no use for images with a dark first pixel."""

    @staticmethod
    def forward(ctx, x, value):
        ctx.save_for_backward(x)
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        dark = ctx.saved_tensors[0][:, :1, :1, :1] < 0.3
        return torch.where(dark, torch.full_like(g, ctx.value), g), None


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
@pytest.mark.parametrize(("name", "norm"), [*FIXED, *MINIMUM])
def test_a_gradient_that_is_zero_or_not_finite_harms_no_one_else(name, norm, value):
    net, x = Linear(3, seen=lambda x: Broken.apply(x, value)), inner(6)
    alone = attacked(name, norm, net, x)
    x = torch.cat([x, inner(2, seed=5)])
    x[6:, 0, 0, 0] = 0.05
    x_adv = attacked(name, norm, net, x)
    assert torch.equal(x_adv[:6], alone)
    assert budget(name, norm).allows(x_adv, x).all()


@pytest.mark.parametrize(("name", "norm"), [*FIXED, *MINIMUM])
def test_a_model_may_compute_in_float64(name, norm):
    net, x = Linear(3, seen=lambda x: x.double()), inner(4)
    x_adv = attacked(name, norm, net, x)
    assert x_adv.dtype == torch.float32
    assert budget(name, norm).allows(x_adv, x).all()


@pytest.mark.parametrize(("name", "norm"), FIXED)
def test_a_budget_of_zero_changes_nothing(name, norm):
    net, x = Curved(4), inner(3)
    threat = dataclasses.replace(budget(name, norm), eps=0.0)
    y = net(x).argmax(dim=1)
    assert torch.equal(attack_called(name)(judged(net, 3, 4), x, y, threat, draws(3, "laws")), x)
