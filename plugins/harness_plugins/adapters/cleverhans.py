"""CleverHans's attacks by name: every function of `cleverhans.torch.attacks` (Papernot et al.,
2018, arXiv:1610.00768).

`cleverhans:projected_gradient_descent` is a frozen dataclass made of that function's signature.
CleverHans is imported when a cell runs. Its functions take a model, the box and labels, which the
harness gives, and return images; what they do with a sample that they do not fool differs, and
does not matter: a minimum-norm attack's image that does not fool is replaced by the clean one.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor

from harness_plugins.adapters.cleverhans_members import CLEVERHANS
from harness_plugins.adapters.handles import Assault, Kind, Oracle


@cache
def __getattr__(name: str) -> Any:
    """The dataclass of that attack (PEP 562)."""
    if name not in CLEVERHANS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _kind(name).dataclass()


@cache
def _kind(name: str) -> Kind:
    def run(chosen: dict[str, Any], oracle: Oracle, assault: Assault) -> Tensor:
        return _run(_kind(name), chosen, oracle, assault)

    return Kind("cleverhans", name, CLEVERHANS[name], run)


def _run(kind: Kind, chosen: dict[str, Any], oracle: Oracle, assault: Assault) -> Tensor:
    function = getattr(importlib.import_module(kind.module), kind.name)
    threat, order = assault.threat, assault.order
    given = {
        "model_fn": oracle,
        "n_classes": assault.target.classes,
        "y": assault.y,
        "eps": threat.eps,
        "norm": order,
        "order": order,
        "constraint": order,
        "clip_min": threat.low,
        "clip_max": threat.high,
        "targeted": False,
        "verbose": False,
        "is_debug": False,
        "sanity_checks": False,  # the referee checks, and theirs fail where eps is half the box
    }
    x = assault.x.detach().clone()
    arguments = kind.arguments(kind.step(chosen, threat.eps), given)
    if "gamma" in arguments:  # in Linf it asks for the least of a tensor and a number
        arguments["gamma"] = torch.tensor(float(arguments["gamma"]), device=x.device)
    try:
        made = function(x=x, **arguments)
    except AssertionError as error:
        if "Initialization failed" not in str(error):
            raise
        return x  # no misclassified noise was found to start from: this sample has no image
    return torch.as_tensor(made)
