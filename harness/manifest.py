"""What a run of a board consists of, as written beside its records: `cells.json`.

The plan writes it, and everything that reads results starts from it: which cells the board's table
is made of, in which order, and which were declared incompatible and why. Reading it needs neither
torch nor the plugins, so whoever checks a leaderboard needs neither.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harness.budget import Epsilon

SCHEMA = 1


@dataclass(frozen=True)
class ThreatRow:
    """A threat model of the board: norm `Linf L2 L1 L0 corruption`, its grid, its reference.

    For `corruption` the grid holds severities σ and `draws` says how many are averaged.
    `target` is `none`, or how targeted attacks choose the label they must reach. `core` holds the
    labels of the board's core attacks that support the norm: ranks are by the worst of them.
    """

    norm: str
    eps: tuple[Epsilon, ...]
    reference: Epsilon
    draws: int = 1
    target: str = "none"
    core: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A model or an attack of the board: the label that tables show, and what is known of it.

    level: for a model what it offers, for an attack what it needs (labels, scores, gradients)
    """

    label: str
    selection: str
    level: str
    kind: str = ""


@dataclass(frozen=True)
class Entry:
    """A cell of the table. `reason` says why, where `state` is `incompatible`."""

    kind: Literal["fit", "attack"]
    key: str
    model: str
    seed: int
    attack: str = ""
    norm: str = ""
    state: Literal["planned", "incompatible"] = "planned"
    reason: str = ""


@dataclass(frozen=True)
class Published:
    """A figure that a paper prints for what the board measures (see `harness.published`).

    attack:  a label of the board; '' where the measure needs none
    measure: as `leaderboard.csv` calls it; eps: the budget's text, '' where it has none
    note:    why the board's figure differs, where it does
    """

    source: str
    norm: str
    model: str
    attack: str
    measure: str
    eps: str
    value: float
    note: str = ""


@dataclass(frozen=True)
class MatrixRow:
    """A row of the matrix of sources and targets: the label of the attack that makes the images of
    the model labelled `source`, and the selection of the attack that is run on that."""

    source: str
    by: str
    attack: str


@dataclass(frozen=True)
class Manifest:
    """See the module. `board_sha256` is of board.toml's bytes."""

    name: str
    version: int
    title: str
    dataset: str
    samples: int
    all_samples: bool
    seeds: tuple[int, ...]
    threats: tuple[ThreatRow, ...]
    models: tuple[Row, ...]
    attacks: tuple[Row, ...]
    entries: tuple[Entry, ...]
    board_sha256: str = ""
    published: tuple[Published, ...] = ()
    matrix: tuple[MatrixRow, ...] = ()

    def to_json(self) -> str:
        fields = asdict(self)
        if not self.matrix:
            del fields["matrix"]
        return json.dumps({"schema": SCHEMA, **fields}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of `to_json`. Raises ValueError, KeyError or TypeError on anything else."""
        raw: dict[str, Any] = json.loads(text)
        if raw.pop("schema") != SCHEMA:
            raise ValueError(f"cells.json has another schema than {SCHEMA}")
        threats = tuple(
            ThreatRow(
                **{
                    **t,
                    "eps": tuple(Epsilon(**e) for e in t["eps"]),
                    "reference": Epsilon(**t["reference"]),
                    "core": tuple(t["core"]),
                }
            )
            for t in raw.pop("threats")
        )
        lists: dict[str, Any] = {
            "threats": threats,
            "models": tuple(Row(**r) for r in raw.pop("models")),
            "attacks": tuple(Row(**r) for r in raw.pop("attacks")),
            "entries": tuple(Entry(**e) for e in raw.pop("entries")),
            "seeds": tuple(raw.pop("seeds")),
            "published": tuple(Published(**p) for p in raw.pop("published", [])),
            "matrix": tuple(MatrixRow(**m) for m in raw.pop("matrix", [])),
        }
        return cls(**lists, **raw)
