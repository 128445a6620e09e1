"""STL-10, from the official binary files, unpacked or in stl10_binary.tar.gz."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.data import Files, Splits
from harness.errors import UsageError
from harness_plugins.datasets import trees

Array = np.ndarray[Any, Any]

MD5 = {
    "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
    "train_y.bin": "5a34089d4802c674881badbb80307741",
    "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
    "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
}
NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
SIDE = 96
PIXELS = 3 * SIDE * SIDE


@dataclass(frozen=True)
class Stl10:
    """Images uint8 (n, 3, 96, 96), RGB; 5000 to train, 8000 to test; labelled ones alone."""

    def load(self, files: Files) -> Splits:
        held = trees.gather(files, r"/((?:train|test)_[Xy]\.bin)$", top="stl10_binary")
        (train_x, train_y), (test_x, test_y) = (
            _part(files, held, f"{part}_X.bin", f"{part}_y.bin") for part in ("train", "test")
        )
        return Splits(train_x, train_y, test_x, test_y, NAMES)


def _part(
    files: Files, held: dict[str, trees.Member], images: str, labels: str
) -> tuple[Array, Array]:
    x = parse_images(*_confirmed(files, held, images))
    y = parse_labels(*_confirmed(files, held, labels))
    if len(x) != len(y):
        raise UsageError(f"{held[labels].where}: {len(y)} labels, expected {len(x)}: one an image")
    return x, y


def _confirmed(files: Files, held: dict[str, trees.Member], name: str) -> tuple[bytes, str]:
    """The file's bytes, which have the official sum, and where it is."""
    if name not in held:
        raise files.missing(name)
    data = held[name].read()
    files.confirm(held[name].where, data, MD5[name], "md5")
    return data, held[name].where


def parse_images(data: bytes, where: str) -> Array:
    """Channel by channel, and in each column by column. Raises UsageError."""
    if not data or len(data) % PIXELS:
        raise UsageError(f"{where}: {len(data)} bytes, expected a multiple of {PIXELS}")
    columns = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3, SIDE, SIDE)
    return columns.transpose(0, 1, 3, 2)


def parse_labels(data: bytes, where: str) -> Array:
    """A byte each, from 1. Raises UsageError."""
    y = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 1
    outside = np.flatnonzero((y < 0) | (y >= len(NAMES)))
    if len(outside):
        first = int(outside[0])
        raise UsageError(f"{where}: label {first} is {y[first] + 1}, expected 1 … {len(NAMES)}")
    return y
