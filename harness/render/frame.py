"""A leaderboard as a pandas frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.leaderboard import Leaderboard
from harness.render.tidy import Tidy, rows

if TYPE_CHECKING:
    from pandas import DataFrame


def render(board: Leaderboard) -> DataFrame:
    """One row for each value, with the columns of `Tidy`."""
    from pandas import DataFrame

    return DataFrame(rows(board), columns=Tidy._fields)
