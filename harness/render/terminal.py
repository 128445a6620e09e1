"""The leaderboards on a terminal: tables drawn by rich, or plain columns where it is no terminal.

Plain columns are never folded or cut: they are for files and for other programs. Letters that the
stream's encoding cannot hold are written as '?'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from harness.leaderboard import Leaderboard
from harness.render import grids
from harness.render.columns import columns
from harness.render.grids import Grid
from harness.render.text import plain


def render(board: Leaderboard, console: Console | None = None) -> None:
    """Print every threat's ranking, the corruptions, and what has no result."""
    sections(_sections(board), console)


def sections(titled: Iterable[tuple[str, Grid]], console: Console | None = None) -> None:
    """Print tables, each below its title."""
    console = console or Console()
    for title, grid in titled:
        if console.is_terminal:
            console.print(Text(_held(title, console)), _drawn(grid, console))
        else:
            console.file.write(_held(f"{title}\n\n{columns(grid)}\n", console))


def _sections(board: Leaderboard) -> Iterator[tuple[str, Grid]]:
    name = plain(board.board.title or board.board.name)
    for table in board.tables:
        threat = table.threat
        aim = "" if threat.target == "none" else f" targeted ({threat.target})"
        yield (
            f"{name}: {threat.norm}{aim}, ε = {threat.reference.text}: % of all {board.samples} "
            "evaluated samples; * core attacks",
            grids.ranking(table),
        )
    for corrupted in board.corruptions:
        yield (
            f"{name}: corruptions, mean of {corrupted.threat.draws} draws: % of all "
            f"{board.samples} evaluated samples",
            grids.corruption(corrupted),
        )
    if board.gaps:
        yield "Cells without a result", grids.gaps(board.gaps)
    if board.problems:
        yield "Files among the records that were left out", grids.problems(board)


def _drawn(grid: Grid, console: Console) -> RichTable:
    table = RichTable()
    for name, align in zip(grid.header, grid.align, strict=True):
        side: Literal["left", "right"] = "right" if align == "r" else "left"
        table.add_column(Text(_held(name, console)), justify=side, overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(_held(cell, console)) for cell in row))
    return table


def _held(text: str, console: Console) -> str:
    """The text as far as the encoding of the console's stream can hold it."""
    return text.encode(console.encoding, "replace").decode(console.encoding)
