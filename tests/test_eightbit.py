"""The 8-bit image: on the grid, in the ball, as near the float image as that allows."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.eightbit import on_grid, to_eight_bit
from harness.geometry import distances
from harness.plugin import NORMS
from harness.threat import Threat


def image(values):
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1)


def test_by_hand():
    """x = (10, 20, 30)/255, moved by (+1.4, +0, −0.6)/255 under Linf 1.4/255: the nearest levels
    are +1, 0 and −1; the pixel that was not moved stays."""
    x = image([10 / 255, 20 / 255, 30 / 255])
    x_adv = x + image([1.4 / 255, 0, -0.6 / 255])
    got = to_eight_bit(x_adv, x, "Linf", 1.4 / 255)
    assert torch.equal((got * 255).round(), image([11, 20, 29]))


def test_rounding_out_of_the_ball_is_stepped_back_farthest_rounding_first():
    """L1 budget 1.3/255, moves (+0.7, +0.6): both round to +1, a sum of 2; the second was rounded
    further (0.4 against 0.3), so it steps back and the first stays."""
    x = image([10 / 255, 20 / 255])
    got = to_eight_bit(x + image([0.7 / 255, 0.6 / 255]), x, "L1", 1.3 / 255)
    assert torch.equal((got * 255).round(), image([11, 20]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["Linf", "L2", "L1"]), st.floats(0.3, 12.0))
def test_stays_on_the_grid_and_in_the_ball(seed, norm, budget):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (5, 2, 3, 3), generator=g) / 255
    threat = Threat(norm, budget / 255)
    x_adv = threat.project(x + 3 * threat.eps * torch.randn(x.shape, generator=g), x)
    got = to_eight_bit(x_adv, x, norm, threat.eps)
    assert on_grid(got)
    assert threat.allows(got, x).all()
    assert (got == x)[x_adv == x].all()


def test_minimum_norm_images_are_only_rounded():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (4, 1, 3, 3), generator=g) / 255
    x_adv = (x + 0.05 * torch.randn(x.shape, generator=g)).clamp(0, 1)
    got = to_eight_bit(x_adv, x, "L2", torch.inf)
    torch.testing.assert_close(got, (x_adv * 255).round() / 255)


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_fewest_steps_back(norm):
    """Brute force over all subsets of pixels rounded away from x: none with fewer steps fits."""
    g = torch.Generator().manual_seed(3)
    x = image([0.2, 0.4, 0.6, 0.8]).mul(255).round() / 255
    for _ in range(30):
        move = (torch.rand(4, generator=g) * 3).view(1, 1, 1, 4) / 255
        eps = float(distances(x + move, x)[0, NORMS.index(norm)])
        got = to_eight_bit(x + move, x, norm, eps)
        rounded = (255 * (x + move)).round()
        steps = int((rounded - 255 * got).round().abs().sum())
        away = [i for i in range(4) if rounded[0, 0, 0, i] > 255 * (x + move)[0, 0, 0, i]]
        fits = []
        for k in range(len(away) + 1):
            for few in itertools.combinations(away, k):
                trial = rounded.clone()
                trial[..., list(few)] -= 1
                if Threat(norm, eps).allows((trial / 255).float(), x).all():
                    fits.append(k)
        assert steps >= min(fits)
        assert Threat(norm, eps).allows(got, x).all()


def test_digits_are_not_on_the_grid():
    assert on_grid(torch.arange(256) / 255)
    assert not on_grid(torch.arange(17) / 16)
