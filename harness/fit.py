"""Fit cells: train a model once, keep its weights as safetensors, and see what it says of itself.

Weights are named by what fixes them (data, model, seed), so a change of the evaluated slice trains
nothing again; their digest goes into every record that was made with them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from harness.rng import derive
from harness.target import Ledger, Source, Target

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Workshop:
    """Where models are fitted: the data, its identity, the cache and the device."""

    ref: DataRef
    identity: Mapping[str, Any]
    cache: Path
    device: torch.device
    chunk: int

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
) -> tuple[nn.Module, str]:
    """The trained classifier, from the cache or trained now, and its digest. Eval, frozen."""
    path = workshop.weights_path(model, seed)
    kept = load_weights(path)
    if kept is None:
        module = _train(model, seed, workshop, progress)
        state = dict(module.state_dict())
        _save(path, state)
    else:
        state = kept
    return _frozen(rebuilt(model, state, workshop), workshop.device), digest(state)


def from_cache(model: Resolved, seed: int, workshop: Workshop, expected: str) -> nn.Module:
    """The classifier whose weights an earlier fit cell left. Raises PluginError if they changed."""
    path = workshop.weights_path(model, seed)
    state = load_weights(path)
    if state is None or (expected and digest(state) != expected):
        raise PluginError(f"the weights of {model.label} are missing or are not the fit record's")
    return _frozen(rebuilt(model, state, workshop), workshop.device)


def load_weights(path: Path) -> dict[str, Tensor] | None:
    """The state kept at the path, or None where there is none that can be read."""
    try:
        return load_file(path)
    except Exception:  # a cache is rebuilt, whatever is wrong with it
        return None


def rebuilt(model: Resolved, state: Mapping[str, Tensor], workshop: Workshop) -> nn.Module:
    recipe = bind(model, lambda _other: None)  # only fit() may ask for another fitted model
    module: nn.Module = recipe.build(workshop.ref.info)
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise PluginError(
            f"{model.label}: build() gives another module than fit() returned: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    return module


def _train(model: Resolved, seed: int, workshop: Workshop, progress: Progress) -> nn.Module:
    data = TrainingSet.of(workshop.ref)
    own = derive(seed, "fit", model.identity["name"]) % 2**63
    noise = model.given.noise
    if noise:
        data = data.noisy(noise, seed)
    checkpoint = workshop.weights_path(model, seed).with_suffix(".checkpoint.safetensors")
    run = Run(own, workshop.device, progress, lambda s: _checkpoint(checkpoint, s))

    def target_of(other: Resolved) -> Target:
        module = from_cache(other, seed, workshop, "")
        source = Source(module, workshop.ref.classes, workshop.chunk)
        return Target(source, other.entry.spec.offers, Ledger(1))

    with seeded(own):
        module = bind(model, target_of).fit(data, run)
    if not isinstance(module, nn.Module):
        raise PluginError(f"{model.label}: fit() returned {type(module).__name__}, not a Module")
    if not module.state_dict():
        raise PluginError(f"{model.label}: fit() returned a module without parameters or buffers")
    checkpoint.unlink(missing_ok=True)
    return module


def _checkpoint(path: Path, state: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    if state is None:
        return load_weights(path)
    _save(path, state)
    return None


def _save(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, save({k: v.detach().cpu().contiguous().clone() for k, v in state.items()}))


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
