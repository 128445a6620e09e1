"""Every geometry is held to the definition of what it claims, in float64 unless said otherwise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize, stats

from harness.errors import PluginError
from harness.geometry import GEOMETRIES, L0, L1, L2, Linf, distances
from harness.plugin import NORMS
from harness.rng import SampleRng, StreamRng

CPU = torch.device("cpu")
CONVEX = ("Linf", "L2", "L1")
IMAGE = (2, 3, 4)  # channels, height, width
ORDER = {"Linf": math.inf, "L2": 2, "L1": 1}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def streams(n, seed=0):
    return SampleRng.keyed(seed, "test", ids=range(n), restart=0, device=CPU)


rows = hnp.arrays(np.float64, (1, 1, 2, 4), elements=st.floats(-10, 10))
radii = st.floats(0, 20)


def test_there_is_a_geometry_for_every_norm_and_for_nothing_else():
    assert tuple(GEOMETRIES) == NORMS


# size ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", CONVEX)
def test_size_is_numpys_norm_of_each_row(norm):
    v = draw(5, *IMAGE)
    expected = [np.linalg.norm(row.ravel(), ORDER[norm]) for row in v.numpy()]
    np.testing.assert_allclose(GEOMETRIES[norm].size(v).numpy(), expected, rtol=1e-14)


def test_a_pixel_counts_once_whatever_its_channels():
    v = torch.zeros(3, 3, 2, 2)
    v[0, :, 0, 0] = 1  # one pixel, three channels
    v[1, 0, 0, 0] = v[1, 1, 0, 1] = v[1, 2, 1, 1] = -1e-30  # three pixels, a channel each
    assert L0().size(v).tolist() == [1, 3, 0]


# project ------------------------------------------------------------------------------------------


def nearest_by_slsqp(v, norm, eps):
    """The nearest point of the ball by a general solver; L1 is split into v = p − q, p, q ≥ 0."""
    d = len(v)
    if norm == "L1":
        start, bounds = np.zeros(2 * d), [(0, None)] * 2 * d
        ball = {"type": "ineq", "fun": lambda pq: eps - pq.sum()}
        point = lambda pq: pq[:d] - pq[d:]  # noqa: E731
    else:
        limit = eps if norm == "Linf" else None
        start, bounds = np.zeros(d), [(limit and -limit, limit)] * d
        ball = {"type": "ineq", "fun": lambda z: eps**2 - z @ z if norm == "L2" else 1.0}
        point = lambda z: z  # noqa: E731
    solved = optimize.minimize(
        lambda z: 0.5 * np.sum((point(z) - v) ** 2),
        start,
        bounds=bounds,
        constraints=ball,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return point(solved.x)


@pytest.mark.parametrize("norm", CONVEX)
@pytest.mark.parametrize("eps", [0.2, 1.0, 3.0])
def test_projection_is_where_a_general_solver_ends(norm, eps):
    v = draw(4, 1, 1, 5, seed=1)
    found = GEOMETRIES[norm].project(v, eps).flatten(1).numpy()
    expected = [nearest_by_slsqp(row, norm, eps) for row in v.flatten(1).numpy()]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("norm", CONVEX)
@settings(deadline=None)
@given(v=rows, eps=radii)
def test_projection_satisfies_its_variational_inequality(norm, v, eps):
    """p is v's projection exactly if p is in the ball and ⟨v − p, z − p⟩ ≤ 0 for each z of it.

    The greatest ⟨v − p, z⟩ is eps‖v − p‖*, so one inequality says it for all z.
    """
    geometry, v = GEOMETRIES[norm], torch.from_numpy(v)
    p = geometry.project(v, eps)
    assert geometry.size(p).item() <= eps * (1 + 1e-12) + 1e-15
    rest = v - p
    slack = 1e-9 * (1 + eps)
    assert eps * geometry.dual.size(rest).item() - (rest * p).sum().item() <= slack


@pytest.mark.parametrize("k", [0, 1, 2, 5, 6, 7])
def test_l0_projection_is_the_nearest_of_all_choices_of_pixels(k):
    v = draw(6, 2, 2, 3, seed=2)
    found = L0().project(v, k + 0.5)
    assert (L0().size(found) <= k).all()
    pixels = v.flatten(2)
    for row, chosen in zip(pixels, found.flatten(2), strict=True):
        cost = min(
            (row * torch.tensor([j not in keep for j in range(6)])).square().sum()
            for keep in itertools.combinations(range(6), min(k, 6))
        )
        torch.testing.assert_close((row - chosen).square().sum(), cost)


def test_l0_projection_ranks_pixels_by_length_over_channels():
    v = torch.zeros(1, 2, 1, 3)
    v[0, :, 0] = torch.tensor([[3.0, 0.0, 4.0], [3.0, 4.1, 0.0]])  # lengths 4.24, 4.1, 4
    kept = L0().project(v, 1)
    assert kept[0, :, 0].tolist() == [[3, 0, 0], [3, 0, 0]]


def test_l0_projection_keeps_exactly_as_many_of_equal_pixels_as_it_may():
    kept = L0().project(torch.ones(2, 3, 32, 32), 5)
    assert L0().size(kept).tolist() == [5, 5]
    assert kept[0, 0].flatten().nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_points_inside_come_back_bit_for_bit(norm, dtype):
    geometry = GEOMETRIES[norm]
    v = draw(50, *IMAGE, seed=3, dtype=dtype)
    v[:, :, 0] = 0
    v[0, 0, 1, 1] = 1e-40
    for eps in (geometry.size(v).max().item() * 1.0001, math.inf):
        assert torch.equal(geometry.project(v, eps), v)


def test_l0_projection_keeps_a_pixel_whose_square_is_0():
    v = torch.zeros(1, 3, 4, 4)
    v[0, 1, 3, 3] = 1e-40
    assert torch.equal(L0().project(v, 1), v)


@pytest.mark.parametrize("norm", NORMS)
def test_the_ball_of_radius_0_is_the_origin(norm):
    v = draw(4, *IMAGE)
    v[0] = 0
    v[1] = 1e-310
    assert torch.equal(GEOMETRIES[norm].project(v, 0.0), torch.zeros_like(v))


@pytest.mark.parametrize("norm", CONVEX)
@pytest.mark.parametrize(("scale", "eps"), [(0.5, 1.0), (1e3, 1.0), (1e-4, 1e-6), (1e17, 1.0)])
def test_float32_projections_of_large_images_stay_in_the_ball(norm, scale, eps):
    """L1 sums 3,072 entries: a θ rounded to float32 would be wrong by the same bit in all."""
    geometry = GEOMETRIES[norm]
    v = (scale * (1 + 0.01 * draw(20, 3, 32, 32))).float()
    p = geometry.project(v, eps)
    expected = geometry.size(v.double()).clamp_max(eps)
    torch.testing.assert_close(geometry.size(p.double()), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(p.double(), geometry.project(v.double(), eps), rtol=1e-4, atol=1e-9)


# steepest -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", CONVEX)
@settings(deadline=None)
@given(g=rows)
def test_steepest_attains_hoelders_bound_with_unit_size(norm, g):
    """⟨g, u⟩ ≤ ‖g‖* ‖u‖, and u is the direction where it is an equation."""
    geometry, g = GEOMETRIES[norm], torch.from_numpy(g)
    u = geometry.steepest(g)
    size = 1.0 if g.any() else 0.0
    torch.testing.assert_close(geometry.size(u), torch.full((1,), size, dtype=torch.float64))
    torch.testing.assert_close((g * u).sum(), geometry.dual.size(g)[0])


def test_the_dual_of_the_dual_is_the_norm():
    assert [GEOMETRIES[n].dual for n in CONVEX] == [L1(), L2(), Linf()]
    assert [GEOMETRIES[n].dual.dual for n in CONVEX] == [GEOMETRIES[n] for n in CONVEX]


def test_l0_says_that_it_has_no_dual():
    with pytest.raises(PluginError, match="no dual"):
        _ = L0().dual


def test_l0_steepest_is_the_best_single_pixel_of_all():
    """By enumeration: every pixel, every sign of its channels."""
    g = draw(5, 3, 2, 2, seed=4)
    u = L0().steepest(g)
    assert L0().size(u).tolist() == [1] * 5
    assert u.abs().amax() == 1
    best = [
        max(
            float(np.dot(row[:, j], signs))
            for j in range(4)
            for signs in itertools.product([-1, 1], repeat=3)
        )
        for row in g.flatten(2).numpy()
    ]
    torch.testing.assert_close((g * u).flatten(1).sum(1), torch.tensor(best, dtype=torch.float64))


def test_l1_steepest_takes_the_first_of_equal_entries():
    g = torch.tensor([[[[0.5, -2.0, 2.0, 2.0]]]])
    assert L1().steepest(g).flatten().tolist() == [0, -1, 0, 0]


@pytest.mark.parametrize("norm", NORMS)
def test_zero_gradients_and_nan_entries_have_no_direction(norm):
    geometry = GEOMETRIES[norm]
    g = draw(4, *IMAGE, seed=5)
    broken = g.clone()
    broken[1] = 0
    broken[2] = math.nan
    broken[3, :, 1, 1] = math.nan
    u = geometry.steepest(broken)
    assert torch.equal(u[0], geometry.steepest(g)[0])
    assert not u[1:3].any()
    assert torch.equal(u[3], geometry.steepest(broken[3:].nan_to_num(nan=0.0))[0])
    assert u[3].any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30])
def test_a_gradient_of_any_magnitude_has_a_direction(norm, scale):
    """A saturated float32 model's gradient is 1e-30 and less: its square is 0."""
    geometry = GEOMETRIES[norm]
    g = scale * draw(3, *IMAGE, seed=6, dtype=torch.float32)
    torch.testing.assert_close(geometry.size(geometry.steepest(g)), torch.ones(3))


@pytest.mark.parametrize("norm", NORMS)
def test_an_infinite_entry_decides_the_direction(norm):
    g = draw(1, *IMAGE, dtype=torch.float32)
    g[0, 1, 2, 3] = -math.inf
    u = GEOMETRIES[norm].steepest(g)
    assert u[0, 1, 2, 3] == -1
    assert u.isfinite().all()


# random -------------------------------------------------------------------------------------------

N = 4000
LIKE = torch.zeros(N, 1, 2, 3, dtype=torch.float64)
D = 6


def not_surely_different(statistic):
    """One fixed seed: below 1e-3 a right sampler would be found guilty once in a thousand."""
    assert statistic.pvalue > 1e-3


@pytest.mark.parametrize("norm", CONVEX)
def test_random_points_fill_the_ball_evenly_by_radius(norm):
    """Volume grows with the d-th power of the radius: P(‖v‖ ≤ r · eps) = r^d."""
    geometry = GEOMETRIES[norm]
    v = geometry.random(LIKE, 0.3, streams(N))
    share = geometry.size(v).numpy() / 0.3
    assert share.max() <= 1 + 1e-6
    not_surely_different(stats.kstest(share**D, "uniform"))


MARGINALS = {
    # The law of v₁, as the distribution function of |v₁| / eps.
    "Linf": lambda t: t,
    "L2": stats.beta(1 / 2, (D + 1) / 2).cdf,  # of its square: a ball's marginal
    "L1": lambda t: 1 - (1 - t) ** D,  # {|v₁| > t} is two cross-polytopes, (1 − t) times as large
}


@pytest.mark.parametrize("norm", CONVEX)
@pytest.mark.parametrize("entry", [0, 4])
def test_random_points_fill_the_ball_evenly_by_direction(norm, entry):
    v = GEOMETRIES[norm].random(LIKE, 0.3, streams(N)).flatten(1)[:, entry].numpy() / 0.3
    share = v**2 if norm == "L2" else np.abs(v)
    not_surely_different(stats.kstest(share, MARGINALS[norm]))
    not_surely_different(stats.binomtest(int((v > 0).sum()), N))


def test_random_l0_points_change_that_many_pixels_all_equally_likely():
    like = torch.zeros(N, 2, 2, 3)
    v = L0().random(like, 2.9, streams(N))
    assert (L0().size(v) == 2).all()
    assert v.abs().max() <= 1
    chosen = (v != 0).any(dim=1).flatten(1)
    assert (chosen.sum(dim=0) - N / 3).abs().max() < 5 * math.sqrt(N * 2 / 9)
    pairs = chosen.double().T @ chosen.double()
    expected = N / 15  # of 15 pairs of 6 pixels
    assert (pairs[~torch.eye(6, dtype=torch.bool)] - expected).abs().max() < 5 * expected**0.5
    not_surely_different(stats.kstest(v[v != 0].numpy(), stats.uniform(-1, 2).cdf))


@pytest.mark.parametrize(("eps", "pixels"), [(0.0, 0), (0.99, 0), (1.0, 1), (6.0, 6), (99.0, 6)])
def test_random_l0_points_exist_for_every_budget(eps, pixels):
    assert (L0().size(L0().random(LIKE[:5], eps, streams(5))) == pixels).all()


@pytest.mark.parametrize("norm", NORMS)
def test_random_points_work_for_one_stream_of_a_training(norm):
    like = torch.zeros(7, *IMAGE)
    v = GEOMETRIES[norm].random(like, 1.0, StreamRng.keyed(0, n=7))
    assert v.shape == like.shape
    assert (GEOMETRIES[norm].size(v) <= 1 + 1e-6).all()
    assert len({tuple(row.flatten().tolist()) for row in v}) == 7


# rows are themselves ------------------------------------------------------------------------------


def operations(geometry):
    yield geometry.size
    yield lambda v: geometry.project(v, 2.0)
    yield lambda v: geometry.project(v, 20.0)
    yield geometry.steepest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_a_row_has_the_same_bits_alone_and_in_any_layout(norm, dtype):
    v = draw(9, 3, 17, 19, seed=7, dtype=dtype)
    v[3] *= 1e-3
    layouts = [
        v.contiguous(memory_format=torch.channels_last),
        v.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        v.repeat_interleave(2, dim=0)[::2],
    ]
    for operation in operations(GEOMETRIES[norm]):
        whole = operation(v)
        assert whole.dtype == dtype
        assert torch.equal(torch.cat([operation(v[i : i + 1]) for i in range(9)]), whole)
        for other in layouts:
            assert torch.equal(operation(other), whole)


@pytest.mark.parametrize("norm", NORMS)
def test_random_points_follow_the_sample(norm):
    like = torch.zeros(6, *IMAGE)
    whole = GEOMETRIES[norm].random(like, 3.0, streams(6))
    some = torch.tensor([4, 1])
    assert torch.equal(GEOMETRIES[norm].random(like[:2], 3.0, streams(6).at(some)), whole[some])


@pytest.mark.parametrize("norm", NORMS)
def test_no_rows_are_no_trouble(norm):
    geometry, none = GEOMETRIES[norm], torch.zeros(0, *IMAGE)
    assert geometry.size(none).shape == (0,)
    for result in (
        geometry.project(none, 1.0),
        geometry.steepest(none),
        geometry.random(none, 1.0, streams(0)),
    ):
        assert result.shape == none.shape
    assert distances(none, none).shape == (0, 4)


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_handed_in_is_not_changed(norm):
    v = draw(3, *IMAGE)
    before = v.clone()
    for operation in operations(GEOMETRIES[norm]):
        operation(v).add_(1.0)
    assert torch.equal(v, before)


# distances ----------------------------------------------------------------------------------------


def test_distances_are_numpys_in_the_order_of_norms():
    x, x_adv = draw(4, *IMAGE, seed=8).float(), draw(4, *IMAGE, seed=9).float()
    x_adv[0] = x[0]
    x_adv[1, :, 1:] = x[1, :, 1:]
    delta = x_adv.double().numpy() - x.double().numpy()
    flat = delta.reshape(4, -1)
    expected = {n: np.linalg.norm(flat, ORDER[n], axis=1) for n in CONVEX}
    expected["L0"] = (delta != 0).any(axis=1).sum(axis=(1, 2))
    found = distances(x_adv, x)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, np.stack([expected[n] for n in NORMS], 1), rtol=1e-14)
    assert found[0].tolist() == [0, 0, 0, 0]
    assert found[1, NORMS.index("L0")] == 4


def test_the_difference_is_not_rounded_before_it_is_measured():
    x, x_adv = torch.full((1, 1, 1, 1), 1e-9), torch.ones(1, 1, 1, 1)
    assert distances(x_adv, x)[0, 0].item() == 1 - float(np.float32(1e-9)) != 1


def test_distances_that_are_not_finite_show():
    x = torch.zeros(2, 1, 2, 2)
    x_adv = x.clone()
    x_adv[0, 0, 0, 0], x_adv[1, 0, 0, 0] = math.nan, math.inf
    found = distances(x_adv, x)
    assert found[0, :3].isnan().all()
    assert found[0, 3] == 1
    assert found[1].tolist() == [math.inf, math.inf, math.inf, 1]
