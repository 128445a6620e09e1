"""A data set in memory: what a plugin hands over, how it is checked, and which part is used.

Images are (n, c, h, w), uint8 (where k means k/255) or float32 in [0, 1]; labels int64 (n,).
"""

from __future__ import annotations

import heapq
import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from annotated_types import Ge

from harness.budget import Saturation
from harness.errors import PluginError, UsageError
from harness.files import Files
from harness.plugin import Added

Array = np.ndarray[Any, Any]
NAMES = ("train_x", "train_y", "test_x", "test_y")


@dataclass(frozen=True, eq=False)
class Splits:
    """A whole data set. `names` are the classes', in the order of the labels."""

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array
    names: tuple[str, ...]

    def arrays(self) -> dict[str, Array]:
        """The four arrays by name, contiguous and little-endian, as they are hashed and stored."""
        own = {name: getattr(self, name) for name in NAMES}
        return {k: np.ascontiguousarray(a, a.dtype.newbyteorder("<")) for k, a in own.items()}


class Dataset(Protocol):
    """A data set: a frozen dataclass whose fields are its own options."""

    def load(self, files: Files) -> Splits:
        """Read it. Raises UsageError, best by `files`, where a file is missing or altered."""
        ...


@dataclass(frozen=True)
class DataOptions:
    """What the harness gives to every data set.

    classes:  those to keep, 0-1, 3+8 or 0-4+7, relabelled from 0 in the order written; else all
    train:    how many training images to keep, a fixed, class-proportional choice
    saturate: p from 2 to inf of the saturated images x^(p); inf: binarised
    """

    classes: tuple[int | str, ...] = ()
    train: Annotated[int, Ge(1)] | None = None
    saturate: Annotated[Saturation, Added()] = None


def check(splits: Splits, name: str) -> None:
    """Refuse a data set before any work is done on it.

    Raises PluginError where types or shapes break the contract, UsageError where values do.
    """
    if len(splits.names) < 2:
        raise UsageError(f"{name}: {len(splits.names)} class is nothing to classify; 2 are needed")
    for part in ("train", "test"):
        x, y = getattr(splits, f"{part}_x"), getattr(splits, f"{part}_y")
        _check_types(x, y, f"{name}: {part}")
        _check_values(x, f"{name}: {part}")
        _check_labels(y, splits.names, f"{name}: {part}")
    train, test = (f"{x.dtype} {x.shape[1:]}" for x in (splits.train_x, splits.test_x))
    if train != test:
        raise PluginError(
            f"{name}: training images are {train}, test images {test}; they must be alike"
        )


def _check_types(x: Any, y: Any, where: str) -> None:
    if not (isinstance(x, np.ndarray) and isinstance(y, np.ndarray)):
        raise PluginError(f"{where}: images and labels must be numpy arrays")
    if x.dtype not in (np.uint8, np.float32):
        raise PluginError(f"{where}: images are {x.dtype}, expected uint8 or float32")
    if y.dtype != np.int64:
        raise PluginError(f"{where}: labels are {y.dtype}, expected int64")
    if x.ndim != 4:
        raise PluginError(f"{where}: images have the shape {x.shape}, expected (n, c, h, w)")
    if y.shape != x.shape[:1]:
        raise PluginError(f"{where}: labels have the shape {y.shape}, expected ({len(x)},)")
    if not x.size:
        raise UsageError(f"{where}: is empty, its images have the shape {x.shape}")


def _check_values(x: Array, where: str) -> None:
    if x.dtype == np.uint8:
        return
    outside = ~((x >= 0) & (x <= 1))  # NaN is neither
    if outside.any():
        place = np.unravel_index(int(outside.argmax()), x.shape)
        raise UsageError(
            f"{where}: image {place[0]} has the value {float(x[place]):g} at "
            f"{tuple(map(int, place[1:]))}; images must be finite and in [0, 1]"
        )


def _check_labels(y: Array, names: tuple[str, ...], where: str) -> None:
    outside = (y < 0) | (y >= len(names))
    if outside.any():
        first = int(outside.argmax())
        raise UsageError(
            f"{where}: image {first} has the label {y[first]}; labels must be in "
            f"0 … {len(names) - 1}"
        )
    absent = np.flatnonzero(np.bincount(y, minlength=len(names)) == 0)
    if len(absent):
        raise UsageError(f"{where}: class {absent[0]} ({names[absent[0]]}) has no image")


def apply(splits: Splits, options: DataOptions) -> Splits:
    """The classes and the training images that were asked for, saturated. Raises UsageError."""
    if options.classes:
        splits = _only(splits, class_list(options.classes, splits.names))
    if options.train is not None:
        splits = _fewer(splits, options.train)
    if options.saturate is not None:
        train, test = (saturated(x, options.saturate) for x in (splits.train_x, splits.test_x))
        splits = replace(splits, train_x=train, test_x=test)
    return splits


def _fewer(splits: Splits, train: int) -> Splits:
    available = len(splits.train_y)
    if train > available:
        raise UsageError(f"train={train}: there are {available} training images")
    rows = np.sort(stratified(splits.train_y)[:train])
    _check_labels(splits.train_y[rows], splits.names, f"train={train}")
    return replace(splits, train_x=splits.train_x[rows], train_y=splits.train_y[rows])


def saturated(x: Array, p: float | Literal["inf"]) -> Array:
    """x^(p) = ½ sign(2x − 1) |2x − 1|^(2/p) + ½ of each pixel: 2 changes nothing, inf binarises.

    ½ stays ½. uint8 images, none of whose pixels is ½, stay uint8 where p is inf, and are float32
    for any p between 2 and inf.
    """
    exponent = float(p)
    if exponent == 2:
        return x
    if x.dtype == np.uint8:
        if exponent == np.inf:
            return np.where(x > 127, 255, 0).astype(np.uint8)
        return _saturated(np.arange(256) / 255, exponent)[x]
    return _saturated(x, exponent)


def _saturated(x: Array, p: float) -> Array:
    u = 2 * x.astype(np.float64) - 1
    steep: Array = np.sign(u) * np.abs(u) ** (2 / p)
    return (steep / 2 + 0.5).astype(np.float32)


def class_list(written: Iterable[int | str], names: Sequence[str]) -> list[int]:
    """The classes that '0-4+7', its parts, or a list of numbers mean, in the order written."""
    text = written if isinstance(written, str) else "+".join(map(str, written))
    parts, known = [part.strip() for part in text.split("+")], len(names)
    classes: list[int] = []
    for part in parts:
        match = re.fullmatch(r"([0-9]+)\s*(?:-\s*([0-9]+))?", part)
        if not match:
            written_out = (p for p in parts if p in names and not p.isdecimal())
            named = ", ".join(f"{p} is {names.index(p)}" for p in written_out)
            raise UsageError(
                f"classes={text}: {part!r} is neither the number of a class nor a range such as 0-4"
                + (f"; classes are given by number: {named}" if named else "")
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UsageError(f"classes={text}: {part!r} runs down; write {last}-{first}")
        if last >= known:
            raise UsageError(f"classes={text}: {last} is not a class; they are 0 … {known - 1}")
        classes += range(first, last + 1)
    if len(set(classes)) < len(classes) or len(classes) < 2:
        raise UsageError(f"classes={text}: expected two or more classes, each of them once")
    return classes


def _only(splits: Splits, classes: list[int]) -> Splits:
    label = np.full(len(splits.names), -1, dtype=np.int64)
    label[classes] = range(len(classes))
    train, test = (label[y] >= 0 for y in (splits.train_y, splits.test_y))
    return Splits(
        train_x=splits.train_x[train],
        train_y=label[splits.train_y[train]],
        test_x=splits.test_x[test],
        test_y=label[splits.test_y[test]],
        names=tuple(splits.names[c] for c in classes),
    )


def stratified(y: Array, seed: int = 0) -> Array:
    """A permutation, int64 (n,), every prefix of which has the classes in their proportions.

    Of a class that is the share p of the n labels, each prefix of length m holds ⌊mp⌋ or ⌈mp⌉ (that
    there is such an order: Tijdeman, 1980, 'The chairman assignment problem'). So the class's j-th
    image, j from 0, may stand at the positions ⌊j/p⌋ … ⌈(j + 1)/p⌉ − 1, and every position goes to
    the image, of those whose time has come, whose time ends first. Which image is the class's j-th
    is decided by random numbers of the seed.
    """
    n = len(y)
    # A bit generator's raw numbers never change with numpy's version; its shuffles may.
    shuffled = np.argsort(np.random.Philox(key=seed).random_raw(n), kind="stable")
    windows: list[tuple[int, int, int]] = []  # (first position, position after the last, image)
    for label in np.unique(y):
        images = shuffled[y[shuffled] == label].tolist()
        size = len(images)
        windows += [(j * n // size, -(-(j + 1) * n // size), i) for j, i in enumerate(images)]
    to_come = deque(sorted(windows, key=itemgetter(0)))
    order, waiting = np.empty(n, dtype=np.int64), list[tuple[int, int]]()
    for position in range(n):
        while to_come and to_come[0][0] <= position:
            _, end, image = to_come.popleft()
            heapq.heappush(waiting, (end, image))
        order[position] = heapq.heappop(waiting)[1]
    return order


def evaluation_order(y_test: Array, how: str) -> Array:
    """The order in which test images are evaluated, int64 (n,), so that a limit takes its prefix.

    how: 'stratified' (see `stratified`; the seed is fixed) or 'first', as the data set has them
    """
    if how == "stratified":
        return stratified(y_test)
    if how == "first":
        return np.arange(len(y_test), dtype=np.int64)
    raise UsageError(f"samples: {how!r} is neither 'stratified' nor 'first'")


def choose(y_test: Array, how: str, limit: int | None, seed_points: int) -> tuple[Array, Array]:
    """Test images to evaluate, and those that are given to preparing attacks instead.

    The seed points are the last of the evaluation order, so that the limit changes none of them.
    """
    n = len(y_test)
    if limit is not None and limit < 1:
        raise UsageError(f"limit: expected 1 or more images to evaluate, got {limit}")
    if not 0 <= seed_points < n:
        raise UsageError(
            f"seed_points={seed_points}: they are taken from the test images, of which there are "
            f"{n}; expected fewer"
        )
    order = evaluation_order(y_test, how)
    left = n - seed_points
    return order[: min(limit or left, left)], order[left:]
