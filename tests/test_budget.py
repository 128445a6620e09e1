"""Budgets and norms as people write them."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.budget import Epsilon, near_fraction, parse_epsilon, parse_norm
from harness.errors import UsageError
from harness.plugin import CORRUPTION, NORMS


@pytest.mark.parametrize(
    ("raw", "text", "value"),
    [
        ("8/255", "8/255", 8 / 255),
        (" 8 / 255\n", "8/255", 8 / 255),
        ("16/510", "16/510", 8 / 255),
        ("0.5/255", "0.5/255", 0.5 / 255),
        ("0.3", "0.3", 0.3),
        ("0.30", "0.3", 0.3),
        (0.3, "0.3", 0.3),
        ("1e-2", "0.01", 0.01),
        (".5", "0.5", 0.5),
        (1, "1", 1.0),
        ("1", "1", 1.0),
        (1.0, "1", 1.0),
        (0, "0", 0.0),
        ("0", "0", 0.0),
    ],
)
def test_a_budget_has_one_text_and_one_value(raw, text, value):
    assert parse_epsilon(raw, "--eps") == Epsilon(text, value)


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_fraction_is_the_float_nearest_to_it(numerator, denominator):
    eps = parse_epsilon(f"{numerator}/{denominator}", "--eps")
    assert eps.value == float(Fraction(numerator, denominator))


@given(st.floats(0, 1e300, allow_subnormal=False))
def test_a_float_comes_back_as_itself_from_its_text(value):
    eps = parse_epsilon(value, "--eps")
    assert eps.value == value
    assert parse_epsilon(eps.text, "--eps") == eps


@pytest.mark.parametrize(
    "raw",
    [
        *["inf", math.inf, math.nan, "nan", -1, -0.3, "-8/255", "8/-255", "8/0", "8/", "/255"],
        *["8/255/2", "", "eps", "0,3", "0.3 0.4", "1_0", "٣", "1e999", "1e99999", "9" * 9999],
        *[True, None, [0.3]],
    ],
)
def test_anything_else_is_refused_in_one_line_that_says_where_and_what(raw):
    with pytest.raises(UsageError) as caught:
        parse_epsilon(raw, "board.toml: threats[0].eps")
    message = str(caught.value)
    assert message.startswith("board.toml: threats[0].eps: expected a number or a fraction such as")
    assert message.endswith(f"got {raw!r}")
    assert "8/255" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        ("Linf", ["Linf", "linf", "LINF", "inf", "Inf", math.inf, " Linf "]),
        ("L2", ["L2", "l2", "2", 2, 2.0]),
        ("L1", ["L1", "l1", "1", 1, 1.0]),
        ("L0", ["L0", "l0", "0", 0, 0.0]),
        (CORRUPTION, ["corruption", "Corruption"]),
    ],
)
def test_every_spelling_of_a_norm_gives_its_one_name(name, spellings):
    assert name in (*NORMS, CORRUPTION)
    assert [parse_norm(s, "--norm") for s in spellings] == [name] * len(spellings)


@pytest.mark.parametrize("raw", ["l3", "", "nan", 3, -1, 0.5, True, False, None, "L 2"])
def test_an_unknown_norm_is_refused_with_the_known_ones(raw):
    with pytest.raises(UsageError) as caught:
        parse_norm(raw, "--norm")
    known = "norm must be one of Linf, L2, L1, L0, corruption"
    assert str(caught.value).startswith(f"--norm: {known}, not {raw!r}")


@pytest.mark.parametrize(("raw", "meant"), [("Lnf", "Linf"), ("corupt", "corruption")])
def test_a_misspelt_norm_says_what_was_meant(raw, meant):
    with pytest.raises(UsageError, match=f"did you mean {meant!r}"):
        parse_norm(raw, "--norm")


@pytest.mark.parametrize(
    ("raw", "fraction"),
    [
        ("0.031", "8/255 = 0.0313725"),
        ("0.0314", "8/255 = 0.0313725"),
        (0.004, "1/255 = 0.00392157"),
        ("0.016", "4/255 = 0.0156863"),
        ("0.063", "16/255 = 0.0627451"),
    ],
)
def test_a_decimal_near_a_usual_fraction_is_told_apart_from_it(raw, fraction):
    assert near_fraction(parse_epsilon(raw, "--eps")) == f"{raw} is not {fraction}"


@pytest.mark.parametrize(
    "raw", ["8/255", "31/1000", "0.0313725", 8 / 255, "0.03", "0.05", 0.1, 0.3, 0.5, 0, 2, 12]
)
def test_a_budget_that_says_what_it_means_has_no_hint(raw):
    assert near_fraction(parse_epsilon(raw, "--eps")) is None


def test_budgets_are_read_without_torch_or_numpy():
    code = "import sys, harness.budget; sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
