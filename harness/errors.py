"""Every error the harness raises on purpose, by who can mend it.

HarnessError
├── UsageError       the command line, the board file or a data file: its author      (exit 2)
│   ├── UnknownName    a name that nothing brings, with what was meant perhaps        (exit 2)
│   └── AmbiguousName  a short name that several plugins bring                        (exit 2)
├── BrokenPlugin     a run asked for something whose plugin did not load              (exit 4)
├── PluginError      a plugin that broke its contract: its author; its cell fails     (exit 1)
├── RecordError      a stored result that cannot be believed: nobody, run it again    (exit 1)
└── BudgetSpent      an attack asked a target for more than its query budget
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HarnessError(Exception):
    """One clear line: what is wrong, where, and what would be right."""

    exit_code = 3


class UsageError(HarnessError):
    """What was asked for cannot be done as asked."""

    exit_code = 2


class UnknownName(UsageError):
    """Nothing brings the name that was asked for."""


class AmbiguousName(UsageError):
    """Several plugins bring the name that was asked for."""


class BrokenPlugin(HarnessError):
    """The plugin that would bring what was asked for did not load."""

    exit_code = 4


class PluginError(HarnessError):
    """A defense, attack or data set did not do what its contract says."""

    exit_code = 1


class RecordError(HarnessError):
    """A stored record is torn, foreign, or does not match its own hash."""

    exit_code = 1


class BudgetSpent(HarnessError):
    """A query was refused: the sample's query budget is spent."""

    exit_code = 1


# What looking a name up raises: it concerns those alone who ask for the name.
NOT_FOUND = (UnknownName, AmbiguousName, BrokenPlugin)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """', did you mean …?' where something close is known, else '' — to end a message with."""
    close = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.6)
    return f", did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
