"""From model to model: the accuracy, on each, of images that were made on each of some.

An entry is the papers' figure, over all evaluated samples: the accuracy of the images that the
attack returned for that ε, an invalid one counting as its clean image. Papers' own figures, where
the board has some, stand in parentheses beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.budget import parse_epsilon
from harness.errors import UsageError
from harness.leaderboard import Leaderboard
from harness.render.grids import Grid
from harness.render.text import NONE, percent, plain
from harness.standings import Row, Table


def sections(board: Leaderboard, eps: str | None = None) -> Iterator[tuple[str, Grid]]:
    """Each threat's matrix with its title, at the reference ε or at another of the grid.

    Raises UsageError where the board has no matrix, or no grid that ε.
    """
    name = plain(board.board.title or board.board.name)
    if not board.board.matrix:
        raise UsageError(f"--matrix: the board {board.board.name!r} has no [matrix]")
    columns = [(t, t.at if eps is None else _column(t, eps)) for t in board.tables]
    if all(column is None for _, column in columns):
        grids = "; ".join(
            f"{t.threat.norm}: {', '.join(e.text for e in t.threat.eps)}" for t in board.tables
        )
        raise UsageError(f"--eps {eps}: in no grid of the board ({grids})")
    for table, column in columns:
        if column is not None:
            title = f"{name}: {table.threat.norm}, ε = {table.threat.eps[column].text}"
            yield (
                f"{title}: accuracy of the adversarial images, % of all {board.samples} evaluated "
                "samples (published)",
                grid(board, table, column),
            )


def _column(table: Table, eps: str) -> int | None:
    value = parse_epsilon(eps, "--eps").value
    values = [e.value for e in table.threat.eps]
    return values.index(value) if value in values else None


def grid(board: Leaderboard, table: Table, column: int) -> Grid:
    """Rows are sources, the first one the clean images; columns are the board's models."""
    beside = _published(board, table, column)
    by_model = {row.model: row for row in table.rows}
    targets = [by_model[m.label] for m in board.board.models]

    def entry(row: Row, attack: str, shown: str) -> str:
        return " ".join((shown, *beside.get((row.model, attack), ())))

    rows = [("clean", NONE, *(entry(row, "", percent(row.clean)) for row in targets))]
    for source in board.board.matrix:
        shown = (entry(r, source.attack, _accuracy(r, source.attack, column)) for r in targets)
        rows.append((plain(source.source), plain(source.by), *shown))
    header = ("Source", "Attack", *(plain(row.model) for row in targets))
    return Grid(header, "ll" + "r" * len(targets), tuple(rows))


def _accuracy(row: Row, attack: str, column: int) -> str:
    cell = next((c for c in row.cells if c.attack == attack), None)
    if cell is None or not cell.robust:
        return plain(cell.status) if cell else NONE
    figure = percent(cell.figures.accuracy[column])
    return figure if cell.status == "ok" else plain(f"{figure} {cell.status}")


def _published(
    board: Leaderboard, table: Table, column: int
) -> dict[tuple[str, str], tuple[str, ...]]:
    """Papers' figures of the matrix's entries, by target and attack ('' for clean images)."""
    text, found = table.threat.eps[column].text, dict[tuple[str, str], tuple[str, ...]]()
    for p in board.board.published:
        clean = p.measure == "clean_accuracy"
        here = clean or (p.measure == "adversarial_accuracy" and p.eps == text)
        if here and p.norm == table.threat.norm:
            key = p.model, p.attack
            found[key] = (*found.get(key, ()), f"({percent(p.value)})")
    return found
