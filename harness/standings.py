"""What a leaderboard is, as values: tables of rows of cells, and all that has no result."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.manifest import Manifest, ThreatRow
from harness.measures import Figures, Share, reference_column
from harness.records import Problem

Curve = tuple[Share, ...]


@dataclass(frozen=True)
class AttackCell:
    """One attack on one model under one threat, over the board's seeds.

    status: `ok`, or what the first seed without a result ended as; `robust` and `figures` are of
            the seeds that have one, and `robust` is empty where none has
    robust: robust accuracy at each eps of the grid
    eight:  8-bit robust accuracy at the reference eps; None where the data is not on that grid
    """

    attack: str
    core: bool
    status: str
    access: str = ""
    robust: Curve = ()
    eight: Share | None = None
    figures: Figures = field(default_factory=Figures)


@dataclass(frozen=True)
class Row:
    """A model under one threat.

    rank:   None for an unranked row, and `reason` says why
    core, everything: robust accuracy at each eps of the grid in the worst case over the core
            attacks, over all that ran; empty where none ran
    eight:  8-bit robust accuracy over the core at the reference eps
    reached: the kinds of attack that have a result, from gradient to substitute
    """

    model: str
    clean: Share | None
    core: Curve = ()
    everything: Curve = ()
    eight: Share | None = None
    cells: tuple[AttackCell, ...] = ()
    reached: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    rank: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Table:
    """The leaderboard of one threat. `optimality`: each attack's mean over models, nan if none."""

    threat: ThreatRow
    rows: tuple[Row, ...]
    attacks: tuple[str, ...]
    optimality: tuple[float, ...]

    @property
    def at(self) -> int:
        """The column of the reference eps."""
        return reference_column(self.threat)


@dataclass(frozen=True)
class CorruptionRow:
    """Mean accuracy of a model over samples and draws at each severity; empty without a result."""

    model: str
    attack: str
    status: str
    clean: Share | None
    accuracy: Curve = ()


@dataclass(frozen=True)
class CorruptionTable:
    threat: ThreatRow
    rows: tuple[CorruptionRow, ...]


@dataclass(frozen=True)
class Gap:
    """Cells without a result, of the same kind and for the same reason; `attack` '' for a fit."""

    model: str
    attack: str
    norm: str
    seeds: tuple[int, ...]
    status: str
    reason: str


@dataclass(frozen=True)
class Cost:
    """What the cells of one model, or of one attack on it, cost over all seeds, failures too."""

    model: str
    attack: str
    norm: str
    status: str
    wall_seconds: float
    cpu_seconds: float
    forward: int
    backward: int


@dataclass(frozen=True)
class Leaderboard:
    """Everything that a report shows. `samples` is the n of every share; `problems` are files."""

    board: Manifest
    samples: int
    tables: tuple[Table, ...]
    corruptions: tuple[CorruptionTable, ...]
    gaps: tuple[Gap, ...]
    costs: tuple[Cost, ...] = field(compare=False)
    problems: tuple[Problem, ...] = ()
