"""German traffic signs (GTSRB), from the official files, unpacked or in their archives.

    GTSRB/Final_Training/Images/00003/GT-00003.csv, 00000_00000.ppm (track_frame), …
    GTSRB/Final_Test/Images/00000.ppm, …, and GT-final_test.csv, anywhere

A track is one physical sign, seen from thirty distances. Where there is no official test part,
a quarter of each sign's tracks are held out: frames of one track never stand on both sides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le

from harness.data import Files, Splits, stratified
from harness.errors import UsageError
from harness_plugins.datasets import images
from harness_plugins.datasets.trees import Member, gather

Array = np.ndarray[Any, Any]

HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
LABELS = "GT-final_test.csv"
HELD_OUT = 4  # of so many tracks one
SIGNS = (
    *(f"{limit} km/h" for limit in (20, 30, 50, 60, 70, 80)),
    *("end of 80 km/h", "100 km/h", "120 km/h", "no passing", "no passing over 3.5 t"),
    *("right of way at the next crossing", "priority road", "yield", "stop", "no vehicles"),
    *("no vehicles over 3.5 t", "no entry", "danger", "curve to the left", "curve to the right"),
    *("double curve", "bumpy road", "slippery road", "road narrows on the right", "road works"),
    *("traffic signals", "pedestrians", "children", "bicycles", "ice or snow", "wild animals"),
    *("end of all limits", "turn right ahead", "turn left ahead", "ahead only"),
    *("ahead or right", "ahead or left", "keep right", "keep left", "roundabout"),
    *("end of no passing", "end of no passing over 3.5 t"),
)


@dataclass(frozen=True)
class Row:
    """A line of an official CSV: an image, its size, its region of interest, its sign."""

    name: str
    width: int
    height: int
    roi: tuple[int, int, int, int]
    sign: int

    @property
    def track(self) -> str:
        return self.name.partition("_")[0]


@dataclass(frozen=True)
class Gtsrb:
    """Images uint8 (n, 3, size, size), RGB, each squeezed to a square.

    signs:  official ids, 0 … 42, labelled in the order written; none: all of them
    size:   of the images, in pixels
    crop:   none, or the CSV's region of interest, which is without the border around the sign
    tracks: how many of each sign's tracks are trained on (and split), the first; none: all
    tree:   the name of the top folder; of images that are size × size already, the CSV's sizes
            need not be right, so that a tree of resized copies can be read
    """

    signs: tuple[Annotated[int, Ge(0), Le(42)], ...] | None = (3, 8)
    size: Annotated[int, Ge(4), Le(512)] = 48
    crop: Literal["none", "roi"] = "none"
    tracks: Annotated[int, Ge(2)] | None = None
    tree: str = "GTSRB"

    def __post_init__(self) -> None:
        if self.signs is not None and (
            len(set(self.signs)) < len(self.signs) or len(self.signs) < 2
        ):
            written = "+".join(map(str, self.signs))
            raise ValueError(f"signs={written}: expected two or more, each of them once")

    def load(self, files: Files) -> Splits:
        signs = tuple(range(len(SIGNS))) if self.signs is None else self.signs
        top = re.escape(self.tree)
        training = gather(files, rf"/{top}/Final_Training/Images/(\d{{5}}/[^/]+)$", self.tree)
        test = gather(files, rf"/{top}/Final_Test/(?:Images/)?([^/]+)$", self.tree)
        if not training:
            raise files.missing(f"{self.tree}/Final_Training/Images")
        train = [row for sign in signs for row in _training_rows(training, sign, self.tracks)]
        if test:
            held = _test_rows(files, test, signs)
        else:
            train, held = _split(train)
            test = training
        return Splits(
            *self._arrays(training, train, signs),
            *self._arrays(test, held, signs),
            names=tuple(SIGNS[sign] for sign in signs),
        )

    def _arrays(
        self, held: dict[str, Member], rows: list[Row], signs: tuple[int, ...]
    ) -> tuple[Array, Array]:
        x = [self._image(held[row.name], row) for row in rows]
        y = np.array([signs.index(row.sign) for row in rows], dtype=np.int64)
        return images.channels_first(x), y

    def _image(self, member: Member, row: Row) -> Array:
        image = images.decode(member, images.parse_ppm)
        h, w = image.shape[:2]
        if h == w == self.size and self.crop == "none":
            return image
        if (w, h) != (row.width, row.height):
            raise UsageError(
                f"{member.where}: is {w} × {h}, and its line in the CSV says {row.width} × "
                f"{row.height}; if they are resized copies, size={w} reads them"
            )
        if self.crop == "roi":
            left, top, right, bottom = row.roi
            image = image[top:bottom, left:right]
        return images.resized(image, self.size, self.size)


def _training_rows(held: dict[str, Member], sign: int, tracks: int | None) -> list[Row]:
    """The sign's images, all of which are there. Raises UsageError."""
    folder = f"{sign:05d}"
    table = held.get(f"{folder}/GT-{folder}.csv")
    if table is None:
        there = sorted({name.partition("/")[0] for name in held})
        raise UsageError(
            f"gtsrb: sign {sign} ({SIGNS[sign]}): {folder}/GT-{folder}.csv is missing; there are "
            f"{', '.join(there)}"
        )
    rows = parse(table, f"{folder}/", r"\d{5}_\d{5}\.ppm")
    for row in rows:
        if row.sign != sign:
            raise UsageError(f"{table.where}: {row.name} has the ClassId {row.sign}, not {sign}")
    names = sorted({row.track for row in rows})
    if (tracks or 2) > len(names):
        raise UsageError(f"{table.where}: lists {len(names)} tracks, expected {tracks or 2}")
    rows = [row for row in rows if row.track in names[:tracks]]
    _check_there(table, rows, held)
    return rows


def _test_rows(files: Files, held: dict[str, Member], signs: tuple[int, ...]) -> list[Row]:
    table = held.get(LABELS) or gather(files, rf"/({re.escape(LABELS)})$").get(LABELS)
    if table is None:
        raise files.missing(LABELS)
    rows = [row for row in parse(table, "", r"\d{5}\.ppm") if row.sign in signs]
    absent = [SIGNS[sign] for sign in signs if sign not in {row.sign for row in rows}]
    if absent:
        raise UsageError(f"{table.where}: lists no image of {', '.join(absent)}")
    _check_there(table, rows, held)
    return rows


def _check_there(table: Member, rows: list[Row], held: dict[str, Member]) -> None:
    missing = [row for row in rows if row.name not in held]
    if not missing:
        return
    torn = min(row.track for row in missing)
    whole = sum(track < torn for track in {row.track for row in rows})
    only = f"; tracks={whole} reads those before" if "/" in torn and whole > 1 else ""
    raise UsageError(
        f"{table.where}: lists {missing[0].name}, which is not there: {len(missing)} of "
        f"{len(rows)} images are missing{only}"
    )


def _split(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows to test on, no track of which is among both."""
    held_out: set[str] = set()
    for _, group in groupby(rows, key=lambda row: row.sign):
        tracks = sorted({row.track for row in group})
        order = stratified(np.zeros(len(tracks), dtype=np.int64))
        held_out |= {tracks[i] for i in order[: max(len(tracks) // HELD_OUT, 1)]}
    return (
        [row for row in rows if row.track not in held_out],
        [row for row in rows if row.track in held_out],
    )


def parse(table: Member, folder: str, name: str) -> list[Row]:
    """The lines of an official CSV, names below `folder`. Raises UsageError, naming the line."""
    lines = table.text().splitlines()
    if lines[:1] != [HEADER]:
        raise UsageError(
            f"{table.where}: begins with {''.join(lines[:1])[:60]!r}, expected {HEADER}"
        )
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines[1:], 2):
        row = _row(folder, line) if re.match(f"{name};", line) else None
        if row is None or row.name in rows:
            raise UsageError(
                f"{table.where}: line {number}: expected an image's name, which no line before "
                f"has, and 7 numbers that fit together; got {line[:60]!r}"
            )
        rows[row.name] = row
    return list(rows.values())


def _row(folder: str, line: str) -> Row | None:
    if not re.fullmatch(r"[^;]+(;[0-9]{1,9}){7}", line):
        return None
    name, *numbers = line.split(";")
    width, height, left, top, right, bottom, sign = map(int, numbers)
    fits = left < right <= width and top < bottom <= height and sign < len(SIGNS)
    return Row(folder + name, width, height, (left, top, right, bottom), sign) if fits else None
