"""Where cells run: one seam, `submit(run_cell, spec) -> Future`, and what may go wrong behind it.

`run_cell` is a function of a module (workers import it by name), `spec` is plain data: what is
large travels as a path and a hash. An executor runs cells and nothing more: retries, resume and
every write to the store are the driver's.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Protocol, Self

from harness.errors import HarnessError, PluginError

RunCell = Callable[[dict[str, Any]], Any]


class Executor(Protocol):
    """A context manager too: left by an exception, Ctrl-C among them, it cancels."""

    def submit(self, run_cell: RunCell, spec: dict[str, Any]) -> Future[Any]:
        """Run `run_cell(spec)`. The future works with `concurrent.futures.wait`, and its exception
        is the cell's own, `CellTimeout` or `WorkerDied`."""
        ...

    def close(self, *, cancel: bool) -> None:
        """Wait for the cells, or with `cancel` stop them at once. No worker is left after it."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class CellTimeout(HarnessError):
    """The cell ran longer than it may, and was killed."""

    exit_code = 1

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"killed after {self.seconds:g} s, the time-out"


class WorkerDied(HarnessError):
    """The process that ran the cell ended before it answered.

    exit_code_of_worker: as `multiprocessing` has it, −n for signal n; None where not known
    """

    exit_code = 1

    def __init__(self, exit_code_of_worker: int | None = None) -> None:
        super().__init__(exit_code_of_worker)
        self.exit_code_of_worker = exit_code_of_worker

    def __str__(self) -> str:
        return f"its worker process died, {_ending(self.exit_code_of_worker)}"


def _ending(code: int | None) -> str:
    if code is None:
        return "before the cell had begun"
    if code >= 0:
        return f"with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"of {name}" + (": out of memory, perhaps" if name == "SIGKILL" else "")


def exit_refused(error: BaseException) -> PluginError:
    """What a cell that tried to end its process (`sys.exit`) has raised, as a cell's failure."""
    return PluginError(f"tried to end the process: {type(error).__name__}({error})")
