"""How long the command takes to answer where nothing is computed.

    python benchmarks/startup.py

Every run is a fresh process, and the cases take turns. The floor is an interpreter that does
nothing.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from statistics import median

from common import machine, table

REPETITIONS = 9
TARGET = 0.4
CASES = {
    "python -c pass": ["-c", "pass"],
    "harness --help": ["-m", "harness", "--help"],
    "harness plugins": ["-m", "harness", "plugins"],
}


def run(arguments: list[str]) -> tuple[float, float]:
    """Wall seconds and CPU seconds of one process."""
    before, begun = _cpu_of_children(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun, _cpu_of_children() - before


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for arguments in CASES.values():  # the files are read once before it counts
        run(arguments)
    for _ in range(REPETITIONS):
        for name, arguments in CASES.items():
            seconds[name].append(run(arguments))
    rows = []
    for name, pairs in seconds.items():
        wall, cpu = zip(*pairs, strict=True)
        rows.append([name, median(wall), min(wall), median(cpu)])
    print(f"{machine()}\n")
    print(table(("command", "wall, median", "wall, least", "CPU, median"), rows))
    print(f"\nSeconds, {REPETITIONS} fresh processes each. Target: less than {TARGET} s of wall.")


if __name__ == "__main__":
    main()
