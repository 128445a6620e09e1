"""A board of ten thousand cells: how long planning it takes, and reading its records into tables.

    python benchmarks/scale.py

Everything is in this process and after its imports; files were just written, so reading them finds
them in memory. Records go to a temporary folder, as the harness writes them: 100 samples, 5 eps.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
from common import machine, table

from harness.board import Board, Choice
from harness.leaderboard import aggregate
from harness.manifest import ThreatRow
from harness.outcome import Outcome
from harness.plan import Cell, Plan, state
from harness.provenance import provenance
from harness.records import Record, Store
from harness.registry import Catalogue, discover
from harness.render import csv, markdown
from harness.selection import parse_selection
from harness.session import locate, plan_board

ATTACKS, NORMS, SAMPLES = 20, ("Linf", "L2"), 100
SHAPES = ((50, 5),)  # models, seeds: 250 fits and 10,000 attack cells
REPETITIONS = 3
PLAN_TARGET, READ_TARGET = 2.0, 5.0
Result = TypeVar("Result")


def board(models: int, seeds: int) -> Board:
    """The quick board's data and norms with many models, many attacks and seeds."""
    quick = locate(None, None).board
    attacks = tuple(_choice(f"pgd:steps={10 + i}", f"pgd {10 + i}") for i in range(ATTACKS))
    return replace(
        quick,
        models=tuple(
            _choice(f"standard:arch=(mlp:width={width})", f"mlp {width}")
            for width in range(1, models + 1)
        ),
        attacks=attacks,
        threats=tuple(t for t in quick.threats if t.norm in NORMS),
        core=tuple(c.label for c in attacks[:3]),
        seeds=tuple(range(seeds)),
        limit=SAMPLES,
    )


def _choice(selection: str, label: str) -> Choice:
    return Choice(parse_selection(selection, "scale"), label)


def write(plan: Plan, store: Store) -> None:
    """An `ok` record of every cell, with arrays of the shapes and types that a run leaves.

    Without waiting for the disk: writing is not what is measured.
    """
    rng = np.random.default_rng(0)
    y = rng.integers(10, size=SAMPLES)
    clean = {}
    for cell in plan.cells.values():
        if cell.kind == "fit":
            clean[cell.key] = np.where(rng.random(SAMPLES) < 0.95, y, (y + 1) % 10)
        store.write(_record(cell, y, clean[cell.key if cell.kind == "fit" else cell.needs[0]], rng))


def _record(cell: Cell, y: np.ndarray, clean: np.ndarray, rng: np.random.Generator) -> Record:
    arrays = {"ids": np.arange(SAMPLES), "y": y, "clean": clean}
    facts: dict[str, Any] = {"flags": []}
    if cell.threat is not None:
        arrays |= _columns(cell.threat, y, clean, rng)
        facts |= {"access": "gradients", "kind": "fixed-budget", "batch_dependent": 0}
    return Record(
        key=cell.key,
        kind=cell.kind,
        identity=cell.identity,
        status="ok",
        facts=facts,
        cost={"wall_seconds": 1.5, "cpu_seconds": 1.4, "forward": 4_000, "backward": 4_000},
        provenance=provenance("cpu", {"robustness-harness": "0.1.0"}),
        weights=hashlib.sha256(f"{cell.label} {cell.seed}".encode()).hexdigest(),
        arrays=arrays,
    )


def _columns(
    threat: ThreatRow, y: np.ndarray, clean: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    eps = np.array([e.value for e in threat.eps])
    shape = (SAMPLES, len(eps))
    fooled = rng.random(SAMPLES)[:, None] < np.linspace(0.2, 0.9, len(eps))
    outcome = np.where(fooled, Outcome.ADVERSARIAL, Outcome.ROBUST).astype(np.uint8)
    outcome[clean != y] = Outcome.SKIPPED
    label = np.where(fooled, (y[:, None] + 1) % 10, y[:, None])
    distance = np.broadcast_to(eps[None, :, None], (*shape, 4)) * rng.uniform(0.9, 1, (*shape, 4))
    spent = rng.integers(1, 40, shape)
    return {
        "norm2": rng.uniform(5, 10, SAMPLES),
        "outcome": outcome,
        "label": label,
        "distance": distance,
        "label8": label,
        "distance8": distance,
        "forward": spent,
        "backward": spent,
    }


@dataclass
class Stopwatch:
    """Collects rows of (what, wall seconds, CPU seconds, target), medians of several runs."""

    rows: list[tuple[str, float, float, str]]

    def time(self, what: str, target: str, run: Callable[[], Result]) -> Result:
        wall, cpu = [], []
        for _ in range(REPETITIONS):
            begun = time.perf_counter(), time.process_time()
            result = run()
            wall.append(time.perf_counter() - begun[0])
            cpu.append(time.process_time() - begun[1])
        self.rows.append((what, median(wall), median(cpu), target))
        return result


def read(plan: Plan, store: Store) -> str:
    """From files to a table in Markdown and one in CSV."""
    records, problems = store.scan()
    leaderboard = aggregate(plan.manifest, records, problems)
    return markdown.render(leaderboard) + csv.render(leaderboard)


def measure(models: int, seeds: int, catalogue: Catalogue, watch: Stopwatch) -> None:
    asked = board(models, seeds)
    plan = plan_board(asked, catalogue, None)  # reads the data and imports its plugins
    name = f"{len(plan.cells):,} cells, {models} models x {seeds} seeds"
    plan = watch.time(
        f"plan {name}", f"{PLAN_TARGET:g}", lambda: plan_board(asked, catalogue, None)
    )
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "records")
        with patch("os.fsync"):
            write(plan, store)
        watch.time(f"read {name}", f"{READ_TARGET:g}", lambda: read(plan, store))
        records, _ = watch.time("  of which: the files", "", store.scan)
        watch.time("  of which: the leaderboard", "", lambda: aggregate(plan.manifest, records))
        watch.time(
            "state of every cell", "", lambda: [state(c, records) for c in plan.cells.values()]
        )


def main() -> None:
    watch = Stopwatch([])
    catalogue = discover()
    for models, seeds in SHAPES:
        measure(models, seeds, catalogue, watch)
    print(f"{machine()}\n")
    print(f"Seconds, medians of {REPETITIONS}.\n")
    print(table(("what", "wall, median", "CPU, median", "target"), watch.rows))


if __name__ == "__main__":
    main()
