"""FAB: its projections against scipy's solvers, a plain loop over samples, and linear models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attack_kit import Double, corners, draws, grey, judged, run, star
from scipy.optimize import linprog, minimize
from torch import nn

from harness.api import Threat
from harness_plugins.attacks.fab import FAB
from harness_plugins.attacks.hyperplane import reach

SHAPE = (1, 3, 4)
NORMS = ["Linf", "L2", "L1"]
ORDER = {"Linf": np.inf, "L2": 2, "L1": 1}


def curved(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 5))
    with torch.no_grad():
        net[1].weight *= 4
        net[1].bias -= net[1].weight.sum(dim=1) / 2
    return net.requires_grad_(requires_grad=False)


def distance(norm, x_adv, x):
    return Threat(norm, math.inf).distance(x_adv, x)


# --- the projection onto hyperplane and box ----------------------------------------------------


def solved(norm, z, w, gap):
    """min ‖δ‖ with gap + w·δ = 0 and 0 ≤ z + δ ≤ 1, by linear programming or, in L2, SLSQP."""
    d = len(z)
    if norm == "L2":
        found = minimize(
            lambda v: v @ v,
            np.zeros(d),
            jac=lambda v: 2 * v,
            bounds=list(zip(-z, 1 - z, strict=True)),
            constraints={"type": "eq", "fun": lambda v: gap + w @ v, "jac": lambda _v: w},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        return math.sqrt(found.fun)
    if norm == "L1":  # δ = p − q
        cost, equal = np.ones(2 * d), np.concatenate([w, -w])[None]
        bounds = [(0, 1 - v) for v in z] + [(0, v) for v in z]
        return linprog(cost, A_eq=equal, b_eq=[-gap], bounds=bounds).fun
    cost, equal = np.append(np.zeros(d), 1), np.append(w, 0)[None]
    upper = np.block([[np.eye(d), -np.ones((d, 1))], [-np.eye(d), -np.ones((d, 1))]])
    bounds = [*((-v, 1 - v) for v in z), (0, None)]
    return linprog(cost, upper, np.zeros(2 * d), A_eq=equal, b_eq=[-gap], bounds=bounds).fun


def planes(n, d, seed, dtype=torch.float64):
    """Points, two to a hyperplane, some on the box's faces; most gaps can be closed."""
    rng = torch.Generator().manual_seed(seed)
    z = (1.6 * torch.rand(n, 2, d, generator=rng, dtype=dtype) - 0.3).clamp(0, 1)
    w = torch.randn(n, d, generator=rng, dtype=dtype)
    w[:, 0] = 0
    w[:, 2] = w[:, 1]
    return z, w, 0.8 * torch.randn(n, 2, generator=rng, dtype=dtype)


def most(z, w, gap):
    """The most that the box lets the hyperplane come nearer, (n, p)."""
    way = -gap.sign()[:, :, None] * w[:, None]
    return (torch.where(way > 0, 1 - z, z) * way.abs()).sum(dim=2)


@pytest.mark.parametrize("norm", NORMS)
def test_the_projection_is_the_nearest_point_of_hyperplane_and_box(norm):
    z, w, gap = planes(40, 8, seed=0)
    gap = gap.sign() * torch.minimum(gap.abs(), 0.98 * most(z, w, gap))
    delta = reach(Threat(norm, math.inf), z, w, gap)
    assert ((z + delta >= 0) & (z + delta <= 1)).all()
    torch.testing.assert_close((delta * w[:, None]).sum(dim=2), -gap, rtol=0, atol=1e-9)
    sizes = torch.linalg.vector_norm(delta, ord=ORDER[norm], dim=2)
    for i in range(len(z)):
        for p in range(2):
            least = solved(norm, z[i, p].numpy(), w[i].numpy(), float(gap[i, p]))
            assert float(sizes[i, p]) == pytest.approx(least, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_the_projection_is_exact_where_the_box_stops_nearly_all_entries(norm, share):
    """Hundreds of stops lie on the way; the optimality conditions are those of the convex problem.

    With m the moves, a entry is short of its room only at the common level: m in Linf, m / |w| in
    L2, and in L1 no entry moves while a steeper one has room.
    """
    z, w, gap = planes(10, 900, seed=5)
    w *= w.square()
    gap = gap.sign() * share * most(z, w, gap)
    delta = reach(Threat(norm, math.inf), z, w, gap)
    torch.testing.assert_close((delta * w[:, None]).sum(dim=2), -gap, rtol=1e-9, atol=0)
    room = torch.where(-gap.sign()[:, :, None] * w[:, None] > 0, 1 - z, z)
    free, a = delta.abs() < room - 1e-9, w.abs()[:, None].expand_as(z)
    if norm == "L1":
        moved = torch.where((delta != 0), a, torch.inf).amin(dim=2)
        held = torch.where(free, a, 0.0).amax(dim=2)
        assert (held <= moved + 1e-12).all()
        return
    level = delta.abs() / (a if norm == "L2" else 1)
    free &= a > 1e-6
    height = torch.where(free, level, 0.0).amax(dim=2, keepdim=True)
    assert ((level - height).abs() < 1e-6 * height)[free].all()
    assert (level <= height * (1 + 1e-6)).logical_or(a <= 1e-6).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_hyperplane_out_of_reach_gives_the_nearest_corner(norm):
    z, w, gap = planes(20, 8, seed=1, dtype=torch.float32)
    gap = gap.sign() * most(z, w, gap) * 1.5
    moved = z + reach(Threat(norm, math.inf), z, w, gap)
    corner = (-gap.sign()[:, :, None] * w[:, None] > 0).float()
    expected = torch.where(w[:, None] == 0, z, corner)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e30])
def test_the_projection_does_not_depend_on_the_scale_of_the_scores(norm, size):
    z, w, gap = planes(20, 30, seed=2, dtype=torch.float32)
    threat = Threat(norm, math.inf)
    delta = reach(threat, z, size * w, size * gap)
    torch.testing.assert_close(delta, reach(threat, z, w, gap), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_moves_without_a_normal_or_a_gap(norm):
    z, w, gap = planes(6, 8, seed=3, dtype=torch.float32)
    w[0] = 0
    gap[1] = 0
    delta = reach(Threat(norm, math.inf), z, w, gap)
    assert not delta[:2].any()
    assert delta[2:].any(dim=2).all()
    assert delta.isfinite().all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_projection_is_the_same_bits_alone(norm):
    z, w, gap = planes(30, 784, seed=4, dtype=torch.float32)
    gap *= 10 ** torch.linspace(-3, 3, 30)[:, None]
    threat = Threat(norm, math.inf)
    together = reach(threat, z, w, gap)
    for i in range(30):
        assert torch.equal(
            reach(threat, z[i : i + 1], w[i : i + 1], gap[i : i + 1])[0], together[i]
        )


# --- the attack --------------------------------------------------------------------------------


def optimum(net, x, y, norm):
    """The least distance to another class of a linear model inside the box, by solvers, (n,)."""
    scores = net(x).double()
    found = []
    for i, image in enumerate(x.double().flatten(1).numpy()):
        least = math.inf
        for j in set(range(len(net.b))) - {int(y[i])}:
            w = (net.w[j] - net.w[y[i]]).double()
            gap = float(scores[i, j] - scores[i, y[i]])
            w = w.numpy()
            if gap + np.where(w > 0, (1 - image) * w, -image * w).sum() >= 0:
                least = min(least, solved(norm, image, w, gap))
        found.append(least)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(("images", "factor"), [(grey, 1.001), (corners, 1.01)])
@pytest.mark.parametrize("towards", [None, 4])
def test_reaches_the_optimum_of_a_linear_model(norm, classes, images, factor, towards):
    """And never goes below, also where the box bars the straight way."""
    net, x = star(classes, SHAPE), images(shape=SHAPE)
    y = net(x).argmax(dim=1)
    x_adv, _ = run(FAB(steps=10, towards=towards), net, x, norm=norm)
    assert (net(x_adv).argmax(dim=1) != y).all()
    ratio = distance(norm, x_adv, x) / optimum(net, x, y, norm)
    assert (ratio > 1 - 1e-4).all()
    assert (ratio < factor).all()


def one_by_one(net, x, norm, steps, alpha_max=0.1, eta=1.05, beta=0.9):
    """Algorithm 1 for one image far inside the box, where the projections have closed forms."""
    label, best, closest = int(net(x[None])[0].argmax()), math.inf, x
    dual = {"Linf": 1, "L2": 2, "L1": np.inf}[norm]

    def projection(gap, w):
        if norm == "L2":
            return -gap * w / (w @ w)
        if norm == "Linf":
            return -gap * np.sign(w) / np.abs(w).sum()
        first = np.abs(w).argmax()
        return -gap * np.eye(len(w))[first] / w[first]

    clean = x.flatten().double().numpy()
    at = clean
    for _ in range(steps):
        z = torch.from_numpy(at).float().view(1, *SHAPE).requires_grad_()
        scores = net(z)[0]
        rows = []
        for j in set(range(5)) - {label}:
            (w,) = torch.autograd.grad(scores[j] - scores[label], z, retain_graph=True)
            w, gap = w.flatten().double().numpy(), float((scores[j] - scores[label]).detach())
            rows.append((abs(gap) / np.linalg.norm(w, dual), gap, w))
        _, gap, w = min(rows, key=lambda row: row[0])
        to, to_x = projection(gap, w), projection(gap + w @ (clean - at), w)
        a, b = np.linalg.norm(to, ORDER[norm]), np.linalg.norm(to_x, ORDER[norm])
        alpha = min(a / (a + b), alpha_max)
        at = (1 - alpha) * (at + eta * to) + alpha * (clean + eta * to_x)
        if int(net(torch.from_numpy(at).float().view(1, *SHAPE))[0].argmax()) != label:
            if np.linalg.norm(at - clean, ORDER[norm]) < best:
                best, closest = np.linalg.norm(at - clean, ORDER[norm]), at
            at = (1 - beta) * clean + beta * at
    return torch.as_tensor(closest).float().view(SHAPE)


@pytest.mark.parametrize("norm", NORMS)
def test_takes_the_steps_of_the_algorithm(norm):
    net, x = curved(), 0.5 + 0.02 * torch.randn(12, *SHAPE, generator=torch.Generator())
    for options in ({}, {"alpha_max": 0.02, "eta": 1.2, "beta": 0.6}):
        x_adv, _ = run(FAB(steps=6, search=0, **options), net, x, norm=norm)
        reference = torch.stack([one_by_one(net, image, norm, 6, **options) for image in x])
        assert (x_adv > 0).all()
        assert (x_adv < 1).all()
        assert (net(x_adv).argmax(dim=1) != net(x).argmax(dim=1)).float().mean() > 0.9
        torch.testing.assert_close(x_adv, reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_the_final_search_only_comes_nearer(norm):
    net, x = curved(), corners(shape=SHAPE)
    y = net(x).argmax(dim=1)
    before, _ = run(FAB(steps=8, search=0), net, x, norm=norm)
    last = distance(norm, before, x)
    for steps in (1, 2, 3):
        x_adv, _ = run(FAB(steps=8, search=steps), net, x, norm=norm)
        assert torch.equal(net(x_adv).argmax(dim=1) != y, net(before).argmax(dim=1) != y)
        assert (distance(norm, x_adv, x) <= last).all()
        last = distance(norm, x_adv, x)
    assert (last < distance(norm, before, x)).float().mean() > 0.7


@pytest.mark.parametrize(
    ("options", "restart", "forward", "backward"),
    [
        ({}, 0, 2 * 7 + 3, 7 * 4),
        ({}, 1, 2 * 7 + 3 + 1, 7 * 4 + 4),
        ({"search": 0}, 0, 2 * 7, 7 * 4),
        ({"towards": 2}, 0, 1 + 2 * 2 * 7 + 3, 2 * 7),
        ({"towards": 2}, 1, 1 + 2 * (2 * 7 + 1) + 3, 2 * (7 + 1)),
        ({"towards": 100}, 0, 1 + 4 * 2 * 7 + 3, 4 * 7),
    ],
)
def test_costs_what_it_says(options, restart, forward, backward):
    net, x = star(5, SHAPE), grey(4, shape=SHAPE)
    y = net(x).argmax(dim=1)
    y[2] = (y[2] + 1) % 5  # misclassified already: one look
    x_adv, ledger = run(FAB(steps=7, **options), net, x, y, norm="L2", restart=restart)
    assert ledger.forward.tolist() == [forward, forward, 1, forward]
    once = 0 if "towards" in options else 4
    assert ledger.backward.tolist() == [backward, backward, once, backward]
    assert torch.equal(x_adv[2], x[2])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("radius", [None, 0.01])
def test_a_restart_begins_within_half_the_boundarys_distance(norm, radius):
    """On a linear model the linearised distance is the distance."""
    net, x = star(2, SHAPE), grey(shape=SHAPE)
    seen = []
    net.register_forward_pre_hook(lambda _net, inputs: seen.append(inputs[0].detach().clone()))
    y = net(x).argmax(dim=1)
    attack, threat = FAB(steps=2, radius=radius), Threat(norm, math.inf)
    first = attack(judged(net, len(x), 2), x, y, threat, draws(len(x)))
    assert torch.equal(seen[1][: len(x)], x)  # 0 is the labels'
    seen.clear()
    again = attack(judged(net, len(x), 2), x, y, threat, draws(len(x), restart=1))
    known = optimum(net, x, y, norm)
    limit = known / 2 if radius is None else known.clamp_max(radius) / 2
    begun = distance(norm, seen[1][: len(x)], x)  # the first pass linearises at x
    assert (begun <= limit * (1 + 1e-4) + 1e-6).all()
    assert (begun >= 0.3 * limit).all()
    assert not torch.equal(first, again)


def test_towards_goes_to_the_classes_with_the_highest_scores():
    """Here the runner-up's boundary is far, since its weights are nearly the label's."""
    net = star(3, SHAPE)
    net.w = torch.zeros(3, 12)
    net.w[0, 0], net.w[1, :2], net.w[2, 0] = 1.0, torch.tensor([1.0, 0.5]), -9.0
    net.b = torch.tensor([0.0, -0.35, 4.0])
    x = torch.full((1, *SHAPE), 0.5)  # scores .5, .4, −.5
    far, _ = run(FAB(towards=1), net, x, norm="L2")
    near, _ = run(FAB(towards=2), net, x, norm="L2")
    assert net(far).argmax(dim=1) == 1
    assert float(distance("L2", far, x)) == pytest.approx(0.2, rel=1e-3)
    assert net(near).argmax(dim=1) == 2
    assert float(distance("L2", near, x)) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("towards", [None, 2])
@pytest.mark.parametrize("restart", [0, 1])
def test_a_sample_does_not_depend_on_its_batch(norm, towards, restart):
    net, x, attack = curved(), corners(shape=SHAPE), FAB(steps=5, towards=towards)
    y = net(x).argmax(dim=1)
    y[4] = (y[4] + 1) % 5
    whole, _ = run(attack, net, x, y, norm=norm, restart=restart)
    threat = Threat(norm, math.inf)
    for rows in ([7, 2, 4], [0]):
        at = torch.tensor(rows)
        rng = draws(len(x), restart=restart).at(at)
        few = attack(judged(net, len(x)).at(at), x[at], y[at], threat, rng)
        assert torch.equal(few, whole[at])


class Flat(nn.Module):
    """Without a gradient where the mean is below a half."""

    def forward(self, x):
        z = (x.flatten(1).mean(dim=1) - 0.5).clamp_min(0)
        return torch.stack([torch.full_like(z, 0.01), z], dim=1)


@pytest.mark.parametrize("norm", NORMS)
def test_where_there_is_no_gradient_only_a_restart_finds_a_way(norm):
    x = torch.full((8, *SHAPE), 0.45)
    x_adv, _ = run(FAB(steps=5), Flat(), x, norm=norm)
    assert torch.equal(x_adv, x)
    found = torch.zeros(8, dtype=torch.bool)
    for restart in range(1, 6):
        x_adv, _ = run(FAB(steps=5), Flat(), x, norm=norm, restart=restart)
        fooled = Flat()(x_adv).argmax(dim=1) == 1
        assert torch.equal((x_adv != x).flatten(1).any(dim=1), fooled)
        found |= fooled
    assert found.any()


def test_scores_in_double_precision_leave_the_images_single():
    net, x = curved(), corners(shape=SHAPE)
    single, _ = run(FAB(steps=10), net, x, norm="L2")
    double, _ = run(FAB(steps=10), nn.Sequential(net, Double()), x, norm="L2")
    assert double.dtype == torch.float32
    torch.testing.assert_close(
        distance("L2", double, x), distance("L2", single, x), rtol=0.01, atol=0
    )
