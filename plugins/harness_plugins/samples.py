"""Training images as trainings that are not torch's take them, and samples of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.api import Rng, TrainingSet
from harness.data import stratified
from harness.errors import UsageError

Array = np.ndarray[Any, Any]
TRIES = 100


def rows_and_labels(data: TrainingSet) -> tuple[Array, Array]:
    """Images as float32 (n, d), labels (n,). Raises UsageError where a class has no image."""
    refuse_absent(data, "the training images")
    return data.x.cpu().flatten(1).numpy(), data.y.cpu().numpy()


def refuse_absent(data: TrainingSet, where: str) -> None:
    """Raise UsageError naming the first class that no image has."""
    counts = torch.bincount(data.y.cpu(), minlength=data.info.classes)
    absent = (counts == 0).nonzero()[:, 0].tolist()
    if absent:
        raise UsageError(f"class {absent[0]} of {len(counts)} has no image among {where}")


def bootstrap(y: Tensor, rng: Rng) -> Tensor:
    """n rows drawn with replacement, and drawn again where a class is not among them.

    Raises UsageError where that does not help.
    """
    counts = torch.bincount(y.cpu())
    for _ in range(TRIES):
        rows = rng.integers(len(y), len(y))[0].cpu()
        drawn = torch.bincount(y.cpu()[rows], minlength=len(counts))
        if ((drawn > 0) == (counts > 0)).all():
            return rows
    raise UsageError(
        f"ensemble=bootstrap: {TRIES} samples of {len(y)} images each lack one of the "
        f"{len(counts)} classes; train on more images, or with ensemble=seeds"
    )


def without(data: TrainingSet, share: float) -> TrainingSet:
    """The images but for that share of each class, the same ones whatever the seed."""
    return parted(data, share, f"those that holdout={share:g} leaves")[0] if share else data


def parted(data: TrainingSet, share: float, left: str) -> tuple[TrainingSet, TrainingSet]:
    """The images that stay, which `left` describes, and that share of each class.

    The same ones whatever the seed. Raises UsageError where a class has no image that stays.
    """
    order = stratified(data.y.cpu().numpy())
    cut = round(share * len(order))
    stay, go = (torch.from_numpy(np.sort(rows)) for rows in (order[cut:], order[:cut]))
    rest = replace(data, x=data.x[stay], y=data.y[stay])
    refuse_absent(rest, left)
    return rest, replace(data, x=data.x[go], y=data.y[go])
