"""The unrolled high-confidence attack against a reference in numpy, and by its laws; its goal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from critic_kit import goals, images, linear_scores, network
from torch import nn

from harness_plugins.unrolled import nearest_class, reach

OVERSHOOT = 0.05


def probability(net, x, label):
    """Of one label each, (n,)."""
    return net(x).detach().softmax(dim=1).gather(1, label[:, None])[:, 0]


# --- the unrolled attack: a reference in numpy, one image at a time -------------------------------


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def numbers(net):
    return [weights.detach().numpy().copy() for weights in net.parameters()]


def log_p_and_slope(weights, point, goal):
    """log p_goal and its gradient by the image, by the chain rule on paper."""
    w1, b1, w2, b2 = weights
    hidden = np.tanh(w1 @ point + b1)
    z = w2 @ hidden + b2
    p = np.exp(z - z.max())
    p /= p.sum()
    rest = -p
    rest[goal] += 1
    return math.log(p[goal]), w1.T @ ((1 - hidden**2) * (w2.T @ rest))


def r(log_p, slope, confidence):
    length = math.sqrt(slope @ slope + 1e-8)
    return (abs(math.log(confidence) - log_p) / length + 1e-4) * slope / length


def visited(weights, x, goal, confidence, steps):
    """The points before each step, and the gap of confidence there, until the image arrives."""
    total, points, gaps = np.zeros_like(x), [], []
    for _ in range(steps):
        point = x + (1 + OVERSHOOT) * total
        log_p, slope = log_p_and_slope(weights, point, goal)
        points.append(point)
        gaps.append(confidence - math.exp(log_p))
        if gaps[-1] <= 0:
            break
        total += r(log_p, slope, confidence)
    return points, gaps


def smoothed(weights, x, goal, confidence, fixed):
    """x + (1 + o) Σ s_i r_i, the points fixed and every factor of s_i with the slope of σ.

    At the weights and the confidence of the visit, this is the attack itself.
    """
    s, out = 1.0, x.copy()
    for point, gap in zip(*fixed, strict=True):
        log_p, slope = log_p_and_slope(weights, point, goal)
        s *= float(gap > 0) + sigmoid(confidence - math.exp(log_p)) - sigmoid(gap)
        out += (1 + OVERSHOOT) * s * r(log_p, slope, confidence)
    return out


def case():
    """Images that are there before a step, after one to four, and never."""
    net, x = network(), images()
    goal = goals(net, x)
    confidence = torch.linspace(0.05, 0.999, len(x)).double()
    args = [
        (row.flatten().numpy(), int(t), float(c))
        for row, t, c in zip(x, goal, confidence, strict=True)
    ]
    fixed = [visited(numbers(net), *one, steps=5) for one in args]
    lengths = {len(gaps) if gaps[-1] <= 0 else None for _, gaps in fixed}
    assert {1, 3, None} <= lengths  # looked at once, three times, and not there at the end
    return net, x, goal, confidence, args, fixed


def test_the_attack_is_the_reference_image_by_image():
    net, x, goal, confidence, args, fixed = case()
    found = reach(net, x, goal, confidence, 5, OVERSHOOT).detach().flatten(1).numpy()
    expected = [smoothed(numbers(net), *one, at) for one, at in zip(args, fixed, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_its_gradient_by_the_weights_is_that_of_finite_differences():
    """The points are constants of the differences, and so is whether an image has arrived."""
    net, x, goal, confidence, args, fixed = case()
    push = images(seed=1) - 0.5
    (push * reach(net, x, goal, confidence, 5, OVERSHOOT)).sum().backward()
    flat = push.flatten(1).numpy()

    def value(weights):
        return sum(
            row @ smoothed(weights, *one, at)
            for row, one, at in zip(flat, args, fixed, strict=True)
        )

    h, weights = 1e-6, numbers(net)
    for own, parameter in zip(weights, net.parameters(), strict=True):
        slopes = np.empty_like(own)
        for index in np.ndindex(*own.shape):
            kept = own[index]
            own[index] = kept + h
            above = value(weights)
            own[index] = kept - h
            slopes[index] = (above - value(weights)) / (2 * h)
            own[index] = kept
        np.testing.assert_allclose(parameter.grad.numpy(), slopes, rtol=1e-5, atol=1e-6)


def test_its_gradient_by_the_confidence_is_that_of_finite_differences():
    net, x, goal, confidence, args, fixed = case()
    push, asked = images(seed=1) - 0.5, confidence.clone().requires_grad_()
    (push * reach(net, x, goal, asked, 5, OVERSHOOT)).sum().backward()
    h, weights = 1e-6, numbers(net)
    for i, ((image, t, c), at) in enumerate(zip(args, fixed, strict=True)):
        above, below = (smoothed(weights, image, t, c + d, at) for d in (h, -h))
        slope = push[i].flatten().numpy() @ (above - below) / (2 * h)
        assert asked.grad[i].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)
        assert slope != 0


def test_the_points_are_constants():
    """Nothing flows through an earlier step, nor through where the image was: x adds itself only.

    With the weights a step does change, so a derivative by them that went through the points too
    would be another one: finite differences above.
    """
    net, x, goal, confidence, *_ = case()
    x.requires_grad_()
    reach(net, x, goal, confidence, 5, OVERSHOOT).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert all((weights.grad != 0).any() for weights in net[1:].parameters())


# --- the unrolled attack: its laws ----------------------------------------------------------------


class LogLinear(nn.Module):
    """Class 1 of three has log p = a·x + c as long as that is below log 1."""

    def __init__(self, a, c):
        super().__init__()
        self.a, self.c = a, c

    def forward(self, x):
        log_p = x.flatten(1) @ self.a + self.c
        rest = torch.log1p(-log_p.exp()) - math.log(2)
        return torch.stack([rest, log_p, rest], dim=1)


@pytest.mark.parametrize("steps", [1, 5])
def test_one_step_reaches_the_confidence_where_log_p_is_linear(steps):
    """log p rises by (1 + o) (log C − log p + 1e-4 ‖a‖), and the image has arrived for good."""
    rng = torch.Generator().manual_seed(3)
    a = torch.randn(12, generator=rng).double()
    net, x = LogLinear(a, -float(a.sum() / 2) - 2.0), 0.5 + 0.01 * images()
    goal, confidence = torch.ones(12).long(), torch.full((12,), 0.3).double()
    log_p = probability(net, x, goal).log()
    x_adv = reach(net, x, goal, confidence, steps, OVERSHOOT)
    expected = log_p + (1 + OVERSHOOT) * (math.log(0.3) - log_p + 1e-4 * a.norm())
    torch.testing.assert_close(probability(net, x_adv, goal).log(), expected, rtol=0, atol=1e-6)
    assert (probability(net, x_adv, goal) > 0.3).all()


def test_an_image_stands_still_from_the_point_that_is_sure_enough_and_no_sooner():
    net, x, goal, confidence, *_ = case()
    before = x
    counts = []
    for steps in range(1, 9):
        now = reach(net, x, goal, confidence, steps, OVERSHOOT).detach()
        there = probability(net, before, goal) >= confidence
        assert torch.equal((now == before).flatten(1).all(dim=1), there)
        before = now
        counts.append(int(there.sum()))
    assert 0 < counts[0] < counts[3] < counts[-1]


def test_an_image_that_is_sure_already_never_moves():
    net, x = network(), images()
    goal = goals(net, x)
    own = net(x).log_softmax(dim=1).exp().gather(1, goal[:, None])[:, 0].detach()
    for confidence in (own, own * 0.5):  # as sure as that, and surer
        found = reach(net, x, goal, confidence, 5, OVERSHOOT)
        assert torch.equal(found, x)
        assert found.requires_grad  # its arrival depends on the weights


def test_images_that_arrive_leave_the_others_as_they_are():
    """An image alone has the same result and the same share of the gradients."""
    net, x, goal, confidence, *_ = case()
    asked = confidence.clone().requires_grad_()
    push = images(seed=1) - 0.5
    whole = reach(net, x, goal, asked, 5, OVERSHOOT)
    wanted = [asked, *net.parameters()]
    gradients = torch.autograd.grad((push * whole).sum(), wanted)
    added = [torch.zeros_like(tensor) for tensor in wanted]
    for i in range(len(x)):
        one = slice(i, i + 1)
        alone = reach(net, x[one], goal[one], asked[one], 5, OVERSHOOT)
        torch.testing.assert_close(alone, whole[one], rtol=0, atol=1e-12)
        for total, own in zip(
            added, torch.autograd.grad((push[one] * alone).sum(), wanted), strict=True
        ):
            total.add_(own)
    for total, gradient in zip(added, gradients, strict=True):
        torch.testing.assert_close(gradient, total, rtol=1e-9, atol=1e-9)


def test_an_image_that_arrived_costs_nothing_more():
    net, x, goal, confidence, _, fixed = case()
    sizes = []
    net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    reach(net, x, goal, confidence, 5, OVERSHOOT)
    assert sizes == [sum(len(gaps) > i for _, gaps in fixed) for i in range(5)]


def test_without_a_slope_nothing_moves_and_all_is_finite():
    net = network()
    nn.init.zeros_(net[1].weight)
    x = images()
    found = reach(net, x, goals(net, x), torch.ones(12).double(), 5, OVERSHOOT)
    found.square().sum().backward()
    assert torch.equal(found, x)
    assert all(weights.grad.isfinite().all() for weights in net.parameters())


# --- the goal -------------------------------------------------------------------------------------


def nearest_alone(net, x):
    """By its definition: each image and each class alone, autograd for each output."""
    found = []
    for image in x:
        z = net(image[None])[0].detach()
        rows = [
            torch.autograd.functional.jacobian(lambda v, j=j: net(v[None])[0, j], image)
            for j in range(len(z))
        ]
        own = int(z.argmax())
        distance = {
            j: float((z[j] - z[own]).abs() / (rows[j] - rows[own]).norm())
            for j in range(len(z))
            if j != own
        }
        found.append(min(distance, key=distance.__getitem__))
    return torch.tensor(found)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_the_goal_is_the_nearest_of_the_other_classes(k):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, k)).double()
    with torch.no_grad():  # slopes as different as gaps: the likeliest is often not the nearest
        net[3].weight *= torch.linspace(1, 6, k).double()[:, None]
    x = images(40)
    found, scores = goals(net, x), net(x)
    assert torch.equal(found, nearest_alone(net, x))
    assert (found != scores.argmax(dim=1)).all()
    if k > 2:
        assert (found != scores.topk(2, dim=1).indices[:, 1]).any()
        assert len(found.unique()) > 1


def test_a_class_without_a_slope_is_never_near():
    """Class 1 runs along with class 0, at a distance and, in a tie, without."""
    w = torch.zeros(3, 12)
    w[2, 0] = 0.01
    for b in ([5.0, 4.9, 0.0], [5.0, 5.0, 0.0]):
        assert goals(linear_scores(w, b), images(3)).tolist() == [2, 2, 2]


def test_where_no_class_has_a_slope_the_goal_is_the_first_other_one():
    for b, first in (([1.0, 0.0, 0.5], 1), ([0.0, 0.5, 1.0], 0), ([0.0, 1.0], 0), ([1.0, 1.0], 1)):
        assert goals(linear_scores(torch.zeros(len(b), 12), b), images(2)).tolist() == [first] * 2


def test_the_goal_leaves_no_gradient_and_the_graph_of_the_scores_intact():
    net, x = network(), images().requires_grad_()
    scores = net(x)
    assert not nearest_class(scores, x).requires_grad
    assert all(weights.grad is None for weights in net.parameters())
    scores.sum().backward()
    assert net[3].bias.grad is not None
