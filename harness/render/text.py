"""How numbers and strangers' words are written, everywhere: the same bytes for the same values."""

from __future__ import annotations

import functools
import math
import unicodedata

from harness.measures import Share

NONE = "–"
LONGEST = 300


@functools.lru_cache
def plain(words: str) -> str:
    """One line without control characters, not even invisible ones, and not too long.

    Labels and reasons are written by plugins: they may hold anything.
    """
    line = " ".join(words.split())
    line = "".join(c for c in line if unicodedata.category(c)[0] != "C")
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def percent(share: Share | float | None) -> str:
    """A share of 0.4525 as '45.2'."""
    value = share.mean if isinstance(share, Share) else share
    return NONE if value is None or math.isnan(value) else f"{100 * value:.1f}"


def interval(share: Share | None) -> str:
    """'45.2 [42.1, 48.3]' for one seed, '45.2 ± 1.3' for several."""
    if share is None:
        return NONE
    if share.seeds > 1:
        return f"{percent(share)} ± {percent(share.std)}"
    return f"{percent(share)} [{percent(share.low)}, {percent(share.high)}]"


def number(value: float) -> str:
    """Four significant digits: 0.03137, 12.35, 1.2e+05."""
    return NONE if math.isnan(value) else f"{value:.4g}".replace("inf", "∞")


def count(value: float) -> str:
    """A mean of counts: '40', '12.5'."""
    return NONE if math.isnan(value) else f"{value:.1f}".removesuffix(".0")
