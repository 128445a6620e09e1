"""A whole substitute-model attack on CIFAR-10 0 vs 1, as the command runs it: 20 rounds, 20 epochs.

    HARNESS_DATA=<folder with cifar10/> python benchmarks/substitute.py

The target is MLP01 with 32 votes, trained first and not timed (its weights come from HARNESS_CACHE
if they are there). Timed, on the one thread that a cell has, is one `harness run` of the attack
alone at one ε: start, plan, 102,200 labels, training and augmenting, the images of all 1,800
samples after each round, the referee's checks, the tables. "Training alone" is what the
substitute's steps cost on random points of the same numbers: what no implementation can leave out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import machine, table

from harness.api import Info
from harness_plugins.attacks.substitute import PRESETS, Network
from harness_plugins.substitutes import Dual

MOST_SECONDS = 180.0
SIZES = [200, 400, 800, 1600, 3200] + [6400] * 15
BOARD = """
name = "substitute"
dataset = "cifar10:classes=0+1"
all_samples = true
models = [{ use = "mlp01", votes = 32, label = "MLP01" }]
attacks = ["uniform_noise:draws=1", "substitute"]

[[threat]]
norm = "Linf"
eps = ["1/16"]
"""


def run(folder: Path, attack: str) -> float:
    """Wall seconds of the command."""
    command = [sys.executable, "-m", "harness", "run", str(folder), "--attack", attack]
    begun = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"substitute.py: {done.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - begun


def training() -> float:
    """Wall seconds of the substitute's own steps."""
    torch.set_num_threads(1)
    info = Info((3, 32, 32), 2, 200)
    learner = Network(Dual().build(info), PRESETS["code"])
    points = {n: (torch.rand(n, *info.shape), torch.randint(2, (n,))) for n in set(SIZES)}
    begun = time.perf_counter()
    for n in SIZES:
        learner.learn(*points[n])
    return time.perf_counter() - begun


def main() -> None:
    if not os.environ.get("HARNESS_DATA"):
        sys.exit("substitute.py: set HARNESS_DATA to the folder with cifar10/")
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "board.toml").write_text(BOARD)
        run(folder, "uniform_noise:draws=1")
        whole = run(folder, "substitute")
    alone = training()
    print(table(("", "wall seconds"), [("whole attack", whole), ("training alone", alone)]))
    print(f"\nAsked: less than {MOST_SECONDS:.0f} s on two cores.")


if __name__ == "__main__":
    main()
