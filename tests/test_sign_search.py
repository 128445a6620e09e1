"""The search on a sign network's structure against enumeration of all patterns of its units."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from attack_kit import draws
from scipy.optimize import linprog
from sign_kit import images, labels, random_network, target_of

from harness.api import Threat
from harness_plugins.attacks.hidden_node import HiddenNode
from harness_plugins.attacks.sign_exact import Box, Sides, Structure, _Program, goals, search
from harness_plugins.attacks.sign_search import SignSearch

SHAPE = (1, 3, 4)
BORDER = 1e-6  # projections that no image of the ball takes further past the threshold


def attacked(network, x, y, eps, attack=None, *, restart=0, wanted=None, judged=True):
    target = dataclasses.replace(target_of(network, len(x)), wanted=wanted, judged=judged)
    attack = attack or SignSearch()
    x_adv = attack(target, x, y, Threat("Linf", eps), draws(len(x), restart=restart))
    assert Threat("Linf", eps).allows(x_adv, x).all()
    return x_adv, target.ledger.forward


def patterns(network):
    """Every pattern of the units, and the label that the network then gives."""
    v, h = network.thresholds.shape
    on = torch.tensor(list(itertools.product((False, True), repeat=v * h)))
    units = torch.where(on, 1.0, float(network.low)).view(-1, v, h)
    votes = (network.outputs(units) > 0).float()
    return on.numpy(), network.fractions(votes).argmax(dim=1).numpy()


def depth(network, x, eps, on):
    """How far the image of ball and box that is deepest in the pattern is from its nearest wall,
    in projections: max t with s_k (w_k·x' + b_k) ≥ t. Less than 0 where there is none."""
    w = network.hidden.flatten(0, 1).double().numpy()
    b = network.thresholds.flatten().double().numpy()
    s, flat = np.where(on, 1.0, -1.0), x.double().flatten().numpy()
    limits = zip(np.maximum(flat - eps, 0), np.minimum(flat + eps, 1), strict=True)
    rows = np.c_[-s[:, None] * w, np.ones(len(s))]
    cost = np.r_[np.zeros(len(flat)), -1.0]
    return -linprog(cost, A_ub=rows, b_ub=s * b, bounds=[*limits, (None, None)]).fun


def exactly(network, x, y, eps, wanted=None):
    """What branch and bound finds by itself; x elsewhere."""
    net, x_adv = Structure.of(network), x.clone()
    for i in range(len(x)):
        flat = x[i].double().flatten().numpy()
        box = Box.of(net, np.maximum(flat - eps, 0), np.minimum(flat + eps, 1))
        for goal in goals(network, int(y[i]), None if wanted is None else int(wanted[i])):
            found = search(Sides.of(net, goal), box, 100, 10**6)
            if found is not None:
                x_adv[i] = torch.from_numpy(found).float().view_as(x[i])
    return x_adv


def compare(network, x, eps, wanted=None):
    """Held to enumeration: how many can be fooled, how many cannot."""
    y = labels(network, x)
    asked = torch.zeros_like(y) if wanted is not None else y
    x_adv, _ = attacked(network, x, asked, eps, wanted=wanted)
    after, counts = labels(network, x_adv), [0, 0]
    settled = labels(network, exactly(network, x, y, eps, wanted))
    on, answers = patterns(network)
    for i in range(len(x)):
        good = answers != int(y[i]) if wanted is None else answers == int(wanted[i])
        deepest = max((depth(network, x[i], eps, row) for row in on[good]), default=-1.0)
        if abs(deepest) > BORDER:
            for label in (after[i], settled[i]):
                fooled = bool(label != y[i] if wanted is None else label == wanted[i])
                assert fooled == (deepest > 0), (i, deepest)
            counts[not fooled] += 1
    return counts


def sweep(seeds, n, v, h, **kwargs):
    total = np.zeros(2, int)
    for seed in seeds:
        d = 2 + seed % 11
        network = random_network(v, h, d, low=-(seed % 2), seed=seed, **kwargs)
        eps = (0.02, 0.05, 0.1, 0.2)[seed % 4]
        total += compare(network, images(n, (1, 1, d), seed=seed), eps)
    assert total.min() > 0.1 * total.sum()
    return total.sum()


@pytest.mark.parametrize("h", [1, 2, 3, 4])
def test_finds_an_image_exactly_where_enumeration_does(h):
    assert sweep(range(8), 4, 1, h) > 28


@pytest.mark.parametrize(("v", "h", "classes"), [(2, 2, 2), (3, 2, 2), (3, 2, 3), (6, 1, 3)])
def test_votes_too(v, h, classes):
    assert sweep(range(8), 1, v, h, classes=classes) > 6


@pytest.mark.slow
@pytest.mark.parametrize("h", [1, 2, 3, 4])
def test_finds_an_image_exactly_where_enumeration_does_in_hundreds_of_instances(h):
    assert sweep(range(100, 200), 4, 1, h) > 380


@pytest.mark.slow
@pytest.mark.parametrize(("v", "h", "classes"), [(2, 2, 2), (3, 2, 2), (3, 2, 3), (6, 1, 3)])
def test_votes_too_in_more_instances(v, h, classes):
    assert sweep(range(100, 140), 3, v, h, classes=classes) > 110


@pytest.mark.parametrize("classes", [2, 3])
def test_a_label_that_is_asked_for(classes):
    network = random_network(classes, 2, 6, classes=classes, seed=4)
    counts = compare(network, images(9, (1, 2, 3)), 0.15, torch.arange(9) % classes)
    assert min(counts) > 0


def test_a_tie_is_the_lower_class():
    """An output of 0 is a 0, and one vote of two is not enough for class 1."""
    network = random_network(2, 1, 3)
    one = torch.ones(2, 1)
    network = dataclasses.replace(
        network, output=one, bias=torch.tensor([-1.0, -0.5]),
        hidden=one[:, :, None] * torch.tensor([1.0, 0, 0]), thresholds=-0.5 * one,
    )  # fmt: skip
    x = torch.tensor([0.45, 0.55]).view(2, 1, 1, 1).expand(2, 1, 1, 3).clone()
    assert labels(network, x).tolist() == [0, 0]  # the first network is never on
    x_adv, _ = attacked(network, x, torch.tensor([0, 0]), 0.1)
    assert labels(network, x_adv).tolist() == [0, 0]
    sooner = dataclasses.replace(network, bias=torch.tensor([-0.5, -0.5]))
    assert labels(sooner, x).tolist() == [0, 1]
    x_adv, _ = attacked(sooner, x, torch.tensor([0, 1]), 0.1)
    assert labels(sooner, x_adv).tolist() == [1, 0]


def test_what_the_target_is_asked():
    """The clean image; what the ascent ends with; what the exact search found."""
    network, x = random_network(1, 4, 12), images(60, SHAPE)
    y = labels(network, x)
    y[0] = 1 - y[0]
    x_adv, queries = attacked(network, x, y, 0.05)
    fooled = (labels(network, x_adv) != y).numpy()
    assert torch.equal(x_adv[0], x[0])
    assert queries[0] == 1
    assert (queries[1:][~fooled[1:]] == 2).all()
    assert set(queries[1:][fooled[1:]].tolist()) <= {2, 3}
    assert 0.1 < fooled.mean() < 0.9


def test_restarts_begin_elsewhere_and_leave_what_is_misclassified():
    network, x = random_network(1, 4, 12), images(20, SHAPE)
    y = labels(network, x)
    y[0] = 1 - y[0]
    first, _ = attacked(network, x, y, 0.05, SignSearch(nodes=0))
    second, _ = attacked(network, x, y, 0.05, SignSearch(nodes=0), restart=1)
    assert torch.equal(second[0], x[0])
    assert not torch.equal(first, second)  # some end in the same corner of the ball


def test_the_ascent_alone_reaches_a_label_that_is_asked_for():
    network, x = random_network(6, 3, 300, classes=3), images(30, (3, 10, 10))
    wanted = (labels(network, x) + 1 + torch.arange(30) % 2) % 3
    zeros = torch.zeros(30, dtype=torch.long)
    x_adv, queries = attacked(network, x, zeros, 0.1, SignSearch(nodes=0), wanted=wanted)
    assert (labels(network, x_adv) == wanted).all()
    assert (queries == 2).all()


def test_exact_where_the_ascent_is_not():
    found = np.zeros(2, int)
    for seed in range(30):
        network, x = random_network(1, 4, 3, seed=seed), images(8, (1, 1, 3), seed=seed)
        y = labels(network, x)
        for i, attack in enumerate((SignSearch(steps=3, nodes=0), SignSearch(steps=3))):
            found[i] += int((labels(network, attacked(network, x, y, 0.15, attack)[0]) != y).sum())
    assert found[1] > found[0]


def test_too_large_a_problem_is_left_to_the_ascent():
    network, x = random_network(1, 4, 12), images(40, SHAPE)
    y = labels(network, x)
    alone, _ = attacked(network, x, y, 0.05, SignSearch(steps=1, nodes=0))
    small, _ = attacked(network, x, y, 0.05, SignSearch(steps=1, size=11))
    assert torch.equal(alone, small)
    exact, _ = attacked(network, x, y, 0.05, SignSearch(steps=1))
    assert (labels(network, exact) != y).sum() > (labels(network, alone) != y).sum()


@pytest.mark.parametrize(
    ("v", "h", "searched"), [(1, 60, True), (2, 20, True), (4, 7, True), (4, 8, False)]
)
def test_many_open_units_of_more_than_two_networks_are_left_to_the_ascent(
    monkeypatch, v, h, searched
):
    """Every hyperplane goes through the image, so that all units are open: 28 of four networks are
    searched and 32 are not; of one network or two any number is."""
    programs = []
    monkeypatch.setattr(_Program, "solve", lambda self, low, high: programs.append(self.pixels))
    network, x = random_network(v, h, 12), torch.full((12,), 0.5)
    network = dataclasses.replace(network, thresholds=-(network.hidden @ x))
    net, mid = Structure.of(network), x.double().numpy()
    (goal,) = goals(network, 0, None)
    assert search(Sides.of(net, goal), Box.of(net, mid - 0.1, mid + 0.1), 100, 10**6) is None
    assert bool(programs) == searched


@pytest.mark.parametrize(("v", "classes"), [(1, 2), (6, 3)])
def test_a_sample_does_not_depend_on_its_neighbours(v, classes):
    network, x = random_network(v, 4, 12, classes=classes), images(9, SHAPE)
    y = labels(network, x)
    for restart in (0, 1):
        whole, _ = attacked(network, x, y, 0.1, restart=restart)
        for rows in ([7, 0, 3], [5]):
            at = torch.tensor(rows)
            few = SignSearch()(
                target_of(network, len(at)), x[at], y[at], Threat("Linf", 0.1),
                draws(9, restart=restart).at(at),
            )  # fmt: skip
            assert torch.equal(few, whole[at])


def test_on_another_model_nobody_leaves_and_success_is_kept():
    network, x = random_network(4, 5, 12), images(40, SHAPE)
    y = labels(network, x)
    y[0] = 1 - y[0]
    here, _ = attacked(network, x, y, 0.1)
    there, _ = attacked(network, x, y, 0.1, judged=False)
    fooled = [labels(network, x_adv) != y for x_adv in (here, there)]
    assert torch.equal(fooled[0][1:], fooled[1][1:])
    assert not torch.equal(there[0], x[0])
    assert not torch.equal(there, here)


@pytest.mark.parametrize("attack", [SignSearch(), HiddenNode(), HiddenNode("permuted")])
def test_keeps_to_the_rules_wherever_it_starts(attack):
    network, x = random_network(3, 4, 12), images(12, (1, 4, 3)).transpose(2, 3)
    before, y = x.clone(), labels(network, x)
    for corner in (x, x.round()):
        attacked(network, corner, labels(network, corner), 0.3, attack)
    assert torch.equal(x, before)
    unmoved, _ = attacked(network, x, y, 0.0, attack)
    assert torch.equal(unmoved, x)


def test_networks_of_real_size_fall_where_the_heuristic_leaves_most():
    """Twenty random units on 3,072 pixels, whose projections are as far as an image's pixels are
    spread: ε = .0625 moves each of them by some 2.8."""
    network = random_network(1, 20, 3072)
    rng = torch.Generator().manual_seed(5)
    x = (0.5 + 0.25 * torch.randn(40, 3, 32, 32, generator=rng)).clamp(0, 1)
    network = dataclasses.replace(network, thresholds=-(network.hidden @ x[0].flatten()))
    y = labels(network, x)
    left = [
        (labels(network, attacked(network, x, y, 0.0625, attack)[0]) == y).float().mean()
        for attack in (SignSearch(nodes=0), HiddenNode())
    ]
    assert left[0] == 0
    assert left[1] > 0
