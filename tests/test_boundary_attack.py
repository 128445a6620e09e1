"""The boundary attack. What it shares with HopSkipJump is in test_decision.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attack_kit import digits, draws
from decision_kit import UNBOUND, art_classifier, inside, labelled, optimum
from torch import nn

from harness_plugins.attacks.boundary import Boundary, _sideways


def test_distances_on_a_linear_model_approach_the_optimum_with_queries():
    net, x, y = inside()
    least, before = optimum(net, x, "L2"), torch.full((12,), torch.inf, dtype=torch.float64)
    for steps in (20, 100, 400, 2000):
        x_adv = Boundary(steps=steps)(labelled(net, 12), x, y, UNBOUND["L2"], draws(12))
        assert (net(x_adv).argmax(dim=1) != y).all()
        distance = UNBOUND["L2"].distance(x_adv, x)
        assert (distance >= least * (1 - 1e-4)).all()
        assert (distance <= before).all()  # the same walk, further
        before = distance
    assert (distance <= 1.01 * least).all()


def test_in_linf_the_closest_image_on_the_way_is_closer_than_the_l2_ones():
    net, x, y = inside()
    found = {
        norm: Boundary(steps=500)(labelled(net, 12), x, y, UNBOUND[norm], draws(12))
        for norm in UNBOUND
    }
    sizes = {norm: UNBOUND["Linf"].distance(x_adv, x) for norm, x_adv in found.items()}
    assert (net(found["Linf"]).argmax(dim=1) != y).all()
    assert (sizes["Linf"] >= optimum(net, x, "Linf") * (1 - 1e-4)).all()
    assert sizes["Linf"].mean() < sizes["L2"].mean()


def test_a_step_sideways_keeps_its_distance_and_turns_by_the_share():
    rng = torch.Generator().manual_seed(0)
    clean, here, noise = (
        torch.randn(5, 1, 3, 4, generator=rng, dtype=torch.float64) for _ in range(3)
    )
    share = torch.tensor([0.01, 0.1, 0.3, 0.7, 1.0], dtype=torch.float64)
    moved = _sideways(here, clean, share, noise)
    before, after = (here - clean).flatten(1), (moved - clean).flatten(1)
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1))
    cosine = nn.functional.cosine_similarity(before, after)
    torch.testing.assert_close(cosine, 1 / (1 + share.square()).sqrt())


def test_who_has_arrived_leaves():
    net, x, y = inside()
    target = labelled(net, 12)
    Boundary(steps=20_000)(target, x, y, UNBOUND["L2"], draws(12))
    assert (target.ledger.forward < 5_000).all()


def test_the_lengths_of_the_steps_follow_the_answers():
    """From far too short and far too long ones it comes as near as from the usual."""
    net, x, y = inside()
    reached = []
    for sideways, towards in ((0.01, 0.01), (1e-4, 1e-4), (0.5, 0.5)):
        attack = Boundary(steps=600, sideways=sideways, towards=towards)
        x_adv = attack(labelled(net, 12), x, y, UNBOUND["L2"], draws(12))
        reached.append((UNBOUND["L2"].distance(x_adv, x) / optimum(net, x, "L2")).mean().item())
    assert max(reached) < 1.05


def test_no_worse_than_art_at_equal_queries():
    evasion = pytest.importorskip("art.attacks.evasion")
    net, x, y = digits(8)
    asked = []
    model = art_classifier(net, asked)
    np.random.seed(0)
    attack = evasion.BoundaryAttack(model, targeted=False, max_iter=10, verbose=False)
    theirs = torch.from_numpy(attack.generate(x.numpy(), y.numpy()))
    target = labelled(net, 8, 10, budget=math.ceil(sum(asked) / 8))
    x_adv = Boundary()(target, x, y, UNBOUND["L2"], draws(8))
    assert (net(x_adv).argmax(dim=1) != y).all()
    ours, peer = (UNBOUND["L2"].distance(i, x).median() for i in (x_adv, theirs))
    assert ours <= peer
