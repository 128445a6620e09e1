"""What the judge says of other models' adversarial images: a stand-in for people, and called so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from harness.agreement import Agreement, Agreements
from harness.measures import share
from harness.render.grids import Grid, gaps
from harness.render.text import NONE, interval, percent, plain


def sections(name: str, found: Agreements) -> Iterator[tuple[str, Grid]]:
    """The judge's answers, and the cells without any. name: of the board."""
    judge = plain(found.judge)
    if found.rows:
        yield (
            f"{plain(name)}: does the image's class change? {judge} as a stand-in for people, % of "
            "the images that changed a model's correct label (seeds pooled, 95 % Wilson "
            f"intervals); {judge} is right on {percent(found.clean)} % of the clean images",
            grid(found),
        )
    if found.gaps:
        yield f"Cells that {judge} was not asked of", gaps(found.gaps)


def grid(found: Agreements) -> Grid:
    """Change: the judge gives the adversarial label; no change: the true one; neither: another."""
    header = ("Model", "Attack", "Norm", "ε", "Seeds", "Images", "Change", "No change", "Neither")
    return Grid(header, "lllrlrrrr", tuple(map(_row, found.rows)))


def _row(row: Agreement) -> tuple[str, ...]:
    n, change, no_change = row.tally.images, row.tally.change, row.tally.no_change
    shares = (share([k / n], n) if n else None for k in (change, no_change, n - change - no_change))
    names = (plain(row.model), plain(row.attack), row.norm, row.eps or NONE)
    return (*names, ", ".join(map(str, row.seeds)), str(n), *map(interval, shares))


def lines(found: Agreements) -> Iterator[str]:
    """The same as JSON, a line for each row and for each cell without one."""
    for row in found.rows:
        fields = asdict(row)
        tally = fields.pop("tally")
        yield json.dumps(
            {"judge": found.judge, "clean": found.clean, **fields, "status": "ok", **tally}
        )
    for gap in found.gaps:
        yield json.dumps({"judge": found.judge, **asdict(gap)})
