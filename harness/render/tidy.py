"""A leaderboard as a tidy table, one row for each value: what CSV and data frames are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from harness.leaderboard import Leaderboard
from harness.measures import NAN, Share
from harness.standings import AttackCell, CorruptionTable, Curve, Row, Table

CORE, ALL = "(core)", "(all)"
NOWHERE = ("", NAN)  # the eps of a measure that has none
LEARNT = ("queries", "substitute_accuracy", "match_clean", "match_adversarial")
FIGURES = (
    "success",
    "mean_distance",
    "median_distance",
    "rho",
    "rho_all",
    "shared",
    "shared_found",
    "shared_mean_distance",
    "shared_median_distance",
    "forward",
    "backward",
    "to_success",
    "preparation",
    "invalid",
    "unstable",
    "adds",
    "optimality",
)


class Subject(NamedTuple):
    """What a value is of.

    rank:   None for an unranked row
    attack: a label, `(core)` or `(all)` for a worst case, '' for what needs no attack
    status: `ok`, or what kept the value from being there or from being whole
    """

    norm: str
    target: str
    model: str
    rank: int | None
    attack: str
    status: str


class Value(NamedTuple):
    """A measured value: a share's fields, or a number alone."""

    value: float = NAN
    low: float = NAN
    high: float = NAN
    std: float = NAN
    seeds: int = 0


class Tidy(NamedTuple):
    """One value. Shares are in [0, 1], of all evaluated samples; nan where there is none.

    eps: the budget as text; '' and nan where the measure has none
    """

    norm: str
    target: str
    model: str
    rank: int | None
    attack: str
    status: str
    eps: str
    eps_value: float
    measure: str
    value: float
    low: float
    high: float
    std: float
    seeds: int


def rows(board: Leaderboard) -> Iterator[Tidy]:
    """Every value, in the order of the tables."""
    for table in board.tables:
        yield from values(table)
    for corrupted in board.corruptions:
        for found in corrupted.rows:
            subject = _subject(corrupted, found.model, None, found.attack, found.status)
            yield from _curve(corrupted, subject, "accuracy", found.accuracy)


def values(table: Table) -> Iterator[Tidy]:
    """Every value of one threat's leaderboard."""
    for row in table.rows:
        yield from _row(table, row)


def _row(table: Table, row: Row) -> Iterator[Tidy]:
    status = f"unranked: {row.reason}" if row.reason else "ok"
    clean = _subject(table, row.model, row.rank, "", status)
    yield _tidy(clean, NOWHERE, "clean_accuracy", _value(row.clean))
    core = clean._replace(attack=CORE)
    yield from _curve(table, core, "robust_accuracy", row.core)
    yield from _curve(table, clean._replace(attack=ALL), "robust_accuracy", row.everything)
    yield _tidy(core, _eps(table, table.at), "robust_accuracy_8bit", _value(row.eight))
    for cell in row.cells:
        yield from _cell(table, clean._replace(attack=cell.attack, status=cell.status), cell)


def _cell(table: Table, subject: Subject, cell: AttackCell) -> Iterator[Tidy]:
    yield from _curve(table, subject, "robust_accuracy", cell.robust)
    if not cell.robust:
        return
    seeds = cell.robust[0].seeds
    yield _tidy(subject, _eps(table, table.at), "robust_accuracy_8bit", _value(cell.eight))
    named = [("adversarial_accuracy", cell.figures.accuracy)]
    named += [(f"round_{i + 1}_accuracy", a) for i, a in enumerate(cell.figures.rounds)]
    if cell.figures.rounds:
        named.append(("worst_round_accuracy", cell.figures.worst_round))
    for measure, accuracies in named:
        for i, value in enumerate(accuracies):
            yield _tidy(subject, _eps(table, i), measure, Value(value, seeds=seeds))
    for i, learnt in enumerate(cell.figures.learning):
        for measure, value in zip(LEARNT, learnt, strict=True):
            name = f"round_{i + 1}_{measure}"
            yield _tidy(subject, NOWHERE, name, Value(value, seeds=seeds))
    for queries, share, distance in cell.figures.by_queries:
        at = f"queries_{queries:.0f}"
        found = Value(share, seeds=seeds)
        yield _tidy(subject, _eps(table, table.at), f"{at}_success", found)
        yield _tidy(subject, NOWHERE, f"{at}_median_distance", Value(distance, seeds=seeds))
    for measure in FIGURES:
        value = getattr(cell.figures, measure)
        yield _tidy(subject, NOWHERE, measure, Value(value, seeds=seeds))


def _subject(
    table: Table | CorruptionTable, model: str, rank: int | None, attack: str, status: str
) -> Subject:
    return Subject(table.threat.norm, table.threat.target, model, rank, attack, status)


def _curve(
    table: Table | CorruptionTable, subject: Subject, measure: str, curve: Curve
) -> Iterator[Tidy]:
    for i in range(len(table.threat.eps)):
        yield _tidy(subject, _eps(table, i), measure, _value(curve[i] if curve else None))


def _eps(table: Table | CorruptionTable, column: int) -> tuple[str, float]:
    eps = table.threat.eps[column]
    return eps.text, eps.value


def _value(share: Share | None) -> Value:
    if share is None:
        return Value()
    return Value(share.mean, share.low, share.high, share.std, share.seeds)


def _tidy(subject: Subject, eps: tuple[str, float], measure: str, value: Value) -> Tidy:
    return Tidy._make((*subject, *eps, measure, *value))
