"""L-BFGS: its minimiser against scipy's, and the attack's own laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attack_kit import halfspace, run
from scipy.optimize import minimize
from torch import nn

from harness_plugins.attacks.lbfgs import LBFGS, Minimiser, _Stand, other_than


class Quadratics:
    """n convex functions ½ (x − ½)ᵀ A (x − ½) + bᵀ (x − ½), float64; asked points are counted."""

    def __init__(self, n, d, pull):
        rng = torch.Generator().manual_seed(0)
        root = torch.randn(n, d, d, generator=rng, dtype=torch.float64)
        self.a = root @ root.transpose(1, 2) / d + 0.1 * torch.eye(d)
        self.b = pull * torch.randn(n, d, generator=rng, dtype=torch.float64)
        self.asked = np.zeros(n, int)

    def __call__(self, rows, x):
        self.asked[rows] += 1
        z = x - 0.5
        force = torch.einsum("nij,nj->ni", self.a[rows], z)
        return (z * (force / 2 + self.b[rows])).sum(dim=1), force + self.b[rows]


@pytest.mark.parametrize("pull", [0.05, 0.3, 2.0])
def test_the_minimiser_finds_scipys_minima(pull):
    """Strictly convex in a box: the minimum is one point, whether or not bounds are active."""
    n, d = 8, 20
    problem, start = Quadratics(n, d, pull), torch.full((8, 20), 0.5, dtype=torch.float64)
    found = Minimiser(0.0, 1.0, trials=200, tolerance=1e-9)(problem, start)

    def alone(i):
        def f(z):
            value, gradient = problem(torch.tensor([i]), torch.from_numpy(z)[None])
            return value.item(), gradient[0].numpy()

        options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000}
        return minimize(f, start[i].numpy(), jac=True, bounds=[(0, 1)] * d, options=options).x

    theirs = torch.from_numpy(np.stack([alone(i) for i in range(n)]))
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-5)
    active = ((found == 0) | (found == 1)).double().mean()
    assert (active > 0.5) if pull == 2 else (0 < active < 0.5 or pull == 0.05)


def test_history_is_worth_having():
    """On an ill-conditioned function a direction of ten pairs needs fewer points than of one."""
    asked = {}
    for memory in (1, 10):
        problem = Quadratics(4, 40, 0.02)
        problem.a *= torch.linspace(0.1, 10, 40).outer(torch.linspace(0.1, 10, 40)).double()
        start = torch.full((4, 40), 0.5, dtype=torch.float64)
        Minimiser(0.0, 1.0, trials=2000, memory=memory, tolerance=1e-7)(problem, start)
        asked[memory] = problem.asked.mean()
    assert asked[10] < 0.7 * asked[1] < 1400


def test_asks_about_as_often_as_scipy():
    problem = Quadratics(6, 20, 0.05)
    start = torch.full((6, 20), 0.5, dtype=torch.float64)
    Minimiser(0.0, 1.0, trials=500, tolerance=1e-7)(problem, start)
    ours, problem.asked[:] = problem.asked.copy(), 0
    for i in range(6):

        def f(z, i=i):
            value, gradient = problem(torch.tensor([i]), torch.from_numpy(z)[None])
            return value.item(), gradient[0].numpy()

        options = {"ftol": 0, "gtol": 1e-7}
        minimize(f, start[i].numpy(), jac=True, bounds=[(0, 1)] * 20, options=options)
    assert ours.mean() < 1.3 * problem.asked.mean()


def test_a_trial_that_is_worse_is_not_taken():
    """50 z² from 0.1: the first trial goes one unit, to the other side and far up."""

    def steep(rows, x):
        return 50 * x.square().sum(dim=1), 100 * x

    start = torch.full((1, 1), 0.1, dtype=torch.float64)
    assert torch.equal(Minimiser(-1.0, 1.0, trials=2)(steep, start), start)
    found = Minimiser(-1.0, 1.0, trials=60, tolerance=1e-6)(steep, start)
    assert found.abs().item() < 1e-7


def test_the_direction_is_that_of_the_dense_updates():
    """H ← (I − ρsyᵀ) H (I − ρysᵀ) + ρssᵀ, oldest pair first, from H = sᵀy / yᵀy of the newest."""
    rng = torch.Generator().manual_seed(2)
    steps, noise = (torch.randn(1, 3, 6, generator=rng).double() for _ in range(2))
    turns, gradient = steps + 0.1 * noise, torch.randn(1, 6, generator=rng).double()
    x, one, newest = torch.zeros(1, 6).double(), torch.ones(1).double(), 1
    state = _Stand(torch.arange(1), x, one, gradient, x, one, steps, turns)
    direction = Minimiser(-1.0, 1.0, memory=3)._direction(state, newest)

    s, t = steps[0], turns[0]
    h = torch.eye(6).double() * (s[newest] @ t[newest]) / (t[newest] @ t[newest])
    for slot in (2, 0, 1):
        left = torch.eye(6).double() - s[slot].outer(t[slot]) / (s[slot] @ t[slot])
        h = left @ h @ left.T + s[slot].outer(s[slot]) / (s[slot] @ t[slot])
    torch.testing.assert_close(direction[0], -h @ gradient[0])


def test_rows_that_are_at_their_minimum_ask_no_more():
    problem = Quadratics(3, 5, 1.0)
    problem.b[1] = 0  # starts at its minimum
    Minimiser(0.0, 1.0, trials=50)(problem, torch.full((3, 5), 0.5, dtype=torch.float64))
    assert problem.asked[1] == 1 < min(problem.asked[[0, 2]])


def test_the_loss_is_the_cross_entropy_to_any_other_class():
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    p = scores.softmax(dim=1).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(other_than(scores, y), -torch.log(1 - p))
    assert other_than(torch.tensor([[500.0, 0.0]]), torch.tensor([0])) == 500


def test_comes_near_the_boundary_of_a_linear_model():
    net, x, y = halfspace()
    x_adv, ledger = run(LBFGS(), net, x, y)
    distance = (x_adv - x).flatten(1).norm(dim=1)
    optimum = ((x - 0.5).flatten(1) @ net.w).abs() / net.w.norm()
    assert (net(x_adv).argmax(dim=1) != y).all()
    assert (distance >= optimum * (1 - 1e-5)).all()
    assert (distance <= optimum * 1.1 + 1e-4).all()
    assert (ledger.forward <= 1 + 9 * 50).all()


def test_keeps_to_the_box_where_the_way_out_leads_through_it():
    """At a corner half of the entries cannot move the way the gradient would have them."""
    net, _, _ = halfspace()
    x = torch.rand(10, 1, 3, 4, generator=torch.Generator().manual_seed(4)).round()
    y = net(x).argmax(dim=1)
    x_adv, _ = run(LBFGS(), net, x, y)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (net(x_adv).argmax(dim=1) != y).all()
    assert ((x_adv != x) & (x_adv > 0) & (x_adv < 1)).any()


def test_a_sample_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 5)).eval()
    x = torch.rand(7, 1, 8, 8)
    y = net(x).argmax(dim=1)
    whole, _ = run(LBFGS(), net, x, y)
    for i in range(7):
        alone, _ = run(LBFGS(), net, x[i : i + 1], y[i : i + 1])
        assert torch.equal(alone[0], whole[i])
