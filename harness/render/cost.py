"""What a board cost: the one place that shows times. They are sums over the board's seeds."""

from __future__ import annotations

from harness.leaderboard import Leaderboard
from harness.render.columns import columns
from harness.render.grids import Grid
from harness.render.text import NONE, plain


def render(board: Leaderboard) -> str:
    """One line for each cell that was run, failures too, and their sum."""
    rows = [
        (
            plain(c.model),
            plain(c.attack) or "(fit)",
            c.norm or NONE,
            plain(c.status),
            *_numbers(c.wall_seconds, c.cpu_seconds, c.forward, c.backward),
        )
        for c in board.costs
    ]
    total = _numbers(
        sum(c.wall_seconds for c in board.costs),
        sum(c.cpu_seconds for c in board.costs),
        sum(c.forward for c in board.costs),
        sum(c.backward for c in board.costs),
    )
    header = ("Model", "Attack", "Norm", "Status", "Wall s", "CPU s", "Forward", "Backward")
    return columns(Grid(header, "llllrrrr", (*rows, ("(sum)", "", "", "", *total))))


def _numbers(wall: float, cpu: float, forward: int, backward: int) -> tuple[str, str, str, str]:
    return f"{wall:.1f}", f"{cpu:.1f}", str(forward), str(backward)
