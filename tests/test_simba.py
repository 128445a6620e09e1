"""SimBA: its walk on a linear model by hand, queries, budgets, and ART's."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from attack_kit import Halfspace, corners, digits, draws, grey, judged, run, small
from torch import nn

from harness.api import Threat
from harness.target import Ledger
from harness_plugins.attacks.simba import SimBA

WIDE = Threat("L2", math.inf)


class Recorder(nn.Module):
    """Scores that no image changes, unless a network is given; keeps what it was asked."""

    def __init__(self, net=None):
        super().__init__()
        self.net, self.asked = net, []

    def forward(self, x):
        self.asked.append(x.clone())
        return self.net(x) if self.net else torch.tensor([[1.0, 0.0]]).expand(len(x), 2)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_on_a_linear_model_it_takes_every_entry_downhill_in_its_order(loss):
    """By hand: the first entries of the sample's own order, each by `step` against its weight,
    until they add up to the margin; a weight above 0 costs a second query."""
    rng = torch.Generator().manual_seed(3)
    w = torch.randn(36, generator=rng)
    net, x = Halfspace(w), 0.5 + 0.02 * torch.randn(9, 1, 6, 6, generator=rng)
    net.b = 0.5 - float(((x - 0.5).flatten(1) @ w).min())
    y, step = torch.ones(9).long(), 0.1
    orders = draws(9).uniform(36).argsort(dim=1, stable=True)
    target = judged(net, 9, 2)
    x_adv = SimBA(step=step, loss=loss)(target, x, y, WIDE, draws(9))
    margins = (x - 0.5).flatten(1).double() @ w.double() + net.b
    assert margins.max() < 1.5
    for i in range(9):
        falls = step * w.double().abs()[orders[i]].cumsum(0)
        taken = orders[i, : int((falls <= margins[i]).sum()) + 1]
        expected = x[i].flatten().clone()
        expected[taken] -= step * w[taken].sign()
        torch.testing.assert_close(x_adv[i].flatten(), expected)
        assert target.ledger.forward[i] == 1 + len(taken) + int((w[taken] > 0).sum())


def test_every_entry_is_tried_once_up_then_down_and_never_again():
    x, recorder = grey(5), Recorder()
    target = judged(recorder, 5, 2)
    x_adv = SimBA(step=0.2)(target, x, torch.zeros(5).long(), WIDE, draws(5))
    assert torch.equal(x_adv, x)
    assert (target.ledger.forward == 1 + 2 * 36).all()
    clean, *trials = (asked[:5] for asked in recorder.asked)
    assert torch.equal(clean, x)
    delta = torch.stack([trial - x for trial in trials]).flatten(2)
    assert ((delta != 0).sum(dim=2) == 1).all()
    torch.testing.assert_close(delta.sum(dim=2)[::2], torch.full((36, 5), 0.2))
    torch.testing.assert_close(delta.sum(dim=2)[1::2], torch.full((36, 5), -0.2))
    entries = delta.abs().argmax(dim=2)
    assert torch.equal(entries[::2], entries[1::2])
    for sample in range(5):
        assert sorted(entries[::2, sample].tolist()) == list(range(36))
    assert not torch.equal(entries[:, 0], entries[:, 1])


def test_directions_that_the_box_bars_cost_nothing():
    x = grey(4)
    x[:, :, :2] = 0.0
    x[:, :, 2:3] = 1.0  # 12 entries go up alone, 6 down alone, 18 both ways
    target = judged(Recorder(), 4, 2)
    SimBA()(target, x, torch.zeros(4).long(), WIDE, draws(4))
    assert (target.ledger.forward == 1 + 12 + 6 + 2 * 18).all()


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_steps_bound_queries_and_distance_inside_the_box(steps):
    net, x = small(features=64), corners(12)
    y, recorder = net(x).argmax(dim=1), Recorder(net)
    target = judged(recorder, 12)
    x_adv = SimBA(steps=steps, step=0.3)(target, x, y, WIDE, draws(12))
    assert all(asked.min() >= 0 and asked.max() <= 1 for asked in recorder.asked)
    assert target.ledger.forward.max() <= 1 + 2 * min(steps, 36)
    assert (WIDE.distance(x_adv, x) <= 0.3 * math.sqrt(steps) + 1e-6).all()
    moved = (x_adv != x).flatten(1).any(dim=1)
    assert torch.equal(moved, net(x_adv).argmax(dim=1) != y)


def test_an_image_that_is_wrong_already_costs_one_query_and_stays():
    net, x = small(features=64), grey(6)
    y = (net(x).argmax(dim=1) + 1) % 5
    x_adv, ledger = run(SimBA(), net, x, y)
    assert torch.equal(x_adv, x)
    assert (ledger.forward == 1).all()


def test_a_sample_does_not_depend_on_its_batch():
    net, x = small(features=64), corners(11)
    y, attack = net(x).argmax(dim=1), SimBA(step=0.3)
    whole = attack(judged(net, 11), x, y, WIDE, draws(11))
    assert (whole != x).any()
    for rows in ([3, 8, 10, 1], [5]):
        at = torch.tensor(rows)
        few = attack(judged(net, 11).at(at), x[at], y[at], WIDE, draws(11).at(at))
        assert torch.equal(few, whole[at])


def test_a_sample_whose_budget_is_spent_stops_nobody():
    net, x, y = digits(24)
    free, poor = (
        judged(net, 24, 10),
        dataclasses.replace(judged(net, 24, 10), ledger=Ledger(24, 30)),
    )
    poor.ledger.forward[0] = 30
    all_of_it = SimBA(step=0.5)(free, x, y, WIDE, draws(24))
    x_adv = SimBA(step=0.5)(poor, x, y, WIDE, draws(24))
    assert poor.ledger.forward.max() == 30
    early = free.ledger.forward <= 30
    early[0] = False
    assert 0 < early.sum() < 23
    assert torch.equal(x_adv[early], all_of_it[early])
    assert torch.equal(x_adv[~early], x[~early])


def test_it_finds_what_arts_finds_at_no_greater_distance():
    """ART asks both ways at every step, ours the second only where the first has failed."""
    pytest.importorskip("art.attacks.evasion", reason="ART is not installed")
    from art.attacks.evasion import SimBA as Theirs
    from art.estimators.classification import PyTorchClassifier

    net, x, y = digits(24)
    classifier = PyTorchClassifier(
        nn.Sequential(net, nn.Softmax(dim=1)),
        nn.CrossEntropyLoss(),
        (1, 8, 8),
        10,
        clip_values=(0, 1),
        device_type="cpu",
    )
    np.random.seed(0)
    attack = Theirs(classifier, attack="px", max_iter=64, epsilon=0.3, verbose=False)
    theirs = torch.from_numpy(attack.generate(x.numpy(), y=np.eye(10)[y.numpy()]))
    ours = SimBA(step=0.3)(judged(net, 24, 10), x, y, WIDE, draws(24))
    left = [int((net(found).argmax(dim=1) == y).sum()) for found in (ours, theirs)]
    assert left[0] <= left[1] + 2
    medians = [WIDE.distance(found, x).median() for found in (ours, theirs)]
    assert medians[0] <= 1.1 * medians[1]
