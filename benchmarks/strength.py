"""Mean distances of minimum-norm attacks beside other libraries' at equal budget.

    HARNESS_DATA=<folder with mnist/ and fashion_mnist/> python benchmarks/strength.py [NAME ...]

On digits, MNIST and Fashion-MNIST, each plainly and adversarially trained, the same images for
all. An image that was not broken counts with the largest distance that any attack needed for it,
so that failing does not pay. "Ratio" is our mean over the best peer's: at most 1.01 is asked.
NAME picks networks (`MNIST`) or attacks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import peers
import torch
from attacks import CW, SEARCH
from common import machine, table
from networks import RECIPES, Setting, craft, setting
from torch import Tensor

from harness.api import Threat
from harness.errors import HarnessError

IMAGES = 50
MINIMUM = float("inf")
TARGET = 1.01
ART_CW = {
    "binary_search_steps": 9,
    "max_iter": 10,  # a quarter of the others' passes: its line search makes 13 an iteration
    "learning_rate": 0.05,
    "initial_const": 0.01,
    "batch_size": IMAGES,
}


@dataclass(frozen=True)
class Contest:
    """One attack under one norm, ours and its peers'."""

    name: str
    norm: str
    ours: str
    theirs: dict[str, peers.Peer]


CONTESTS = (
    Contest(
        "C&W 9x100",
        "L2",
        f"cw:{SEARCH}",
        {
            "CleverHans": peers.cleverhans_cw(100, 9, 0.05, 0.01),
            "foolbox": peers.foolbox("L2CarliniWagnerAttack", stepsize=0.05, **CW),
            "ART": peers.art("CarliniL2Method", **ART_CW),
        },
    ),
    Contest(
        "DeepFool",
        "L2",
        "deepfool",
        {
            "foolbox": peers.foolbox("L2DeepFoolAttack", steps=50),
            "ART": peers.art("DeepFool", max_iter=50, epsilon=0.02, batch_size=IMAGES),
        },
    ),
    Contest(
        "DeepFool",
        "Linf",
        "deepfool",
        {"foolbox": peers.foolbox("LinfDeepFoolAttack", steps=50)},
    ),
    Contest("DDN 100", "L2", "ddn", {"foolbox": peers.foolbox("DDNAttack", steps=100)}),
    Contest(
        "EAD 9x100, EN",
        "L1",
        f"ead:{SEARCH},rule=EN,beta=0.01",
        {
            "foolbox": peers.foolbox(
                "EADAttack", initial_stepsize=0.05, regularization=0.01, decision_rule="EN", **CW
            ),
        },
    ),
    *(
        Contest("FAB 50", norm, "fab:steps=50", {"adv-lib": peers.advlib("fab", norm=p, n_iter=50)})
        for norm, p in (("Linf", MINIMUM), ("L2", 2), ("L1", 1))
    ),
)


def distances(on: Setting, norm: str, x_adv: Tensor) -> Tensor:
    """Of the images that are adversarial and in the box; infinite for the others, (n,)."""
    return torch.where(on.broken(x_adv), Threat(norm, MINIMUM).distance(x_adv, on.x), MINIMUM)


def rows(on: Setting, contest: Contest) -> Iterator[list[object]]:
    found = {
        "ours": distances(
            on, contest.norm, craft(on, contest.ours, Threat(contest.norm, MINIMUM))[0]
        )
    }
    for name, peer in contest.theirs.items():
        if peers.installed(name):
            torch.manual_seed(0)
            found[name] = distances(on, contest.norm, peer(on.net, on.x, on.y))
    everyone = torch.stack(list(found.values()))
    finite = torch.where(everyone.isfinite(), everyone, 0.0)
    worst = finite.amax(dim=0)
    means = {n: torch.where(d.isfinite(), d, worst).mean().item() for n, d in found.items()}
    best = min((m for n, m in means.items() if n != "ours"), default=float("nan"))
    shown = [f"{n} {means[n]:.4g} ({d.isfinite().double().mean():.0%})" for n, d in found.items()]
    yield [on.name, f"{contest.name}, {contest.norm}", "; ".join(shown), means["ours"] / best]


def main() -> None:
    torch.set_num_threads(1)
    asked = sys.argv[1:]
    nets = [n for n in RECIPES if n in asked] or list(RECIPES)
    chosen = [c for c in CONTESTS if any(a in c.name for a in asked)] or CONTESTS
    made: list[list[object]] = []
    try:
        for name in nets:
            on = setting(name, IMAGES)
            made += [row for contest in chosen for row in rows(on, contest)]
    except HarnessError as error:
        sys.exit(f"strength.py: {error}")
    print(f"Mean distance (success) over {IMAGES} images, an image not broken with the largest\n")
    print(f"{machine()}\n")
    print(table(("network", "attack", "who: mean distance (success)", "ratio"), made))
    print(f"\nTarget: ratio at most {TARGET}.")
    print("\n".join(peers.missing()))


if __name__ == "__main__":
    main()
