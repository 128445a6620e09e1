"""The driver: submits cells whose needs are met, writes what comes back, retries what died.

Every write to the store is made here. What a kill interrupts was not written, so the next run
finds it missing and does it again: resume is nothing but running.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.bench import Result
from harness.cell import failure, run_cell
from harness.errors import PluginError
from harness.executors import CellTimeout, Executor, WorkerDied
from harness.identity import key_of
from harness.plan import Cell, Plan, sources, state, task, weights_identity, weights_of
from harness.provenance import provenance
from harness.records import Record, Store

ATTEMPTS = 2  # a cell whose worker died is tried once more
WINDOW = 64  # cells handed to the executor at a time


@dataclass(frozen=True)
class Settings:
    """How a plan is run; none of it is part of a record's identity.

    retry: run again what failed before; force: run everything again
    """

    cache: Path
    device: str = "cpu"
    batch: int | None = None
    threads: int = 1
    keep_examples: bool = False
    retry: bool = False
    force: bool = False


@dataclass(frozen=True)
class Event:
    """A cell ended, with the status of its record, or `blocked` by a fit that failed.

    notes: what a training had to say
    """

    cell: Cell
    status: str
    reason: str = ""
    notes: tuple[str, ...] = ()


class Driver:
    """Runs a plan against a store. `records` is what the store holds, kept up to date."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        records: Mapping[str, Record],
        settings: Settings,
        tell: Callable[[Event], None] = lambda _event: None,
    ) -> None:
        self.plan, self.store, self.settings, self.tell = plan, store, settings, tell
        self.records = dict(records)
        self._again = {
            key
            for key, cell in plan.cells.items()
            if settings.force or (settings.retry and state(cell, records) == "failed before")
        }
        self._fits = self._fits_to_run()
        self._waiting = set(self._fits)
        self._attempts: dict[str, int] = {}

    @property
    def todo(self) -> int:
        """Cells that will be run, as far as can be told before the fits are known."""
        attacks = (c for c in self.plan.cells.values() if c.kind == "attack" and self._wanted(c))
        return len(self._fits) + sum(not self._broken(c) for c in attacks)

    def run(self, executor: Executor) -> None:
        """Run what is to be run. An interrupt passes through; what was done is stored."""
        pending: dict[Future[Any], Cell] = {}
        queue = deque(self._fits_ready(self._fits) + self._attacks_ready(self.plan.cells.values()))
        while queue or pending:
            # What is done is stored before more is begun: an executor may work within submit.
            while queue and len(pending) < WINDOW and not any(f.done() for f in pending):
                self._submit(executor, queue.popleft(), pending)
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                cell = pending.pop(future)
                if not self._settle(cell, future):
                    queue.appendleft(cell)
                elif cell.kind == "fit":
                    queue.extend(self._after_fit(cell))

    def _submit(self, executor: Executor, cell: Cell, pending: dict[Future[Any], Cell]) -> None:
        self._attempts[cell.key] = self._attempts.get(cell.key, 0) + 1
        pending[executor.submit(run_cell, job_of(cell, self.plan, self.records, self.settings))] = (
            cell
        )

    def _settle(self, cell: Cell, future: Future[Any]) -> bool:
        """Store what a cell left; False where it is to be tried again."""
        try:
            result: Result = future.result()
        except CellTimeout as error:
            result = Result("timeout", f"took longer than {error.seconds:g} s")
        except WorkerDied as error:
            if self._attempts[cell.key] < ATTEMPTS:
                return False
            result = Result("failed", f"its worker died {ATTEMPTS} times ({error})")
        except Exception as error:  # what a plugin left cannot travel
            result = failure(error)
        try:
            record = self._record(cell, result)
            self.store.write(record, result.examples if result.status == "ok" else None)
        except PluginError as error:  # what a plugin left cannot be kept: a NaN among its numbers
            result = failure(error)
            record = self._record(cell, result)
            self.store.write(record)
        self.records[cell.key] = record
        self._again.discard(cell.key)
        notes = tuple(result.facts.get("notes", ())) if cell.kind == "fit" else ()
        self.tell(Event(cell, result.status, result.reason, notes))
        return True

    def _record(self, cell: Cell, result: Result) -> Record:
        ok = result.status == "ok"
        made_with = sources(cell, self.records)
        return Record(
            key=cell.key,
            kind=cell.kind,
            identity=cell.identity,
            status=result.status,
            reason=result.reason,
            facts={**result.facts, **({"sources": made_with} if ok and made_with else {})},
            cost=result.cost,
            provenance=provenance(result.device, result.distributions),
            weights=result.weights,
            arrays=result.arrays if ok else {},
        )

    def _fits_to_run(self) -> dict[str, Cell]:
        """Fit cells that are not there, or whose weights an attack needs and the cache has lost."""
        needed = {
            need
            for cell in self.plan.cells.values()
            if cell.kind == "attack" and self._wanted(cell)
            for need in cell.needs
        }
        fits: dict[str, Cell] = {}
        for key, cell in reversed(list(self.plan.cells.items())):
            if cell.kind != "fit":
                continue
            here = state(cell, self.records)
            missing = here == "new" or key in self._again
            lost = key in needed and here == "cached" and not self._weights(cell).exists()
            if (missing and (cell.row or key in needed)) or lost:
                fits[key] = cell
                needed.update(cell.needs)
        return fits

    def _wanted(self, cell: Cell) -> bool:
        return cell.key in self._again or state(cell, self.records) in ("new", "stale")

    def _fits_ready(self, fits: Mapping[str, Cell]) -> list[Cell]:
        return [c for c in fits.values() if not self._waiting.intersection(c.needs)]

    def _attacks_ready(self, cells: Iterable[Cell]) -> list[Cell]:
        """Attack cells to run whose models are all fitted; those of a failed fit are blocked."""
        ready = []
        for cell in cells:
            if cell.kind != "attack" or self._waiting.intersection(cell.needs):
                continue
            if not self._wanted(cell):
                continue
            if broken := self._broken(cell):
                self.tell(Event(cell, "blocked", f"{self.plan.cells[broken[0]]} did not succeed"))
            else:
                ready.append(cell)
        return ready

    def _broken(self, cell: Cell) -> list[str]:
        """The fits the cell needs that did not succeed and will not be tried again."""
        records = ((n, self.records.get(n)) for n in cell.needs if n not in self._waiting)
        return [n for n, record in records if record is None or record.status != "ok"]

    def _after_fit(self, fit: Cell) -> list[Cell]:
        self._waiting.discard(fit.key)
        dependents = [c for c in self.plan.cells.values() if fit.key in c.needs]
        fits = {c.key: c for c in dependents if c.key in self._waiting}
        return self._fits_ready(fits) + self._attacks_ready(dependents)

    def _weights(self, cell: Cell) -> Path:
        return self.settings.cache / "weights" / f"{weights_key(cell, self.plan)}.safetensors"


def job_of(
    cell: Cell, plan: Plan, records: Mapping[str, Record], settings: Settings
) -> dict[str, Any]:
    """What `run_cell` is given: the cell's task, its model's weights, and how to run it."""
    return {
        **task(cell, plan.data),
        "weights": weights_of(records.get(cell.needs[0])) if cell.kind == "attack" else "",
        "cache": str(settings.cache),
        "device": settings.device,
        "batch": settings.batch,
        "threads": settings.threads,
        "keep_examples": settings.keep_examples,
        "fresh": settings.force or state(cell, records) == "stale",
        "sources": {
            weights_key(plan.cells[need], plan): digest
            for need, digest in sources(cell, records).items()
        },
    }


def weights_key(cell: Cell, plan: Plan) -> str:
    """What a fit cell's weights are called in the cache."""
    return key_of(weights_identity(plan.data.identity, cell.model.identity, cell.seed))
