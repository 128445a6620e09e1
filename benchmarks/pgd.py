"""PGD-40, Linf, on LeNet-5 and real MNIST, in one thread: how near to the bare passes?

    HARNESS_DATA=<folder with mnist/> python benchmarks/pgd.py

The floor is what no implementation can leave out: 40 forward and backward passes to the input,
parameters frozen, at the best of three batch sizes. Ours runs as in an attack cell: the harness's
own batch size, padding, per-sample random numbers and counting of queries. CleverHans and ART run
on the same frozen network, the same images and labels, with the same steps, step size and one
random start. Whatever has a batch size gets all three.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import interleaved, machine, ratio, table
from torch import Tensor, nn
from torch.nn import functional

from harness.api import Info, Run, Threat, TrainingSet
from harness.bench import batch_size
from harness.bind import bind
from harness.craft import Assault, Victim
from harness.data import DataOptions, Files, as_images, choose
from harness.errors import HarnessError
from harness.fit import seeded
from harness.options import AttackOptions, ModelOptions, Resolved, resolve
from harness.predict import Predictor
from harness.registry import discover
from harness.selection import parse_selection
from harness.verify import Samples

CPU = torch.device("cpu")
IMAGES, STEPS, EPS, STEP = 200, 40, 0.3, 0.3 * 2.5 / 40
SMALL_EPS = 1e-4  # fools no sample that is used here
TRAINED_ON = 10_000
BATCHES = (50, 100, 200)
REPETITIONS = 5
TARGET = 1.15


@dataclass(frozen=True)
class Case:
    """`run` gives the adversarial images; `passes`: backward passes per image, if it is known."""

    batch: int
    run: Callable[[], Tensor]
    passes: Callable[[], float] = lambda: float(STEPS)


@dataclass(frozen=True)
class Setting:
    """A trained network and images that it classifies correctly."""

    model: Resolved
    net: nn.Module
    samples: Samples

    @property
    def x(self) -> Tensor:
        return self.samples.x

    @property
    def y(self) -> Tensor:
        return self.samples.y

    @property
    def predictor(self) -> Predictor:
        return Predictor(self.net, 10, batch_size((1, 28, 28), CPU))


def selected(kind: str, text: str) -> Resolved:
    """What the command line would make of the text."""
    catalogue, selection = discover(), parse_selection(text, kind)
    find, options = {
        "dataset": (catalogue.dataset, DataOptions),
        "model": (catalogue.model, ModelOptions),
        "attack": (catalogue.attack, AttackOptions),
    }[kind]
    entry: Any = find(selection.name)
    return resolve(selection, entry, options, catalogue, kind)


def setting() -> Setting:
    """LeNet-5 after one epoch on 10,000 images, and the first 200 test images it has right."""
    dataset = selected("dataset", "mnist")
    folder = os.environ.get("HARNESS_DATA")
    files = Files(Path(folder) if folder else None, "mnist", dataset.entry.spec.downloads)
    splits = dataset.component.load(files)
    x = as_images(splits.train_x, slice(TRAINED_ON))
    y = torch.from_numpy(np.array(splits.train_y[:TRAINED_ON], np.int64))
    model = selected("model", "standard:arch=lenet5,epochs=1")
    with seeded(0):
        data = TrainingSet(Info((1, 28, 28), 10, len(x)), x, y)
        net = bind(model, lambda _other: None).fit(data, Run(0, CPU))
    net = net.eval().requires_grad_(requires_grad=False)
    ids, _ = choose(splits.test_y, "stratified", 2 * IMAGES, 0)
    x = as_images(splits.test_x, ids)
    y = torch.from_numpy(np.array(splits.test_y[ids], np.int64))
    everyone = Samples(x, y, Predictor(net, 10, IMAGES).labels(x, ids.tolist()), ids.tolist())
    right = (everyone.clean == y).nonzero()[:IMAGES, 0]
    return Setting(model, net, everyone.at(right))


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


def cleverhans(on: Setting) -> Iterator[tuple[str, Case]]:
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    def run(size: int) -> Tensor:
        return torch.cat(
            [
                projected_gradient_descent(
                    on.net, x, EPS, STEP, STEPS, np.inf, clip_min=0.0, clip_max=1.0, y=y
                ).detach()
                for x, y in zip(on.x.split(size), on.y.split(size), strict=True)
            ]
        )

    for size in BATCHES:
        yield f"CleverHans, batch {size}", Case(size, partial(run, size))


def art(on: Setting) -> Iterator[tuple[str, Case]]:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        on.net,
        nn.CrossEntropyLoss(),
        input_shape=(1, 28, 28),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    x, y = on.x.numpy(), on.y.numpy()
    for size in BATCHES:
        attack = ProjectedGradientDescent(
            classifier,
            norm=np.inf,
            eps=EPS,
            eps_step=STEP,
            max_iter=STEPS,
            num_random_init=1,
            batch_size=size,
            verbose=False,
        )
        yield f"ART, batch {size}", Case(size, partial(_generated, attack, x, y))


def _generated(attack: Any, x: np.ndarray, y: np.ndarray) -> Tensor:
    return torch.from_numpy(attack.generate(x, y=y))


def cases(on: Setting) -> tuple[dict[str, Case], list[str]]:
    """Every case by name, and why one is missing."""
    found = {f"floor, batch {size}": Case(size, partial(floor, on, size)) for size in BATCHES}
    missing = []
    for name, make in (("ours", ours), ("CleverHans", cleverhans), ("ART", art)):
        try:
            found.update(make(on))
        except ImportError as error:
            missing.append(f"{name}: not measured, {error}")
    return found, missing


def accuracy(on: Setting, x_adv: Tensor) -> float:
    return float((on.predictor.labels(x_adv, on.samples.ids) == on.y).double().mean())


def main() -> None:
    torch.set_num_threads(1)
    try:
        on = setting()
    except HarnessError as error:
        sys.exit(f"pgd.py: {error}")
    found, missing = cases(on)
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
    print("\n".join(missing))


if __name__ == "__main__":
    main()
