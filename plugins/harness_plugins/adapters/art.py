"""ART's evasion attacks by name (Nicolae et al., 2018, arXiv:1807.01069).

`art:DeepFool` is a frozen dataclass made of the constructor's signature. ART is imported when a
cell runs. It is given a `PyTorchClassifier` around a module that asks the target, so that queries
are counted and levels enforced; a label attack's model answers with the predicted label as 1 among
0. Scores are the model's own, so that differences of log-probabilities, which ZOO climbs, are
differences of scores; SimBA, NewtonFool, VAT, PixelAttack and ThresholdAttack are given
probabilities, softmax of the scores, as their papers have it.

What ART leaves to its caller is done here: labels are given, attacks are untargeted, batches whole,
eps and the length of a step the threat's. `SaliencyMapMethod` (JSMA) runs towards every other class
and keeps the image with the fewest changed pixels. `FeatureAdversaries` imitate a guide's
representation; here the guide is, of `GUIDES` random images, the one whose scores are the furthest
from the sample's label, and its representation the scores.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import tempfile
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from harness.api import Best, margin
from harness_plugins.adapters.art_members import ART
from harness_plugins.adapters.handles import Assault, Kind, Oracle

TRIES = 1000  # of noise that grows until every pixel is black or white
GUIDES = 10  # random images that a guide is chosen from, one query each


class Asked(nn.Module):
    """The target as a module without weights. Its one layer is its scores (feature adversaries)."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self.oracle = oracle
        self.layer = nn.Identity()

    def __deepcopy__(self, memo: dict[int, Any]) -> Asked:
        return self

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layer(self.oracle(x))
        return scores


@cache
def __getattr__(name: str) -> Any:
    """The dataclass of that attack (PEP 562)."""
    if name not in ART:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _kind(name).dataclass()


@cache
def _kind(name: str) -> Kind:
    def run(chosen: dict[str, Any], oracle: Oracle, assault: Assault) -> Tensor:
        runner = {"SaliencyMapMethod": _every_class}.get(name, _plain)
        return runner(_kind(name), chosen, oracle, assault)

    return Kind("art", name, ART[name], run)


def _plain(kind: Kind, chosen: dict[str, Any], oracle: Oracle, assault: Assault) -> Tensor:
    attack = _made(kind, chosen, oracle, assault)
    if kind.name == "ShadowAttack":  # given labels, it takes them for targets
        return _generate(attack, assault.x, None)
    if kind.name == "GeoDA":
        return _geoda(attack, assault.x, _one_hot(assault.y, oracle))
    if kind.member.budget == "delta":
        return _generate(attack, assault.x, _guides(oracle, assault))
    return _generate(attack, assault.x, _one_hot(assault.y, oracle))


class NoStartError(Exception):
    """No noise fools the model."""


def _geoda(attack: Any, x: Tensor, y: Any) -> Tensor:
    """GeoDA keeps a table in the working folder, and reads what it finds there; and it tries noise
    until some fools, for ever where none does: here so often, and then the sample has no image."""
    fools, search = attack._is_adversarial, attack._find_random_adversarial

    def start(x: Any, y: Any) -> Any:
        tries = itertools.count()

        def ask(image: Any, label: Any) -> Any:
            if next(tries) == TRIES:
                raise NoStartError
            return fools(image, label)

        attack._is_adversarial = ask
        found = search(x=x, y=y)
        attack._is_adversarial = fools
        return found

    attack._find_random_adversarial = start
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        try:
            return _generate(attack, x, y)
        except NoStartError:
            return x


def _every_class(kind: Kind, chosen: dict[str, Any], oracle: Oracle, assault: Assault) -> Tensor:
    """JSMA towards each class that is not the sample's; of the images that fool, the closest."""
    x, y, k = assault.x, assault.y, assault.target.classes
    best = Best(x)
    for other in range(1, k):
        attack = _made(kind, chosen, oracle, assault)
        x_adv = _generate(attack, x, _one_hot((y + other) % k, oracle)).to(x.device, x.dtype)
        fooled = assault.target.labels(x_adv) != y
        best.note(x_adv, assault.threat.distance(x_adv, x), fooled)
    return best.x_adv


def _made(kind: Kind, chosen: dict[str, Any], oracle: Oracle, assault: Assault) -> Any:
    """ART's own object, around the model."""
    from art.estimators.classification import PyTorchClassifier

    x, threat = assault.x, assault.threat
    model = PyTorchClassifier(
        model=Asked(oracle),
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=oracle.classes,
        clip_values=(threat.low, threat.high),
        device_type="cpu" if x.device.type == "cpu" else "gpu",
    )
    given = {
        kind.member.budget: float(threat.eps),
        "norm": assault.order,
        "targeted": False,
        "batch_size": len(x),
        "verbose": False,
    }
    arguments = kind.arguments(kind.step(chosen, float(threat.eps)), given)
    attack = getattr(importlib.import_module(kind.module), kind.name)(model, **arguments)
    for inner in attack.attacks if kind.name == "AutoAttack" else ():
        inner.verbose = False
    return attack


def _generate(attack: Any, x: Tensor, y: Any) -> Tensor:
    return torch.from_numpy(attack.generate(x=x.detach().cpu().numpy().copy(), y=y))


def _one_hot(y: Tensor, oracle: Oracle) -> Any:
    return nn.functional.one_hot(y, oracle.classes).float().cpu().numpy()


def _guides(oracle: Oracle, assault: Assault) -> Any:
    """For each sample the random image whose scores are the furthest from its label, numpy."""
    x, y, threat = assault.x, assault.y, assault.threat
    best, furthest = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
    with torch.no_grad():
        for _ in range(GUIDES):
            drawn = threat.low + (threat.high - threat.low) * assault.rng.uniform(*x.shape[1:])
            ahead = margin(assault.target.scores(drawn), y).to(furthest)
            better = ahead > furthest
            best[better], furthest[better] = drawn[better], ahead[better]
    return best.cpu().numpy()
