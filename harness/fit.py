"""Fit cells: train a model once, keep its weights as safetensors, and see what it says of itself.

Weights are named by what fixes them (data, model, seed), so a change of the evaluated slice trains
nothing again; their digest goes into every record that was made with them.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from harness import atomic
from harness.api import Run
from harness.bind import bind
from harness.data import DataRef, TrainingSet
from harness.errors import PluginError
from harness.identity import key_of
from harness.options import Resolved
from harness.plan import weights_identity
from harness.rng import SampleRng, StreamRng, derive
from harness.saturation import Saturated
from harness.target import Ledger, Source, Target

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Workshop:
    """Where models are fitted: the data, its identity, the cache and the device.

    fresh: train even where the cache has the weights
    """

    ref: DataRef
    identity: Mapping[str, Any]
    cache: Path
    device: torch.device
    chunk: int
    fresh: bool = False

    def weights_path(self, model: Resolved, seed: int) -> Path:
        key = key_of(weights_identity(self.identity, model.identity, seed))
        return self.cache / "weights" / f"{key}.safetensors"


def digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of a state, sorted by name."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def fitted(
    model: Resolved, seed: int, workshop: Workshop, progress: Progress
) -> tuple[nn.Module, str, dict[str, Any]]:
    """The trained classifier, eval and frozen, its digest, and of its training the `cost`, what it
    was done `with`, and its `notes`. It comes from the cache, or is trained now."""
    path = workshop.weights_path(model, seed)
    state = None if workshop.fresh else load_weights(path)
    told = _told(path) if state is not None else None
    if state is None or told is None:
        state, told = _train(model, seed, workshop, progress)
        _save(path, state, {"trained": json.dumps(told)})
    return _frozen(rebuilt(model, state, workshop, seed), workshop.device), digest(state), told


def from_cache(model: Resolved, seed: int, workshop: Workshop, expected: str) -> nn.Module:
    """The classifier whose weights an earlier fit cell left. Raises PluginError if they changed."""
    path = workshop.weights_path(model, seed)
    state = load_weights(path)
    if state is None or (expected and digest(state) != expected):
        raise PluginError(f"the weights of {model.label} are missing or are not the fit record's")
    return _frozen(rebuilt(model, state, workshop, seed), workshop.device)


def load_weights(path: Path) -> dict[str, Tensor] | None:
    """The state kept at the path, or None where there is none that can be read."""
    try:
        return load_file(path)
    except Exception:  # a cache is rebuilt, whatever is wrong with it
        return None


def _told(path: Path) -> dict[str, Any] | None:
    """What the weights' file says of the training, or None where it says nothing."""
    try:
        with safe_open(path, "pt") as file:
            told: dict[str, Any] = json.loads(file.metadata()["trained"])
    except Exception:
        return None
    return told


def rebuilt(
    model: Resolved, state: Mapping[str, Tensor], workshop: Workshop, seed: int
) -> nn.Module:
    """`build()` with the trained weights. Whatever it draws, it draws alike each time."""
    recipe = bind(model, lambda _other: None)  # only fit() may ask for another fitted model
    with seeded(_own_seed(model, seed)):
        module = _behind(recipe.build(workshop.ref.info), model)
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise PluginError(
            f"{model.label}: build() gives another module than fit() returned: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    return module


def _behind(module: nn.Module, model: Resolved) -> nn.Module:
    """The classifier with what the harness puts before it."""
    p = model.given.saturate
    return module if p is None else Saturated(module, float(p))


def _own_seed(model: Resolved, seed: int) -> int:
    return derive(seed, "fit", model.identity["name"]) % 2**63


def _train(
    model: Resolved, seed: int, workshop: Workshop, progress: Progress
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    wall, cpu = time.time(), time.process_time()
    data = TrainingSet.of(workshop.ref)
    if model.given.noise:
        data = data.noisy(model.given.noise, seed)
    seen = data if model.given.saturate is None else data.saturated(float(model.given.saturate))
    checkpoint = workshop.weights_path(model, seed).with_suffix(".checkpoint.safetensors")
    if workshop.fresh:
        checkpoint.unlink(missing_ok=True)
    own = _own_seed(model, seed)
    notes: list[str] = []
    run = Run(own, workshop.device, progress, lambda s: _checkpoint(checkpoint, s), notes.append)

    def target_of(other: Resolved) -> Target:
        spec = other.entry.spec
        module = from_cache(other, seed, workshop, "")
        source = Source(module, workshop.ref.classes, workshop.chunk, spec.randomised)
        return Target(source, spec.offers, Ledger(1), rng=StreamRng.keyed(own, other.label))

    with seeded(own):
        module = bind(model, target_of).fit(seen, run)
    if not isinstance(module, nn.Module):
        raise PluginError(f"{model.label}: fit() returned {type(module).__name__}, not a Module")
    module = _behind(module, model)
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    if not state:
        raise PluginError(f"{model.label}: fit() returned a module without parameters or buffers")
    _agreeing(module, rebuilt(model, state, workshop, seed), data, model, workshop)
    checkpoint.unlink(missing_ok=True)
    cost = {
        "start": wall,
        "end": time.time(),
        "wall_seconds": time.time() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }
    tools = {"device": str(workshop.device), "torch": torch.__version__}
    return state, {"cost": cost, "with": tools, "notes": notes}


@torch.no_grad()
def _agreeing(
    module: nn.Module, again: nn.Module, data: TrainingSet, model: Resolved, workshop: Workshop
) -> None:
    """Raise PluginError where the module that fit() returned and the one that its weights give
    do not answer alike: then the classifier is random and does not say so, or has more to it than
    its state."""
    x = data.x[: workshop.chunk].to(workshop.device)
    ids = range(len(x))

    def answers(each: nn.Module) -> Tensor:
        rng = SampleRng.keyed("agree", ids=ids, restart=0, device=workshop.device)
        randomised = model.entry.spec.randomised
        return Source(each, workshop.ref.classes, workshop.chunk, randomised).scores(x, rng)

    def alike(one: Tensor, other: Tensor) -> bool:
        return torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)

    told, now = (answers(_frozen(each, workshop.device)) for each in (module, again))
    if alike(told, now):
        return
    if not alike(told, answers(module)):
        raise PluginError(
            f"{model.label}: its answers change between calls; say randomised=True in its spec and "
            "draw from the rng of forward(x, rng) alone, or let it draw nothing in eval mode"
        )
    raise PluginError(
        f"{model.label}: build() with the weights of fit() answers otherwise than what fit() "
        "returned; keep all that the classifier needs in parameters and buffers"
    )


def _checkpoint(path: Path, state: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    if state is None:
        return load_weights(path)
    _save(path, state)
    return None


def _save(path: Path, state: Mapping[str, Tensor], told: dict[str, str] | None = None) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    atomic.write(path, save(whole, told))


def _frozen(module: nn.Module, device: torch.device) -> nn.Module:
    """Eval mode, and no gradient but the input's: backward is a third cheaper."""
    return module.to(device).eval().requires_grad_(requires_grad=False)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators of torch, numpy and random seeded, and put back afterwards."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
