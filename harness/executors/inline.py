"""In this process, one cell after the other: the default for one job, and the one to debug with."""

from __future__ import annotations

from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from harness.executors import RunCell, exit_refused


class Inline:
    """Runs a cell when it is submitted. KeyboardInterrupt ends the run, not the cell."""

    def submit(self, run_cell: RunCell, spec: dict[str, Any]) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(run_cell(spec))
        except KeyboardInterrupt:
            raise
        except Exception as error:
            future.set_exception(error)
        except BaseException as error:  # sys.exit in a plugin must not end the run in silence
            future.set_exception(exit_refused(error))
        return future

    def close(self, *, cancel: bool) -> None:
        """Nothing runs between two calls of `submit`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(cancel=kind is not None)
