"""Data sets: laid out once for all workers, opened by mmap, given to models as tensors.

    Dataset.load(files) ─▶ Splits ─check, apply─▶ Splits ─materialise─▶ DataRef ─open─▶ Arrays

A `DataRef` is JSON-able and is what travels to workers. Importing this imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import UsageError
from harness.files import Files
from harness.splits import (
    NAMES,
    Array,
    DataOptions,
    Dataset,
    Splits,
    apply,
    check,
    choose,
    evaluation_order,
    stratified,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Arrays",
    "DataOptions",
    "DataRef",
    "Dataset",
    "Files",
    "Info",
    "Splits",
    "TrainingSet",
    "apply",
    "as_images",
    "check",
    "choose",
    "evaluation_order",
    "materialise",
    "stratified",
]

HOPELESS = 3600.0  # seconds after which a folder that is still being written has lost its writer


@dataclass(frozen=True)
class Info:
    """What a classifier is built for: image shape (c, h, w), number of classes k, and how many
    training images the data set has (a model with `noise` is given twice as many)."""

    shape: tuple[int, int, int]
    classes: int
    train: int


@dataclass(frozen=True, eq=False)
class Arrays:
    """The arrays of a data set, opened by mmap: read-only."""

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array


@dataclass(frozen=True)
class DataRef:
    """A data set on disk, JSON-able by `asdict`.

    folder:  holds the four arrays as .npy
    content: sha256 of the arrays
    shape:   of an image, (c, h, w)
    on_grid: every pixel is k/255
    """

    folder: str
    content: str
    shape: tuple[int, int, int]
    classes: int
    n_train: int
    n_test: int
    on_grid: bool

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> DataRef:
        """The inverse of `asdict`, also after JSON made lists of tuples."""
        c, h, w = raw["shape"]
        return cls(**{**{f.name: raw[f.name] for f in fields(cls)}, "shape": (c, h, w)})

    @property
    def info(self) -> Info:
        return Info(self.shape, self.classes, self.n_train)

    def open(self) -> Arrays:
        """Raises UsageError if the arrays are gone."""
        try:
            return Arrays(**{name: _mapped(Path(self.folder), name) for name in NAMES})
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(
                f"{self.folder}: the data cache is gone or torn ({error}); run again"
            ) from error


def _mapped(folder: Path, name: str) -> Array:
    mapped: Array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return mapped


def materialise(splits: Splits, cache: Path) -> DataRef:
    """Lay the arrays out in the folder of the cache that their content names.

    Any number of processes may do so at once. What is there already is compared, not believed.
    """
    arrays = splits.arrays()
    content = _content(arrays)
    folder = cache.absolute() / content[:32]
    if not _holds(folder, arrays):
        _write(folder, arrays)
    c, h, w = splits.train_x.shape[1:]
    return DataRef(
        folder=str(folder),
        content=content,
        shape=(c, h, w),
        classes=len(splits.names),
        n_train=len(splits.train_y),
        n_test=len(splits.test_y),
        on_grid=all(_on_grid(x) for x in (splits.train_x, splits.test_x)),
    )


def _content(arrays: Mapping[str, Array]) -> str:
    """sha256 over the name, type, shape and bytes of each array."""
    total = hashlib.sha256()
    for name, array in arrays.items():
        total.update(json.dumps([name, array.dtype.str, array.shape]).encode() + b"\n")
        total.update(array.data)
    return total.hexdigest()


def _holds(folder: Path, arrays: Mapping[str, Array]) -> bool:
    """The folder holds these very arrays."""
    try:
        there = {name: _mapped(folder, name) for name in arrays}
    except (OSError, ValueError, EOFError):
        return False
    return all(
        there[name].dtype == array.dtype and np.array_equal(there[name], array)
        for name, array in arrays.items()
    )


def _write(folder: Path, arrays: Mapping[str, Array]) -> None:
    """Make the folder whole in one rename."""
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        _sweep(folder.parent)
        for name, array in arrays.items():
            with (temporary / f"{name}.npy").open("xb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        _place(temporary, folder, arrays)
    except OSError as error:
        raise UsageError(
            f"{folder.parent}: the data cache cannot be written: {error.strerror or error}; "
            "HARNESS_CACHE names another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _place(temporary: Path, folder: Path, arrays: Mapping[str, Array]) -> None:
    try:
        os.replace(temporary, folder)
    except OSError:
        if _holds(folder, arrays):  # another process was faster
            return
        shutil.rmtree(folder)  # torn: a cache is rebuilt
        os.replace(temporary, folder)


def _sweep(cache: Path) -> None:
    """Remove what writers that were killed left behind."""
    for path in cache.glob("*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # its writer lives, and has just renamed it
            if time.time() - path.stat().st_mtime > HOPELESS:
                shutil.rmtree(path, ignore_errors=True)


def _on_grid(x: Array) -> bool:
    """Every value is the float32 nearest to k/255."""
    return x.dtype == np.uint8 or bool((x == np.rint(x * 255) / np.float32(255)).all())


def as_images(x: Array, rows: Array | slice) -> Tensor:
    """Those rows of x (n, c, h, w) as float32 in [0, 1], copied; k becomes the float nearest k/255.

    By numpy, because a GPU divides by multiplying with 1/255, which is off by a bit.
    """
    import torch

    chosen = x[rows]
    if chosen.dtype == np.uint8:
        return torch.from_numpy(np.divide(chosen, 255, dtype=np.float32))
    return torch.from_numpy(np.array(chosen, dtype=np.float32))


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What a defense is fitted to: images x, float32 (n, c, h, w) in [0, 1], labels y, int64 (n,).

    `info` is the data set's.
    """

    info: Info
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, ref: DataRef) -> TrainingSet:
        import torch

        arrays = ref.open()
        x = as_images(arrays.train_x, slice(None))
        return cls(ref.info, x, torch.from_numpy(np.array(arrays.train_y, dtype=np.int64)))

    def noisy(self, sigma: float, seed: int) -> TrainingSet:
        """The images and, after them, one noisy copy of each, clip(x + σ·N(0, I), 0, 1)."""
        import torch

        from harness.rng import derive

        generator = np.random.Generator(np.random.Philox(key=derive(seed, "training noise")))
        noise = torch.from_numpy(generator.standard_normal(self.x.shape, np.float32))
        copy = noise.mul_(sigma).add_(self.x).clamp_(0, 1)
        return TrainingSet(self.info, torch.cat([self.x, copy]), torch.cat([self.y, self.y]))

    def saturated(self, p: float) -> TrainingSet:
        """The images as a classifier behind `harness.saturation.Saturated` sees them."""
        import torch

        from harness.saturation import saturate

        parts = (self.x[i : i + 1000] for i in range(0, len(self.x), 1000))  # float64 inside
        x = torch.cat([saturate(part, p) for part in parts])
        return TrainingSet(self.info, x, self.y)
