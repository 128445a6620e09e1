"""Proximal operators: one law for all, their definition, and Moreau's decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from harness.geometry import L1
from harness_plugins.attacks import prox
from harness_plugins.attacks.prox import PROXES, project_l1, prox_linf

CONVEX = ("linf", "l2", "l1")
MUS = [0.0, 1e-6, 0.05, 0.3, 1.0, 100.0]

PENALTIES = {
    "linf": lambda z: z.flatten(1).abs().amax(1),
    "l2": lambda z: z.flatten(1).norm(dim=1),
    "l1": lambda z: z.flatten(1).abs().sum(1),
    "entries": lambda z: (z != 0).flatten(1).sum(1).double(),
    "pixels": lambda z: (z != 0).any(1).flatten(1).sum(1).double(),
    "two_thirds": lambda z: z.abs().pow(2 / 3).flatten(1).sum(1),
    "two_thirds_pixels": lambda z: z.norm(dim=1).pow(2 / 3).flatten(1).sum(1),
}


def half_square(v: Tensor) -> Tensor:
    return v.flatten(1).square().sum(1) / 2


@pytest.fixture
def u():
    """Images of all sizes, some of their entries equal, some 0, the last image all 0."""
    u = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    u = u * torch.logspace(-2, 1, 8)[:, None, None, None]
    u[1] = u[1].sign()
    u[2, :, 0] = 0
    u[7] = 0
    return u


def rivals(u, x):
    """Points that might be better: near x and far from it, 0, u, and x with parts left out, put
    back or scaled."""
    rng = torch.Generator().manual_seed(1)
    yield torch.zeros_like(u)
    yield u
    for scale in (1e-4, 1e-2, 0.3, 10.0):
        for _ in range(5):
            yield x + scale * torch.randn(u.shape, generator=rng).double()
            yield x * (1 + scale * torch.randn(8, 1, 2, 2, generator=rng).double())
    for _ in range(30):
        pixel = torch.rand(8, 1, 2, 2, generator=rng) < 0.3
        entry = torch.rand(u.shape, generator=rng) < 0.3
        share = torch.rand(8, 1, 2, 2, generator=rng).double()
        for where in (pixel, entry):
            yield torch.where(where, 0.0, x)
            yield torch.where(where, u, x)
            yield torch.where(where, share * u, x)


@pytest.mark.parametrize("name", PROXES)
@pytest.mark.parametrize("mu", MUS)
def test_no_point_does_better_than_the_prox(name, mu, u):
    """The definition: x minimises μ f(z) + ½‖z − u‖². Where f is convex the objective is 1-strongly
    so, and every z is worse by ½‖z − x‖² at least."""
    x = PROXES[name](u, torch.full((8,), mu, dtype=u.dtype))

    def objective(z):
        return mu * PENALTIES[name](z) + half_square(z - u)

    for z in rivals(u, x):
        margin = half_square(z - x) if name in CONVEX else 0.0
        assert (objective(z) >= objective(x) + margin - 1e-9 * (1 + objective(x))).all()


@pytest.mark.parametrize("name", ["entries", "two_thirds"])
@pytest.mark.parametrize("mu", [0.01, 0.3, 2.0])
def test_separable_ones_match_a_grid(name, mu):
    """One entry at a time, over a grid of 0 and 100,000 points. The threshold lies among the u."""
    edge = {"entries": (2 * mu) ** 0.5, "two_thirds": 2 * (2 * mu / 3) ** 0.75}[name]
    u = (
        edge
        * torch.tensor([-3.0, -1.01, -0.99, -0.9, 0.0, 0.5, 0.95, 0.999, 1.001, 1.5, 40]).double()
    )
    grid = torch.linspace(0, 1, 100_001).double() * u[:, None]
    penalty = (grid != 0).double() if name == "entries" else grid.abs().pow(2 / 3)
    best = grid.gather(1, (mu * penalty + (grid - u[:, None]).square() / 2).argmin(1)[:, None])
    found = PROXES[name](u.view(-1, 1, 1, 1), torch.full((11,), mu).double())
    torch.testing.assert_close(found.flatten(), best[:, 0], rtol=2e-4, atol=1e-5)
    assert (found.flatten() == 0).equal(u.abs() < edge)


def test_two_thirds_is_the_closed_form():
    """As printed, in float64, above the threshold: with a = √(u⁴/256 − 8μ³/729) and
    b = ∛(u²/16 + a) + ∛(u²/16 − a): ⅛(√(2b) + √(2u/√(2b) − 2b))³."""
    mu = torch.logspace(-6, 2, 50).double()
    u = 2 * (2 * mu / 3) ** 0.75 * torch.linspace(1.0001, 1000, 50).double()
    a = (u**4 / 256 - 8 * mu**3 / 729).sqrt()
    b = (u**2 / 16 + a) ** (1 / 3) + (u**2 / 16 - a).clamp_min(0) ** (1 / 3)
    root = (2 * b).sqrt()
    printed = (root + (2 * u / root - 2 * b).sqrt()) ** 3 / 8
    found = PROXES["two_thirds"](u.view(-1, 1, 1, 1), mu).flatten()
    torch.testing.assert_close(found, printed, rtol=1e-6, atol=0)


def test_a_pixel_is_judged_by_its_length_or_by_the_papers_rule():
    """√(2μ) = 1: channels (.8, .8) are 1.13 long, and neither is above 1."""
    u = torch.tensor([0.8, 0.8]).view(1, 2, 1, 1)
    mu = torch.tensor([0.5])
    assert torch.equal(prox.prox_pixels(u, mu), u)
    assert not prox.prox_pixels_max(u, mu).any()
    assert torch.equal(prox.prox_pixels_max(2 * u, mu), 2 * u)


def test_the_papers_two_thirds_shrinks_the_largest_channel_alone():
    u = torch.tensor([[3.0, -1.0], [0.1, -0.2]]).T.reshape(1, 2, 1, 2).double()
    mu = torch.tensor([0.5]).double()
    found = prox.prox_two_thirds_max(u, mu)
    alone = prox.prox_two_thirds(u[:, :1, :, :1], mu)
    assert 0 < alone.item() < 3
    assert found[0, :, 0, 0].tolist() == [alone.item(), -1.0]
    assert not found[0, :, 0, 1].any()


@pytest.mark.parametrize("name", ["pixels", "two_thirds"])
def test_the_rules_for_pixels_agree_on_grey_images(name, u):
    grey, mu = u[:, :1], torch.linspace(0, 2, 8).double()
    pair = {
        "pixels": (prox.prox_entries, prox.prox_pixels, prox.prox_pixels_max),
        "two_thirds": (
            prox.prox_two_thirds,
            prox.prox_two_thirds_pixels,
            prox.prox_two_thirds_max,
        ),
    }[name]
    first, *others = (each(grey, mu) for each in pair)
    for other in others:
        torch.testing.assert_close(first, other, rtol=1e-12, atol=0)


ROWS = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 12)),
    elements=st.floats(-1e3, 1e3).map(lambda v: 0.0 if abs(v) < 1e-9 else v),
)


@settings(max_examples=200, deadline=None)
@given(ROWS, st.floats(1e-6, 1e4))
def test_moreau(rows, mu):
    """prox_{μ‖·‖}(u) + μ Π(u / μ) = u, with Π onto the unit ball of the dual norm: also for u
    inside the ball, where the prox is 0, and with negative entries."""
    u = torch.from_numpy(rows)
    each = torch.full((len(u),), mu, dtype=u.dtype)
    balls = {
        "linf": project_l1(u / mu, torch.ones_like(each)),
        "l2": u / mu / (u / mu).norm(dim=1, keepdim=True).clamp_min(1),
        "l1": (u / mu).clamp(-1, 1),
    }
    for name, projected in balls.items():
        torch.testing.assert_close(
            PROXES[name](u, each) + mu * projected, u, rtol=1e-9, atol=1e-9 * float(u.abs().max())
        )


@settings(max_examples=200, deadline=None)
@given(ROWS, st.floats(0, 1e4))
def test_the_l1_projection_is_the_sorted_one(rows, radius):
    v = torch.from_numpy(rows)
    found = project_l1(v, torch.full((len(v),), radius, dtype=v.dtype))
    slack = 1e-9 * (1 + float(v.abs().max()))
    torch.testing.assert_close(found, L1().project(v, radius), rtol=1e-9, atol=slack)
    inside = v.abs().sum(1) <= radius
    assert torch.equal(found[inside], v[inside])


def test_each_sample_has_its_own_radius():
    v = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    radius = torch.tensor([0.0, 0.1, 1.0, 10.0, 1000.0])
    found = project_l1(v, radius)
    sizes = found.flatten(1).abs().sum(1)
    torch.testing.assert_close(sizes[:4], radius[:4], rtol=1e-4, atol=0)
    assert torch.equal(found[4], v[4])
    for row in range(5):
        torch.testing.assert_close(
            found[row], L1().project(v[row : row + 1], float(radius[row]))[0]
        )


@pytest.mark.parametrize(
    "operator",
    [*PROXES.values(), project_l1, prox.prox_pixels_max, prox.prox_two_thirds_max],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_is_the_same_alone(operator, dtype):
    """Bit for bit. 105 entries leave some over in every vectorised loop."""
    rng = torch.Generator().manual_seed(3)
    u = torch.randn(19, 3, 5, 7, generator=rng, dtype=dtype)
    mu = torch.rand(19, generator=rng, dtype=dtype) * torch.tensor([1.0, 10.0, 60.0] * 7)[:19]
    kept = u.clone()
    whole = operator(u, mu)
    assert torch.equal(u, kept)
    assert whole.dtype == dtype
    for row in range(19):
        assert torch.equal(operator(u[row : row + 1], mu[row : row + 1])[0], whole[row])


def test_the_height_of_many_entries_is_exact():
    """150,528 entries in float32: what is cut off sums to μ."""
    u = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(4))
    mu = torch.tensor([3.0, 1000.0])
    removed = (u.double() - prox_linf(u, mu).double()).flatten(1).abs().sum(1)
    torch.testing.assert_close(removed, mu.double(), rtol=1e-4, atol=0)
