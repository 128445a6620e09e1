"""Whether one model of a board, the judge, sees the change in other models' adversarial images.

Matyasko (2020, table 4.2) showed people adversarial images and asked whether the class of the image
had changed. No program can ask people; the agreement of an independent model with the adversarial
label is a stand-in for them, and nothing more: it can be fooled by the same images, and it errs on
clean ones.

The images are those that a run kept. Whether they are what their record says is for `verify`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.errors import RecordError, UsageError
from harness.lookup import Found, Lookup
from harness.manifest import Manifest, ThreatRow
from harness.measures import ran_once
from harness.outcome import Outcome
from harness.plugin import CORRUPTION
from harness.records import Record, Store
from harness.standings import Gap

Images = NDArray[np.float32]

NOT_KEPT, NOT_APART, UNREADABLE = "not kept", "not independent", "unreadable"


class Judge(Protocol):
    """A fitted model of the board by its label. shape: of an image, (c, h, w)."""

    @property
    def label(self) -> str: ...

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def labels(self, seed: int, x: Images, ids: Sequence[int]) -> NDArray[np.int64]:
        """What the model of that seed calls images (n, c, h, w) of samples with these ids, (n,)."""


@dataclass(frozen=True)
class Tally:
    """Counts of images.

    images:    that are valid and changed the correct label of the model they were made on
    change:    of those, how many the judge gives the label that this model gives them
    no_change: how many it gives the true label
    """

    images: int
    change: int
    no_change: int

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.images + other.images,
            self.change + other.change,
            self.no_change + other.no_change,
        )


@dataclass(frozen=True)
class Agreement:
    """What the judge says of one attack on one model at one eps, over `seeds` pooled.

    eps: its text; '' of a minimum-norm attack, each of whose images is at a distance of its own
    """

    model: str
    attack: str
    norm: str
    eps: str
    seeds: tuple[int, ...]
    tally: Tally


@dataclass(frozen=True)
class Agreements:
    """What the judge was asked of, and the cells that it was not asked of.

    clean: the judge's clean accuracy, mean over its seeds
    """

    judge: str
    clean: float
    rows: tuple[Agreement, ...]
    gaps: tuple[Gap, ...]

    @property
    def kept(self) -> bool:
        """Whether any cell of another model has kept images, usable or not."""
        return bool(self.rows) or any(g.status in (NOT_APART, UNREADABLE) for g in self.gaps)


def agreements(
    manifest: Manifest, store: Store, records: Mapping[str, Record], judge: Judge
) -> Agreements:
    """Ask the judge of every seed of all images that were kept of other models with that seed.

    Raises UsageError where the judge has no fit with a seed that it is needed for.
    """
    lookup, threats = Lookup(manifest, records), {t.norm: t for t in manifest.threats}
    tallies: dict[tuple[str, str, str, str], dict[int, Tally]] = {}
    gaps: dict[tuple[str, str, str, str, str], list[int]] = {}
    for (model, seed, attack, norm), cell in lookup.found.items():
        if not attack or model == judge.label:
            continue
        found, images = _kept(_apart(cell, lookup, judge), store, judge)
        if found.record is None or images is None:
            why = (model, attack, norm, found.status, found.reason)
            gaps.setdefault(why, []).append(seed)
            continue
        _fitted(lookup, judge, seed)
        for eps, tally in _asked(found.record, images, seed, threats[norm], judge):
            tallies.setdefault((model, attack, norm, eps), {})[seed] = tally
    return Agreements(
        judge=judge.label,
        clean=_clean(lookup, judge),
        rows=tuple(
            Agreement(*key, tuple(by_seed), sum(by_seed.values(), Tally(0, 0, 0)))
            for key, by_seed in tallies.items()
        ),
        gaps=tuple(
            Gap(model, attack, norm, tuple(seeds), status, reason)
            for (model, attack, norm, status, reason), seeds in gaps.items()
        ),
    )


def _apart(found: Found, lookup: Lookup, judge: Judge) -> Found:
    """The cell, without its record where its images were made on the judge: by transfer from it,
    or on a model that is the judge under another label."""
    if found.record is None:
        return found
    entry, sources = found.entry, found.record.facts.get("sources")
    own = lookup.found[judge.label, entry.seed, "", ""].entry.key
    same = lookup.found[entry.model, entry.seed, "", ""].entry.key == own
    if same or (isinstance(sources, Mapping) and own in sources):
        why = f"its images were made on {judge.label}"
        return replace(found, status=NOT_APART, reason=why, record=None)
    return found


def _kept(found: Found, store: Store, judge: Judge) -> tuple[Found, Images | None]:
    """The cell with its images, (n, columns, c, h, w), or why there are none."""
    record = found.record
    if record is None:
        return found, None
    if found.entry.norm == CORRUPTION:
        why = "images of corruptions are never kept"
        return replace(found, status=NOT_KEPT, reason=why), None
    try:
        if not store.keeps_examples(record.key):
            why = "the run was without --keep-examples"
            return replace(found, status=NOT_KEPT, reason=why), None
        return found, _checked(store.examples(record.key), record, judge)
    except RecordError as error:
        return replace(found, status=UNREADABLE, reason=str(error)), None


def _checked(kept: Mapping[str, NDArray[Any]], record: Record, judge: Judge) -> Images:
    images = kept.get("x_adv", np.zeros(0))
    expected = (*record.arrays["outcome"].shape, *judge.shape)
    if images.shape != expected or images.dtype != np.float32:
        raise RecordError(f"the kept images are {images.dtype} {images.shape}, not {expected}")
    return images


def _fitted(lookup: Lookup, judge: Judge, seed: int) -> None:
    fit = lookup.found[judge.label, seed, "", ""]
    if fit.record is None:
        raise UsageError(
            f"--judge {judge.label}: it has no fit with seed {seed} ({fit.status}: {fit.reason}); "
            "run the board with `harness run`"
        )


def _asked(
    record: Record, images: Images, seed: int, threat: ThreatRow, judge: Judge
) -> Iterator[tuple[str, Tally]]:
    """For each column its eps and what the judge says of its images."""
    a = record.arrays
    grid = ("",) if ran_once(record) else tuple(e.text for e in threat.eps)
    for column, eps in enumerate(grid):
        label, y = a["label"][:, column], a["y"]
        found = a["outcome"][:, column] == Outcome.ADVERSARIAL
        # With `all_samples`, images of samples that were misclassified are adversarial, too.
        rows = np.flatnonzero(found & (a["clean"] == y) & (label != y))
        told = judge.labels(seed, images[rows, column], a["ids"][rows].tolist())
        change, no_change = (int((told == labels[rows]).sum()) for labels in (label, y))
        yield eps, Tally(len(rows), change, no_change)


def _clean(lookup: Lookup, judge: Judge) -> float:
    fits = [f.record.arrays for f in lookup.seeds(judge.label) if f.record is not None]
    return float(np.mean([(a["clean"] == a["y"]).mean() for a in fits])) if fits else math.nan
