"""White-box attacks on LeNet-5 and MNIST, one thread: passes, overhead and strength beside peers.

    HARNESS_DATA=<folder with mnist/> python benchmarks/attacks.py [NAME ...]

"Own" is the CPU time of a run divided by what its passes cost alone, measured beside it: forward
passes without graph, and a backward pass as what forward and backward together cost more. Ours run
as in an attack cell, with padding, counting and the referee's batch size; peers get the same
images, labels and frozen network in one batch. NAME picks rows of the table by their first column.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import peers
import torch
from common import interleaved, machine, table
from networks import Setting, craft, setting
from torch import Tensor
from torch.nn import functional

from harness.api import Threat
from harness.errors import HarnessError

IMAGES, REPETITIONS = 96, 3
MINIMUM = float("inf")
SEARCH = "steps=100,search_steps=9,lr=0.05,c=0.01"
CW = {"binary_search_steps": 9, "steps": 100, "initial_const": 0.01}
PGD = "pgd:steps=40,rel_step=0.03333333333333333"


@dataclass(frozen=True)
class Contest:
    """One attack, ours and its peers'. `eps` is infinite for a minimum-norm attack.

    most: forward and backward passes per image, and own, at most
    """

    name: str
    norm: str
    ours: str
    theirs: dict[str, peers.Peer]
    most: tuple[float, float, float] | None = None
    eps: float = MINIMUM
    on: str = "MNIST"


CONTESTS = (
    Contest(
        "PGD-40, adversarially trained",
        "Linf",
        PGD,
        {
            "foolbox": peers.foolbox_within(
                "LinfProjectedGradientDescentAttack", 0.3, rel_stepsize=1 / 30, steps=40
            ),
            "CleverHans": peers.cleverhans_pgd(0.3, 0.01, 40),
        },
        (40, 40, 1.1),
        0.3,
        "MNIST, AT",
    ),
    Contest(
        "PGD-40, undefended",
        "Linf",
        PGD,
        {
            "foolbox": peers.foolbox_within(
                "LinfProjectedGradientDescentAttack", 0.3, rel_stepsize=1 / 30, steps=40
            ),
            "CleverHans": peers.cleverhans_pgd(0.3, 0.01, 40),
        },
        None,
        0.3,
    ),
    Contest(
        "C&W 9x100",
        "L2",
        f"cw:{SEARCH}",
        {
            "CleverHans": peers.cleverhans_cw(100, 9, 0.05, 0.01),
            "foolbox": peers.foolbox("L2CarliniWagnerAttack", stepsize=0.05, **CW),
        },
        (812, 811, 1.2),
    ),
    Contest(
        "DeepFool",
        "L2",
        "deepfool",
        {
            "foolbox": peers.foolbox("L2DeepFoolAttack", steps=50),
            "adv-lib": peers.advlib("df", steps=50),
        },
        (9, 80, 1.4),
    ),
    Contest(
        "DDN 100",
        "L2",
        "ddn:steps=100",
        {
            "foolbox": peers.foolbox("DDNAttack", steps=100),
            "adv-lib": peers.advlib("ddn", steps=100, levels=None),
        },
        (100, 100, 1.25),
    ),
    Contest(
        "FAB 50",
        "L2",
        "fab:steps=50,search=1",
        {"adv-lib": peers.advlib("fab", norm=2, n_iter=50)},
        (101, 450, 1.25),
    ),
    Contest(
        "FAB 50",
        "Linf",
        "fab:steps=50,search=1",
        {"adv-lib": peers.advlib("fab", norm=MINIMUM, n_iter=50)},
    ),
    Contest(
        "EAD 9x100, EN",
        "L1",
        f"ead:{SEARCH},rule=EN,beta=0.01",
        {
            "foolbox": peers.foolbox(
                "EADAttack", initial_stepsize=0.05, regularization=0.01, decision_rule="EN", **CW
            )
        },
        (490, 249, 1.3),
    ),
    Contest("PDGD 500", "L2", "pdgd", {"adv-lib": peers.advlib("pdgd")}, (500, 500, 1.2)),
    *(
        Contest(
            "PDPGD 500", norm, "pdpgd", {"adv-lib": peers.advlib("pdpgd", norm=p)}, (500, 500, 1.4)
        )
        for norm, p in (("Linf", MINIMUM), ("L1", 1), ("L0", 0))
    ),
)


@dataclass
class Run:
    """One side of a contest: what it returned, and its passes per image."""

    make: Callable[[], tuple[Tensor, float, float]]
    x_adv: Tensor = field(default_factory=lambda: torch.empty(0))
    passes: tuple[float, float] = (0.0, 0.0)

    def __call__(self) -> None:
        self.x_adv, *passes = self.make()
        self.passes = (passes[0], passes[1])


def ours(on: Setting, contest: Contest) -> Run:
    def make() -> tuple[Tensor, float, float]:
        x_adv, ledger = craft(on, contest.ours, Threat(contest.norm, contest.eps))
        return x_adv, float(ledger.forward.mean()), float(ledger.backward.mean())

    return Run(make)


def theirs(on: Setting, peer: peers.Peer) -> Run:
    def make() -> tuple[Tensor, float, float]:
        torch.manual_seed(0)
        net = peers.Counting(on.net).eval()
        x_adv = peer(net, on.x, on.y)
        n = len(on.x)
        return x_adv, net.forward_images / n, net.backward_images / n

    return Run(make)


def forward(on: Setting) -> None:
    with torch.no_grad():
        on.net(on.x)


def both(on: Setting) -> None:
    x = on.x.clone().requires_grad_()
    torch.autograd.grad(functional.cross_entropy(on.net(x), on.y, reduction="sum"), x)


def pass_costs(on: Setting) -> Callable[[], tuple[float, float]]:
    """Seconds of one forward pass, and of what a backward pass adds, on all images."""

    def measure() -> tuple[float, float]:
        cases = {"forward": lambda: forward(on), "both": lambda: both(on)}
        seconds = {name: median(s) for name, s in interleaved(cases, 15).items()}
        return seconds["forward"], seconds["both"] - seconds["forward"]

    return measure


def strength(on: Setting, contest: Contest, x_adv: Tensor) -> tuple[str, str, str]:
    """Accuracy left or success, mean and median distance over the images that fool."""
    broken = on.broken(x_adv)
    if contest.eps != MINIMUM:
        broken &= Threat(contest.norm, contest.eps).within(x_adv, on.x)
        return f"{1 - broken.double().mean():.1%} left", "–", "–"
    sizes = Threat(contest.norm, MINIMUM).distance(x_adv, on.x)[broken]
    return f"{broken.double().mean():.0%}", f"{sizes.mean():.4g}", f"{sizes.median():.4g}"


def rows(contest: Contest, on: Setting) -> list[list[object]]:
    sides = {"ours": ours(on, contest)} | {
        name: theirs(on, peer) for name, peer in contest.theirs.items() if peers.installed(name)
    }
    costs: list[tuple[float, float]] = []
    measure = pass_costs(on)
    timed = {**sides, "passes": lambda: costs.append(measure())}
    seconds = interleaved(timed, REPETITIONS)
    f, b = (median(c[i] for c in costs) for i in (0, 1))
    made = []
    for name, side in sides.items():
        spent = median(seconds[name])
        own = spent / (side.passes[0] * f + side.passes[1] * b)
        at_most = "–"
        if name == "ours" and contest.most:
            at_most = f"{contest.most[0]:g}/{contest.most[1]:g}, {contest.most[2]:g}"
        passes = f"{side.passes[0]:.1f}/{side.passes[1]:.1f}"
        label = f"{contest.name}, {contest.norm}"
        timing = [label, name, passes, spent / len(on.x) * 1000, own, at_most]
        made.append([*timing, *strength(on, contest, side.x_adv)])
    return made


def main() -> None:
    torch.set_num_threads(1)
    wanted = [c for c in CONTESTS if not sys.argv[1:] or any(a in c.name for a in sys.argv[1:])]
    try:
        settings = {name: setting(name, IMAGES) for name in dict.fromkeys(c.on for c in wanted)}
    except HarnessError as error:
        sys.exit(f"attacks.py: {error}")
    print(
        f"LeNet-5, {IMAGES} MNIST images, one thread; medians of {REPETITIONS} interleaved runs\n"
    )
    print(f"{machine()}\n")
    header = ("attack", "who", "passes f/b per image", "CPU ms per image", "own", "at most")
    made = [row for contest in wanted for row in rows(contest, settings[contest.on])]
    print(table((*header, "success", "mean distance", "median"), made))
    print("\n".join(["", *peers.missing()]).rstrip())


if __name__ == "__main__":
    main()
