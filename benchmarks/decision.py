"""Attacks that see labels alone on LeNet-5 and MNIST, one thread: cost of a query, and strength.

    HARNESS_DATA=<folder with mnist/> python benchmarks/decision.py [STEPS [IMAGES [REPETITIONS]]]

HopSkipJump of STEPS steps, ours and its peers', then the boundary attack with as many queries as
ART's took. "Us a query" is CPU time over the queries that the network was asked; "own" divides it
by what one image costs in a bare forward pass of 96. Ours are run as in an attack cell. "At its
queries" is the median distance that ours reaches when every image has the queries that the peer
spent on the mean image. An image that was not broken counts with an infinite distance.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import peers
import torch
from common import interleaved, machine, table
from networks import Setting, craft, setting
from torch import Tensor

from harness.api import Threat
from harness.errors import HarnessError

STEPS, IMAGES, REPETITIONS, ROWS = 15, 20, 3, 96
MOST_OWN, LEAST_FASTER = 1.3, 3.0


@dataclass(frozen=True)
class Contest:
    """ours: the attack's selection, to which a budget may be added"""

    name: str
    norm: str
    ours: str
    theirs: dict[str, peers.Peer]


@dataclass
class Run:
    """What one side returned, and how many queries it spent in all."""

    make: Callable[[], tuple[Tensor, float]]
    x_adv: Tensor
    queries: float = 0

    def __call__(self) -> None:
        self.x_adv, self.queries = self.make()


def contests(steps: int) -> Iterator[Contest]:
    ours = f"hopskipjump:steps={steps}"
    for norm, order in (("L2", 2), ("Linf", math.inf)):
        theirs = {"ART": peers.art_labels("HopSkipJump", norm=order, max_iter=steps)}
        if (
            norm == "L2"
        ):  # in Linf CleverHans's takes the minimum of a tensor and a float: TypeError
            theirs["CleverHans"] = peers.cleverhans_hsj(steps)
        yield Contest("HopSkipJump", norm, ours, theirs)
    walk = {"ART": peers.art_labels("BoundaryAttack", targeted=False, max_iter=2 * steps)}
    yield Contest("Boundary", "L2", f"boundary:steps={60 * steps}", walk)


def ours(on: Setting, attack: str, norm: str) -> Run:
    def make() -> tuple[Tensor, float]:
        x_adv, ledger = craft(on, attack, Threat(norm, math.inf))
        return x_adv, float(ledger.forward.sum())

    return Run(make, on.x)


def theirs(on: Setting, peer: peers.Peer) -> Run:
    def make() -> tuple[Tensor, float]:
        torch.manual_seed(0)
        net = peers.Counting(on.net).eval()
        with torch.no_grad():
            x_adv = peer(net, on.x, on.y)
        return x_adv, net.forward_images

    return Run(make, on.x)


def reached(on: Setting, norm: str, x_adv: Tensor) -> float:
    """Median distance."""
    distance = Threat(norm, math.inf).distance(x_adv, on.x)
    return torch.where(on.broken(x_adv), distance, torch.inf).median().item()


def pass_cost(on: Setting) -> Callable[[], float]:
    """CPU seconds of one image in a bare forward pass."""
    rows = on.x.repeat(ROWS // len(on.x) + 1, 1, 1, 1)[:ROWS]

    def forward() -> None:
        with torch.no_grad():
            on.net(rows)

    return lambda: median(interleaved({"forward": forward}, 15)["forward"]) / ROWS


def rows(on: Setting, contest: Contest, repetitions: int) -> Iterator[list[object]]:
    """A row for each side."""
    sides = {"ours": ours(on, contest.ours, contest.norm)} | {
        name: theirs(on, peer) for name, peer in contest.theirs.items() if peers.installed(name)
    }
    costs: list[float] = []
    measure = pass_cost(on)
    seconds = interleaved({**sides, "passes": lambda: costs.append(measure())}, repetitions)
    each = {name: median(seconds[name]) / side.queries for name, side in sides.items()}
    for name, side in sides.items():
        queries = side.queries / len(on.x)
        same = "–"
        if name != "ours":
            unlimited = contest.ours.partition("=")[0] + "=100000"
            capped = ours(on, f"{unlimited},query_budget={round(queries)}", contest.norm)
            capped()
            same = f"{reached(on, contest.norm, capped.x_adv):.4g}"
        found = f"{reached(on, contest.norm, side.x_adv):.4g}"
        cost, own = each[name] * 1e6, each[name] / median(costs)
        faster = each[name] / each["ours"]
        label = f"{contest.name}, {contest.norm}"
        yield [label, name, round(queries), f"{cost:.0f}", own, f"{faster:.2f}", found, same]


def main() -> None:
    torch.set_num_threads(1)
    given = [int(text) for text in sys.argv[1:4]]
    steps, images, repetitions = given + [STEPS, IMAGES, REPETITIONS][len(given) :]
    try:
        on = setting("MNIST", images)
    except HarnessError as error:
        sys.exit(f"decision.py: {error}")
    made = [row for contest in contests(steps) for row in rows(on, contest, repetitions)]
    print(
        f"LeNet-5, {images} MNIST images, {steps} steps of HopSkipJump, one thread; "
        f"medians of {repetitions} interleaved runs\n"
    )
    print(f"{machine()}\n")
    header = ("attack", "who", "queries", "us a query", "own", "x ours", "median", "at its queries")
    print(table(header, made))
    print(f"\nAsked: own at most {MOST_OWN}, each peer at least {LEAST_FASTER} x ours.")
    print("\n".join(peers.missing()))


if __name__ == "__main__":
    main()
