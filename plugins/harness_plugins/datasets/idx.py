"""The idx format of MNIST and of the data sets made in its image.

bytes 0, 1: zero   2: type (8: unsigned byte)   3: number of dimensions, d
then d sizes, each a big-endian uint32, then the values, the last index running fastest
"""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from typing import Any

import numpy as np

from harness.data import Files, Splits
from harness.errors import UsageError
from harness_plugins.datasets import IDX_FILES

UNSIGNED_BYTE = 8


def load(files: Files, sha256: tuple[str, ...], names: tuple[str, ...]) -> Splits:
    """The four official IDX_FILES, of those sums: images and labels to train, then to test."""
    train_x, train_y, test_x, test_y = (
        parse(_unpacked(files, name, expected), dimensions, f"{files.name}: {name}")
        for name, expected, dimensions in zip(IDX_FILES, sha256, (3, 1, 3, 1), strict=True)
    )
    return Splits(
        train_x=train_x[:, None],
        train_y=train_y.astype(np.int64),
        test_x=test_x[:, None],
        test_y=test_y.astype(np.int64),
        names=names,
    )


def parse(data: bytes, dimensions: int, where: str) -> np.ndarray[Any, Any]:
    """The uint8 array that idx data holds. Raises UsageError, beginning with `where`."""
    start = 4 + 4 * dimensions
    magic = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    if data[:4] != magic or len(data) < start:
        raise UsageError(
            f"{where}: begins with {data[:4].hex(' ') or 'nothing'}, expected {magic.hex(' ')}: "
            f"idx data of unsigned bytes in {dimensions} dimensions, and its sizes"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) - start != prod(shape):
        raise UsageError(
            f"{where}: holds {len(data) - start} values, expected {prod(shape)}: "
            f"its header says {' x '.join(map(str, shape))}"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def _unpacked(files: Files, name: str, sha256: str) -> bytes:
    data = files.read(name, sha256)
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{files.name}: {name}: not a whole .gz file: {error}") from error
