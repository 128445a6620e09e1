"""The heuristic on networks whose every candidate can be looked at, and against a plain loop."""

import numpy as np
import pytest
import torch
from attack_kit import draws
from sign_kit import images, labels, random_network, target_of

from harness.api import Threat
from harness.target import Ledger
from harness_plugins.attacks.hidden_node import HiddenNode
from harness_plugins.sign_networks import SignNetwork

SHAPE = (1, 3, 4)


def attacked(network, x, y, eps, attack=None, restart=0):
    target = target_of(network, len(x))
    rng = draws(len(x), restart=restart)
    attack = attack or HiddenNode()
    return attack(target, x, y, Threat("Linf", eps), rng), target.ledger.forward


def test_takes_the_unit_whose_crossing_the_network_minds():
    """Units x₀ > ½ and x₁ > ½, class 1 where the first is on: only its hyperplane matters."""
    network = SignNetwork(
        torch.eye(2)[None], torch.full((1, 2), -0.5), torch.tensor([[1.0, 0.1]]),
        torch.tensor([-0.5]), torch.ones(1, dtype=torch.long), 2,
    )  # fmt: skip
    x = torch.tensor([0.6, 0.6]).expand(40, 1, 1, 2).clone()
    y = torch.ones(40, dtype=torch.long)
    x_adv, queries = attacked(network, x, y, 0.2)
    torch.testing.assert_close(x_adv, torch.tensor([0.4, 0.6]).expand_as(x))
    assert set(queries.tolist()) == {1, 2}  # whichever came first in the order
    # Too small a budget: the first unit of the order, after a look at both.
    x_adv, queries = attacked(network, x, y, 0.05)
    assert (queries == 2).all()
    moved = (x_adv != x).flatten(1)
    assert (moved.sum(dim=1) == 1).all()
    assert 5 < moved[:, 0].sum() < 35
    # Class 0 from the other side: y' is −1, and a projection of 0 is off.
    x = torch.tensor([0.5, 0.6]).expand(10, 1, 1, 2).clone()
    x_adv, _ = attacked(network, x, torch.zeros(10, dtype=torch.long), 0.1)
    torch.testing.assert_close(x_adv, torch.tensor([0.6, 0.6]).expand_as(x))


def one_by_one(network, x, y, eps, order):
    """The heuristic as it is told, for one image."""
    weights, thresholds = network.hidden.flatten(0, 1), network.thresholds.flatten()
    first = None
    for visited, k in enumerate(order, start=1):
        side = 1.0 if float(weights[k] @ x.flatten() + thresholds[k]) > 0 else -1.0
        tried = (x - eps * side * weights[k].sign().view_as(x)).clamp(0, 1)
        first = tried if first is None else first
        if int(labels(network, tried[None])) != int(y):
            return tried, visited
    return first, len(order)


@pytest.mark.parametrize(("v", "h", "classes"), [(1, 6, 2), (4, 3, 2), (6, 2, 3)])
def test_equals_a_plain_loop_over_images_and_units(v, h, classes):
    network = random_network(v, h, 12, classes=classes, low=-(v % 2))
    x = images(40, SHAPE)
    y = labels(network, x)
    y[:5] = (y[:5] + 1) % classes  # misclassified already: they go the same way
    x_adv, queries = attacked(network, x, y, 0.15)
    order = draws(40).uniform(v * h).argsort(dim=1, stable=True).tolist()
    for i in range(40):
        expected, visited = one_by_one(network, x[i], y[i], 0.15, order[i])
        torch.testing.assert_close(x_adv[i], expected, rtol=0, atol=1e-7)
        assert queries[i] == visited
    fooled = labels(network, x_adv) != y
    assert 0 < fooled.sum() < 40
    assert Threat("Linf", 0.15).allows(x_adv, x).all()


def test_a_sample_does_not_depend_on_its_neighbours():
    network, x = random_network(3, 5, 12), images(9, SHAPE)
    y = labels(network, x)
    whole, _ = attacked(network, x, y, 0.1)
    at = torch.tensor([7, 0, 3])
    few = HiddenNode()(target_of(network, 3), x[at], y[at], Threat("Linf", 0.1), draws(9).at(at))
    assert torch.equal(few, whole[at])


def test_permuted_pixels_move_as_much_and_mostly_in_vain():
    """One order of pixels a network: images that are given the same unit are moved alike."""
    network = random_network(1, 1, 300)
    x = images(60, (3, 10, 10))[1::2] * 0.2 + 0.4  # the box is far
    y = labels(network, x)
    own, _ = attacked(network, x, y, 0.05)
    permuted, _ = attacked(network, x, y, 0.05, HiddenNode("permuted"))
    steps = (permuted - x) * (2.0 * y - 1)[:, None, None, None]
    torch.testing.assert_close(steps.abs(), torch.full_like(steps, 0.05), rtol=0, atol=1e-6)
    assert (steps.sign() == steps[:1].sign()).all() or len(set(y.tolist())) > 1
    own_falls, falls = (
        (network.projections(x) - network.projections(moved)).abs().mean()
        for moved in (own, permuted)
    )
    assert falls < 0.3 * own_falls
    again, _ = attacked(network, x, y, 0.05, HiddenNode("permuted"), restart=1)
    assert not torch.equal(again, permuted)


def test_a_spent_budget_ends_it_with_what_was_asked():
    network, x = random_network(1, 8, 12), images(4, SHAPE)
    target = target_of(network, 4)
    limited = Ledger(4, budget=8)
    y = labels(network, x)
    object.__setattr__(target, "ledger", limited)
    HiddenNode()(target, x, y, Threat("Linf", 0.001), draws(4))
    assert np.array_equal(limited.forward, np.full(4, 8))
