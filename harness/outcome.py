"""What happened to one sample at one budget, and what follows from it. Numpy alone.

A record keeps, for each evaluated sample and each column (an eps of the grid, or the one column of
a minimum-norm attack), one `Outcome`, the label predicted on the returned image and its distances.
Everything that a leaderboard shows is computed from these arrays.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from harness.plugin import NORMS

RELATIVE_SLACK = 1e-4
ABSOLUTE_SLACK = 1e-6

# How many queries a sample had spent at the points of the curve that is kept of query attacks.
CHECKPOINTS = (100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class Outcome(IntEnum):
    """SKIPPED: the clean image is misclassified and was not attacked. From OUT_OF_BALL on, the
    returned image is invalid: it never counts as the attack's success, and is never hidden.
    UNSTABLE: the model gave the image, or the clean one, different labels in different calls: no
    success of the attack, and no merit of the model either: the sample is robust at no eps."""

    SKIPPED = 0
    ROBUST = 1
    ADVERSARIAL = 2
    OUT_OF_BALL = 3
    OUT_OF_BOX = 4
    NOT_FINITE = 5
    UNSTABLE = 6


def within(distance: NDArray[np.float64], eps: float) -> NDArray[np.bool_]:
    """distance ≤ eps, up to rounding: eps(1 + 1e-4) + 1e-6. Nothing is within eps = 0 but 0."""
    limit = 0.0 if eps == 0 else eps * (1 + RELATIVE_SLACK) + ABSOLUTE_SLACK
    near: NDArray[np.bool_] = distance <= limit
    return near


def smallest_distance(
    norm: str,
    outcome: NDArray[np.uint8],
    distance: NDArray[np.float64],
    clean_wrong: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Each sample's smallest verified distance, (n,): 0 where the clean image is misclassified or
    a label would not settle in any column, infinite where no adversarial image was found.

    outcome: (n, columns); distance: (n, columns, 4) in the order of `NORMS`.
    """
    found = np.where(outcome == Outcome.ADVERSARIAL, distance[:, :, NORMS.index(norm)], np.inf)
    smallest: NDArray[np.float64] = found.min(axis=1, initial=np.inf).astype(np.float64)
    return np.where(clean_wrong | unsettled(outcome), 0.0, smallest)


def against_queries(
    curve: NDArray[np.float64], right: NDArray[np.bool_], eps: float = np.inf
) -> tuple[tuple[int, float, float], ...]:
    """For each of `CHECKPOINTS` the queries q, the share of the samples with an adversarial query
    within eps among their first q, and the median distance, infinite where half have none.

    curve: (n, checkpoints), of one column; right: which samples count, (n,)
    """
    points = []
    for queries, distance in zip(CHECKPOINTS, curve[right].T, strict=True):
        found = np.isfinite(distance) & within(distance, eps)
        if len(found):
            points.append((queries, float(found.mean()), float(np.median(distance))))
    return tuple(points)


def unsettled(outcome: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Samples, (n,), with an UNSTABLE image in a column of outcome (n, columns)."""
    where: NDArray[np.bool_] = (outcome == Outcome.UNSTABLE).any(axis=1)
    return where
