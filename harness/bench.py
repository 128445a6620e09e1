"""A task unpacked: plugins looked up, data opened, the device chosen.

Fit cells and attack cells work on a `Bench` and leave a `Result`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.budget import Epsilon
from harness.craft import Victim, surrogate_of
from harness.data import Arrays, DataRef, as_images, choose
from harness.errors import PluginError
from harness.fit import Workshop, digest, from_cache
from harness.installed import versions
from harness.manifest import ThreatRow
from harness.options import AttackOptions, ModelOptions, Resolved, resolve
from harness.predict import Predictor
from harness.registry import Catalogue, discover
from harness.selection import parse_selection
from harness.verify import Samples

CHUNK_VALUES = 80_000  # input values of a batch on a CPU: the fastest batches fit its caches
MOST_ROWS = 512


@dataclass(frozen=True)
class Result:
    """What a cell leaves. `examples` are the adversarial images, where they are to be kept."""

    status: str
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    arrays: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    examples: Mapping[str, np.ndarray[Any, Any]] | None = None
    distributions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""


@dataclass(frozen=True)
class Bench:
    """A task unpacked: plugins looked up, data opened, the device chosen.

    others: models that the attack refers to, by the names of their weights
    """

    task: Mapping[str, Any]
    model: Resolved
    attack: Resolved | None
    threat: ThreatRow | None
    ref: DataRef
    arrays: Arrays
    device: torch.device
    progress: Callable[[int, int], None]
    others: dict[str, nn.Module] = field(default_factory=dict)

    @classmethod
    def of(cls, task: Mapping[str, Any], progress: Callable[[int, int], None]) -> Bench:
        catalogue = plugins()
        ref = DataRef.from_dict(task["data"]["ref"])
        return cls(
            task=task,
            model=_resolve_model(task["model"], catalogue),
            attack=_resolve_attack(task["attack"], catalogue) if task["attack"] else None,
            threat=_threat(task["threat"]) if task["threat"] else None,
            ref=ref,
            arrays=_open(ref),
            device=torch.device(task["device"]),
            progress=progress,
        )

    @property
    def seed(self) -> int:
        return int(self.task["seed"])

    @property
    def batch(self) -> int:
        return int(self.task["batch"] or batch_size(self.ref.shape, self.device))

    @property
    def workshop(self) -> Workshop:
        cache = Path(self.task["cache"])
        identity = self.task["data"]["identity"]
        fresh = bool(self.task["fresh"])
        return Workshop(self.ref, identity, cache, self.device, self.batch, fresh)

    @property
    def device_name(self) -> str:
        """The GPU's name, or `cpu`."""
        if self.device.type != "cuda":
            return "cpu"
        return str(torch.cuda.get_device_name(self.device))

    @property
    def distributions(self) -> dict[str, str]:
        """Versions of the distributions whose plugins took part, and of what those require."""
        parts = self._parts()
        required = {name: v for p in parts for name, v in versions(p.entry.spec).items()}
        return required | {p.entry.dist: p.entry.version for p in parts}

    @property
    def packages(self) -> frozenset[str]:
        """The top-level packages, or modules, of the plugins that take part."""
        return frozenset(re.split("[.:]", p.entry.spec.factory)[0] for p in self._parts())

    def _parts(self) -> list[Resolved]:
        return [*_all_of(self.model), *(_all_of(self.attack) if self.attack else [])]

    def ids(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Test images that are evaluated, and those that are seed points."""
        data = self.task["data"]
        return choose(self.arrays.test_y, data["how"], data["limit"], data["seed_points"])

    def images(self, ids: np.ndarray[Any, Any]) -> Tensor:
        return as_images(self.arrays.test_x, ids).to(self.device)

    def predictor(self, module: nn.Module) -> Predictor:
        randomised = self.model.entry.spec.randomised
        return Predictor(module, self.ref.classes, self.batch, randomised, self.seed)

    def victim(self) -> Victim:
        """The fitted model of the cell: once for the referee, once more for the attack."""
        spec, expected = self.model.entry.spec, self.task["weights"]
        referee, module = (
            from_cache(self.model, self.seed, self.workshop, expected) for _ in range(2)
        )
        surrogate = surrogate_of(module, self.seed) if spec.surrogate else None
        return Victim(spec, self.predictor(referee), module, surrogate, self.model.identity)

    def unchanged(self, victim: Victim) -> None:
        """Raise PluginError where the attack has changed the model's weights: what it made after
        that, it made on another model."""
        weights = {"": self.task["weights"], **self.task["sources"]}
        for name, module in {"": victim.module, **self.others}.items():
            if digest(module.state_dict()) != weights.get(name, ""):
                raise PluginError("the attack changed the model's weights")

    def other(self, model: Resolved) -> tuple[nn.Module, Any]:
        """Another fitted model of the board, loaded once, with its spec."""
        name = self.workshop.weights_path(model, self.seed).stem
        if name not in self.others:
            expected = self.task["sources"].get(name, "")
            self.others[name] = from_cache(model, self.seed, self.workshop, expected)
        return self.others[name].eval(), model.entry.spec

    def samples(self, predictor: Predictor) -> Samples:
        ids, _ = self.ids()
        x = self.images(ids)
        y = torch.from_numpy(self.arrays.test_y[ids]).to(self.device)
        return Samples(x, y, predictor.labels(x, ids.tolist()), ids.tolist())


@lru_cache(maxsize=1)
def plugins() -> Catalogue:
    return discover()


@lru_cache(maxsize=2)
def _open(ref: DataRef) -> Arrays:
    return ref.open()


def _resolve_model(raw: Any, catalogue: Catalogue) -> Resolved:
    selection = parse_selection(raw, "model")
    return resolve(selection, catalogue.model(selection.name), ModelOptions, catalogue, "model")


def _resolve_attack(raw: Any, catalogue: Catalogue) -> Resolved:
    selection = parse_selection(raw, "attack")
    return resolve(selection, catalogue.attack(selection.name), AttackOptions, catalogue, "attack")


def _all_of(component: Resolved) -> Iterator[Resolved]:
    """It and everything that it refers to."""
    yield component
    for nested in component.refs:
        yield from _all_of(nested.resolved)


def _threat(raw: Mapping[str, Any]) -> ThreatRow:
    return ThreatRow(
        norm=raw["norm"],
        eps=tuple(Epsilon(**e) for e in raw["eps"]),
        reference=Epsilon(**raw["reference"]),
        draws=raw["draws"],
        target=raw["target"],
        core=tuple(raw["core"]),
    )


def batch_size(shape: tuple[int, int, int], device: torch.device) -> int:
    """Rows of a batch: what a CPU's caches hold, or a share of the GPU's free memory."""
    values = int(np.prod(shape))
    rows = CHUNK_VALUES // values
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        rows = min(free // (values * 4 * 2_000), 8 * MOST_ROWS)  # activations: some 2,000 x input
    elif rows > MOST_ROWS:
        rows = MOST_ROWS
    return max(8, rows // 8 * 8)
