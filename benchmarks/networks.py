"""Trained networks and images for the benchmarks, and our attacks on them as in an attack cell."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.allocator import keep_memory
from harness.api import Info, Run, Threat, TrainingSet
from harness.bench import batch_size
from harness.bind import bind
from harness.craft import Assault, Victim
from harness.data import DataOptions, Files, as_images, choose
from harness.fit import seeded
from harness.options import AttackOptions, ModelOptions, Resolved, resolve
from harness.predict import Predictor
from harness.registry import discover
from harness.selection import parse_selection
from harness.target import Ledger
from harness.verify import Samples

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """A trained network and images that it classifies correctly."""

    name: str
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
        return Predictor(self.net, 10, batch_size(tuple(self.x.shape[1:]), CPU))

    def broken(self, x_adv: Tensor) -> Tensor:
        """Which images are adversarial and in the box, bool (n,)."""
        boxed = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(dim=1)
        return boxed & (self.predictor.labels(x_adv, self.samples.ids) != self.y)


@dataclass(frozen=True)
class Recipe:
    """dataset and model: as on the command line; trained_on: how many training images."""

    dataset: str
    model: str
    trained_on: int


RECIPES = {
    "digits": Recipe("digits", "standard:arch=mlp,epochs=30", 2_000),
    "digits, AT": Recipe("digits", "at:arch=mlp,eps=0.15,epochs=20", 2_000),
    "MNIST": Recipe("mnist", "standard:arch=lenet5,epochs=2", 20_000),
    "MNIST, AT": Recipe("mnist", "at:arch=lenet5,eps=0.3,epochs=4", 20_000),
    "Fashion": Recipe("fashion_mnist", "standard:arch=lenet5,epochs=3", 20_000),
    "Fashion, AT": Recipe("fashion_mnist", "at:arch=lenet5,eps=0.1,epochs=2", 15_000),
}


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


def setting(name: str, images: int) -> Setting:
    """The network of `RECIPES`; see `trained`."""
    return trained(name, RECIPES[name], images)


def trained(name: str, recipe: Recipe, images: int) -> Setting:
    """A network trained now, and the first test images that it has right.

    Data sets are read from the folder that HARNESS_DATA names. Raises HarnessError without it.
    """
    keep_memory()
    dataset = selected("dataset", recipe.dataset)
    folder = os.environ.get("HARNESS_DATA")
    files = Files(Path(folder) if folder else None, recipe.dataset, dataset.entry.spec.downloads)
    splits = dataset.component.load(files)
    x = as_images(splits.train_x, slice(recipe.trained_on))
    y = torch.from_numpy(np.array(splits.train_y[: recipe.trained_on], np.int64))
    model = selected("model", recipe.model)
    with seeded(0):
        data = TrainingSet(Info(tuple(x.shape[1:]), 10, len(x)), x, y)
        net = bind(model, lambda _other: None).fit(data, Run(0, CPU))
    net = net.eval().requires_grad_(requires_grad=False)
    ids, _ = choose(splits.test_y, "stratified", min(4 * images, len(splits.test_y)), 0)
    x = as_images(splits.test_x, ids)
    y = torch.from_numpy(np.array(splits.test_y[ids], np.int64))
    everyone = Samples(x, y, Predictor(net, 10, 96).labels(x, ids.tolist()), ids.tolist())
    right = (everyone.clean == y).nonzero()[:images, 0]
    return Setting(name, model, net, everyone.at(right))


def craft(on: Setting, attack: str, threat: Threat) -> tuple[Tensor, Ledger]:
    """Our attack's images and what they cost, as in an attack cell."""
    victim = Victim(on.model.entry.spec, on.predictor, on.net)
    chosen = selected("attack", attack)
    assault = Assault(
        chosen, victim, 0, on.predictor.chunk, lambda other: (on.net, other.entry.spec)
    )
    return assault.craft(on.samples, threat)
