"""Carlini and Wagner's attack, and the search on c that it shares with others."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attack_kit import Double, digits, halfspace, judged, run
from torch import nn

from harness.api import Threat, margin
from harness_plugins.attacks.cw import CW
from harness_plugins.attacks.penalty import Schedule, Search

AUTHORS = CW(steps=99, search_steps=1, c=5.0, lr_end=1.0, abort_early=False, shrink=1e-6)


def optimum(net, x):
    return ((x - 0.5).flatten(1) @ net.w).abs() / net.w.norm()


def lengths(x_adv, x):
    return (x_adv - x).double().flatten(1).norm(dim=1)


def test_comes_near_the_boundary_of_a_linear_model():
    net, x, y = halfspace()
    x_adv, _ = run(CW(lr=0.01, lr_end=0.01), net, x, y)
    assert (net(x_adv).argmax(dim=1) != y).all()
    assert (lengths(x_adv, x) >= optimum(net, x) * (1 - 1e-5)).all()
    assert (lengths(x_adv, x) <= optimum(net, x) * 1.03 + 3e-4).all()


def cleverhans(net, x, y, rounds, c):
    reason = "CleverHans is not installed (pip install --no-deps cleverhans==4.0.0)"
    module = pytest.importorskip("cleverhans.torch.attacks.carlini_wagner_l2", reason=reason)
    budget = {"lr": 0.05, "binary_search_steps": rounds, "max_iterations": 100}
    return module.carlini_wagner_l2(net, x, 10, y=y, initial_const=c, **budget)


def test_a_round_is_cleverhanss():
    """The authors' constants: as many images are looked at, the clean one among them."""
    net, x, y = digits()
    theirs = cleverhans(net, x, y, 1, 5.0)
    ours, ledger = run(AUTHORS, net, x, y)
    fooled = net(theirs).argmax(dim=1) != y
    assert fooled.double().mean() > 0.9
    assert torch.equal(net(ours).argmax(dim=1) != y, fooled)
    assert (ledger.forward == 100).all()
    near = (lengths(ours, x) / lengths(theirs, x))[fooled]
    assert (near - 1).abs().median() < 1e-4
    assert (near - 1).abs().max() < 0.05


def test_is_no_further_than_cleverhanss():
    """Whose rounds go on from where the last one ended."""
    net, x, y = digits()
    x, y = x[:16], y[:16]
    theirs = lengths(cleverhans(net, x, y, 9, 0.01), x)
    for attack, most in ((CW(), 800), (CW(abort_early=False), 901)):
        x_adv, ledger = run(attack, net, x, y)
        assert (net(x_adv).argmax(dim=1) != y).all()
        assert lengths(x_adv, x).mean() <= 1.005 * theirs.mean()
        assert ledger.forward.mean() <= most
        assert (ledger.forward == ledger.backward).all()


def test_each_round_begins_anew():
    """After a round without success, the next is what it would have been as the first."""
    net, x, y = digits()
    one = run(CW(search_steps=1, c=0.0625), net, x, y)[0]
    two = run(CW(search_steps=2, c=0.0625), net, x, y)[0]
    tenfold = run(CW(search_steps=1, c=0.625), net, x, y)[0]
    failed = net(one).argmax(dim=1) == y
    assert failed.sum() > 8
    assert torch.equal(two[failed], tenfold[failed])


def test_saturated_pixels_move_and_dead_ones_stay_what_they_are():
    """From the corners of the box; the last column is not seen by the model."""
    net, _, _ = halfspace()
    net.w.view(3, 4)[:, 3] = 0
    x = torch.rand(10, 1, 3, 4, generator=torch.Generator().manual_seed(4)).round()
    x[..., 3] = torch.tensor([0.1, 1 / 3, 0.7])  # not kept by a way through tanh and back
    y = net(x).argmax(dim=1)
    x_adv, _ = run(CW(), net, x, y)
    assert (net(x_adv).argmax(dim=1) != y).all()
    assert torch.equal(x_adv[..., 3], x[..., 3])
    assert ((x_adv - x).abs().flatten(1).amax(dim=1) > 0.02).all()
    assert x_adv.min() == 0
    assert x_adv.max() == 1


def test_pixels_that_have_not_far_to_go_need_no_shrink():
    """With the authors' 1e-6 the way from a corner is too long for a hundred steps."""
    net, _, _ = halfspace()
    x = torch.rand(10, 1, 3, 4, generator=torch.Generator().manual_seed(4)).round()
    y = net(x).argmax(dim=1)
    near, _ = run(CW(), net, x, y)
    stuck, _ = run(CW(shrink=1e-6), net, x, y)
    gone = (net(stuck).argmax(dim=1) != y) & (lengths(stuck, x) <= lengths(near, x) * 1.01)
    assert (net(near).argmax(dim=1) != y).all()
    assert gone.double().mean() < 0.5


def test_confidence_is_kept():
    """κ, and not much more of it than needed."""
    net, x, y = halfspace()
    for confidence in (0.1, 0.5):
        x_adv, _ = run(CW(confidence=confidence, lr=0.02), net, x, y)
        ahead = margin(net(x_adv), y)
        assert (ahead >= confidence).all()
        assert (ahead <= 1.1 * confidence).all()


def test_what_cannot_be_helped_costs_one_pass():
    """The misclassified, and samples whose gradient is 0; beside them, those that can be fooled."""
    net, x, y = halfspace()
    y[:3] = 1 - y[:3]

    class Flat(nn.Module):
        def forward(self, images):
            dead = (images[:, 0, 0, 0] == 0.25)[:, None]
            return torch.where(dead, net(images).detach(), net(images))

    x[3:6, 0, 0, 0] = 0.25
    y[3:6] = net(x[3:6]).argmax(dim=1)
    x_adv, ledger = run(CW(), Flat(), x, y)
    assert torch.equal(x_adv[:6], x[:6])
    assert (ledger.forward[:6] == 1).all()
    assert (ledger.forward[6:] > 100).all()
    assert (Flat()(x_adv[6:]).argmax(dim=1) != y[6:]).all()


def test_gradients_that_are_not_finite_harm_nobody():
    net, x, y = halfspace()

    class Torn(nn.Module):
        """The gradient of the first pixel is NaN where it is ¼."""

        def forward(self, images):
            first = images[:, :, :1, :1]
            root = (first - 0.25).abs().sqrt()  # at 0 its slope is infinite, times 0 is NaN
            return net(images) + 0 * root.flatten(1)

    x[:3, 0, 0, 0] = 0.25
    y = net(x).argmax(dim=1)
    x_adv, _ = run(CW(), Torn(), x, y)
    alone, _ = run(CW(), net, x, y)
    assert x_adv.isfinite().all()
    assert (net(x_adv).argmax(dim=1) != y).all()
    assert torch.equal(x_adv[3:], alone[3:])


def test_a_sample_does_not_depend_on_its_batch():
    net, x, y = digits()
    whole, counted = run(CW(steps=25), net, x, y)
    assert len(set(counted.forward.tolist())) > 3  # they leave at many moments
    for rows in ([0], [5, 6, 7], [31, 2]):
        few, ledger = run(CW(steps=25), net, x[rows], y[rows])
        assert torch.equal(few, whole[rows])
        assert (ledger.forward == counted.forward[rows]).all()


def test_aborting_early_costs_little():
    net, x, y = digits()
    full, all_passes = run(CW(abort_early=False), net, x, y)
    short, fewer = run(CW(), net, x, y)
    assert lengths(short, x).mean() <= 1.01 * lengths(full, x).mean()
    assert fewer.forward.mean() < 0.9 * all_passes.forward.mean()


def test_double_precision_scores_and_other_boxes():
    net, x, y = halfspace()
    doubled = nn.Sequential(Double(), net)
    x_adv, _ = run(CW(), doubled, x, y)
    assert x_adv.dtype == torch.float32
    assert (doubled(x_adv).argmax(dim=1) != y).all()
    target = judged(net, len(x), 2)
    wide = CW(lr=0.005)(target, x, y, Threat("L2", math.inf, low=-1.0, high=2.0), None)
    assert (lengths(wide, x) <= optimum(net, x) * 1.1 + 1e-3).all()


@pytest.mark.parametrize("smallest", [0.005, 0.3, 37.0])
def test_the_search_brackets_the_smallest_c_that_works(smallest):
    """Beside a sample for which none does; its c only grows."""
    schedule = Schedule(c=0.01, rounds=14, turns=1, abort_early=False)
    search = Search.begin(torch.arange(2), torch.ones(2), schedule)
    tried = []
    while search.left[0]:
        tried.append(search.c.tolist())
        works = torch.tensor([bool(search.c[0] >= smallest), False])
        search.note(torch.ones(2), works)
        search.narrow(search.over(schedule))
    low, high = search.low[0], search.high[0]
    assert low < smallest <= high
    assert high - low < 0.02 * smallest
    np.testing.assert_allclose([c for _, c in tried], 0.01 * 10.0 ** np.arange(14), rtol=1e-4)


def test_a_round_is_aborted_when_a_tenth_of_it_brings_nothing():
    """Each sample by its own smallest objective, at tenths of its own round."""
    schedule = Schedule(c=1.0, rounds=2, turns=40, abort_early=True)
    search = Search.begin(torch.arange(3), torch.full((3,), 100.0), schedule)
    ended = {}
    for turn in range(1, 41):
        falling = 100.0 - turn
        swinging = falling + 50 * (turn % 2)  # its last value rises, its smallest falls
        stalled = max(falling, 90.0)
        search.note(torch.tensor([falling, swinging, stalled]), torch.zeros(3).bool())
        over = search.over(schedule)
        for i in over.nonzero()[:, 0].tolist():
            ended.setdefault(i, turn)
        search.narrow(over)
    assert ended == {0: 40, 1: 40, 2: 16}
