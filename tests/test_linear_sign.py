"""The worst image of a linear model is known, in the box too: nothing may do better, and this
attack no worse."""

import dataclasses
import itertools

import pytest
import torch
from attack_kit import draws, judged
from sign_kit import images
from torch import nn

from harness.api import Threat, margin
from harness_plugins.attacks.linear_sign import LinearSign
from harness_plugins.linear_models import Linear

SHAPE = (1, 2, 3)


class Model(nn.Module):
    def __init__(self, weight, bias):
        super().__init__()
        self.linear = Linear(weight, bias)

    def forward(self, x):
        return self.linear.scores(x)

    def part(self, name):
        return {"linear": self.linear}[name]


def model(classes, seed=0):
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, 6, generator=rng)
    weight[:, 2] = 0.3  # a pixel that tells no classes apart
    return Model(weight, -weight.sum(1) / 2 + 0.2 * torch.randn(classes, generator=rng))


def attacked(net, x, y, eps, wanted=None):
    classes = len(net.linear.weight)
    target = judged(net, len(x), classes, level="labels")
    target = dataclasses.replace(target, parts=("linear",), wanted=wanted)
    x_adv = LinearSign()(target, x, y, Threat("Linf", eps), draws(len(x)))
    assert not target.ledger.forward.any()
    return x_adv


def vertices(x, eps):
    """All corners of ball and box, (64, n, …): where a linear function is greatest."""
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6))).view(-1, 1, *SHAPE)
    return Threat("Linf", eps).project((x + eps * signs).flatten(0, 1), x.repeat(64, 1, 1, 1))


@pytest.mark.parametrize("eps", [0.02, 0.2, 0.7])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_no_corner_of_ball_and_box_has_a_greater_margin(classes, eps):
    net, x = model(classes), images(40, SHAPE)
    y = torch.arange(40) % classes  # most are misclassified already, and moved all the same
    x_adv = attacked(net, x, y, eps)
    assert Threat("Linf", eps).allows(x_adv, x).all()
    corner = margin(net(vertices(x, eps)), y.repeat(64)).view(64, 40).amax(dim=0)
    torch.testing.assert_close(margin(net(x_adv), y), corner, rtol=0, atol=1e-5)


def test_two_classes_by_the_papers_formula():
    """x − ε y sign(w), y = ±1, of the model z = w·x + b that the board keeps as (0, z)."""
    w, b = torch.randn(6, generator=torch.Generator().manual_seed(3)), torch.tensor(0.1)
    net = Model(torch.stack([torch.zeros(6), w]), torch.stack([torch.zeros(()), b]))
    x, y = images(10, SHAPE), torch.arange(10) % 2
    signs = (2.0 * y - 1)[:, None] * w.sign()
    expected = (x.flatten(1) - 0.1 * signs).clamp(0, 1).view_as(x)
    torch.testing.assert_close(attacked(net, x, y, 0.1), expected, rtol=0, atol=1e-7)


def test_flips_exactly_where_the_margin_is_less_than_the_budget_times_the_l1_norm():
    net = model(2)
    x = 0.5 + 0.1 * torch.randn(200, *SHAPE, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(dim=1)
    w = net.linear.weight[1] - net.linear.weight[0]
    needed = -margin(net(x), y) / w.abs().sum()
    eps = float(needed.median()) + 1e-4
    near = (needed - eps).abs() < 1e-5
    assert near.sum() < 5
    flipped = net(attacked(net, x, y, eps)).argmax(dim=1) != y
    assert torch.equal(flipped[~near], (needed < eps)[~near])


def test_a_sample_does_not_depend_on_its_neighbours_nor_does_it_change():
    net, x = model(4), images(9, (1, 3, 2)).transpose(2, 3)
    before, y = x.clone(), torch.arange(9) % 4
    whole, at = attacked(net, x, y, 0.1), torch.tensor([7, 0, 3])
    assert torch.equal(attacked(net, x[at], y[at], 0.1), whole[at])
    assert torch.equal(x, before)
    assert torch.equal(attacked(net, x, y, 0.0), x)


def test_goes_to_the_class_that_is_asked_for():
    net, x = model(4), images(30, SHAPE)
    wanted = torch.arange(30) % 4
    x_adv = attacked(net, x, torch.zeros(30, dtype=torch.long), 0.3, wanted)
    before, after = (-margin(net(images), wanted) for images in (x, x_adv))
    assert (after >= before).all()
    assert after.mean() > before.mean() + 1
    reached = net(vertices(x, 0.3)).argmax(dim=1).view(64, 30) == wanted
    taken = net(x_adv).argmax(dim=1) == wanted
    assert taken.sum() >= 0.9 * reached.any(dim=0).sum()
