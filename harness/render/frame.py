"""A leaderboard as a pandas frame."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from harness.leaderboard import Leaderboard
from harness.render.tidy import Tidy, rows

if TYPE_CHECKING:
    from pandas import DataFrame


def render(board: Leaderboard) -> DataFrame:
    """One row for each value, with the columns of `Tidy`."""
    from pandas import DataFrame

    return DataFrame(map(asdict, rows(board)), columns=[f.name for f in fields(Tidy)])
