"""The Square attack on LeNet-5 and real MNIST, in one thread: overhead, and ART's at equal queries.

    HARNESS_DATA=<folder with mnist/> python benchmarks/score.py

"Own" is the CPU time of a run divided by what the forward passes that it made cost alone, in full
batches, measured beside it. Ours runs as in an attack cell: the harness's own batch size, padding,
per-sample random numbers, counting. ART's asks three times for each proposal, so that it makes a
third of ours in as many queries.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import peers
import torch
from common import interleaved, machine, ratio, table
from networks import Recipe, Setting, craft, trained
from torch import Tensor

from harness.api import Threat
from harness.errors import HarnessError

IMAGES, QUERIES, REPETITIONS = 96, 150, 3
EPS = {"Linf": 0.15, "L2": 2.0}
SMALL = 1e-4  # fools no sample that is used here
RECIPE = Recipe("mnist", "standard:arch=lenet5,epochs=1", 10_000)
TARGET = 1.3


@dataclass
class Case:
    """`make` gives the images and how many passes an image cost; kept from the last run."""

    make: Callable[[], tuple[Tensor, float]]
    threat: Threat
    x_adv: Tensor | None = None
    passes: float = 0.0

    def __call__(self) -> None:
        self.x_adv, self.passes = self.make()

    def left(self, on: Setting) -> str:
        if self.x_adv is None:
            return "–"
        broken = on.broken(self.x_adv) & self.threat.allows(self.x_adv, on.x)
        return f"{1 - broken.double().mean():.1%}"


def ours(on: Setting, threat: Threat) -> tuple[Tensor, float]:
    x_adv, ledger = craft(on, f"square:steps={QUERIES}", threat)
    return x_adv, float(ledger.forward.mean())


def arts(on: Setting, threat: Threat) -> tuple[Tensor, float]:
    np.random.seed(0)
    net = peers.Counting(on.net).eval()
    norm = {"Linf": np.inf, "L2": 2}[threat.norm]
    attack = peers.art("SquareAttack", norm=norm, eps=threat.eps, max_iter=QUERIES // 3 - 1)
    return attack(net, on.x, on.y), net.forward_images / len(on.x)


def bare(on: Setting) -> None:
    with torch.no_grad():
        for _ in range(QUERIES):
            on.net(on.x)


def cases(on: Setting) -> dict[str, Case]:
    found = {}
    for norm, eps in EPS.items():
        most, least = Threat(norm, eps), Threat(norm, SMALL)
        found[f"ours, {norm}, no sample leaves"] = Case(partial(ours, on, least), least)
        found[f"ours, {norm}, fooled samples leave"] = Case(partial(ours, on, most), most)
        if peers.installed("ART"):
            found[f"ART, {norm}, no sample leaves"] = Case(partial(arts, on, least), least)
            found[f"ART, {norm}, fooled samples leave"] = Case(partial(arts, on, most), most)
    return found


def main() -> None:
    torch.set_num_threads(1)
    try:
        on = trained("MNIST", RECIPE, IMAGES)
    except HarnessError as error:
        sys.exit(f"score.py: {error}")
    found = cases(on)
    seconds = interleaved({**found, "bare": partial(bare, on)}, REPETITIONS)
    rows = []
    for name, case in found.items():
        own = ratio(seconds[name], seconds["bare"]) * QUERIES / case.passes
        spent = median(seconds[name]) / len(on.x) * 1000
        rows.append([name, f"{case.threat.eps:g}", f"{case.passes:.1f}", spent, own, case.left(on)])
    print(f"Square, {QUERIES} queries at most, LeNet-5, {IMAGES} MNIST images, one thread\n")
    print(f"{machine()}\n")
    header = ("case", "eps", "passes per image", "CPU ms per image", "own", "accuracy left")
    print(table(header, rows))
    print(f"\nMedians of {REPETITIONS} interleaved runs. Asked: own at most {TARGET}.")
    print("\n".join(line for line in peers.missing() if line.startswith("ART")))


if __name__ == "__main__":
    main()
