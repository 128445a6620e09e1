"""The 01-loss papers' pairs of classes, from the official files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from harness.api import Info, TrainingSet
from harness.data import DataOptions, Files, apply, as_images


def pair(component, name):
    """Classes 0 and 1: what is trained on, and the test images with their labels.

    Skips where HARNESS_DATA has no such folder, and nowhere else: a damaged file is a failure.
    """
    root = Path(os.environ.get("HARNESS_DATA", "/nonexistent"))
    if not (root / name).is_dir():
        pytest.skip(f"HARNESS_DATA has no folder {name}")
    splits = apply(component.load(Files(root, name)), DataOptions(classes=(0, 1)))
    x, x_test = (as_images(a, slice(None)) for a in (splits.train_x, splits.test_x))
    y, y_test = (torch.from_numpy(a) for a in (splits.train_y, splits.test_y))
    return TrainingSet(Info(tuple(x.shape[1:]), 2, len(x)), x, y), x_test, y_test
