"""Image files as arrays uint8 (h, w, 3), RGB, and resized the same way on every machine.

.ppm is read here, so that a data set of such files needs nothing else; .png and .jpg by Pillow.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from harness.errors import UsageError
from harness_plugins.datasets.trees import Member

Array = np.ndarray[Any, Any]

SUFFIXES = (".ppm", ".png", ".jpg", ".jpeg")
GAP = rb"(?:\s|#[^\n]*\n)+"
HEADER = re.compile(rb"P6" + 3 * (GAP + rb"(\d{1,9})") + rb"\s")
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow's modes
BITS = 22  # of a weight's fraction


def decode(member: Member, parse: Callable[[bytes], Array]) -> Array:
    """The image in the file. Raises UsageError, naming the file, where `parse` has ValueError."""
    try:
        return parse(member.read())
    except ValueError as error:
        raise UsageError(f"{member.where}: {error}") from error


def parse_any(data: bytes) -> Array:
    """A .ppm, .png or .jpg by what it begins with, not by its name. Raises ValueError."""
    if data.startswith(b"P6"):
        return parse_ppm(data)
    if data.startswith((b"\x89PNG", b"\xff\xd8")):
        return _by_pillow(data)
    raise ValueError(f"no .ppm (P6), .png or .jpg image: begins with {_beginning(data)}")


def parse_ppm(data: bytes) -> Array:
    """A binary .ppm of 8 bits a channel. Raises ValueError."""
    header = HEADER.match(data)
    if not header:
        raise ValueError(
            f"not a .ppm image: begins with {_beginning(data)}, expected P6, width, height and 255"
        )
    w, h, most = map(int, header.groups())
    if most != 255 or not w * h:
        raise ValueError(f"a .ppm of {w} × {h} pixels up to {most}, expected some, up to 255")
    if (found := len(data) - header.end()) != 3 * w * h:
        raise ValueError(
            f"truncated or altered: {found} bytes of pixels, expected {3 * w * h}: its header says "
            f"{w} × {h}"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header.end()).reshape(h, w, 3)


def _beginning(data: bytes) -> str:
    return data[:8].hex(" ") or "nothing"


def _by_pillow(data: bytes) -> Array:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            mode, pixels = image.mode, np.array(image.convert("RGB"))
    except Exception as error:  # a damaged image can raise anything
        reason = "its header is damaged" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"truncated or altered: {' '.join(str(reason).split())}") from error
    if mode not in EIGHT_BIT:
        raise ValueError(f"an image of mode {mode}, expected 8 bits a channel")
    return pixels


def channels_first(images: list[Array]) -> Array:
    """Images of one size as uint8 (n, 3, h, w)."""
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def central(image: Array, shorter: int, size: int) -> Array:
    """The central size × size pixels of the image whose shorter side was brought to `shorter`."""
    h, w = image.shape[:2]
    image = resized(image, h * shorter // min(h, w), w * shorter // min(h, w))
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def resized(image: Array, h: int, w: int) -> Array:
    """The image at h × w pixels: bilinear where it grows, averaged over a tent where it shrinks.

    Within one step of Pillow's BILINEAR, whose last bits are not those of every version; here whole
    numbers alone give every machine the same.
    """
    wide = _along_rows(image.transpose(1, 0, 2), w).transpose(1, 0, 2)
    return _along_rows(wide, h)


def _along_rows(image: Array, rows: int) -> Array:
    old = len(image)
    if old == rows:
        return image
    flat = image.reshape(old, -1).astype(np.int32)
    sums: Array = _weights(old, rows) @ flat  # below 2^31: a byte has 8 bits
    sums += 1 << (BITS - 1)
    sums >>= BITS
    return sums.astype(np.uint8).reshape(rows, *image.shape[1:])


@functools.lru_cache(maxsize=4096)
def _weights(old: int, new: int) -> Any:
    """Sparse (new, old): the weights of old rows in each new row, each row's in all 2^BITS.

    The old pixel j has its middle at j + ½, the new i at (i + ½) old/new, in old pixels; the tent
    around it is max(old/new, 1) to either side. All of it is multiplied by 2 new, or by 2 old.
    """
    from scipy.sparse import csr_array

    middles = (2 * np.arange(old) + 1) * new, (2 * np.arange(new)[:, None] + 1) * old
    tent = np.maximum(2 * max(old, new) - np.abs(middles[0] - middles[1]), 0)
    total = tent.sum(axis=1, keepdims=True)
    fractions = ((tent << (BITS + 1)) + total) // (2 * total)
    return csr_array(fractions.astype(np.int32))
