"""From one record to numbers: what one attack did to one fitted model.

Robust accuracies follow from each sample's smallest verified distance: 0 where the clean image is
misclassified, infinite where no adversarial image was found. `harness.crossing` puts the attacks
on one model together; the figures here are each attack's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.manifest import ThreatRow
from harness.outcome import (
    CHECKPOINTS,
    Outcome,
    against_queries,
    smallest_distance,
    unsettled,
    within,
)
from harness.plugin import NORMS
from harness.records import Record
from harness.statistics import wilson

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]

NAN = math.nan
KEPT_RULES = (Outcome.ROBUST, Outcome.ADVERSARIAL, Outcome.UNSTABLE)
LEGAL = np.array([outcome in KEPT_RULES for outcome in Outcome])
L2 = NORMS.index("L2")


@dataclass(frozen=True)
class Share:
    """A share of all evaluated samples, in [0, 1]: the mean over `seeds`.

    low, high: 95 % Wilson interval, where there is one seed; std: over the seeds, where there are
    several; else nan
    """

    mean: float
    low: float = NAN
    high: float = NAN
    std: float = NAN
    seeds: int = 1


def share(values: Sequence[float], n: int) -> Share | None:
    """One value for each seed, each a share of n samples; None where there is no value."""
    if len(values) == 1:
        low, high = wilson(values[0] * n, n)
        return Share(values[0], low, high)
    if not values:
        return None
    return Share(float(np.mean(values)), std=float(np.std(values, ddof=1)), seeds=len(values))


@dataclass(frozen=True)
class Figures:
    """What one attack did to one fitted model, beside robust accuracy; nan where undefined.

    accuracy:    of the returned images at each eps: the papers' figure, not monotonised
    success:     share of the correctly classified samples that it found an adversarial image for
    mean_distance, median_distance, rho: over those; rho is the mean of ‖r‖₂/‖x‖₂
    rho_all:     the same over those and the misclassified samples, of which ‖r‖₂ is 0
    shared, shared_found: of a minimum-norm attack the samples that every model of the board has
                 right, and those of them that it found an adversarial image for
    shared_mean_distance, shared_median_distance: over the latter
    forward, backward: queries per attacked sample at the reference eps
    to_success:  forward queries per sample that it succeeded on there, if it prepared nothing
    preparation: queries spent before the first sample was attacked
    invalid, unstable: images of all columns that broke a rule, or whose label would not settle
    adds:        how much robust accuracy at the reference eps rises without this attack
    optimality:  `optimality`
    rounds:      `accuracy` after each round of a preparing attack
    worst_round: the same of samples that are right after every round
    learning:    after each round the queries so far and, of the substitute, the accuracy, and the
                 shares of the clean images and of those at the reference eps that it labels as the
                 model does; nan where there was none
    by_queries:  (q, share, distance): of the correct samples with an adversarial query within the
                 reference eps among their first q, and the median distance, infinite where less
                 than half have one; as far as queries went, empty where no curve was kept
    """

    accuracy: tuple[float, ...] = ()
    success: float = NAN
    mean_distance: float = NAN
    median_distance: float = NAN
    rho: float = NAN
    rho_all: float = NAN
    shared: float = NAN
    shared_found: float = NAN
    shared_mean_distance: float = NAN
    shared_median_distance: float = NAN
    forward: float = NAN
    backward: float = NAN
    to_success: float = NAN
    preparation: float = NAN
    invalid: float = 0.0
    unstable: float = 0.0
    adds: float = NAN
    optimality: float = NAN
    rounds: tuple[tuple[float, ...], ...] = ()
    worst_round: tuple[float, ...] = ()
    learning: tuple[tuple[float, float, float, float], ...] = ()
    by_queries: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class Attacked:
    """One attack record, read: smallest distances (n,), float and 8-bit, and its own figures.

    access:   what of the judged model the images were made with (`facts` of the record)
    disagree: samples on whose clean image the attack's cell and the fit's are of two minds
    returned: samples that an image was returned for at the reference eps; invalid: (n,), where it
              broke a rule
    """

    access: str
    disagree: int
    returned: int
    invalid: Bools
    distance: Floats
    distance8: Floats | None
    figures: Figures


def reference_column(threat: ThreatRow) -> int:
    """Where the reference eps stands in the grid."""
    return [e.value for e in threat.eps].index(threat.reference.value)


def ran_once(record: Record) -> bool:
    """A minimum-norm attack: one column for the whole grid."""
    return record.facts.get("kind") == "minimum-norm"


def read_attack(record: Record, threat: ThreatRow, correct: Bools, shared: Bools) -> Attacked:
    """A record that `harness.lookup` believes.

    correct: (n,), of the fit record. A sample that the attack's own cell saw misclassified (a
             randomised model, another device) was not attacked: it counts as misclassified here too
    shared:  (n,), what every model has right
    """
    arrays, once = record.arrays, ran_once(record)
    outcome, distance, y = arrays["outcome"], arrays["distance"], arrays["y"]
    seen = arrays["clean"] == y
    right = correct & seen
    column = 0 if once else reference_column(threat)
    forward, backward, to_success = _queries(arrays, column, right)
    preparation = float(record.facts.get("preparation_queries", NAN))
    invalid = _invalid(outcome)
    figures = Figures(
        accuracy=_accuracy_once(arrays, threat) if once else _accuracy(arrays),
        **_distortion(arrays, threat.norm, right),
        **(_on_shared(arrays, threat.norm, right & shared) if once else {}),
        forward=forward,
        backward=backward,
        to_success=to_success if math.isnan(preparation) else NAN,
        preparation=preparation,
        invalid=float(np.count_nonzero(invalid)),
        unstable=float(np.count_nonzero(outcome == Outcome.UNSTABLE)),
        rounds=_rounds(arrays),
        worst_round=_worst_round(arrays),
        learning=tuple(_learnt(told, column) for told in _told(record)),
        by_queries=_by_queries(arrays, column, right, threat.reference.value),
    )
    return Attacked(
        access=str(record.facts.get("access", "")),
        disagree=int(np.count_nonzero(seen != correct)),
        returned=int(np.count_nonzero(outcome[:, column] != Outcome.SKIPPED)),
        invalid=invalid[:, column],
        distance=smallest_distance(threat.norm, outcome, distance, ~right),
        distance8=_distance8(arrays, threat.norm, right),
        figures=figures,
    )


def average(figures: Sequence[Figures]) -> Figures:
    """Means over seeds, of those that are defined."""
    if len(figures) == 1:
        return figures[0]
    return Figures(*(_mean([getattr(f, name.name) for f in figures]) for name in fields(Figures)))


def read_corruption(record: Record) -> tuple[float, ...]:
    """Mean accuracy over samples and draws at each severity."""
    return tuple(record.arrays["draw_correct"].mean(axis=(0, 2)).tolist())


def _mean(values: Sequence[Any]) -> Any:
    if isinstance(values[0], tuple):
        return tuple(_mean(column) for column in zip(*values, strict=False))
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else NAN


def _legal(outcome: NDArray[np.uint8]) -> Bools:
    """Where an image was returned that keeps to the rules."""
    legal: Bools = LEGAL[outcome]
    return legal


def _invalid(outcome: NDArray[np.uint8]) -> Bools:
    """Where an image was returned that breaks a rule."""
    broken: Bools = ~_legal(outcome) & (outcome != Outcome.SKIPPED)
    return broken


def _accuracy(arrays: Arrays) -> tuple[float, ...]:
    """Accuracy of the returned images at each eps; an invalid one counts as the clean image."""
    y, clean = arrays["y"][:, None], arrays["clean"][:, None]
    label = np.where(_legal(arrays["outcome"]), arrays["label"], clean)
    return tuple((label == y).mean(axis=0).tolist())


def _accuracy_once(arrays: Arrays, threat: ThreatRow) -> tuple[float, ...]:
    """The same for a minimum-norm attack: beyond eps, too, the clean image is what counts."""
    y, clean = arrays["y"], arrays["clean"]
    distance = arrays["distance"][:, 0, NORMS.index(threat.norm)]
    legal = _legal(arrays["outcome"][:, 0])
    labels = [
        np.where(legal & within(distance, e.value), arrays["label"][:, 0], clean)
        for e in threat.eps
    ]
    return tuple(float((label == y).mean()) for label in labels)


def _distortion(arrays: Arrays, norm: str, right: Bools) -> dict[str, float]:
    """Success rate, and the distances and ρ of the correct samples that were fooled."""
    outcome, distance = arrays["outcome"], arrays["distance"]
    size = np.where(outcome == Outcome.ADVERSARIAL, distance[:, :, NORMS.index(norm)], np.inf)
    column = size.argmin(axis=1)
    rows = np.flatnonzero(right & np.isfinite(size[np.arange(len(size)), column]))
    if not rows.size:
        return {"success": 0.0 if right.any() else NAN}
    at = column[rows]
    found = np.sort(size[rows, at])
    k = len(found)
    lengths = arrays["norm2"][rows]
    seen = lengths > 0  # a black image has no length to compare with
    ratios = distance[rows, at, L2][seen] / lengths[seen]
    wrong = np.count_nonzero(~right & (arrays["norm2"] > 0))
    return {
        "success": k / np.count_nonzero(right),
        "mean_distance": float(found.mean()),
        "median_distance": float((found[(k - 1) // 2] + found[k // 2]) / 2),
        "rho": float(ratios.mean()) if ratios.size else NAN,
        "rho_all": float(ratios.sum() / (ratios.size + wrong)) if ratios.size else NAN,
    }


def _on_shared(arrays: Arrays, norm: str, shared: Bools) -> dict[str, float]:
    """How many of those samples it found an image for, and how far from them."""
    n, found = float(np.count_nonzero(shared)), _distortion(arrays, norm, shared)
    return {
        "shared": n,
        "shared_found": n * found["success"] if n else 0.0,
        "shared_mean_distance": found.get("mean_distance", NAN),
        "shared_median_distance": found.get("median_distance", NAN),
    }


def _by_queries(
    arrays: Arrays, column: int, right: Bools, eps: float
) -> tuple[tuple[float, float, float], ...]:
    """The curve up to the first checkpoint that no sample went beyond."""
    if "curve" not in arrays or not right.any():
        return ()
    curve = arrays["curve"][:, column].astype(np.float64)
    asked = arrays["forward"][:, column].max()
    passed = int(np.searchsorted(CHECKPOINTS, asked)) + 1
    return against_queries(curve, right, eps)[:passed]


def _distance8(arrays: Arrays, norm: str, right: Bools) -> Floats | None:
    """Smallest distances of the 8-bit images, (n,); None where the data is not on that grid."""
    if "label8" not in arrays:
        return None
    label = arrays["label8"]
    if "target" in arrays:
        fooled = label == arrays["target"][:, None]
    else:
        fooled = label != arrays["y"][:, None]
    found = np.where(fooled, arrays["distance8"][:, :, NORMS.index(norm)], np.inf)
    # A label that would not settle is no merit of the model here either.
    return np.where(right & ~unsettled(arrays["outcome"]), found.min(axis=1), 0.0)


def _queries(arrays: Arrays, column: int, right: Bools) -> tuple[float, float, float]:
    """Forward and backward per attacked sample, and forward per success, in one column."""
    outcome = arrays["outcome"][:, column]
    forward, backward = arrays["forward"][:, column], arrays["backward"][:, column]
    attacked, success = outcome != Outcome.SKIPPED, right & (outcome == Outcome.ADVERSARIAL)
    if not attacked.any():
        return NAN, NAN, NAN
    to_success = float(forward[success].mean()) if success.any() else NAN
    return float(forward[attacked].mean()), float(backward[attacked].mean()), to_success


def _rounds(arrays: Arrays) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(accuracy) for accuracy in _right_by_round(arrays).mean(axis=1).tolist())


def _worst_round(arrays: Arrays) -> tuple[float, ...]:
    right = _right_by_round(arrays)
    return tuple(right.all(axis=0).mean(axis=0).tolist()) if len(right) else ()


def _right_by_round(arrays: Arrays) -> Bools:
    """(rounds, n, columns)."""
    if "round_label" not in arrays:
        return np.zeros((0, *arrays["label"].shape), bool)
    right: Bools = arrays["round_label"] == arrays["y"][None, :, None]
    return right


def _told(record: Record) -> Sequence[Mapping[str, Any]]:
    """What the record's facts say of each round that its arrays have."""
    n = len(record.arrays.get("round_label", ()))
    told: list[Mapping[str, Any]] = record.facts.get("rounds", [])
    return told if len(told) == n else [{}] * n


def _learnt(told: Mapping[str, Any], column: int) -> tuple[float, float, float, float]:
    """What a round's facts say; those of another harness's, or of none, are nan."""
    match = told.get("match_adversarial", [])
    return (
        told.get("queries", NAN),
        told.get("substitute_accuracy", NAN),
        told.get("match_clean", NAN),
        match[column] if match else NAN,
    )
