"""What the benchmarks share: a description of the machine, fair timing, and a Markdown table."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from harness.allocator import keep_memory
from harness.provenance import provenance

ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def machine() -> str:
    """One line: processor, cores, load, Python, torch, and how the C library keeps memory."""
    facts = provenance("cpu", {})
    # glibc alone reads these; they change how often freed memory goes back to the kernel.
    kept = [f"{name}={os.environ[name]}" for name in ALLOCATOR if name in os.environ]
    return ", ".join(
        [
            f"{facts['cpu']} (family {_cpu_family()}), {os.cpu_count()} cores",
            f"load {os.getloadavg()[0]:.1f}",
            f"Python {platform.python_version()}",
            f"torch {version('torch')}",
            f"allocator {' '.join(kept) or _allocator()}",
        ]
    )


def _allocator() -> str:
    """What the harness's workers do to it, where this script has done it too."""
    return "keeps memory" if keep_memory.cache_info().currsize else "as it comes"


def _cpu_family() -> str:
    """Virtual machines hide a processor's name; its family and model tell what it is."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    facts = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    return f"{facts.get('cpu family', 'unknown')}, model {facts.get('model', 'unknown')}"


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    repetitions: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds of each case, after one run of each that is not timed.

    Every repetition runs all cases, so that a busy machine is busy for all of them, and begins one
    case later than the last did, so that none always follows the same one.
    """
    names = list(cases)
    for name in names:
        cases[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repetitions):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            begun = clock()
            cases[name]()
            seconds[name].append(clock() - begun)
    return seconds


def ratio(case: Sequence[float], floor: Sequence[float]) -> float:
    """The median of the ratios of runs that were made side by side."""
    return statistics.median(c / f for c, f in zip(case, floor, strict=True))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: floats to three decimals, the first column to the left."""
    texts = [
        [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(header, *texts, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        others = (c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))
        return "| " + " | ".join([first, *others]) + " |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join(map(line, [list(header), rule, *texts]))
