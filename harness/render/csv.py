"""leaderboard.csv: one line for each value (see `harness.render.tidy`), six significant digits."""

from __future__ import annotations

import csv
import io
import math

from harness.leaderboard import Leaderboard
from harness.render.text import plain
from harness.render.tidy import Tidy, rows


def render(board: Leaderboard) -> str:
    """The file's text; the same bytes for the same records."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Tidy._fields)
    writer.writerows(map(_text, row) for row in rows(board))
    return out.getvalue()


def _text(value: str | int | float | None) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    # A spreadsheet would run what begins like a formula.
    line = plain(value)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line
