"""The high-confidence attack: its invariants, its step by hand, and odd networks."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from attack_kit import SHAPE, Patchy, corners, curved, run
from torch import nn

from harness.target import Target
from harness_plugins.attacks.boundaries import Boundaries, boundaries
from harness_plugins.attacks.high_confidence import (
    HighConfidence,
    log_probability,
    nearest_class,
    step,
)


class Recorded(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.asked = net, []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        return self.net(x)


# --- the step ----------------------------------------------------------------------------------


class LogLinear(nn.Module):
    """Class 1 of three has log p = a·x + c as long as that is below log 1/2."""

    def __init__(self, a, c):
        super().__init__()
        self.a, self.c = a, c

    def forward(self, x):
        log_p = x.flatten(1) @ self.a + self.c
        rest = torch.log1p(-log_p.exp()) - math.log(2)
        return torch.stack([rest, log_p, rest], dim=1)


def test_one_step_reaches_the_confidence_where_log_p_is_linear():
    """It is exact to first order: log p rises by |log C − log p| + 1e-4 ‖g‖."""
    rng = torch.Generator().manual_seed(3)
    a = torch.randn(36, generator=rng).double()
    x = 0.5 + 0.01 * torch.rand(6, *SHAPE, generator=rng).double()
    net = LogLinear(a, -float(a.sum() / 2) - 2.0)
    free = Target.around(net, 3)
    goal, log_c = torch.ones(6).long(), torch.full((6,), math.log(0.3)).double()
    g, scores = free.gradient(log_probability, x, goal)
    log_p = log_probability(scores, goal)
    reached = log_probability(net(x + step(log_p, g, log_c)), goal)
    torch.testing.assert_close(reached, log_c + 1e-4 * a.norm(), rtol=0, atol=1e-6)


def test_the_step_by_hand():
    g = torch.tensor([[[[3.0, 4.0]]]])
    log_p, log_c = torch.tensor([-3.0]), torch.tensor([-1.0])
    expected = (2 / 5 + 1e-4) * g / 5
    torch.testing.assert_close(step(log_p, g, log_c), expected)
    torch.testing.assert_close(step(log_p, g, log_c, longest=0.1), 0.1 * g / 5)
    assert (step(log_p, 0 * g, log_c) == 0).all()
    # at ‖g‖² = floor the norm is √2 ‖g‖, in both of its places
    torch.testing.assert_close(step(log_p, g, log_c, floor=25.0), (2 / 50 + 1e-4 / 50**0.5) * g)


def test_derivatives_flow_through_the_step_and_stay_finite():
    """For a training: the weights are reached through log p and g, at a constant point."""
    log_p = torch.tensor([-3.0, -1.0], requires_grad=True)
    g = torch.tensor([[[[3.0, 4.0]]], [[[0.0, 0.0]]]], requires_grad=True)
    step(log_p, g, torch.tensor([-1.0, -1.0])).square().sum().backward()
    assert log_p.grad.isfinite().all()
    assert g.grad.isfinite().all()
    assert log_p.grad[0] != 0
    assert (g.grad[0] != 0).all()


# --- the target --------------------------------------------------------------------------------


def test_the_target_is_the_nearest_class_not_the_likeliest():
    near = Boundaries(
        scores=torch.tensor([[5.0, 4.0, 1.0]]),
        classes=torch.tensor([[1, 2]]),
        gap=torch.tensor([[-1.0, -4.0]]),
        normal=torch.tensor([[[[[0.3, 0.4]]], [[[3.0, 4.0]]]]]),
    )
    assert nearest_class(near).tolist() == [2]  # 1 / 0.5 = 2 away against 4 / 5


def test_a_class_without_a_slope_is_never_near():
    near = Boundaries(
        scores=torch.tensor([[5.0, 5.0, 1.0]]),
        classes=torch.tensor([[1, 2]]),
        gap=torch.tensor([[0.0, -4.0]]),
        normal=torch.tensor([[[[[0.0, 0.0]]], [[[3.0, 4.0]]]]]),
    )
    assert nearest_class(near).tolist() == [2]


# --- the attack --------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [None, 0.3, 0.5])
def test_what_comes_back_is_the_target_with_the_confidence_asked_for(confidence):
    net, x = curved(last=3), corners()
    x = x.double()
    y = net(x).argmax(dim=1)
    goal = nearest_class(boundaries(Target.around(net, 5), x, y))
    assert (goal != y).all()
    x_adv, _ = run(HighConfidence(80, confidence=confidence), net, x)
    moved = (x_adv != x).flatten(1).any(dim=1)
    least = net(x).softmax(1).amax(1) if confidence is None else torch.full((10,), confidence)
    assert moved.sum() >= 5
    assert torch.equal(net(x_adv).argmax(dim=1)[moved], goal[moved])
    reached = net(x_adv).softmax(1).amax(1)[moved]
    assert (reached >= least[moved] - 1e-9).all()
    assert (net(x_adv).argmax(dim=1)[~moved] == y[~moved]).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def reference(net, x, y, attack):
    """One image: METHODS' loop with r made anew from the clipped image."""
    target = Target.around(net, 5)
    t = nearest_class(boundaries(target, x, y))
    log_c = math.log(attack.confidence) if attack.confidence else float(net(x).log_softmax(1).max())
    r, image = torch.zeros_like(x), x
    for _ in range(attack.steps + 1):
        at = image.clone().requires_grad_()
        log_p = net(at).log_softmax(1)[0, int(t)]
        if int(net(at).argmax()) == int(t) and float(log_p.detach()) >= log_c:
            return image
        (g,) = torch.autograd.grad(log_p, at)
        log_p = log_p.detach()
        norm = math.sqrt(float(g.square().sum()) + attack.floor)
        length = min(abs(log_c - float(log_p)) / norm + 1e-4, attack.max_step)
        image = (x + (1 + attack.overshoot) * (r + length * g / norm)).clamp(0, 1)
        r = (image - x) / (1 + attack.overshoot)
    return x


@pytest.mark.parametrize(
    "attack",
    [HighConfidence(60), HighConfidence(40, confidence=0.6, overshoot=0.3), HighConfidence(3)],
)
def test_is_a_plain_loop_over_the_samples(attack):
    net, x = curved(last=3), corners().double()
    y = net(x).argmax(dim=1)
    x_adv, _ = run(attack, net, x)
    alone = [reference(net, x[i : i + 1], y[i : i + 1], attack) for i in range(10)]
    torch.testing.assert_close(x_adv, torch.cat(alone), rtol=0, atol=1e-8)


def test_a_step_is_no_longer_than_allowed():
    """As often as the box does not shorten it, it is just so long."""
    net, x = curved(last=3), 0.3 + 0.4 * corners().double()
    seen = Recorded(net)
    run(HighConfidence(10, max_step=0.05, overshoot=0.0), seen, x[:1])
    path = [batch[0] for batch in seen.asked[2:]]  # after the one for y and the one at the start
    lengths = torch.stack([(b - a).norm() for a, b in pairwise(path)])
    assert (lengths <= 0.05 + 1e-9).all()
    assert (lengths > 0.0499).any()


def test_all_images_asked_are_in_the_box():
    seen = Recorded(curved(last=3).float())
    run(HighConfidence(30), seen, corners())
    assert all((batch >= 0).all() and (batch <= 1).all() for batch in seen.asked)


def test_what_is_misclassified_stays_and_costs_one_look():
    net, x = curved(last=3), corners().double()
    y = net(x).argmax(dim=1)
    y[[2, 6]] = (y[[2, 6]] + 1) % 5
    x_adv, ledger = run(HighConfidence(20), net, x, y)
    assert torch.equal(x_adv[[2, 6]], x[[2, 6]])
    assert ledger.forward[[2, 6]].tolist() == [1, 1]
    assert ledger.backward[[2, 6]].tolist() == [4, 4]
    assert ledger.forward.max() > 1


def test_two_classes_are_enough():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).requires_grad_(requires_grad=False)
    x = corners()
    y = net(x).argmax(dim=1)
    x_adv, _ = run(HighConfidence(), net, x)
    assert (net(x_adv).argmax(dim=1) != y).all()
    before, after = (net(v).softmax(1).amax(1) for v in (x, x_adv))
    assert (after >= before - 1e-6).all()


def test_a_saturated_network_is_fooled_as_surely():
    """log p_t is then flat near the goal: the paper's floor on the gradient stops the steps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double().requires_grad_(requires_grad=False)
    with torch.no_grad():
        net[1].weight *= 15
        net[1].bias.copy_(-net[1].weight.sum(dim=1) / 2)
    x = 0.4 + 0.2 * corners().double()
    y = net(x).argmax(dim=1)
    found = {}
    for floor in (1e-8, 1e-12):
        attack = HighConfidence(60, confidence=1 - 1e-7, floor=floor)
        x_adv, _ = run(attack, net, x)
        found[floor] = int((net(x_adv).argmax(dim=1) != y).sum())
    assert found == {1e-8: 0, 1e-12: 10}


def test_gradients_of_zero_and_nan_stop_none_but_their_own():
    net, x = curved(last=3), 0.3 + 0.4 * corners().double()
    x[4, 0, 0, 0], x[7, 0, 0, 0] = 0.0, 0.5
    x_adv, ledger = run(HighConfidence(60), Patchy(net), x)
    clean, _ = run(HighConfidence(60), net, x)
    assert torch.equal(x_adv[4], x[4])
    assert ledger.forward[4] == 2
    assert x_adv.isfinite().all()
    assert x_adv[7, 0, 0, 0] == 0.5
    assert (x_adv[7] != x[7]).any()
    rest = [i for i in range(10) if i not in {4, 7}]
    assert torch.equal(x_adv[rest], clean[rest])


def test_a_sample_is_the_same_alone():
    net, x = curved(last=3).float(), corners()
    whole, ledger = run(HighConfidence(60), net, x)
    for i in (0, 4, 9):
        alone, own = run(HighConfidence(60), net, x[i : i + 1])
        assert torch.equal(whole[i], alone[0])
        assert own.forward[0] == ledger.forward[i]
