"""CelebA: faces, from the official aligned images and lists, with an attribute as the label.

img_align_celeba, a folder or .zip, list_attr_celeba.txt and list_eval_partition.txt. Its
validation part is not used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le, MinLen

from harness.data import Files, Splits, stratified
from harness.errors import UsageError, did_you_mean
from harness_plugins.datasets import images, trees
from harness_plugins.datasets.trees import Member

Array = np.ndarray[Any, Any]
Part = tuple[Array, Array]

ATTRIBUTES, PARTITION = "list_attr_celeba.txt", "list_eval_partition.txt"
FOLDER = "img_align_celeba"
SHAPE = (218, 178, 3)
PARTS = {"train": "0", "test": "2"}


@dataclass(frozen=True)
class Celeba:
    """Images uint8 (n, 3, size, size), RGB: the central square, resized.

    attributes: one: the faces without it, then those with it; more: the faces that have exactly
                one of them, labelled in the order written
    size:       of the images, in pixels
    images:     of each part, train and test, a fixed class-proportional choice; none: all
    """

    attributes: Annotated[tuple[str, ...], MinLen(1)] = ("Brown_Hair", "Black_Hair")
    size: Annotated[int, Ge(4), Le(178)] = 96
    images: Annotated[int, Ge(2)] | None = 1000

    def __post_init__(self) -> None:
        if len(set(self.attributes)) < len(self.attributes):
            raise ValueError(f"attributes={'+'.join(self.attributes)}: expected each of them once")

    def load(self, files: Files) -> Splits:
        labels = _labels(_list(files, ATTRIBUTES), self.attributes)
        parts = _partition(_list(files, PARTITION))
        faces = trees.gather(files, rf"/{FOLDER}/([^/]+\.jpg)$", top=FOLDER)
        if not faces:
            raise files.missing(f"{FOLDER}.zip")
        train, test = (
            self._part(faces, {n: y for n, y in labels.items() if parts.get(n) == code}, part)
            for part, code in PARTS.items()
        )
        one = self.attributes[0]
        names = self.attributes if len(self.attributes) > 1 else (f"not {one}", one)
        return Splits(*train, *test, names)

    def _part(self, faces: dict[str, Member], labels: dict[str, int], part: str) -> Part:
        """Images and labels. Only those that are kept are decoded."""
        names, y = list(labels), np.array(list(labels.values()), dtype=np.int64)
        if not names or (self.images or 0) > len(names):
            raise UsageError(
                f"celeba: {len(names)} {part} images have such a label, expected "
                f"{self.images or 'some'}: images=none keeps all of them"
            )
        rows = np.sort(stratified(y)[: self.images])
        kept = [self._face(faces, names[row]) for row in rows]
        return images.channels_first(kept), y[rows]

    def _face(self, faces: dict[str, Member], name: str) -> Array:
        if name not in faces:
            beside = next(iter(faces.values())).where
            raise UsageError(f"celeba: {name} is listed, and is not there beside {beside}")
        face = images.decode(faces[name], images.parse_any)
        if face.shape != SHAPE:
            raise UsageError(
                f"{faces[name].where}: is {face.shape[1]} × {face.shape[0]}, expected 178 × 218: "
                "the aligned and cropped images"
            )
        return images.central(face, self.size, self.size)


def _list(files: Files, name: str) -> Member:
    found = trees.gather(files, rf"/({re.escape(name)})$")
    if not found:
        raise files.missing(name)
    return found[name]


def _labels(member: Member, attributes: tuple[str, ...]) -> dict[str, int]:
    """By image, of those that have one. Raises UsageError."""
    lines = member.text().splitlines()
    count, header = (*lines[:2], "", "")[:2]
    known = header.split()
    for name in attributes:
        if name not in known:
            meant = did_you_mean(name, known)
            raise UsageError(
                f"{member.where}: attribute {name!r} is not among its {len(known)}{meant}"
            )
    rows = dict(_rows(member, lines[2:], ("1", "-1"), 3, len(known)))
    if count.strip() != str(len(rows)):
        raise UsageError(
            f"{member.where}: truncated or altered: {len(rows)} images, its first line says "
            f"{count.strip() or 'nothing'}"
        )
    columns = [known.index(name) for name in attributes]
    return {
        name: label for name, row in rows.items() if (label := _label(row, columns)) is not None
    }


def _label(row: list[str], columns: list[int]) -> int | None:
    has = [row[column] == "1" for column in columns]
    if len(has) == 1:
        return int(has[0])
    return has.index(True) if sum(has) == 1 else None


def _partition(member: Member) -> dict[str, str]:
    rows = _rows(member, member.text().splitlines(), ("0", "1", "2"), 1, 1)
    return {name: row[0] for name, row in rows}


def _rows(
    member: Member, lines: list[str], values: tuple[str, ...], first: int, width: int
) -> Iterator[tuple[str, list[str]]]:
    """Lines of an image's name and `width` of the values. Raises UsageError, naming the line."""
    for number, line in enumerate(lines, first):
        name, *row = line.split() or [""]
        if name and (len(row) != width or not set(row) <= set(values)):
            raise UsageError(
                f"{member.where}: line {number}: expected an image's name and {width} of "
                f"{', '.join(values)}; got {line[:40]!r}"
            )
        if name:
            yield name, row
