"""The elastic-net attack: its step, its rules, and what it does not ask."""

from __future__ import annotations

import math

import pytest
import torch
from attack_kit import Halfspace, digits, halfspace, run
from torch import nn

from harness.api import margin
from harness_plugins.attacks.ead import EAD

SHORT = EAD(steps=30)


class Asked(nn.Module):
    """Passes images on, and keeps the least and the greatest pixel."""

    def __init__(self, net):
        super().__init__()
        self.net, self.least, self.most = net, math.inf, -math.inf

    def forward(self, x):
        self.least, self.most = min(self.least, x.min()), max(self.most, x.max())
        return self.net(x)


def size(x_adv, x, order):
    return torch.linalg.vector_norm((x_adv - x).double().flatten(1), ord=order, dim=1)


@pytest.mark.parametrize(
    ("norm", "order", "dual", "slack"), [("L1", 1, math.inf, 1.3), ("L2", 2, 2, 1.1)]
)
def test_comes_near_the_boundary_of_a_linear_model(norm, order, dual, slack):
    net, x, y = halfspace()
    attack = EAD(beta=0.002, lr=0.01, abort_early=False)
    x_adv, _ = run(attack, net, x, y, norm)
    optimum = ((x - 0.5).flatten(1) @ net.w).abs() / torch.linalg.vector_norm(net.w, ord=dual)
    assert (net(x_adv).argmax(dim=1) != y).all()
    assert (size(x_adv, x, order) >= optimum * (1 - 1e-5)).all()
    assert (size(x_adv, x, order) <= optimum * slack + 0.003).all()


def test_one_step_is_the_papers():
    """x + S_β(−α c ∇f): by hand. The step is made from the clean image, as r = 0 there."""
    net, x, y = halfspace()
    attack = EAD(steps=1, search_steps=1, c=3.0, lr=0.1, beta=0.05)
    x_adv, _ = run(attack, net, x, y, "L1")
    sign = 2 * y.float() - 1  # f = 2 z · sign falls against w · sign
    move = -0.1 * 3.0 * 2 * sign[:, None] * net.w
    shrunk = move.sign() * (move.abs() - 0.05).clamp_min(0)
    expected = (x.flatten(1) + shrunk).clamp(0, 1).view(x.shape)
    fooled = net(expected).argmax(dim=1) != y
    assert fooled.any()
    torch.testing.assert_close(x_adv[fooled], expected[fooled])
    assert torch.equal(x_adv[~fooled], x[~fooled])


def test_ends_as_near_as_arts_elastic_net():
    """The same rounds and steps, none of them aborted, and what both minimise: ‖r‖² + β‖r‖₁."""
    pytest.importorskip("art", reason="adversarial-robustness-toolbox is not installed")
    from art.attacks.evasion import ElasticNet
    from art.estimators.classification import PyTorchClassifier

    net, x, y = digits()
    x, y = x[:8], y[:8]
    classifier = PyTorchClassifier(net, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1))
    attack = ElasticNet(
        classifier,
        learning_rate=0.05,
        binary_search_steps=6,
        max_iter=60,
        beta=0.01,
        initial_const=1.0,
        batch_size=8,
        verbose=False,
    )
    theirs = torch.from_numpy(attack.generate(x.numpy(), y.numpy()))
    own = EAD(steps=60, search_steps=6, c=1.0, beta=0.01, rule="EN", abort_early=False)
    ours, _ = run(own, net, x, y, "L1")

    def total(x_adv):
        return (0.01 * size(x_adv, x, 1) + size(x_adv, x, 2).square()).mean()

    assert (net(ours).argmax(dim=1) != y).all()
    assert (net(theirs).argmax(dim=1) != y).all()
    assert total(ours) <= 1.01 * total(theirs)


def test_each_rule_is_best_by_its_own_measure():
    net, x, y = digits()
    found = {rule: run(EAD(steps=50, rule=rule), net, x, y, "L1")[0] for rule in ("EN", "L1")}
    in_l1 = {rule: size(v, x, 1).mean() for rule, v in found.items()}
    elastic = {r: (0.01 * size(v, x, 1) + size(v, x, 2).square()).mean() for r, v in found.items()}
    assert in_l1["L1"] < 0.97 * in_l1["EN"]
    assert elastic["EN"] < 0.99 * elastic["L1"]


def test_the_threats_norm_is_the_rule_by_default():
    net, x, y = digits()
    l1, l2 = (run(SHORT, net, x, y, norm)[0] for norm in ("L1", "L2"))
    assert torch.equal(l1, run(EAD(steps=30, rule="L1"), net, x, y, "L1")[0])
    assert size(l2, x, 2).mean() < 0.99 * size(l1, x, 2).mean()


def test_more_beta_changes_fewer_pixels():
    net, x, y = digits()
    changed = [
        (run(EAD(steps=50, beta=beta), net, x, y, "L1")[0] != x)
        .flatten(1)
        .sum(dim=1)
        .double()
        .mean()
        for beta in (0.0, 0.02, 0.1)
    ]
    assert changed[0] > 1.3 * changed[1] > 1.3 * 1.3 * changed[2]


def test_nothing_outside_the_box_is_asked_or_returned():
    net, x, y = digits()
    watching = Asked(net)
    x_adv, _ = run(SHORT, watching, x, y, "L1")
    assert watching.least == 0
    assert watching.most == 1
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (net(x_adv).argmax(dim=1) != y).all()


def test_tests_that_can_tell_nothing_are_left_out():
    """Two forward passes a step at most; fewer, without any other result."""
    net, x, y = digits()
    attack = EAD(steps=30, abort_early=False)
    x_adv, ledger = run(attack, net, x, y, "L1")
    steps = 9 * 30
    assert (ledger.backward == 1 + 9 * 29).all()
    assert (ledger.forward <= ledger.backward + steps).all()
    assert ledger.forward.mean() < ledger.backward.mean() + 0.99 * steps
    assert (net(x_adv).argmax(dim=1) != y).all()


def test_confidence_is_kept():
    net, x, y = halfspace()
    x_adv, _ = run(EAD(confidence=0.5), net, x, y, "L1")
    assert (margin(net(x_adv), y) >= 0.5).all()


def test_a_sample_does_not_depend_on_its_batch():
    net, x, y = digits()
    whole, counted = run(SHORT, net, x, y, "L1")
    assert len(set(counted.forward.tolist())) > 3
    for rows in ([0], [5, 6, 7], [31, 2]):
        few, ledger = run(SHORT, net, x[rows], y[rows], "L1")
        assert torch.equal(few, whole[rows])
        assert (ledger.forward == counted.forward[rows]).all()


def test_each_round_begins_anew():
    """After a round without success, the next is what it would have been as the first."""
    net, x, y = digits()
    one = run(EAD(search_steps=1, c=0.5), net, x, y, "L1")[0]
    two = run(EAD(search_steps=2, c=0.5), net, x, y, "L1")[0]
    tenfold = run(EAD(search_steps=1, c=5.0), net, x, y, "L1")[0]
    failed = net(one).argmax(dim=1) == y
    assert failed.sum() > 8
    assert torch.equal(two[failed], tenfold[failed])


def test_the_misclassified_and_the_flat_cost_one_pass():
    net, x, y = halfspace()
    y[:3] = 1 - y[:3]
    x_adv, ledger = run(SHORT, net, x, y, "L1")
    assert torch.equal(x_adv[:3], x[:3])
    assert (ledger.forward[:3] == 1).all()
    flat = Halfspace(torch.zeros(12))
    x_adv, ledger = run(SHORT, flat, x, torch.zeros(12).long(), "L1")
    assert torch.equal(x_adv, x)
    assert (ledger.forward == 1).all()
