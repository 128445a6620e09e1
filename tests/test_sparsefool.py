"""SparseFool: the linear solver against linear programming, linear models, and odd networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attack_kit import SHAPE, Affine, Patchy, corners, curved, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.api import Threat
from harness_plugins.attacks.sparsefool import BEYOND, SparseFool, crossed

L1 = Threat("L1", math.inf)


# --- the linear solver -------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), zeros=st.integers(0, 6), reach=st.floats(0.05, 1.5))
def test_crosses_the_plane_with_the_least_change(seed, zeros, reach):
    """scipy's linear programming: the least Σ|δ| with w·δ ≥ need and x + δ in the box."""
    from scipy.optimize import linprog

    rng = torch.Generator().manual_seed(seed)
    x = corners(1, seed).double()
    w = torch.randn(1, *SHAPE, generator=rng).double()
    w.flatten()[:zeros] = 0.0
    r = reach * w / w.norm()
    flat, slope = x.flatten().numpy(), w.flatten().numpy()
    need = reach * np.linalg.norm(slope) + BEYOND * np.linalg.norm(slope)
    moved = crossed(x, w, r, L1)
    optimum = linprog(
        np.ones(72),
        A_ub=-np.concatenate([slope, -slope])[None],
        b_ub=[-need],
        bounds=[(0, u) for u in np.concatenate([1 - flat, flat])],
    )
    assert moved.min() >= 0
    assert moved.max() <= 1
    change = (moved - x).flatten().numpy()
    if optimum.status == 0:
        assert slope @ change == pytest.approx(need, rel=1e-9)
        assert np.abs(change).sum() == pytest.approx(optimum.fun, rel=1e-6)
    else:  # the box does not reach so far: as far as it goes
        assert slope @ change == pytest.approx(np.maximum(slope * (1 - flat), -slope * flat).sum())


def test_changes_the_least_number_of_entries():
    """Brute force over all sets of entries of a small image."""
    from itertools import combinations

    rng = torch.Generator().manual_seed(5)
    x = torch.full((1, 1, 2, 4), 0.5).double()  # as much room everywhere
    for _ in range(20):
        w = torch.randn(1, 1, 2, 4, generator=rng).double()
        r = 0.6 * w / w.norm()
        changed = int((crossed(x, w, r, L1) != x).sum())
        gains = (0.5 * w.abs()).flatten().tolist()
        need = float((w * r).sum() + BEYOND * w.norm())
        fewest = next(m for m in range(9) if any(sum(c) >= need for c in combinations(gains, m)))
        assert changed == fewest


def test_a_normal_of_zero_moves_nothing_and_a_plane_behind_is_stepped_over():
    x, w = corners(1), torch.ones(1, *SHAPE)
    assert torch.equal(crossed(x, 0 * w, w, L1), x)
    behind = crossed(torch.full_like(x, 0.5), w, -w, L1)
    assert (behind - 0.5).sum().item() == pytest.approx(BEYOND * 6, rel=1e-4)


# --- the attack --------------------------------------------------------------------------------


def test_is_near_the_optimum_of_a_linear_model():
    """In L1 all of the change belongs into the steepest entry: |f| / ‖w‖∞, if the box lets it."""
    rng = torch.Generator().manual_seed(2)
    w = torch.randn(2, 36, generator=rng).double()
    x = 0.4 + 0.2 * torch.rand(20, *SHAPE, generator=rng).double()
    b = -w.sum(dim=1) / 2
    net = Affine(w, b)
    difference = w[1] - w[0]
    gap = (x.flatten(1) @ difference + b[1] - b[0]).abs()
    optimum = gap / difference.abs().max()
    near = optimum < 0.35
    x_adv, _ = run(SparseFool(), net, x, norm="L1")
    size = (x_adv - x).flatten(1).abs().sum(dim=1)
    slack = 1.02 * BEYOND * difference.norm() / difference.abs().max()
    assert near.sum() >= 5
    assert (net(x_adv).argmax(dim=1) != net(x).argmax(dim=1)).all()
    assert (size >= optimum * (1 - 1e-9))[near].all()
    assert (size <= 1.02 * optimum + slack + 1e-3)[near].all()
    assert ((x_adv != x).flatten(1).sum(dim=1) == 1)[near].all()
    farther, _ = run(SparseFool(overshoot=0.3), net, x, norm="L1")
    ratio = (farther - x).flatten(1).abs().sum(dim=1) / size
    torch.testing.assert_close(ratio[near], torch.full_like(ratio, 1.3 / 1.02)[near])


@pytest.mark.parametrize("attack", [SparseFool(), SparseFool(lam=3.0), SparseFool(classes=2)])
def test_what_comes_back_fools_and_lies_in_the_box(attack):
    net, x = curved().float(), corners(16)
    y = net(x).argmax(dim=1)
    x_adv, _ = run(attack, net, x, norm="L1")
    fooled = net(x_adv).argmax(dim=1) != y
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert fooled.float().mean() > 0.9
    assert torch.equal(x_adv[~fooled], x[~fooled])
    if attack.lam == 1:
        assert (x_adv != x).flatten(1).sum(dim=1).double().mean() < 14


def test_a_greater_lambda_needs_fewer_planes_and_more_change():
    net, x = curved(), corners(16).double()
    found, passes = {}, {}
    for lam in (1.0, 3.0):
        x_adv, ledger = run(SparseFool(lam=lam), net, x, norm="L1")
        found[lam] = (x_adv - x).abs().sum()
        passes[lam] = ledger.forward.sum()
    assert found[3.0] > found[1.0]
    assert passes[3.0] < passes[1.0]


def test_what_is_misclassified_stays():
    net, x = curved(), corners().double()
    y = net(x).argmax(dim=1)
    y[[2, 6]] = (y[[2, 6]] + 1) % 5
    x_adv, ledger = run(SparseFool(), net, x, y, norm="L1")
    assert torch.equal(x_adv[[2, 6]], x[[2, 6]])
    assert ledger.forward[2] == ledger.forward[6] == ledger.forward.min() <= 3


def test_two_classes_are_enough():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).requires_grad_(requires_grad=False)
    x = corners()
    y = net(x).argmax(dim=1)
    x_adv, _ = run(SparseFool(), net, x, norm="L1")
    assert (net(x_adv).argmax(dim=1) != y).all()


def test_gradients_of_zero_and_nan_stop_none_but_their_own():
    net, x = curved(), 0.3 + 0.4 * corners().double()
    x[4, 0, 0, 0], x[7, 0, 0, 0] = 0.0, 0.5
    x_adv, _ = run(SparseFool(), Patchy(net), x, norm="L1")
    clean, _ = run(SparseFool(), net, x, norm="L1")
    assert torch.equal(x_adv[4], x[4])
    assert x_adv.isfinite().all()
    assert x_adv[7, 0, 0, 0] == 0.5
    assert (x_adv[7] != x[7]).any()
    untouched = ((clean[:, 0, 0, 0] > 0) & (clean[:, 0, 0, 0] < 1)).nonzero()[:, 0].tolist()
    rest = [i for i in untouched if i not in {4, 7}]
    assert len(rest) >= 5
    assert torch.equal(x_adv[rest], clean[rest])


def test_a_sample_is_the_same_alone():
    net, x = curved().float(), corners()
    whole, ledger = run(SparseFool(), net, x, norm="L1")
    for i in (0, 4, 9):
        alone, own = run(SparseFool(), net, x[i : i + 1], norm="L1")
        assert torch.equal(whole[i], alone[0])
        assert own.forward[0] == ledger.forward[i]
