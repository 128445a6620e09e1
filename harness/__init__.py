"""robustness-harness: defenses x attacks, re-verified, into leaderboards. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.plugin import AttackSpec, DatasetSpec, ModelSpec, hookimpl

if TYPE_CHECKING:
    from pandas import DataFrame

__version__ = "0.1.0"
__all__ = ["AttackSpec", "DatasetSpec", "ModelSpec", "__version__", "hookimpl", "load"]


def load(board: str) -> DataFrame:
    """A board's results as a pandas frame, one row for each measured value, from records alone.

    `board` is a board.toml, a folder with one, or a name below leaderboards/. Raises UsageError
    where there is no such board, or where it was not run yet.
    """
    from harness.errors import UsageError
    from harness.leaderboard import aggregate
    from harness.render import frame
    from harness.session import locate, read_manifest

    place = locate(board, None)
    manifest = read_manifest(place)
    if manifest is None:
        raise UsageError(f"{place.folder}: no cells.json of this board.toml; run the board first")
    return frame.render(aggregate(manifest, *place.store.scan()))
