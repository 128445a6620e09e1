"""The tables of a leaderboard as grids of text, which Markdown and the terminal then draw."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from harness.leaderboard import Leaderboard
from harness.render.text import NONE, count, interval, number, percent, plain
from harness.render.tidy import values
from harness.standings import AttackCell, CorruptionTable, Curve, Gap, Row, Table

Cells = tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """`align` has one letter for each column: l or r. Cells are plain text, not yet escaped."""

    header: Cells
    align: str
    rows: tuple[Cells, ...]


def ranking(table: Table) -> Grid:
    """The leaderboard itself: everything at the reference eps."""
    core = [f"{a}*" if a in table.threat.core else a for a in table.attacks]
    header = ("Rank", "Model", "Clean", "Robust (core)", "Robust (all)", "8-bit (core)")
    rows = tuple(_ranking_row(row, table.at) for row in table.rows)
    align = "rl" + "r" * (4 + len(core)) + "ll"
    return Grid((*header, *map(plain, core), "Reached by", "Notes"), align, rows)


def _ranking_row(row: Row, at: int) -> Cells:
    return (
        NONE if row.rank is None else str(row.rank),
        plain(row.model),
        interval(row.clean),
        interval(row.core[at] if row.core else None),
        percent(row.everything[at] if row.everything else None),
        percent(row.eight),
        *(_attack(cell, at) for cell in row.cells),
        ", ".join(row.reached) or NONE,
        plain("; ".join(filter(None, [row.reason and f"unranked: {row.reason}", *row.flags]))),
    )


def _attack(cell: AttackCell, at: int) -> str:
    if not cell.robust:
        return plain(cell.status)
    figure = percent(cell.robust[at])
    return figure if cell.status == "ok" else plain(f"{figure} ({cell.status})")


def curves(table: Table) -> Grid:
    """Robust accuracy of every model at every eps, 0 first, against the core and against all."""
    skip = table.threat.eps[0].value == 0
    header = ("Model", "Worst case over", *([] if skip else ["0"]), *_budgets(table))
    rows = [
        (plain(row.model), which, *([] if skip else [percent(row.clean)]), *_curve(curve, table))
        for row in table.rows
        for which, curve in (("core", row.core), ("all", row.everything))
    ]
    return Grid(header, "ll" + "r" * (len(header) - 2), tuple(rows))


def attacks(table: Table) -> Grid:
    """Each attack at every eps: robust accuracy / accuracy of the adversarial images."""
    header = ("Model", "Attack", "Access", *_budgets(table))
    rows = [
        (plain(row.model), plain(cell.attack), plain(cell.access), *_pairs(cell))
        for row in table.rows
        for cell in row.cells
        if cell.robust
    ]
    return Grid(header, "lll" + "r" * len(table.threat.eps), tuple(rows))


def details(table: Table) -> Grid:
    """What each attack needed and how far it went."""
    header = (
        "Model",
        "Attack",
        "8-bit",
        "Success",
        "Mean distance",
        "Median distance",
        "ρ",
        "ρ (all)",
        "Forward",
        "Backward",
        "To success",
        "Preparation",
        "Invalid",
        "Unstable",
        "Adds",
        "Optimality",
    )
    rows = [
        (plain(row.model), plain(cell.attack), *_details(cell))
        for row in table.rows
        for cell in row.cells
        if cell.robust
    ]
    return Grid(header, "ll" + "r" * (len(header) - 2), tuple(rows))


def _details(cell: AttackCell) -> Cells:
    f = cell.figures
    return (
        percent(cell.eight),
        percent(f.success),
        number(f.mean_distance),
        number(f.median_distance),
        number(f.rho),
        number(f.rho_all),
        count(f.forward),
        count(f.backward),
        count(f.to_success),
        count(f.preparation),
        count(f.invalid),
        count(f.unstable),
        percent(f.adds),
        percent(f.optimality),
    )


def rounds(table: Table) -> Grid:
    """A preparing attack round by round: what its substitute had learnt, and accuracy at each eps;
    then that of the samples that no round broke."""
    header = ("Model", "Attack", "Round", "Queries", "Substitute", "Match", "Match (adversarial)")
    rows: list[Cells] = []
    for row in table.rows:
        for cell in row.cells:
            f, name = cell.figures, (plain(row.model), plain(cell.attack))
            for i, accuracy in enumerate(f.rounds):
                queries, *shares = f.learning[i]
                told = (str(i + 1), count(queries), *map(percent, shares))
                rows.append((*name, *told, *map(percent, accuracy)))
            if f.rounds:
                rows.append((*name, "worst", *[NONE] * 4, *map(percent, f.worst_round)))
    return Grid(header + _budgets(table), "ll" + "r" * (5 + len(table.threat.eps)), tuple(rows))


def shared(table: Table) -> Grid:
    """Minimum-norm attacks on the samples that every model has right: mean / median distance."""
    which = [
        i
        for i, cells in enumerate(zip(*(row.cells for row in table.rows), strict=True))
        if any(c.figures.shared > 0 for c in cells)
    ]
    header = ("Model", *(plain(table.attacks[i]) for i in which))
    several = len(table.rows) > 1 and which
    rows = [(plain(r.model), *(_on_shared(r.cells[i]) for i in which)) for r in table.rows]
    return Grid(header, "l" + "r" * len(which), tuple(rows) if several else ())


def _on_shared(cell: AttackCell) -> str:
    f = cell.figures
    if not f.shared > 0:
        return NONE if cell.robust else plain(cell.status)
    pair = f"{number(f.shared_mean_distance)} / {number(f.shared_median_distance)}"
    whole = f.shared_found == f.shared
    return pair if whole else f"{pair} ({count(f.shared_found)} of {count(f.shared)})"


def by_queries(table: Table) -> Grid:
    """After so many queries: how many samples are fooled / the median distance."""
    cells = [(row, cell) for row in table.rows for cell in row.cells if cell.figures.by_queries]
    points = sorted({q for _, cell in cells for q, _, _ in cell.figures.by_queries})
    rows = []
    for row, cell in cells:
        known = {q: f"{percent(s)} / {number(d)}" for q, s, d in cell.figures.by_queries}
        told = (known.get(q, NONE) for q in points)
        rows.append((plain(row.model), plain(cell.attack), *told))
    return Grid(("Model", "Attack", *map(count, points)), "ll" + "r" * len(points), tuple(rows))


def optimality(table: Table) -> Grid:
    """Each attack's optimality, mean over the models where it is defined, and how many they are."""
    rows = []
    for i, (name, mean) in enumerate(zip(table.attacks, table.optimality, strict=True)):
        known = sum(not math.isnan(row.cells[i].figures.optimality) for row in table.rows)
        if known:
            rows.append((plain(name), percent(mean), count(known)))
    return Grid(("Attack", "Optimality", "Models"), "lrr", tuple(rows))


def published(board: Leaderboard, table: Table) -> Grid:
    """Papers' figures with the board's own beside them."""
    ours = {(v.model, v.attack, v.measure, v.eps): v for v in values(table)}
    header = ("Model", "Attack", "Measure", "ε", "Published", "Here", "Here / published", "Source")
    rows = []
    for p in board.board.published:
        if p.norm == table.threat.norm:
            here = ours.get((p.model, p.attack, p.measure, p.eps))
            value = here.value if here else math.nan
            spread = "" if here is None or math.isnan(here.std) else f" ± {number(here.std)}"
            relative = number(value / p.value) if p.value else NONE
            names = (plain(p.model), plain(p.attack) or NONE, p.measure, p.eps or NONE)
            rows.append(
                (*names, number(p.value), number(value) + spread, relative, plain(p.source))
            )
    return Grid(header, "lllrrrrl", tuple(rows))


def corruption(table: CorruptionTable) -> Grid:
    """Mean accuracy over samples and draws at each severity."""
    header = ("Model", "Corruption", "Clean", *(e.text for e in table.threat.eps))
    rows = tuple(
        (
            plain(row.model),
            plain(row.attack),
            percent(row.clean),
            *([percent(s) for s in row.accuracy] or [plain(row.status)] * len(table.threat.eps)),
        )
        for row in table.rows
    )
    return Grid(header, "ll" + "r" * (len(header) - 2), rows)


def gaps(found: Iterable[Gap]) -> Grid:
    """Cells without a result, and why."""
    rows = tuple(
        (
            plain(g.model),
            plain(g.attack) or "(fit)",
            g.norm or NONE,
            ", ".join(map(str, g.seeds)),
            plain(g.status),
            plain(g.reason),
        )
        for g in found
    )
    return Grid(("Model", "Attack", "Norm", "Seeds", "Status", "Reason"), "llllll", rows)


def problems(board: Leaderboard) -> Grid:
    """Files among the records that are not read."""
    rows = tuple((plain(p.file), plain(p.reason)) for p in board.problems)
    return Grid(("File", "Reason"), "ll", rows)


def _budgets(table: Table) -> Cells:
    return tuple(e.text for e in table.threat.eps)


def _curve(curve: Curve, table: Table) -> Cells:
    return tuple(map(percent, curve)) or (NONE,) * len(table.threat.eps)


def _pairs(cell: AttackCell) -> Cells:
    both = zip(cell.robust, cell.figures.accuracy, strict=True)
    return tuple(f"{percent(r)} / {percent(a)}" for r, a in both)
