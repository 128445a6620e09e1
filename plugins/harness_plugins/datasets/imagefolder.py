"""Trees of images in folders of classes, as Mini-ImageNet is given out.

train/CLASS/… and test/CLASS/… (or val/), or CLASS/… alone, which is then split. Classes are the
folders' names, in alphabetical order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

from harness.data import Files, Splits, stratified
from harness.errors import UsageError
from harness_plugins.datasets import images, trees
from harness_plugins.datasets.trees import Member

Array = np.ndarray[Any, Any]
IMAGE = re.compile(rf"^/(.+(?:{'|'.join(map(re.escape, images.SUFFIXES))}))$", re.IGNORECASE)
Classes = dict[str, list[Member]]


@dataclass(frozen=True)
class ImageFolder:
    """Images uint8 (n, 3, size, size), RGB.

    folder: the tree's, below the data folder
    size:   of the images, in pixels
    resize: the shorter side is brought to it, and the centre is kept; none: the whole image is
            squeezed to size × size
    test:   the share of each class that is held out, where the tree has no such part of its own
    """

    folder: str = "imagefolder"
    size: Annotated[int, Ge(4), Le(1024)] = 224
    resize: Annotated[int, Ge(4), Le(2048)] | None = 256
    test: Annotated[float, Gt(0), Lt(1)] = 0.5

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize={self.resize}: expected size={self.size} or more, or none")

    def load(self, files: Files) -> Splits:
        root = files.root / self.folder if files.root else None
        if root is None or not root.is_dir():
            raise files.missing(f"{self.folder}/")
        if (root / "train").is_dir():
            train, test = _classes(root / "train"), _classes(_test_part(root))
            _check_alike(train, test, root)
        else:
            train, test = _split(_classes(root), self.test)
        return Splits(*self._arrays(train), *self._arrays(test), names=tuple(train))

    def _arrays(self, classes: Classes) -> tuple[Array, Array]:
        x = [self._prepared(member) for members in classes.values() for member in members]
        y = np.repeat(np.arange(len(classes)), [len(members) for members in classes.values()])
        return images.channels_first(x), y.astype(np.int64)

    def _prepared(self, member: Member) -> Array:
        image = images.decode(member, images.parse_any)
        if self.resize is None:
            return images.resized(image, self.size, self.size)
        return images.central(image, self.resize, self.size)


def _test_part(root: Path) -> Path:
    for part in (root / "test", root / "val"):
        if part.is_dir():
            return part
    raise UsageError(f"{root}: has train/, and neither test/ nor val/ beside it")


def _classes(root: Path) -> Classes:
    """The images of each class, in alphabetical order. Raises UsageError."""
    classes: Classes = {p.name: [] for p in sorted(root.iterdir()) if p.is_dir()}
    for name, member in trees.walk(root, root, IMAGE):
        top, slash, _ = name.partition("/")
        if not slash:
            raise UsageError(f"{member.where}: belongs to no class: expected {root}/CLASS/{name}")
        classes[top].append(member)
    for name, members in classes.items():
        if not members:
            raise UsageError(f"{root / name}: holds no image, {' or '.join(images.SUFFIXES)}")
    if not classes:
        raise UsageError(f"{root}: holds no class: expected folders of images")
    return classes


def _check_alike(train: Classes, test: Classes, root: Path) -> None:
    for name in sorted(train.keys() ^ test.keys()):
        here, there = ("train", "the test part") if name in train else ("the test part", "train")
        raise UsageError(f"{root}: class {name!r} of {here} is missing in {there}")


def _split(classes: Classes, share: float) -> tuple[Classes, Classes]:
    """Training and test images of each class, at least one each, in a fixed choice."""
    train: Classes = {}
    test: Classes = {}
    for name, members in classes.items():
        if len(members) < 2:
            raise UsageError(
                f"{members[0].where}: its class's only image; 2 are needed to split it"
            )
        held = min(max(round(share * len(members)), 1), len(members) - 1)
        order = stratified(np.zeros(len(members), dtype=np.int64))
        train[name] = [members[i] for i in np.sort(order[held:])]
        test[name] = [members[i] for i in np.sort(order[:held])]
    return train, test
