"""References made real: an option that names a plugin becomes that plugin's own object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.api import Attack
from harness.options import Resolved, ResolvedRef
from harness.rng import Rng
from harness.target import Target
from harness.threat import Threat

TargetOf = Callable[[Resolved], Target | None]


@dataclass(frozen=True)
class Restarted:
    """An attack run `times` times, each from fresh draws; only samples not yet fooled go on.

    Of a fixed-budget attack the first image that fools is kept, of a minimum-norm attack (infinite
    eps) the closest. Whether a sample is fooled is asked of the model that is judged, and counted.
    A sample whose queries are spent goes no further: it has the closest image that it asked about.
    """

    attack: Attack
    times: int

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        best = self.attack(target, x, y, threat, rng).clone()
        shortest = _reached(target, best, x, y, threat)
        for restart in range(1, self.times):
            going = shortest == torch.inf
            rows = (going if threat.eps != torch.inf else torch.ones_like(going)).nonzero()[:, 0]
            rows = rows[~_spent(target, x)[rows]]
            if not len(rows):
                break
            few = target.at(rows)
            tried = self.attack(few, x[rows], y[rows], threat, rng.restarted(restart).at(rows))
            reached = _reached(few, tried, x[rows], y[rows], threat)
            better = reached < shortest[rows]
            best[rows[better]] = tried[better]
            shortest[rows[better]] = reached[better]
        spent = _spent(target, x)
        if target.closest is not None:
            best[spent] = target.closest.best[spent]
        return best


@dataclass(frozen=True)
class Through:
    """An attack inside another, with `gradient` and `eot` of its own."""

    attack: Attack
    gradient: str
    eot: int

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        return self.attack(target.seen(self.gradient, self.eot), x, y, threat, rng)


def _reached(target: Target, x_adv: Tensor, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """Distance of the images that fool within the rules, (n,), infinite for the others, and for
    samples that may not be asked about any more."""
    reached = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    rows = (~_spent(target, x)).nonzero()[:, 0]
    if not len(rows):
        return reached
    x_adv, x, y = x_adv[rows], x[rows], y[rows]
    fooled = (target.at(rows).verdict(x_adv) != y) & threat.allows(x_adv, x)
    reached[rows] = torch.where(fooled, threat.distance(x_adv, x), torch.inf)
    return reached


def _spent(target: Target, x: Tensor) -> Tensor:
    """Which of the samples have no query left, bool (n,)."""
    left = target.remaining
    if left is None:
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    return left.to(x.device) < 1


def bind(resolved: Resolved, target_of: TargetOf) -> Any:
    """The component with its references resolved: fitted models as targets, recipes, attacks."""
    return _bound(resolved.component, target_of)


def bind_attack(resolved: Resolved, target_of: TargetOf) -> Attack:
    """The attack, with the harness's restarts around it."""
    attack: Attack = bind(resolved, target_of)
    restarts = resolved.given.restarts
    return Restarted(attack, restarts) if restarts > 1 else attack


def _inner(resolved: Resolved, target_of: TargetOf) -> Attack:
    """An attack that another refers to; for the outermost the harness made the target so."""
    attack, given = bind_attack(resolved, target_of), resolved.given
    plain = given.gradient == "exact" and given.eot == 1
    return attack if plain else Through(attack, given.gradient, given.eot)


def _bound(value: Any, target_of: TargetOf) -> Any:
    """The value, with every reference in it resolved, those inside a `OneOf`'s choice too."""
    if isinstance(value, ResolvedRef):
        if value.kind == "model":
            return target_of(value.resolved)
        if value.kind == "attack":
            return _inner(value.resolved, target_of)
        return bind(value.resolved, target_of)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    old = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
    new = {name: _bound(held, target_of) for name, held in old.items()}
    changed = {name: held for name, held in new.items() if held is not old[name]}
    return replace(value, **changed) if changed else value
