"""A leaderboard as a tidy table, one row for each value: what CSV and data frames are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from harness.leaderboard import Leaderboard
from harness.measures import NAN, Share
from harness.standings import AttackCell, CorruptionTable, Curve, Row, Table

CORE, ALL = "(core)", "(all)"
FIGURES = (
    "success",
    "mean_distance",
    "median_distance",
    "rho",
    "forward",
    "backward",
    "to_success",
    "preparation",
    "invalid",
    "unstable",
    "adds",
    "optimality",
)


@dataclass(frozen=True)
class Tidy:
    """One value. Shares are in [0, 1] of all evaluated samples; nan where there is none.

    rank:   None for an unranked row
    attack: a label, `(core)` or `(all)` for a worst case, '' for what needs no attack
    status: `ok`, or what kept the value from being there or from being whole
    eps:    the budget as text; '' where the measure has none
    """

    norm: str
    target: str
    model: str
    rank: int | None
    attack: str = ""
    status: str = "ok"
    eps: str = ""
    eps_value: float = NAN
    measure: str = ""
    value: float = NAN
    low: float = NAN
    high: float = NAN
    std: float = NAN
    seeds: int = 0


def rows(board: Leaderboard) -> Iterator[Tidy]:
    """Every value, in the order of the tables."""
    for table in board.tables:
        for row in table.rows:
            yield from _row(table, row)
    for corrupted in board.corruptions:
        yield from _corruption(corrupted)


def _row(table: Table, row: Row) -> Iterator[Tidy]:
    threat = table.threat
    status = f"unranked: {row.reason}" if row.reason else "ok"
    base = Tidy(threat.norm, threat.target, row.model, row.rank, status=status)
    yield _shared(replace(base, measure="clean_accuracy"), row.clean)
    for attack, curve in ((CORE, row.core), (ALL, row.everything)):
        named = replace(base, attack=attack, measure="robust_accuracy")
        yield from _curve(table, named, curve)
    eight = replace(base, attack=CORE, measure="robust_accuracy_8bit")
    yield _shared(_at(eight, table, table.at), row.eight)
    for cell in row.cells:
        yield from _cell(table, replace(base, attack=cell.attack, status=cell.status), cell)


def _cell(table: Table, base: Tidy, cell: AttackCell) -> Iterator[Tidy]:
    yield from _curve(table, replace(base, measure="robust_accuracy"), cell.robust)
    if not cell.robust:
        return
    seeds = cell.robust[0].seeds
    base = replace(base, seeds=seeds)
    eight = replace(base, measure="robust_accuracy_8bit")
    yield _shared(_at(eight, table, table.at), cell.eight)
    named = [("adversarial_accuracy", cell.figures.accuracy)]
    named += [(f"round_{i + 1}_accuracy", a) for i, a in enumerate(cell.figures.rounds)]
    for measure, accuracies in named:
        for i, accuracy in enumerate(accuracies):
            yield replace(_at(base, table, i), measure=measure, value=accuracy)
    for measure in FIGURES:
        yield replace(base, measure=measure, value=getattr(cell.figures, measure))


def _corruption(table: CorruptionTable) -> Iterator[Tidy]:
    threat = table.threat
    for row in table.rows:
        base = Tidy(threat.norm, threat.target, row.model, None, row.attack, row.status)
        yield from _curve(table, replace(base, measure="accuracy"), row.accuracy)


def _curve(table: Table | CorruptionTable, base: Tidy, curve: Curve) -> Iterator[Tidy]:
    for i in range(len(table.threat.eps)):
        yield _shared(_at(base, table, i), curve[i] if curve else None)


def _at(base: Tidy, table: Table | CorruptionTable, column: int) -> Tidy:
    eps = table.threat.eps[column]
    return replace(base, eps=eps.text, eps_value=eps.value)


def _shared(base: Tidy, share: Share | None) -> Tidy:
    if share is None:
        return base
    low, high, std = share.low, share.high, share.std
    return replace(base, value=share.mean, low=low, high=high, std=std, seeds=share.seeds)
