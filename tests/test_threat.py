"""What a threat model lets through, and that nothing of its own making is ever refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import outcome
from harness.errors import PluginError
from harness.geometry import GEOMETRIES, distances
from harness.plugin import CORRUPTION, NORMS
from harness.rng import SampleRng
from harness.threat import Threat

CPU = torch.device("cpu")
BALLS = [("Linf", 8 / 255), ("L2", 0.5), ("L1", 2.0), ("L0", 3.0)]


def images(*shape, seed=0, dtype=torch.float32):
    """Grey levels k/255, black and white among them."""
    grey = torch.randint(256, shape, generator=torch.Generator().manual_seed(seed))
    return (grey / 255).to(dtype)


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def streams(n):
    return SampleRng.keyed(0, "test", ids=range(n), restart=0, device=CPU)


# project ------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    norm=st.sampled_from(NORMS),
    eps=st.one_of(st.floats(0, 50), st.floats(1e-9, 1e-2), st.sampled_from([8 / 255, 1e-7, 0.3])),
    scale=st.sampled_from([1e-8, 1e-6, 1e-3, 1.0, 1e6, 1e25]),
    side=st.sampled_from([2, 28]),
    seed=st.integers(0, 2**32),
)
def test_whatever_is_proposed_its_projection_is_allowed(norm, eps, scale, side, seed):
    x = images(3, 3, side, side, seed=seed)
    threat = Threat(norm, eps)
    proposal = x + scale * noise(*x.shape, seed=seed)
    assert threat.allows(threat.project(proposal, x), x).all()


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_a_thousand_roundings_do_not_add_up(norm):
    """Every entry moves by a millionth, which float32, at 0.5 to 1, rounds up to 17 · 2⁻²⁴."""
    x = 0.5 + 0.4 * images(1, 1, 32, 32)
    eps = 1024e-6 if norm == "L1" else 32e-6
    x_adv = Threat(norm, eps).project(x + 1e-3, x)
    assert (x_adv > x).all()
    assert Threat(norm, eps).distance(x_adv, x) <= eps


def test_linf_projection_is_the_nearest_point_of_ball_and_box():
    x = images(4, 3, 8, 8, dtype=torch.float64)
    proposal = x + noise(*x.shape)
    found = Threat("Linf", 0.3).project(proposal, x).numpy()
    lowest, highest = np.maximum(x.numpy() - 0.3, 0), np.minimum(x.numpy() + 0.3, 1)
    np.testing.assert_array_equal(found, np.clip(proposal.numpy(), lowest, highest))


@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_projection_is_the_balls_then_the_boxs(norm, eps):
    x = images(4, 3, 8, 8, dtype=torch.float64)
    proposal = x + noise(*x.shape)
    nearest = x + GEOMETRIES[norm].project(proposal - x, eps)
    torch.testing.assert_close(Threat(norm, eps).project(proposal, x), nearest.clamp(0, 1))


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 1.0), ("L2", 3.0), ("L1", 6.0), ("L0", 2.0)])
def test_an_image_inside_is_left_alone_to_the_last_bit(norm, eps):
    """From 0.01 to 0.7 no float32 number is exactly as far as one image is from the other."""
    x = images(20, 3, 8, 8)
    x_adv = x.clone()
    x_adv[:, :, 3, :2] = torch.rand(20, 3, 2, generator=torch.Generator().manual_seed(2))
    assert torch.equal(Threat(norm, eps).project(x_adv, x), x_adv)


@pytest.mark.parametrize("norm", NORMS)
def test_a_budget_of_0_leaves_nothing_but_the_clean_image(norm):
    x = images(4, 3, 8, 8)
    threat = Threat(norm, 0.0)
    proposal = x + noise(*x.shape)
    proposal[0] = (x[0] + 1e-30).where(x[0] > 0, 1e-30)  # its L2 length is 0 in float32
    assert torch.equal(threat.project(proposal, x), x)
    assert torch.equal(threat.random_start(x, streams(4)), x)
    assert torch.equal(threat.step(x, noise(*x.shape), x, 0.1), x)
    assert threat.allows(x, x).all()
    assert not threat.allows(torch.nextafter(x, 0.5 * torch.ones_like(x)), x).any()


@pytest.mark.parametrize("threat", [*(Threat(n, math.inf) for n in NORMS), Threat(CORRUPTION, 0.1)])
def test_without_a_ball_only_the_box_projects(threat):
    x = images(2, 3, 4, 4)
    proposal = x + noise(*x.shape)
    assert torch.equal(threat.project(proposal, x), proposal.clamp(0, 1))
    assert threat.allows(threat.project(proposal, x), x).all()


def test_the_box_is_the_threats_own():
    x = 4 * images(3, 1, 4, 4) - 2
    for norm, eps in BALLS:
        threat = Threat(norm, 10 * eps, low=-2.0, high=2.0)
        x_adv = threat.project(x + 5 * noise(*x.shape), x)
        assert x_adv.min() < 0
        assert x_adv.abs().max() <= 2
        assert threat.allows(x_adv, x).all()


# step ---------------------------------------------------------------------------------------------


def test_a_linf_step_is_fgsms():
    x = images(4, 3, 8, 8)
    gradient = noise(*x.shape)
    x_adv = Threat("Linf", 0.1).step(x, gradient, x, 0.1)
    torch.testing.assert_close(x_adv, (x + 0.1 * gradient.sign()).clamp(0, 1))


@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_a_step_moves_by_its_size_uphill(norm, eps):
    x = 0.25 + 0.5 * images(5, 3, 8, 8, dtype=torch.float64)
    gradient = noise(*x.shape).double()
    size = 0.01
    moved = Threat(norm, eps).step(x, gradient, x, size) - x
    length = 1 if norm == "L0" else size
    torch.testing.assert_close(
        GEOMETRIES[norm].size(moved), torch.full((5,), length, dtype=torch.float64)
    )
    torch.testing.assert_close(moved, size * GEOMETRIES[norm].steepest(gradient))
    assert ((moved * gradient).flatten(1).sum(dim=1) > 0).all()


@pytest.mark.parametrize("norm", ["L2", "L1", "L0"])
def test_a_step_is_not_spent_on_what_the_box_would_clip(norm):
    """The two steepest entries are white and would get whiter, black and would get blacker."""
    x = torch.tensor([[[[1.0, 0.0, 0.5, 0.5]]]])
    gradient = torch.tensor([[[[9.0, -9.0, 3.0, -4.0]]]])
    moved = Threat(norm, 2.0).step(x, gradient, x, 0.1) - x
    expected = {"L2": [0, 0, 0.06, -0.08], "L1": [0, 0, 0, -0.1], "L0": [0, 0, 0, -0.1]}[norm]
    torch.testing.assert_close(moved.flatten(), torch.tensor(expected))


@pytest.mark.parametrize("norm", ["L2", "L1", "L0"])
def test_an_entry_on_a_face_of_the_box_may_come_back_inside(norm):
    x = torch.tensor([[[[1.0, 0.0]]]])
    down, up = torch.tensor([[[[-1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    assert Threat(norm, 1.0).step(x, down, x, 0.1).flatten().tolist() == pytest.approx([0.9, 0.0])
    assert Threat(norm, 1.0).step(x, up, x, 0.1).flatten().tolist() == pytest.approx([1.0, 0.1])


@pytest.mark.parametrize("norm", NORMS)
def test_nowhere_to_go_is_no_step(norm):
    x = torch.ones(2, 3, 4, 4)
    gradient = torch.rand(2, 3, 4, 4)
    gradient[1] = math.nan
    assert torch.equal(Threat(norm, 1.0).step(x, gradient, x, 0.5), x)


def test_a_minimum_norm_attack_can_step():
    x = torch.full((1, 1, 1, 2), 0.5)
    moved = Threat("L2", math.inf).step(x, torch.tensor([[[[3.0, 4.0]]]]), x, 0.25)
    assert moved.flatten().tolist() == pytest.approx([0.65, 0.7])


# random starts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_random_starts_are_allowed_and_differ(norm, eps):
    x = images(50, 3, 8, 8)
    threat = Threat(norm, eps)
    start = threat.random_start(x, streams(50))
    assert threat.allows(start, x).all()
    assert (threat.distance(start, x) > 0).all()
    delta = (start - x).flatten(1)
    assert not torch.equal(delta[0], delta[1])


def test_a_random_start_away_from_the_box_is_the_balls_own_point():
    x = torch.full((3, 3, 8, 8), 0.5, dtype=torch.float64)
    start = Threat("L2", 0.1).random_start(x, streams(3))
    torch.testing.assert_close(start - x, GEOMETRIES["L2"].random(x, 0.1, streams(3)))


@pytest.mark.parametrize("threat", [Threat("L2", math.inf), Threat(CORRUPTION, 0.1)])
def test_there_is_no_random_start_without_a_ball(threat):
    with pytest.raises(PluginError, match="no ball"):
        threat.random_start(images(1, 1, 2, 2), streams(1))


# allows -------------------------------------------------------------------------------------------

MIDDLE = torch.full((1, 1, 2, 2), 0.5)


@pytest.mark.parametrize(
    ("norm", "eps", "moves", "allowed"),
    [
        ("Linf", 0.1, [0.1, -0.1, 0.0, 0.1], True),
        ("Linf", 0.1, [0.10002, 0.0, 0.0, 0.0], False),
        ("L2", 0.2, [0.1, -0.1, 0.1, 0.1], True),
        ("L2", 0.2, [0.1001, -0.1, 0.1, 0.1], False),
        ("L1", 0.4, [0.1, -0.1, 0.1, 0.1], True),
        ("L1", 0.4, [0.1001, -0.1, 0.1, 0.1], False),
        ("L0", 3, [0.4, 0.1, 0.1, 0.0], True),
        ("L0", 3, [1e-4, 0.1, 0.1, 0.1], False),
        ("L0", 3.9, [0.1, 0.1, 0.1, 0.1], False),
        ("Linf", math.inf, [0.5, -0.5, 0.5, 0.0], True),
        (CORRUPTION, 0.01, [0.5, -0.5, 0.5, 0.0], True),
    ],
)
def test_the_ball_by_hand(norm, eps, moves, allowed):
    x_adv = MIDDLE + torch.tensor(moves).view(1, 1, 2, 2)
    assert Threat(norm, eps).allows(x_adv, MIDDLE).tolist() == [allowed]
    assert Threat(norm, eps).within(x_adv, MIDDLE).tolist() == [allowed]


@pytest.mark.parametrize(
    "threat", [Threat("Linf", 1.0), Threat("L2", math.inf), Threat(CORRUPTION, 1)]
)
@pytest.mark.parametrize(
    "value", [float(np.nextafter(np.float32(1), 2)), -1e-45, math.nan, math.inf, -math.inf]
)
def test_the_box_holds_exactly(threat, value):
    x_adv = MIDDLE.repeat(2, 1, 1, 1)
    x_adv[1, 0, 1, 0] = value
    assert threat.allows(x_adv, MIDDLE.repeat(2, 1, 1, 1)).tolist() == [True, False]


@settings(deadline=None)
@given(
    norm=st.sampled_from(NORMS),
    eps=st.one_of(st.floats(0, 2), st.sampled_from([0.0, 1.0, 2.0, 8 / 255])),
    seed=st.integers(0, 1000),
)
def test_within_is_the_rule_that_records_are_read_by(norm, eps, seed):
    x = images(8, 1, 2, 2, seed=seed)
    x_adv = x + eps * torch.linspace(0, 2, 8).view(-1, 1, 1, 1) * noise(*x.shape, seed=seed).sign()
    threat = Threat(norm, eps)
    distance = distances(x_adv, x)[:, NORMS.index(norm)]
    assert torch.equal(threat.distance(x_adv, x), distance)
    assert threat.within(x_adv, x).tolist() == outcome.within(distance.numpy(), eps).tolist()


# the object ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "eps", "what"),
    [("l2", 1.0, "norm 'l2'"), ("L2", -0.1, "eps -0.1"), ("L2", math.nan, "eps")],
)
def test_nonsense_is_refused_when_made(norm, eps, what):
    with pytest.raises(PluginError, match=what):
        Threat(norm, eps)


def test_a_corruption_says_that_it_has_no_norm():
    threat, x = Threat(CORRUPTION, 0.1), images(1, 1, 2, 2)
    for use in (
        lambda: threat.geometry,
        lambda: threat.distance(x, x),
        lambda: threat.step(x, x, x, 1),
    ):
        with pytest.raises(PluginError, match="corruption has no norm"):
            use()


@pytest.mark.parametrize(("norm", "eps"), [*BALLS, ("L2", math.inf)])
def test_a_row_is_the_same_alone_and_inputs_stay_as_they_are(norm, eps):
    x = images(6, 3, 13, 11)
    proposal, gradient = x + noise(*x.shape), noise(*x.shape, seed=5)
    threat = Threat(norm, eps)
    before = [t.clone() for t in (x, proposal, gradient)]

    def everything(rows):
        clean, moved = x[rows], proposal[rows]
        yield threat.project(moved, clean)
        yield threat.step(clean, gradient[rows], clean, 0.3)
        yield threat.distance(moved, clean)
        if threat.bounded:
            yield threat.random_start(clean, streams(6).at(rows))

    whole = list(everything(torch.arange(6)))
    for i in range(6):
        for alone, together in zip(everything(torch.tensor([i])), whole, strict=True):
            assert torch.equal(alone[0], together[i])
    for none in everything(torch.arange(0)):
        assert len(none) == 0
    for result in whole:
        result.add_(1)
    assert all(map(torch.equal, (x, proposal, gradient), before))
