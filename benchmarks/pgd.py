"""PGD-40, Linf, on LeNet-5 and real MNIST, in one thread: how near to the bare passes?

    HARNESS_DATA=<folder with mnist/> python benchmarks/pgd.py

The floor is what no implementation can leave out: 40 forward and backward passes to the input,
parameters frozen, at the best of three batch sizes. Ours runs as in an attack cell: the harness's
own batch size, padding, per-sample random numbers and counting of queries. CleverHans and ART run
on the same frozen network, the same images and labels, with the same steps, step size and one
random start. Whatever has a batch size gets all three.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median

import peers
import torch
from common import interleaved, machine, ratio, table
from networks import Recipe, Setting, selected, trained
from torch import Tensor
from torch.nn import functional

from harness.api import Threat
from harness.craft import Assault, Victim
from harness.errors import HarnessError

IMAGES, STEPS, EPS, STEP = 200, 40, 0.3, 0.3 * 2.5 / 40
SMALL_EPS = 1e-4  # fools no sample that is used here
RECIPE = Recipe("mnist", "standard:arch=lenet5,epochs=1", 10_000)
BATCHES = (50, 100, 200)
REPETITIONS = 5
TARGET = 1.15


@dataclass(frozen=True)
class Case:
    """`run` gives the adversarial images; `passes`: backward passes per image, if it is known."""

    batch: int
    run: Callable[[], Tensor]
    passes: Callable[[], float] = lambda: float(STEPS)


def floor(on: Setting, batch: int) -> Tensor:
    """The bare passes."""
    for x, y in zip(on.x.split(batch), on.y.split(batch), strict=True):
        image = x.clone().requires_grad_()
        for _ in range(STEPS):
            loss = functional.cross_entropy(on.net(image), y, reduction="sum")
            torch.autograd.grad(loss, image)
    return on.x


def ours(on: Setting) -> Iterator[tuple[str, Case]]:
    victim, batch = Victim(on.model.entry.spec, on.predictor, on.net), on.predictor.chunk

    def case(options: str = "", eps: float = EPS) -> Case:
        attack = selected("attack", f"pgd:steps={STEPS}{options}")
        assault = Assault(attack, victim, 0, batch, lambda other: (on.net, other.entry.spec))
        make = partial(assault.craft, on.samples, Threat("Linf", eps))
        return Case(batch, lambda: make()[0], lambda: float(make()[1].backward.mean()))

    # BPDA of a model without a surrogate goes by its own gradients, and no sample leaves.
    yield "ours, all samples take all steps", case(",gradient=bpda")
    yield "ours, samples may leave and none does", case(eps=SMALL_EPS)
    yield "ours, fooled samples leave", case()


def theirs(on: Setting, name: str) -> Iterator[tuple[str, Case]]:
    options = {"norm": float("inf"), "eps": EPS, "eps_step": STEP, "max_iter": STEPS}
    peer = {
        "CleverHans": peers.cleverhans_pgd(EPS, STEP, STEPS),
        "ART": peers.art("ProjectedGradientDescent", num_random_init=1, **options),
    }[name]

    def run(size: int) -> Tensor:
        batches = zip(on.x.split(size), on.y.split(size), strict=True)
        return torch.cat([peer(on.net, x, y) for x, y in batches])

    for size in BATCHES:
        yield f"{name}, batch {size}", Case(size, partial(run, size))


def cases(on: Setting) -> dict[str, Case]:
    """Every case by name."""
    found = {f"floor, batch {size}": Case(size, partial(floor, on, size)) for size in BATCHES}
    found.update(ours(on))
    for name in ("CleverHans", "ART"):
        if peers.installed(name):
            found.update(theirs(on, name))
    return found


def accuracy(on: Setting, x_adv: Tensor) -> float:
    return float((on.predictor.labels(x_adv, on.samples.ids) == on.y).double().mean())


def main() -> None:
    torch.set_num_threads(1)
    try:
        on = trained("MNIST", RECIPE, IMAGES)
    except HarnessError as error:
        sys.exit(f"pgd.py: {error}")
    found = cases(on)
    seconds = interleaved({name: case.run for name, case in found.items()}, REPETITIONS)
    best = min((n for n in seconds if n.startswith("floor")), key=lambda n: median(seconds[n]))
    rows = []
    for name, case in found.items():
        left = "–" if name.startswith("floor") else f"{accuracy(on, case.run()):.1%}"
        relative = ratio(seconds[name], seconds[best])
        rows.append(
            [name, case.batch, f"{case.passes():.1f}", left, median(seconds[name]), relative]
        )
    print(f"PGD-{STEPS}, Linf, eps {EPS}, LeNet-5, {IMAGES} MNIST images, one thread\n")
    print(f"{machine()}\n")
    header = ("case", "batch", "passes per image", "accuracy left", "CPU seconds", "x floor")
    print(table(header, rows))
    print(f"\nMedians of {REPETITIONS} interleaved runs. Target: at most {TARGET} x floor where")
    print("every sample takes every step, and less than CleverHans and ART.")
    print("\n".join(peers.missing()))


if __name__ == "__main__":
    main()
