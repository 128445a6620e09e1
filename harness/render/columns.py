"""A grid as plain text columns."""

from __future__ import annotations

from harness.render.grids import Cells, Grid


def columns(grid: Grid) -> str:
    """Columns two spaces apart, a rule below the header, a line end after every row."""
    lines = [grid.header, *grid.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = tuple("-" * width for width in widths)
    return "".join(_line(line, widths, grid.align) for line in (grid.header, rule, *grid.rows))


def _line(cells: Cells, widths: list[int], align: str) -> str:
    padded = (
        cell.rjust(width) if side == "r" else cell.ljust(width)
        for cell, width, side in zip(cells, widths, align, strict=True)
    )
    return "  ".join(padded).rstrip() + "\n"
