"""Weights that somebody else trained, loaded into a named architecture.

A safetensors file or a torch file that holds tensors and nothing else. A torch file that needs
unpickling is refused: unpickling runs whatever its author wrote into it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.api import Info, Run, TrainingSet
from harness.errors import UsageError
from harness.plugin import File, OneOf
from harness_plugins.architectures import ARCHITECTURES, MLP, Architecture


@dataclass(frozen=True)
class Checkpoint:
    """A trained network from a file, unchanged; the training images are not looked at.

    path: a .safetensors file, or a torch file of a state_dict (or of {"state_dict": it})
    arch: the architecture whose tensors the file holds, by the same names (conv1.weight, …)
    """

    path: Annotated[Path, File()]
    arch: Annotated[Architecture, OneOf(ARCHITECTURES)] = MLP()

    def build(self, info: Info) -> nn.Module:
        return self.arch.build(info)

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        net = self.build(data.info)
        state = read_state(self.path)
        check_fits(state, net.state_dict(), self.path)
        net.load_state_dict(state)
        return net.to(run.device).eval()


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises UsageError where that is not all the file holds."""
    content = _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise UsageError(f"{path}: expected tensors by name; got {type(content).__name__}")
    for name, tensor in content.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor)):
            raise UsageError(f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor")
    return dict(content)


def check_fits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Raise UsageError naming every tensor that is missing, unknown, mis-shaped or not finite."""
    missing = sorted(wanted.keys() - state.keys())
    unknown = sorted(state.keys() - wanted.keys())
    both = [(name, state[name], wanted[name]) for name in wanted if name in state]
    shapes = [
        f"{name} is {tuple(found.shape)}, not {tuple(expected.shape)}"
        for name, found, expected in both
        if found.shape != expected.shape
    ]
    odd = [name for name, found, _ in both if not found.isfinite().all()]
    faults = {"missing": missing, "unknown": unknown, "wrong shape": shapes, "not finite": odd}
    said = [f"{what}: {', '.join(names)}" for what, names in faults.items() if names]
    if said:
        raise UsageError(f"{path} does not fit the architecture: {'; '.join(said)}")


def _safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be read as safetensors: {error}") from error


def _torch_file(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} is refused: it is not plain tensors, and reading it would run code that the "
            f"file holds ({_reason(error)}); save its state_dict() with safetensors"
        ) from error
    except Exception as error:  # truncated, TorchScript, no torch file: torch raises many kinds
        raise UsageError(f"{path} cannot be read as a torch file: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What torch says, without the advice to load it unsafely."""
    lines = str(error).splitlines()
    told = [line for line in lines if "weights_only" not in line.lower()] or lines
    return " ".join(" ".join(told).split())[:200]
