"""Training and prediction under the 01 loss: what an iteration costs, and how that grows.

    HARNESS_DATA=<folder with cifar10/> python benchmarks/zero_one.py [name …]

Names: peer, growth, votes, prediction; all of them unless some are given. The images are CIFAR-10's
first two classes, 10,000 of 3,072 pixels; without HARNESS_DATA smoothed noise of the same shape.

The peer is a plain NumPy form of the same descent (projections kept, one argsort per candidate,
all cuts): the algorithm as anybody would write it down, with no screening and no batching. It is
also the stated floor of other people's figures: the authors' GPU code takes 64 ms an iteration.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from common import machine, table
from torch.nn import functional

from harness.allocator import keep_memory
from harness.api import Info, Run, TrainingSet
from harness.data import Files
from harness_plugins.datasets.cifar10 import Cifar10
from harness_plugins.defenses.zero_one import MLP01
from harness_plugins.sign_descent import Descent, Rule
from harness_plugins.sign_networks import SignNetwork, SignVotes
from harness_plugins.sign_pixels import Pixels
from harness_plugins.sign_training import TOGETHER

ROWS, PIXELS, UNITS, FEATURES = 10_000, 3_072, 20, 128
MOST_MS, MOST_SECONDS, LEAST_RATE, MOST_GIB = 5.0, 120.0, 0.8, 4.0
Images = tuple[torch.Tensor, torch.Tensor]


def images() -> Images:
    """(n, 3, 32, 32) in [0, 1] and their classes."""
    root = os.environ.get("HARNESS_DATA")
    if root:
        splits = Cifar10().load(Files(Path(root), "cifar10"))
        chosen = splits.train_y < 2
        x = torch.from_numpy(splits.train_x[chosen] / np.float32(255))
        return x, torch.from_numpy(splits.train_y[chosen])
    rng = torch.Generator().manual_seed(0)
    noise = functional.interpolate(torch.rand(ROWS, 3, 9, 9, generator=rng), 32, mode="bicubic")
    x = (noise.clamp(0, 1) * 255).round() / 255
    y = (x[:, 0].mean((1, 2)) - 0.5) * (x[:, 1].mean((1, 2)) - 0.5) > 0
    return x, y.long()


def rule(units: int = UNITS, features: int = FEATURES) -> Rule:
    return Rule(units, features, 0.75, 0.17, 0.2, None, "median", 0)


def cost(x: torch.Tensor, y: torch.Tensor, setting: Rule, networks: int, steps: int) -> float:
    """CPU milliseconds of an iteration of one network, after 30 that are not counted."""
    descent = Descent(Pixels.of(x), y == 1, setting, tuple(range(networks)))
    nets = descent.start("unbalanced")
    for iteration in range(30):
        descent.iterate(nets, iteration, "unbalanced")
    start = time.process_time()
    for iteration in range(30, 30 + steps):
        descent.iterate(nets, iteration, "unbalanced")
    return (time.process_time() - start) / steps / networks * 1e3


# --- the peer -------------------------------------------------------------------------------------


class Plain:
    """MLP01 by the book: one network, float32 projections, an argsort for every candidate."""

    def __init__(self, x: np.ndarray, y: np.ndarray, seed: int) -> None:
        self.rng, self.x, self.y = np.random.default_rng(seed), np.ascontiguousarray(x.T), y
        w = self.rng.standard_normal((UNITS, len(self.x))).astype(np.float32)
        self.w = w / np.linalg.norm(w, axis=1, keepdims=True)
        self.p = self.w @ self.x
        self.b = np.median(self.p, 1)
        self.u = self.rng.standard_normal(UNITS)
        self.u /= np.linalg.norm(self.u)
        self.c = 0.0

    def iterate(self) -> float:
        """One iteration; the accuracy on all images."""
        rows = np.concatenate(
            [
                self.rng.choice(own, len(own) * 3 // 4, replace=False)
                for own in (np.flatnonzero(self.y == 0), np.flatnonzero(self.y == 1))
            ]
        )
        y, on = self.y[rows], (self.p > self.b[:, None])[:, rows]
        total = self.u @ on
        value, self.c = cut(total, np.where(y, 1, -1))
        found = [
            (*cut(total + step * on[k], np.where(y, 1, -1)), k, step)
            for k in range(UNITS)
            for step in (0.2, -0.2)
        ]
        best = max(found, key=lambda each: each[0])
        if best[0] > value:
            self.u[best[2]] += best[3]
            length = np.linalg.norm(self.u)
            self.u, self.c = self.u / length, best[1] / length
        self._unit(rows, y, on)
        return float(((self.u @ (self.p > self.b[:, None]) > self.c) == self.y).mean())

    def _unit(self, rows: np.ndarray, y: np.ndarray, on: np.ndarray) -> None:
        i = self.rng.integers(UNITS)
        base = self.u @ on - self.u[i] * on[i]
        off, with_it = base > self.c, base + self.u[i] > self.c
        gain = (with_it == y).astype(int) - (off == y)
        active = np.flatnonzero(gain)
        p = self.p[i, rows]
        value, self.b[i] = cut(p, gain)
        found = []
        for j in self.rng.choice(len(self.x), FEATURES, replace=False):
            column = self.x[j, rows[active]]
            for step in (0.17, -0.17):
                found.append((*cut(p[active] + step * column, gain[active]), j, step))
        best = max(found, key=lambda each: each[0])
        if best[0] > value:
            self.w[i, best[2]] += best[3]
            length = np.linalg.norm(self.w[i])
            self.w[i] /= length
            self.p[i] = (self.p[i] + best[3] * self.x[best[2]]) / length
            self.b[i] = best[1] / length


def cut(q: np.ndarray, gain: np.ndarray) -> tuple[int, float]:
    """The best value and threshold."""
    if not len(q):
        return 0, 0.0
    order = q.argsort()
    place, value = q[order], gain[order][::-1].cumsum()[::-1].copy()
    value[1:][place[1:] == place[:-1]] = -len(q)
    t = int(value.argmax())
    return int(value[t]), float(place[0] - 0.01 if t == 0 else (place[t - 1] + place[t]) / 2)


# --- tables ---------------------------------------------------------------------------------------


def peer(data: Images) -> None:
    """Ours beside the plain form, the same data and settings, turn by turn."""
    x, y = data
    plain = Plain(x.flatten(1).numpy(), y.numpy() == 1, 0)
    for _ in range(30):
        plain.iterate()

    def theirs() -> float:
        start = time.process_time()
        for _ in range(20):
            plain.iterate()
        return (time.process_time() - start) / 20 * 1e3

    runs: dict[str, list[float]] = {"plain NumPy": [], "ours, 1": [], f"ours, {TOGETHER}": []}
    for _ in range(3):
        runs["plain NumPy"].append(theirs())
        runs["ours, 1"].append(cost(x, y, rule(), 1, 40))
        runs[f"ours, {TOGETHER}"].append(cost(x, y, rule(), TOGETHER, 10))
    base = median(runs["plain NumPy"])
    print(
        table(
            ("networks at once", "CPU ms an iteration and network", "x plain"),
            [(name, f"{median(ms):.2f}", f"{median(ms) / base:.2f}") for name, ms in runs.items()],
        ),
        f"\n\nAsked: at most {MOST_MS:g} ms.\n",
    )


def growth(data: Images) -> None:
    """One of n, F, d and h at a time."""
    x, y = data
    settings: list[tuple[str, Callable[[], float]]] = [
        (f"n = {n}", lambda n=n: cost(x[:n], y[:n], rule(), TOGETHER, 10))
        for n in (2500, 5000, 10000)
    ]
    settings += [
        (f"F = {f}", lambda f=f: cost(x, y, rule(features=f), TOGETHER, 10))
        for f in (64, 128, 256, 512)
    ]
    for pixels in (768, 1536, 3072):
        flat = x.flatten(1)[:, :pixels]
        settings.append((f"d = {pixels}", lambda f=flat: cost(f, y, rule(), TOGETHER, 10)))
    settings += [
        (f"h = {h}", lambda h=h: cost(x, y, rule(units=h), TOGETHER, 5)) for h in (20, 100, 400)
    ]
    rows = [(name, f"{median(run() for _ in range(3)):.2f}") for name, run in settings]
    print(table(("setting", "CPU ms an iteration and network"), rows))
    print(f"\nElsewhere n = {ROWS}, F = {FEATURES}, d = {PIXELS}, h = {UNITS}.\n")


def votes(data: Images) -> None:
    """Thirty-two networks of 1,000 iterations on all cores, and the memory of a hundred."""
    x, y = data
    train = TrainingSet(Info((3, 32, 32), 2, len(y)), x, y)
    torch.set_num_threads(os.cpu_count() or 1)
    start, cpu = time.perf_counter(), time.process_time()
    MLP01(votes=32).fit(train, Run(0, torch.device("cpu")))
    wall, spent = time.perf_counter() - start, time.process_time() - cpu
    print(f"32 networks x 1,000 iterations: {wall:.0f} s on {torch.get_num_threads()} threads,")
    print(f"{spent:.0f} CPU s. Asked: {MOST_SECONDS:.0f} s on two cores.")
    MLP01(votes=100, iterations=3).fit(train, Run(0, torch.device("cpu")))
    torch.set_num_threads(1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"Peak memory, with 100 networks trained: {peak:.2f} GiB. Asked: {MOST_GIB:g}.\n")


def prediction(data: Images) -> None:
    """A hundred votes on 2,000 images beside the bare product of their first layer."""
    torch.set_num_threads(os.cpu_count() or 1)
    x = data[0][:2000]
    rng = torch.Generator().manual_seed(0)
    net = SignVotes(
        SignNetwork(
            hidden=torch.randn(100, UNITS, PIXELS, generator=rng) / PIXELS**0.5,
            thresholds=torch.randn(100, UNITS, generator=rng),
            output=torch.randn(100, UNITS, generator=rng),
            bias=torch.zeros(100),
            votes_for=torch.ones(100, dtype=torch.int64),
            classes=2,
        )
    )
    weights, flat = net.hidden.flatten(0, 1), x.flatten(1)

    def seconds(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def batches() -> None:
        for part in x.split(250):
            net(part)

    with torch.no_grad():
        pairs = [(seconds(lambda: flat @ weights.T), seconds(batches)) for _ in range(7)]
    product, ours = (median(each) for each in zip(*pairs, strict=True))
    print(
        table(
            ("what", "images a second", "x product"),
            [
                ("float32 product alone", f"{len(x) / product:.0f}", "1.00"),
                ("100 votes", f"{len(x) / ours:.0f}", f"{product / ours:.2f}"),
            ],
        ),
        f"\n\n{torch.get_num_threads()} threads. Asked: {LEAST_RATE:g} of the product's rate.\n",
    )
    torch.set_num_threads(1)


TABLES = {"peer": peer, "growth": growth, "votes": votes, "prediction": prediction}


def main() -> None:
    keep_memory()
    torch.set_num_threads(1)
    print(machine(), "\n")
    data = images()
    for name in sys.argv[1:] or TABLES:
        TABLES[name](data)


if __name__ == "__main__":
    main()
