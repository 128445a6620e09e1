"""What a store holds of a manifest's entries: each with its record, or why there is none.

An attack cell counts only beside its model's fit: without one, or with one that was made on other
weights, its record is not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.errors import RecordError
from harness.manifest import Entry, Manifest
from harness.plugin import CORRUPTION
from harness.records import Record

NOT_RUN, NOT_FITTED, STALE, FOREIGN = "not run", "not fitted", "stale", "foreign"
NEEDED = {
    "fit": {"ids", "y", "clean"},
    "attack": {"ids", "y", "clean", "norm2", "outcome", "label", "distance", "forward", "backward"},
    CORRUPTION: {"ids", "y", "draw_correct"},
}


@dataclass(frozen=True)
class Found:
    """What there is of an entry.

    status: `ok`; `incompatible`, by the plan; `not run`; `not fitted`, its model's cell has no
            result; `stale`, made on other weights than the fit's; `foreign`, its arrays are not
            those of such a cell; else the status of the record
    record: to be read, where the status is ok
    stored: whatever the store holds, for what it cost
    """

    entry: Entry
    status: str
    reason: str = ""
    record: Record | None = None
    stored: Record | None = None


class Lookup:
    """Every entry of the manifest with what was found of it, fit cells first.

    samples: the number that every record is of. Raises RecordError where two records are not of
    the same samples.
    """

    def __init__(self, manifest: Manifest, records: Mapping[str, Record]) -> None:
        self.manifest = manifest
        self.found: dict[tuple[str, int, str, str], Found] = {}
        for e in sorted(manifest.entries, key=lambda e: e.kind != "fit"):
            fit = None if e.kind == "fit" else self.found.get((e.model, e.seed, "", ""))
            self.found[e.model, e.seed, e.attack, e.norm] = _find(e, records.get(e.key), fit)
        there = {(norm, attack) for _, _, attack, norm in self.found}
        self._attacks = {
            t.norm: tuple(a.label for a in manifest.attacks if (t.norm, a.label) in there)
            for t in manifest.threats
        }
        self.samples = _same_samples(self.found.values(), manifest.samples)

    def seeds(self, model: str, attack: str = "", norm: str = "") -> list[Found]:
        """What was found of one cell, a fit where no attack is named, for each seed."""
        keys = ((model, seed, attack, norm) for seed in self.manifest.seeds)
        return [self.found[key] for key in keys if key in self.found]

    def over_seeds(self) -> dict[tuple[str, str, str], list[Found]]:
        """All that was found, by model, attack and norm."""
        cells: dict[tuple[str, str, str], list[Found]] = {}
        for (model, _, attack, norm), found in self.found.items():
            cells.setdefault((model, attack, norm), []).append(found)
        return cells

    def attacks(self, norm: str) -> tuple[str, ...]:
        """The attacks that the manifest has a cell of under the norm, in its order."""
        return self._attacks.get(norm, ())


def status_of(seeds: Sequence[Found]) -> str:
    """`ok` where every seed is, else what the first of the others is."""
    return next((f.status for f in seeds if f.status != "ok"), "ok" if seeds else NOT_RUN)


def statuses(seeds: Sequence[Found]) -> str:
    """What seeds without a result are: 'timeout', or 'timeout (seed 1)' if others have one."""
    bad = [f for f in seeds if f.status != "ok"]
    kinds = ", ".join(dict.fromkeys(f.status for f in bad)) or NOT_RUN
    if len(bad) == len(seeds):
        return kinds
    return f"{kinds} (seed {', '.join(str(f.entry.seed) for f in bad)})"


def _find(entry: Entry, record: Record | None, fit: Found | None) -> Found:
    if entry.state == "incompatible":
        return Found(entry, "incompatible", entry.reason)
    if entry.kind == "attack" and (fit is None or fit.record is None):
        return Found(entry, NOT_FITTED, "its model has no fit", stored=record)
    if record is None:
        return Found(entry, NOT_RUN, "no record of it yet")
    if record.status != "ok":
        return Found(entry, record.status, record.reason, stored=record)
    status, reason = _believed(entry, record, None if fit is None else fit.record)
    return Found(entry, status, reason, None if reason else record, stored=record)


def _believed(entry: Entry, record: Record, fit: Record | None) -> tuple[str, str]:
    """`ok`, or why a record that ended so is not read after all."""
    if fit is not None and fit.weights != record.weights:
        return STALE, "made on other weights than the fit record's"
    needed = NEEDED[CORRUPTION if entry.norm == CORRUPTION else entry.kind]
    if lacking := needed - record.arrays.keys():
        return FOREIGN, f"lacks {', '.join(sorted(lacking))}"
    return "ok", ""


def _same_samples(found: Iterable[Found], declared: int) -> int:
    """How many samples every record is of."""
    read = [f.record for f in found if f.record is not None]
    if not read:
        return declared
    first = read[0]
    ids, y = first.arrays["ids"], first.arrays["y"]
    for record in read[1:]:
        if not np.array_equal(record.arrays["ids"], ids):
            raise RecordError(
                f"records {first.key} and {record.key} are not of the same samples: "
                "run the board again with --force"
            )
        if not np.array_equal(record.arrays["y"], y):
            raise RecordError(f"records {first.key} and {record.key} disagree on the true labels")
    return len(ids)
