"""What it costs that the C library gives memory back to the kernel between two passes.

    python benchmarks/allocator.py

PGD's bare passes on LeNet-5, 200 random images, each time in a fresh process, as a worker is. glibc
returns what torch frees and has it handed out anew, page by page and zeroed, in every step; with
its two thresholds raised it keeps it. The weights are random: no number below depends on them.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from statistics import median

import torch
from common import ALLOCATOR, machine, table
from torch.nn import functional

from harness.api import Info
from harness_plugins.architectures import LeNet5

IMAGES, STEPS, BATCHES, REPETITIONS = 200, 40, (50, 100, 200), 5
KEEPING = dict.fromkeys(ALLOCATOR, str(1 << 30))
CHILD = "--child"


def passes(batch: int) -> tuple[float, float, int]:
    """User seconds, system seconds and page faults of the passes, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = LeNet5().build(Info((1, 28, 28), 10, IMAGES)).eval().requires_grad_(requires_grad=False)
    images, labels = torch.rand(IMAGES, 1, 28, 28), torch.randint(10, (IMAGES,))
    before = resource.getrusage(resource.RUSAGE_SELF)
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        image = x.clone().requires_grad_()
        for _ in range(STEPS):
            torch.autograd.grad(functional.cross_entropy(net(image), y), image)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return (
        after.ru_utime - before.ru_utime,
        after.ru_stime - before.ru_stime,
        after.ru_minflt - before.ru_minflt,
    )


def in_child(batch: int, settings: dict[str, str]) -> tuple[float, float, int]:
    own = {k: v for k, v in os.environ.items() if k not in ALLOCATOR}
    command = [sys.executable, __file__, CHILD, str(batch)]
    done = subprocess.run(
        command, env={**own, **settings}, stdout=subprocess.PIPE, text=True, check=True
    )
    user, system, faults = json.loads(done.stdout)
    return user, system, faults


def main() -> None:
    cases = {
        (kind, batch): settings
        for batch in BATCHES
        for kind, settings in (("as it comes", {}), ("keeping", KEEPING))
    }
    runs: dict[tuple[str, int], list[tuple[float, float, int]]] = {case: [] for case in cases}
    for _ in range(REPETITIONS):
        for (kind, batch), settings in cases.items():
            runs[kind, batch].append(in_child(batch, settings))
    rows = []
    for (kind, batch), measured in runs.items():
        user, system, faults = (median(column) for column in zip(*measured, strict=True))
        rows.append([f"{kind}, batch {batch}", user, system, f"{faults:,.0f}"])
    print(f"{STEPS} passes over {IMAGES} images, one thread, a fresh process each time\n")
    print(f"{machine()}\n")
    print(table(("allocator", "user seconds", "system seconds", "page faults"), rows))
    print(f"\nMedians of {REPETITIONS} interleaved runs. keeping: {' '.join(KEEPING)} = 1 GiB.")


if __name__ == "__main__":
    if CHILD in sys.argv:
        print(json.dumps(passes(int(sys.argv[-1]))))
    else:
        main()
