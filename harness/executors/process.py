"""Each cell in a worker process, `jobs` of them, which can be killed without harm to the others.

A worker is a pebble pool of one spawned process. In a pool of several, the processes share two
pipes and their locks: one that is killed at the wrong instant takes a lock with it, and one that
is killed while idle breaks the pool. With a pool each, a dead process is nobody else's affair, and
its pool is replaced.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from queue import LifoQueue
from types import TracebackType
from typing import Any, Self

from pebble import ProcessExpired, ProcessPool

from harness.executors import CellTimeout, RunCell, WorkerDied, exit_refused

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
HEALTH_CHECK = 1.0  # seconds between two looks at whether a silent worker's pool still lives
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Process:
    """Runs cells in `jobs` workers, which start as they are needed.

    timeout: seconds that a cell may run, its worker's start not counted; None: for ever
    threads: CPU threads of each worker
    """

    def __init__(self, jobs: int, timeout: float | None = None, threads: int = 1) -> None:
        self._workers = [_Worker(timeout, threads) for _ in range(jobs)]
        self._idle: LifoQueue[_Worker] = LifoQueue()  # the last to work has its imports done
        for worker in self._workers:
            self._idle.put(worker)
        # A worker dies with the thread that started it (see _die_with_the_driver), so threads
        # must not come and go: these last until `close`.
        self._threads = ThreadPoolExecutor(jobs, "cell", initializer=_keep_interrupts_out)

    def submit(self, run_cell: RunCell, spec: dict[str, Any]) -> Future[Any]:
        return self._threads.submit(self._run, run_cell, spec)

    def close(self, *, cancel: bool) -> None:
        """A cell that is stopped ends with CancelledError."""
        try:
            if not cancel:
                self._threads.shutdown()
        finally:  # a second Ctrl-C, while we wait, cancels too
            for worker in self._workers:
                worker.cancel()
            self._threads.shutdown(cancel_futures=True)
            for worker in self._workers:
                worker.stop()
            for worker in self._workers:
                worker.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(cancel=kind is not None)

    def _run(self, run_cell: RunCell, spec: dict[str, Any]) -> Any:
        worker = self._idle.get()
        try:
            return worker.run(run_cell, spec)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process at a time: after it died, another."""

    def __init__(self, timeout: float | None, threads: int) -> None:
        self._timeout = timeout
        self._threads = threads
        self._pool = self._new_pool()
        self._cell: Future[Any] | None = None
        self._cancelled = False

    def run(self, run_cell: RunCell, spec: dict[str, Any]) -> Any:
        """The cell's result or its own exception; CellTimeout, WorkerDied, CancelledError."""
        if not self._pool.active:  # its process was killed while idle
            self._replace_pool()
        self._cell = self._pool.schedule(_in_worker, (run_cell, spec), timeout=self._timeout)
        if self._cancelled:  # read after _cell is set, as `cancel` reads _cell after setting it
            self._cell.cancel()
        error = self._ending(self._cell)
        if isinstance(error, ProcessExpired | BrokenProcessPool):
            self._replace_pool()
            raise WorkerDied(getattr(error, "exitcode", None)) from None
        if isinstance(error, TimeoutError) and error.args[:1] == ("Task timeout",):  # pebble's
            raise CellTimeout(self._timeout or 0.0) from None
        return self._cell.result()

    def cancel(self) -> None:
        """Stop the cell that runs, and every later one."""
        self._cancelled = True
        if self._cell is not None:
            self._cell.cancel()

    def stop(self) -> None:
        """Begin to end; it takes a moment, which several workers may share."""
        self._pool.stop()

    def end(self) -> None:
        """Kill the process, if there is one, and wait for its death."""
        self.stop()
        self._pool.join()

    def _ending(self, cell: Future[Any]) -> BaseException | None:
        while True:
            alive = self._pool.active
            try:
                return cell.exception(timeout=HEALTH_CHECK)
            except TimeoutError:
                if not alive:  # it broke as the cell was handed over, and forgot the cell
                    return BrokenProcessPool()

    def _replace_pool(self) -> None:
        self.end()
        self._pool = self._new_pool()

    def _new_pool(self) -> Any:  # pebble types its methods in part
        return ProcessPool(
            max_workers=1,
            initializer=_prepare,
            initargs=(os.getpid(), self._threads),
            context=multiprocessing.get_context("spawn"),
        )


def _keep_interrupts_out() -> None:
    """Start a thread whose children never see Ctrl-C, not even before their first line runs.

    It is the driver that stops them; a signal mask is inherited. The resource tracker unblocks the
    signal in whichever thread first needs it, so it is started before.
    """
    if sys.platform != "win32":
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _prepare(driver: int, threads: int) -> None:
    """In a new worker, before it knows what it will run, so before torch is imported."""
    # Pebble's handler for SIGTERM waits for the interpreter; a cell deep in C would keep it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    if "torch" in sys.modules:  # by the driver's main module, which spawned workers import
        sys.modules["torch"].set_num_threads(threads)
    _die_with_the_driver(driver)


def _die_with_the_driver(driver: int) -> None:
    """At once, where Linux can see to it; elsewhere pebble's worker ends after its cell."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != driver:  # it died before we asked
        os._exit(1)


def _in_worker(run_cell: RunCell, spec: dict[str, Any]) -> Any:
    """The cell, with whatever it raises made fit to travel: pickled, it may not come back."""
    try:
        return run_cell(spec)
    except Exception as error:
        if _travels(error):
            raise
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    except BaseException as error:
        raise exit_refused(error) from error


def _travels(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False
