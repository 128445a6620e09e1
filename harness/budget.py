"""Perturbation budgets and norms as people write them. Imports neither torch nor numpy.

A budget keeps its text beside its value: a table that says 8/255 was run at 8/255, and not at
0.031, which is another threat model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from annotated_types import Ge

from harness.errors import UsageError, did_you_mean
from harness.plugin import CORRUPTION, NORMS

# The p of saturated images x^(p) (`harness.splits.saturated`); "inf" as text: JSON has no infinity.
Saturation = Annotated[float, Ge(2)] | Literal["inf"] | None

_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?"
_BUDGET = re.compile(rf"({_NUMBER})(?:\s*/\s*({_NUMBER}))?")
_NORM_NAMES = {name.lower(): name for name in (*NORMS, CORRUPTION)} | {
    name[1:]: name for name in NORMS
}
_USUAL = (1, 2, 4, 8, 16)  # the k of the budgets k/255 that are in use
_NEAR = 0.025  # 0.031, 0.004 and 0.016 are near 8/255, 1/255 and 4/255; 0.03 and 0.05 are not


@dataclass(frozen=True)
class Epsilon:
    """A perturbation budget ε ≥ 0: `value`, and `text`, the one way to write it.

    A fraction's text is what was written ('8/255'), any other number's is the shortest that
    gives its value ('0.3' for 0.30, '1' for 1.0).
    """

    text: str
    value: float


def parse_epsilon(raw: str | int | float, where: str) -> Epsilon:
    """A finite budget, 0 or more. `where` (a file and key, an option) begins the error's message.

    Raises UsageError.
    """
    found = _BUDGET.fullmatch(str(raw).strip())
    try:
        if found is None:
            raise ValueError
        numerator, denominator = found.groups()
        value = float(Fraction(numerator) / Fraction(denominator or 1))
    except (ValueError, ZeroDivisionError, OverflowError):
        expected = "a number or a fraction such as 8/255, finite and 0 or more"
        raise UsageError(f"{where}: expected {expected}; got {raw!r}") from None
    plain = repr(value).removesuffix(".0")
    return Epsilon(f"{numerator}/{denominator}" if denominator else plain, value)


def parse_norm(raw: str | int | float, where: str) -> str:
    """The name in `NORMS`, or `corruption`, for 'linf', 'L2', 1, 'inf', … in any case.

    Raises UsageError.
    """
    typed = str(raw).strip().lower().removesuffix(".0")
    if typed in _NORM_NAMES:
        return _NORM_NAMES[typed]
    known = ", ".join((*NORMS, CORRUPTION))
    meant = did_you_mean(str(raw), (*NORMS, CORRUPTION))
    raise UsageError(f"{where}: norm must be one of {known}, not {raw!r}{meant}")


def near_fraction(eps: Epsilon) -> str | None:
    """'0.031 is not 8/255 = 0.0313725', for a decimal that is near one of the usual k/255; or None.

    Budgets with one significant digit that people do mean, 0.03, 0.05, 0.1, are not near any.
    """
    if "/" in eps.text:
        return None
    for k in _USUAL:
        difference = abs(eps.value - k / 255)
        if 1e-6 < difference <= _NEAR * k / 255:
            return f"{eps.text} is not {k}/255 = {k / 255:.6g}"
    return None
