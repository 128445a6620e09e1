"""DDN: a plain loop over samples as a reference, linear models, grey levels, odd networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attack_kit import SHAPE, Halfspace, Patchy, corners, curved, run
from torch.nn import functional

from harness_plugins.attacks.ddn import DDN


def reference(net, x, y, attack):
    """One image, after the paper's algorithm 1, in numpy but for the gradient."""
    delta, radius = np.zeros(x.shape), attack.init_norm
    best, closest = x.numpy(), math.inf
    for k in range(attack.steps):
        image = torch.from_numpy(x.numpy() + delta).requires_grad_()
        scores = net(image[None])
        loss = functional.cross_entropy(scores, y[None])
        gradient = torch.autograd.grad(loss, image)[0].numpy()
        fooled = int(scores.argmax()) != int(y)
        if fooled and np.linalg.norm(delta) < closest:
            best, closest = image.detach().numpy(), np.linalg.norm(delta)
        length = 0.01 + 0.99 * (1 + math.cos(math.pi * k / attack.steps)) / 2
        delta = delta + length * gradient / np.linalg.norm(gradient)
        radius *= 1 - attack.gamma if fooled else 1 + attack.gamma
        radius = min(radius, np.linalg.norm(np.maximum(x.numpy(), 1 - x.numpy())))
        image = np.clip(x.numpy() + radius * delta / np.linalg.norm(delta), 0, 1)
        if attack.levels:
            image = np.round(image * (attack.levels - 1)) / (attack.levels - 1)
        delta = image - x.numpy()
    return torch.from_numpy(best)


@pytest.mark.parametrize(
    "attack",
    [DDN(steps=30), DDN(steps=1), DDN(10, gamma=0.3, init_norm=4.0), DDN(steps=20, levels=16)],
)
def test_is_a_plain_loop_over_the_samples(attack):
    net, x = curved(), corners().double()
    y = net(x).argmax(dim=1)
    x_adv, _ = run(attack, net, x)
    expected = torch.stack([reference(net, *sample, attack) for sample in zip(x, y, strict=True)])
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-9)
    assert (x_adv != x).flatten(1).any(dim=1).all() == (attack.steps > 1)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_is_near_the_optimum_of_a_linear_model(loss):
    rng = torch.Generator().manual_seed(2)
    w = torch.randn(36, generator=rng)
    x = 0.4 + 0.2 * torch.rand(20, *SHAPE, generator=rng)
    level = float(w.sum() / 2)
    net = Halfspace(w, -level, centre=0.0)
    optimum = (x.flatten(1) @ w - level).abs() / w.norm()
    x_adv, _ = run(DDN(loss=loss), net, x)
    found = (x_adv - x).flatten(1).norm(dim=1)
    assert (net(x_adv).argmax(dim=1) != net(x).argmax(dim=1)).all()
    assert (found >= optimum * (1 - 1e-5)).all()
    assert (found <= 1.06 * optimum + 1e-4).all()  # the radius is known to a step of γ = 5 %


def test_costs_its_steps_and_a_sample_that_is_wrong_at_first_costs_one():
    net, x = curved(), corners().double()
    y = net(x).argmax(dim=1)
    y[3] = (y[3] + 1) % 5
    x_adv, ledger = run(DDN(steps=12), net, x, y)
    assert torch.equal(x_adv[3], x[3])
    costs = [12] * 3 + [1] + [12] * 6
    assert ledger.forward.tolist() == ledger.backward.tolist() == costs


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_levels_are_of_the_box(levels):
    net, x = curved().float(), corners()
    x_adv, _ = run(DDN(steps=20, levels=levels), net, x)
    moved = (x_adv != x).flatten(1).any(dim=1)
    on_grid = x_adv[moved] * (levels - 1)
    assert moved.any()
    torch.testing.assert_close(on_grid, on_grid.round(), rtol=0, atol=1e-4)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_gradients_of_zero_and_nan_stop_none_but_their_own():
    net, x = curved(), 0.3 + 0.4 * corners().double()
    x[4, 0, 0, 0], x[7, 0, 0, 0] = 0.0, 0.5
    x_adv, _ = run(DDN(steps=20), Patchy(net), x)
    clean, _ = run(DDN(steps=20), net, x)
    assert torch.equal(x_adv[4], x[4])
    assert x_adv.isfinite().all()
    assert x_adv[7, 0, 0, 0] == 0.5
    assert (x_adv[7] != x[7]).any()
    rest = [i for i in range(10) if i not in {4, 7}]
    assert torch.equal(x_adv[rest], clean[rest])


@pytest.mark.parametrize("attack", [DDN(steps=15), DDN(steps=15, levels=256, loss="margin")])
def test_a_sample_is_the_same_alone(attack):
    net, x = curved().float(), corners()
    whole, _ = run(attack, net, x)
    for i in (0, 4, 9):
        alone, _ = run(attack, net, x[i : i + 1])
        assert torch.equal(whole[i], alone[0])
