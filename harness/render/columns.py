"""A grid as plain text columns."""

from __future__ import annotations

from harness.render.grids import Grid

ALIGN = {"l": "left", "r": "right"}


def columns(grid: Grid) -> str:
    """Columns two spaces apart with a rule below the header, as tabulate's `simple`."""
    from tabulate import tabulate

    text: str = tabulate(
        grid.rows,
        headers=grid.header,
        tablefmt="simple",
        colalign=[ALIGN[a] for a in grid.align] if grid.rows else None,
        disable_numparse=True,
    )
    return text + "\n"
