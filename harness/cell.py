"""One cell, run anywhere: the function that executors call. Strangers' code runs here alone.

`run_cell(task)` takes what `plan.task` wrote and gives a `Result`. Whatever a plugin does, but for
an interrupt, becomes a status with a reason.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import torch

from harness import attack_cell
from harness.allocator import keep_memory
from harness.bench import Bench, Result
from harness.errors import HarnessError
from harness.fit import fitted
from harness.predict import out_of_memory


def run_cell(task: dict[str, Any], progress: Callable[[int, int], None] | None = None) -> Result:
    """Run a cell. Never raises but on an interrupt: a failure is a result."""
    steady(int(task["threads"]))
    wall, cpu = time.time(), time.process_time()
    bench: Bench | None = None
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for records, plugins print too
            bench = Bench.of(task, progress or (lambda _done, _total: None))
            result = fit(bench) if task["kind"] == "fit" else attack_cell.run(bench)
    except (Exception, SystemExit) as error:  # a plugin may well call sys.exit
        result = failure(error, bench)
    spent = {
        "start": wall,
        "end": time.time(),
        "wall_seconds": time.time() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }
    return Result(**{**vars(result), "cost": {**spent, **result.cost}})


def steady(threads: int) -> None:
    """Set torch up so that the same cell gives the same bits again on one machine, and fast."""
    keep_memory()
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False  # a thousandth off, in the referee's scores too
    torch.backends.cuda.matmul.allow_tf32 = False


def failure(error: BaseException, bench: Bench | None = None) -> Result:
    """What went wrong, in one line, with the place in the bench's plugins where it did.

    The whole traceback goes to stderr where HARNESS_DEBUG is set.
    """
    if os.environ.get("HARNESS_DEBUG"):
        traceback.print_exception(error)
    status = "oom" if out_of_memory(error) else "failed"
    text = " ".join(str(error).split())[:500]
    if isinstance(error, HarnessError):
        return Result(status, text)
    place = _place(error, bench.packages if bench else frozenset())
    return Result(status, f"{type(error).__name__}: {text}{place}")


def _place(error: BaseException, packages: Set[str]) -> str:
    """' (file:line)' of the last frame of each of the packages: what their authors wrote, not the
    library's line below it. Of the innermost frame where none is theirs."""
    frames = list(traceback.walk_tb(error.__traceback__))
    last = {str(f.f_globals.get("__name__")).split(".")[0]: at for at, (f, _) in enumerate(frames)}
    own = sorted(at for package, at in last.items() if package in packages)
    shown = [frames[at] for at in own] or frames[-1:]
    places = ", ".join(f"{Path(f.f_code.co_filename).name}:{line}" for f, line in shown)
    return f" ({places})" if places else ""


def fit(bench: Bench) -> Result:
    """Train, or take from the cache; predict the evaluated images twice.

    The cost is the training's, whenever that was.
    """
    module, weights, trained = fitted(bench.model, bench.seed, bench.workshop, bench.progress)
    predictor = bench.predictor(module)
    ids, _ = bench.ids()
    x, y = bench.images(ids), torch.from_numpy(bench.arrays.test_y[ids]).to(bench.device)
    first = predictor.labels(x, ids.tolist())
    again = predictor.labels(x.flip(0), ids[::-1].tolist()).flip(0)
    flags = []
    if changed := int((first != again).sum()):
        flags.append(f"labels of {changed} of {len(ids)} images changed between two calls")
    correct = (first == y) & (again == y)
    return Result(
        "ok",
        facts={
            "clean_accuracy": float(correct.double().mean()),
            "flags": flags,
            "notes": trained.get("notes", []),  # not with weights that were kept before there were
            "trained_with": trained["with"],
        },
        cost=trained["cost"],
        weights=weights,
        arrays={
            "ids": ids,
            "y": bench.arrays.test_y[ids],
            "clean": torch.where(correct, first, torch.where(first == y, again, first))
            .cpu()
            .numpy(),
        },
        distributions=bench.distributions,
        device=bench.device_name,
    )
