"""Intervals and tests against scipy, ranks against cases that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from harness.statistics import holm, mcnemar, paired_bootstrap, ranks, wilson

COUNTS = st.tuples(st.integers(0, 400), st.integers(1, 400)).map(lambda t: (min(t), t[1]))


@given(COUNTS)
def test_wilson_is_the_score_interval(counts):
    successes, n = counts
    expected = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_without_samples_knows_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(0, 24), st.integers(0, 24))
def test_mcnemar_is_exact_below_25_discordant_samples(b, c):
    if b + c == 0:
        assert mcnemar(b, c) == 1.0
    elif b + c < 25:
        assert mcnemar(b, c) == pytest.approx(scipy.stats.binomtest(b, b + c).pvalue, rel=1e-12)


@given(st.integers(0, 500), st.integers(25, 500))
def test_mcnemar_is_chi_square_from_25_on(b, c):
    expected = scipy.stats.chi2.sf((b - c) ** 2 / (b + c), df=1)
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)


def test_holm_by_hand():
    """Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, made monotone."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_raw_p_values_and_bonferroni(p):
    adjusted, raw = holm(p), np.array(p)
    assert (adjusted >= raw - 1e-15).all()
    assert (adjusted <= np.minimum(1, len(p) * raw) + 1e-15).all()


def test_bootstrap_agrees_with_the_normal_where_that_holds():
    """d = a - b over many samples: p near 2 Φ(-|mean| / (std / √n))."""
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 2000, 3)) < np.array([0.52, 0.5])[:, None, None]
    d = a.mean(axis=1) - b.mean(axis=1)
    expected = 2 * scipy.stats.norm.sf(abs(d.mean()) / (d.std() / np.sqrt(len(d))))
    assert 0.001 < expected < 0.5
    assert paired_bootstrap(a, b) == pytest.approx(expected, abs=0.01)


def test_bootstrap_resolves_what_its_draws_cannot_count():
    a, b = np.ones((400, 2)), np.zeros((400, 2))
    b[:300] = 1
    exact = 2 * scipy.stats.norm.sf(0.25 / np.sqrt(0.25 * 0.75 / 400))
    assert exact < 1e-20
    assert np.log10(paired_bootstrap(a, b)) == pytest.approx(np.log10(exact), rel=0.1)


def test_bootstrap_of_a_handful_is_no_surer_than_a_sign_test():
    a, b = np.ones((3, 2)), np.zeros((3, 2))
    assert paired_bootstrap(a, b) == 2 ** (1 - 3)
    assert paired_bootstrap(a, a) == 1.0


def test_bootstrap_is_symmetric_and_repeats():
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 50, 4)) < 0.5
    p = paired_bootstrap(a, b, draws=500, seed=3)
    assert paired_bootstrap(a, b, draws=500, seed=3) == p
    assert paired_bootstrap(b, a, draws=500, seed=3) == p
    assert paired_bootstrap(a, b, draws=500, seed=4) != p


def rows(*counts: int, n: int = 40, seeds: int = 1) -> np.ndarray:
    """Rows of which the first `count` samples are robust with every seed."""
    table = np.arange(n) < np.array(counts)[:, None]
    return np.repeat(table[:, :, None], seeds, axis=2)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_row_is_outranked_only_by_those_it_can_be_told_apart_from(seeds):
    """40 and 38 differ on 2 samples, p = 0.5; each of them and 20 on at least 18."""
    assert ranks(rows(20, 40, 38, seeds=seeds)).tolist() == [3, 1, 1]


def test_ranks_are_of_the_corrected_p_values():
    """6 discordant samples, all one way: p = 2/64 = 0.031, alone below 0.05, among 3 pairs not."""
    assert ranks(rows(40, 34)).tolist() == [1, 2]
    assert ranks(rows(40, 34, 34)).tolist() == [1, 1, 1]


def test_a_single_row_is_first_and_no_rows_are_none():
    assert ranks(rows(3)).tolist() == [1]
    assert ranks(np.zeros((1, 40, 2), bool)).tolist() == [1]


def test_many_rows_of_several_seeds_can_still_be_told_apart():
    """300 pairs: p values that were counted from 10,000 draws would all be 0.06 after Holm."""
    found = ranks(rows(*range(100, 725, 25), n=1000, seeds=2))
    assert found.tolist()[::6] == [25, 19, 13, 7, 1]


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2]))
def test_ranks_follow_their_rows(seed, seeds):
    rng = np.random.default_rng(seed)
    robust = rng.random((4, 30, seeds)) < rng.random((4, 1, 1))
    order = rng.permutation(4)
    assert (ranks(robust)[order] == ranks(robust[order])).all()
    best = robust.mean(axis=(1, 2)).argmax()
    assert ranks(robust)[best] == 1
