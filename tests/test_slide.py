"""SLIDE: one entry is PGD's step, more are CleverHans's; the box, ties and linear models."""

from __future__ import annotations

import pytest
import torch
from attack_kit import draws, judged, small

from harness.api import Active, Threat, cross_entropy
from harness.target import Target
from harness_plugins.attacks.pgd import PGD, climb
from harness_plugins.attacks.slide import SLIDE, step

net = pytest.fixture(small)


def images(n=16, seed=1):
    """Some pixels at 0 or 1."""
    rng = torch.Generator().manual_seed(seed)
    return (1.4 * torch.rand(n, 1, 8, 8, generator=rng) - 0.2).clamp(0, 1)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_with_one_entry_it_is_pgd(net, loss):
    x, threat = images(), Threat("L1", 2.0)
    y = net(x).argmax(dim=1)
    for target in (Target.around(net, 5), judged(net, 16)):
        one = SLIDE(steps=15, share=1e-6, loss=loss)(target, x, y, threat, draws(16))
        assert torch.equal(one, PGD(steps=15, loss=loss)(target, x, y, threat, draws(16)))


def test_a_step_is_shared_by_the_steepest_entries_that_the_box_lets_move():
    """Brute force, entry by entry."""
    x = images()
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    moved = step(x, gradient, x, Threat("L1", 5.0), 0.05, 7)
    for image, slope, after in zip(
        x.flatten(1), gradient.flatten(1), moved.flatten(1), strict=True
    ):
        free = [
            j
            for j in range(64)
            if not (image[j] == 0 and slope[j] < 0) and not (image[j] == 1 and slope[j] > 0)
        ]
        chosen = sorted(free, key=lambda j: -abs(slope[j]))[:7]
        expected = image.clone()
        expected[chosen] += 0.05 / 7 * slope[chosen].sign()
        torch.testing.assert_close(after, expected.clamp(0, 1), rtol=0, atol=1e-7)


def test_entries_as_steep_as_the_last_chosen_share_the_step_too():
    x = torch.full((1, 1, 2, 4), 0.5)
    gradient = torch.tensor([3.0, -2, 2, 1, 0, 0, 2, 1]).view(x.shape)
    delta = step(x, gradient, x, Threat("L1", 1.0), 0.4, 2) - x
    expected = torch.tensor([0.1, -0.1, 0.1, 0, 0, 0, 0.1, 0]).view(x.shape)
    torch.testing.assert_close(delta, expected)


def test_entries_without_a_slope_have_no_share():
    x = torch.full((1, 1, 2, 4), 0.5)
    gradient = torch.tensor([3.0, -2, 0, 0, 0, 0, 0, 0]).view(x.shape)
    delta = step(x, gradient, x, Threat("L1", 1.0), 0.4, 5) - x
    torch.testing.assert_close(delta, 0.2 * gradient.sign())


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_a_gradient_without_a_use_moves_nothing(value):
    x = images(2)
    gradient = torch.full_like(x, value)
    assert torch.equal(step(x, gradient, x, Threat("L1", 1.0), 0.4, 3), x)
    gradient[1, 0, 3, 3] = 1.0  # all but one entry
    x[1, 0, 3, 3] = 0.2
    moved = step(x, gradient, x, Threat("L1", 1.0), 0.4, 1) - x
    assert not moved[0].any()
    assert moved[1].count_nonzero() == 1
    assert float(moved[1, 0, 3, 3]) == pytest.approx(0.4)


def test_share_is_of_all_entries_and_rounded_up(net):
    """Counted where the step from the start stays inside the ball, far from the box."""
    x = 0.4 + 0.2 * torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    y, threat = net(x).argmax(dim=1), Threat("L1", 1.0)
    start = threat.random_start(x, draws(16))
    inside = threat.distance(start, x) < 0.989
    assert inside.sum() > 4
    for share, entries in ((1e-3, 1), (0.05, 4), (0.25, 16), (1.0, 64)):
        attack = SLIDE(steps=1, rel_step=0.01, share=share)
        delta = attack(Target.around(net, 5), x, y, threat, draws(16)) - start
        delta = delta.flatten(1)[inside]
        assert (delta.count_nonzero(dim=1) == entries).all()
        assert delta.abs().sum(dim=1).max() == pytest.approx(0.01, rel=1e-3)


def test_climbs_as_cleverhanss_does(net):
    """From x, before the ball is left: 5 of 64 entries are what it makes of a sparsity of 95 %."""
    pytest.importorskip("cleverhans.torch.attacks", reason="CleverHans is not installed")
    from cleverhans.torch.attacks.sparse_l1_descent import sparse_l1_descent

    x, threat = images(), Threat("L1", 100.0)
    y = net(x).argmax(dim=1)
    theirs = sparse_l1_descent(
        net,
        x,
        eps=100.0,
        eps_iter=0.5,
        nb_iter=12,
        y=y,
        clip_min=0.0,
        clip_max=1.0,
        clip_grad=True,
        grad_sparsity=95,
    )
    active = Active(Target.around(net, 5), x, y, x)
    ours = climb(
        active, cross_entropy, 12, lambda z, gradient, x: step(z, gradient, x, threat, 0.5, 5)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_finds_what_pgds_single_entries_miss(net):
    """With as many passes, over a bend: the point of sparse steps."""
    x = images(64)
    y, threat = net(x).argmax(dim=1), Threat("L1", 1.5)
    left = [
        int((net(attack(judged(net, 64), x, y, threat, draws(64))).argmax(dim=1) == y).sum())
        for attack in (SLIDE(steps=10, share=0.05), PGD(steps=10))
    ]
    assert left[0] <= left[1]
    assert 0 < left[0] < 64


def test_keeps_to_ball_and_box_and_to_itself(net):
    x, threat = images().round(), Threat("L1", 3.0)
    y = net(x).argmax(dim=1)
    attack = SLIDE(steps=8, share=0.1)
    whole = attack(judged(net, 16), x, y, threat, draws(16))
    assert threat.allows(whole, x).all()
    at = torch.tensor([3, 11, 0])
    few = attack(judged(net, 16).at(at), x[at], y[at], threat, draws(16).at(at))
    assert torch.equal(few, whole[at])
