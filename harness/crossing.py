"""All attacks on one fitted model together: the matrix attacks x samples, and what it says.

The worst case is taken sample by sample, and only then counted: the minimum of the attacks'
robust accuracies would credit the model for samples that one attack broke and another did not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from harness.manifest import ThreatRow
from harness.measures import NAN, Attacked, Bools, Figures, Floats, reference_column
from harness.outcome import within

GRADIENTS = frozenset({"gradients", "bpda", "surrogate"})
WHITE_BOX = GRADIENTS | {"parts"}
TOLERANCE = 0.002  # AutoAttack's, in its check of Square against the white-box attacks
NEGLIGIBLE = 1e-3  # of the largest saving: below it, optimality would be a ratio of roundings


@dataclass(frozen=True)
class Crossed:
    """All attacks on one model fitted with one seed, as shares of the n samples.

    attacked:   the attacks that ran, by name
    curves:     for each attack, robust accuracy at each eps of the grid
    core:       the same of the worst case over the core attacks; everything: over all that ran;
                empty where none ran
    eight:      for each attack on 8-bit data, 8-bit robust accuracy at the reference; core8: the
                worst case over the core
    survivors:  (n,) robust at the reference against the core
    outdone_by: attacks that saw less of the model, and broke more than all white-box attacks
    invalid:    for each attack, images at the reference that are invalid and whose sample it left
                robust; unfinished: for each core attack, those whose sample survived the core
    """

    clean: float
    attacked: Mapping[str, Attacked] = field(default_factory=dict)
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    core: tuple[float, ...] = ()
    everything: tuple[float, ...] = ()
    eight: Mapping[str, float] = field(default_factory=dict)
    core8: float | None = None
    survivors: Bools | None = None
    outdone_by: tuple[str, ...] = ()
    invalid: Mapping[str, int] = field(default_factory=dict)
    unfinished: Mapping[str, int] = field(default_factory=dict)
    figures: Mapping[str, Figures] = field(default_factory=dict)


def robust(distance: Floats, eps: float, correct: Bools) -> Bools:
    """Where no adversarial image within eps was found; at 0, exactly the correct samples.

    distance: (..., n); correct: (n,), whether the clean image is classified correctly.
    """
    if eps == 0:
        return np.broadcast_to(correct, distance.shape)
    return ~within(distance, eps)


def cross(
    attacked: Mapping[str, Attacked], core: Sequence[str], threat: ThreatRow, correct: Bools
) -> Crossed:
    """The attacks that ran on one fitted model, put together. correct: (n,), of the fit record."""
    clean = float(correct.mean())
    if not attacked:
        return Crossed(clean)
    distance = np.stack([a.distance for a in attacked.values()])
    holds = np.stack([robust(distance, e.value, correct) for e in threat.eps])
    at_reference = holds[reference_column(threat)]
    in_core = np.array([name in core for name in attacked])
    crossed = Crossed(
        clean=clean,
        attacked=attacked,
        curves=dict(zip(attacked, map(tuple, holds.mean(axis=2).T.tolist()), strict=True)),
        everything=_worst(holds),
        outdone_by=_outdone_by(dict(zip(attacked, at_reference, strict=True)), attacked),
        invalid={
            name: int(np.count_nonzero(a.invalid & left))
            for (name, a), left in zip(attacked.items(), at_reference, strict=True)
        },
        figures=_compared(attacked, _adds(at_reference, correct), optimality(distance, correct)),
    )
    eight = {
        name: robust(a.distance8, threat.reference.value, correct)
        for name, a in attacked.items()
        if a.distance8 is not None
    }
    crossed = replace(crossed, eight={name: float(r.mean()) for name, r in eight.items()})
    if not in_core.any():
        return crossed
    core8 = [r for name, r in eight.items() if name in core]
    survivors = at_reference[in_core].all(axis=0)
    return replace(
        crossed,
        core=_worst(holds[:, in_core]),
        core8=float(np.all(core8, axis=0).mean()) if len(core8) == in_core.sum() else None,
        survivors=survivors,
        unfinished={
            name: int(np.count_nonzero(a.invalid & survivors))
            for name, a in attacked.items()
            if name in core
        },
    )


def optimality(distance: Floats, correct: Bools) -> list[float]:
    """Each attack's share of what the pool of them all saved, in [0, 1] (AttackBench's LO).

    LO = (ρ e₀ - A_a) / (ρ e₀ - A_*) (Cinà et al., 2024, arXiv:2404.19460), where ρ is the clean
    accuracy, A the area under the curve of robust accuracy from 0 to e₀, and e₀ the largest
    distance of the pool * of smallest ones. Sample by sample the area is min(d, e₀). nan where
    the pool saved nothing, as where every attack stops at one and the same ε. A distance of 0 is
    a label that would not settle, which no attack can be praised for: such a sample is left out.
    distance: (attacks, n).
    """
    d = distance[:, correct & (distance > 0).all(axis=0)]
    pool = d.min(axis=0, initial=math.inf)
    found = pool[np.isfinite(pool)]
    if not found.size:
        return [NAN] * len(distance)
    top = found.max()
    saved = (top - np.minimum(d, top)).sum(axis=1)
    most = (top - found).sum()
    if most <= NEGLIGIBLE * top * found.size:
        return [NAN] * len(distance)
    shares: list[float] = (saved / most).tolist()
    return shares


def _worst(holds: Bools) -> tuple[float, ...]:
    """Robust accuracy at each eps against all attacks of holds (eps, attacks, n) together."""
    return tuple(holds.all(axis=1).mean(axis=1).tolist())


def _adds(holds: Bools, correct: Bools) -> list[float]:
    """What each attack of holds (attacks, n) breaks that no other does, as a share of n."""
    broken = ~holds
    alone = broken & correct & (broken.sum(axis=0) == 1)
    shares: list[float] = alone.mean(axis=1).tolist()
    return shares


def _compared(
    attacked: Mapping[str, Attacked], adds: Sequence[float], optimal: Sequence[float]
) -> dict[str, Figures]:
    return {
        name: replace(a.figures, adds=adds[i], optimality=optimal[i])
        for i, (name, a) in enumerate(attacked.items())
    }


def _outdone_by(holds: Mapping[str, Bools], attacked: Mapping[str, Attacked]) -> tuple[str, ...]:
    """Attacks that leave less robust accuracy than all white-box attacks together.

    A white-box attack can do whatever a black-box one does, so it ought not to lose by more than
    the tolerance and two samples: where it does, the gradients mislead (Carlini et al., 2019,
    arXiv:1902.06705).
    """
    white = [r for name, r in holds.items() if attacked[name].access in WHITE_BOX]
    if not white:
        return ()
    left = np.all(white, axis=0)
    bar = left.mean() - TOLERANCE - 2 / len(left)
    black = (name for name in holds if attacked[name].access not in WHITE_BOX)
    return tuple(name for name in black if holds[name].mean() < bar)
