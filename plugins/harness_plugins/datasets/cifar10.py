"""CIFAR-10, from the official batches in either form, unpacked or in an archive.

Looked for below the data set's own folder: the unpacked folders, their files themselves, and every
.tar.gz; below the data folder: what is called cifar-10-*. What is checked are the batch files
inside, by md5, so that an archive packed anew will do. Both forms hold the same images in the same
order. Archives are read in memory: no name inside one ever reaches the file system.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from harness.data import Files, Splits
from harness.errors import UsageError

Array = np.ndarray[Any, Any]

PYTHON_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
# Computed from the Python batches: per image one byte of label and 3072 of pixels, in their order.
# They equal the sums that ArrayFire's CMake files and others publish for cifar-10-binary.tar.gz.
BINARY_MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
ARCHIVE = "cifar-10-python.tar.gz"
FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
MOST_BYTES = 2**26  # twice a batch: what is larger is none, whatever its name

RECONSTRUCT = np.empty(0).__reduce__()[0]  # its public way: its module has moved in numpy 2
ADMITTED = {
    "numpy.core.multiarray._reconstruct": RECONSTRUCT,
    "numpy._core.multiarray._reconstruct": RECONSTRUCT,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
}


@dataclass(frozen=True)
class Cifar10:
    """Images uint8 (n, 3, 32, 32), RGB; 50,000 to train, 10,000 to test."""

    def load(self, files: Files) -> Splits:
        (*train, test) = _batches(files)
        return Splits(
            train_x=np.concatenate([x for x, _ in train]),
            train_y=np.concatenate([y for _, y in train]),
            test_x=test[0],
            test_y=test[1],
            names=NAMES,
        )


def _batches(files: Files) -> list[tuple[Array, Array]]:
    """Images and labels of the six batches, from the first place that holds them whole.

    What is wrong with another place is said only where there is no such place.
    """
    problem: UsageError | None = None
    for place in _places(files):
        try:
            held = _unpacked(place) if place.is_dir() else _packed(place)
            for sums, parse in _forms():
                if held.keys() >= sums.keys():
                    return [_batch(files, place, held[n], (n, sums[n]), parse) for n in sums]
            if held:
                raise UsageError(f"{place}: of the six batches it holds only {', '.join(held)}")
        except UsageError as error:
            problem = problem or error
    raise problem or files.missing(ARCHIVE)


def _forms() -> tuple[tuple[Mapping[str, str], Callable[[bytes], tuple[Array, Array]]], ...]:
    return (PYTHON_MD5, parse_python), (BINARY_MD5, parse_binary)


def _places(files: Files) -> Iterator[Path]:
    for folder, pattern in zip(files.folders, ("*.tar.gz", "cifar-10-*.tar.gz"), strict=False):
        yield from (p for name in (*FOLDERS, ".") if (p := folder / name).is_dir())
        yield from sorted(folder.glob(pattern), key=lambda p: (p.name != ARCHIVE, p.name))


def _unpacked(folder: Path) -> dict[str, bytes]:
    try:
        paths = [p for p in map(folder.joinpath, (*PYTHON_MD5, *BINARY_MD5)) if p.is_file()]
        return {p.name: p.read_bytes() for p in paths}
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read: {error}") from error


def _packed(archive: Path) -> dict[str, bytes]:
    """The batch files in a .tar.gz, by their own names, in whatever folder of it they are."""
    held: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if name in (*PYTHON_MD5, *BINARY_MD5) and member.size <= MOST_BYTES:
                    file = tar.extractfile(member) if member.isfile() else None
                    held |= {name: file.read()} if file else {}
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UsageError(f"{archive}: truncated, or not a .tar.gz: {error}") from error
    return held


def _batch(
    files: Files,
    place: Path,
    data: bytes,
    official: tuple[str, str],
    parse: Callable[[bytes], tuple[Array, Array]],
) -> tuple[Array, Array]:
    name, md5 = official
    where = f"{place}: {name}"
    files.confirm(where, data, md5, "md5")
    try:
        return parse(data)
    except ValueError as error:
        raise UsageError(f"{where}: not a CIFAR-10 batch: {error}") from error


def parse_binary(data: bytes) -> tuple[Array, Array]:
    """Records of one label byte and 3072 pixels, channel by channel. Raises ValueError."""
    if len(data) % (1 + PIXELS):
        raise ValueError(f"{len(data)} bytes, not a multiple of {1 + PIXELS}")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 1:].reshape(-1, *SHAPE), records[:, 0].astype(np.int64)


def parse_python(data: bytes) -> tuple[Array, Array]:
    """A dictionary pickled by Python 2, `data` (n, 3072) and `labels`. Raises ValueError."""
    try:
        batch = _ArraysAlone(io.BytesIO(data), encoding="bytes").load()
        x, y = batch[b"data"], np.array(batch[b"labels"], dtype=np.int64)
    except Exception as error:  # a pickle that is damaged can raise anything
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not (isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.shape == (len(y), PIXELS)):
        raise ValueError(f"its data are not uint8 ({len(y)}, {PIXELS})")
    return x.reshape(-1, *SHAPE), y


class _ArraysAlone(pickle.Unpickler):
    """Admits what a pickled array of numbers is made of; anything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (full := f"{module}.{name}") in ADMITTED:
            return ADMITTED[full]
        raise pickle.UnpicklingError(f"it asks for {full}, and only numpy arrays are admitted")
