"""What a store holds of a manifest's entries: each with its record, or why there is none.

An attack cell counts only beside its model's fit: without one, or with one that was made on other
weights, its record is not read. Nor is one whose arrays are not those of such a cell: it is a gap
like any other, so that no record can spoil the tables of the others.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.manifest import Entry, Manifest, ThreatRow
from harness.measures import ran_once
from harness.outcome import CHECKPOINTS, Outcome
from harness.plugin import CORRUPTION, NORMS
from harness.records import Record

NOT_RUN, NOT_FITTED, STALE, FOREIGN = "not run", "not fitted", "stale", "foreign"

Arrays = Mapping[str, NDArray[Any]]
Forms = Mapping[str, tuple[str, str]]

# Kinds of numpy types, and axes: n samples, c columns, the norms, draws of a corruption, rounds,
# queries at which the distance is kept.
INTEGER, COUNT, REAL = "iu", "iub", "f"
FIT: Forms = {"ids": (INTEGER, "n"), "y": (INTEGER, "n"), "clean": (INTEGER, "n")}
ATTACK: Forms = {
    **FIT,
    "norm2": (REAL, "n"),
    "outcome": (INTEGER, "nc"),
    "label": (INTEGER, "nc"),
    "distance": (REAL, "ncN"),
    "forward": (INTEGER, "nc"),
    "backward": (INTEGER, "nc"),
}
CORRUPTED: Forms = {"ids": FIT["ids"], "y": FIT["y"], "draw_correct": (COUNT, "ncd")}
EIGHT_BIT: Forms = {"label8": (INTEGER, "nc"), "distance8": (REAL, "ncN")}
TARGET: Forms = {"target": (INTEGER, "n")}
ROUNDS: Forms = {"round_label": (INTEGER, "rnc")}
CURVE: Forms = {"curve": (REAL, "ncq")}


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
    """Every entry of the manifest with what was found of it, fit cells first."""

    def __init__(self, manifest: Manifest, records: Mapping[str, Record]) -> None:
        self.manifest = manifest
        own = [e for e in manifest.entries if e.kind == "fit"]
        fits = _of_one_slice([_find(e, records.get(e.key), None, manifest) for e in own])
        self.found = {(f.entry.model, f.entry.seed, "", ""): f for f in fits}
        for e in manifest.entries:
            if e.kind == "attack":
                fit = self.found.get((e.model, e.seed, "", ""))
                found = _find(e, records.get(e.key), fit, manifest)
                self.found[e.model, e.seed, e.attack, e.norm] = found
        there = {(norm, attack) for _, _, attack, norm in self.found}
        self._attacks = {
            t.norm: tuple(a.label for a in manifest.attacks if (t.norm, a.label) in there)
            for t in manifest.threats
        }

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
    if not seeds:
        return "not among the attacks asked for"
    bad = [f for f in seeds if f.status != "ok"]
    kinds = ", ".join(dict.fromkeys(f.status for f in bad)) or NOT_RUN
    if len(bad) == len(seeds):
        return kinds
    return f"{kinds} (seed {', '.join(str(f.entry.seed) for f in bad)})"


def unbelievable(
    record: Record,
    fit: Record | None,
    threat: ThreatRow | None,
    samples: int,
    *,
    all_samples: bool,
) -> str:
    """Why a record that ended `ok` is not that of such a cell, in one line; '' where it is.

    fit:         its model's; None for a fit record
    threat:      of an attack cell; None for a fit record
    samples:     how many are evaluated; all_samples: misclassified ones are attacked, too
    """
    faults = _faults_of_fit(record, samples)
    if fit is not None and threat is not None:
        faults = _faults_of_attack(record, fit, threat, samples, all_samples=all_samples)
    return next(faults, "")


def amount(value: object) -> float | None:
    """A number that a record's JSON holds, as a float; None where it is none, or not finite."""
    if isinstance(value, int | float) and abs(value) <= sys.float_info.max:
        return float(value)
    return None


def _find(entry: Entry, record: Record | None, fit: Found | None, manifest: Manifest) -> Found:
    if entry.state == "incompatible":
        return Found(entry, "incompatible", entry.reason)
    if entry.kind == "attack" and (fit is None or fit.record is None):
        return Found(entry, NOT_FITTED, "its model has no fit", stored=record)
    if record is None:
        return Found(entry, NOT_RUN, "no record of it yet")
    if record.status != "ok":
        return Found(entry, record.status, record.reason, stored=record)
    status, reason = _believed(record, None if fit is None else fit.record, entry, manifest)
    return Found(entry, status, reason, None if reason else record, stored=record)


def _believed(
    record: Record, fit: Record | None, entry: Entry, manifest: Manifest
) -> tuple[str, str]:
    """`ok`, or what a record that ended so is after all, and why."""
    if fit is not None and fit.weights != record.weights:
        return STALE, "made on other weights than the fit record's"
    threat = next((t for t in manifest.threats if t.norm == entry.norm), None)
    n, everyone = manifest.samples, manifest.all_samples
    why = unbelievable(record, fit, threat, n, all_samples=everyone)
    return (FOREIGN, f"record {record.key}: {why}") if why else ("ok", "")


def _of_one_slice(fits: Sequence[Found]) -> list[Found]:
    """The fits, of which those that are not of the samples that most are of are foreign."""
    slices = {
        (f.entry.model, f.entry.seed): (_plain(f.record, "ids"), _plain(f.record, "y"))
        for f in fits
        if f.record is not None
    }
    most = Counter(slices.values()).most_common(1)
    return [
        f
        if f.record is None or slices[f.entry.model, f.entry.seed] == most[0][0]
        else replace(
            f,
            status=FOREIGN,
            reason=f"record {f.record.key}: of other samples or labels than the other models'",
            record=None,
        )
        for f in fits
    ]


def _plain(record: Record, name: str) -> bytes:
    return record.arrays[name].astype(np.int64).tobytes()


def _faults_of_fit(record: Record, samples: int) -> Iterator[str]:
    yield from _malformed(record.arrays, FIT, {"n": samples})
    yield from _odd_facts(record.facts)


def _faults_of_attack(
    record: Record, fit: Record, threat: ThreatRow, samples: int, *, all_samples: bool
) -> Iterator[str]:
    arrays = record.arrays
    columns = 1 if threat.norm != CORRUPTION and ran_once(record) else len(threat.eps)
    sizes = {"n": samples, "c": columns, "N": len(NORMS), "d": threat.draws}
    sizes["q"] = len(CHECKPOINTS)
    yield from _malformed(arrays, _forms(arrays, threat), sizes)
    yield from _odd_facts(record.facts)
    for name in ("ids", "y"):
        if not np.array_equal(arrays[name], fit.arrays[name]):
            yield f"its {name} are not the fit record's"
    if threat.norm == CORRUPTION:
        if (arrays["draw_correct"] > 1).any() or (arrays["draw_correct"] < 0).any():
            yield "draw_correct holds more than 0 and 1"
        return
    if "target" in arrays and threat.target == "none":
        yield "has targets under a threat that is not targeted"
    yield from _odd_values(arrays)
    skipped = (arrays["outcome"] == Outcome.SKIPPED).any(axis=1)
    if not all_samples:
        skipped &= arrays["clean"] == arrays["y"]
    if wrongly := int(np.count_nonzero(skipped)):
        yield f"{wrongly} samples that were to be attacked are said to be skipped"


def _forms(arrays: Arrays, threat: ThreatRow) -> Forms:
    """The arrays that such an attack record has. 8-bit, rounds, curve: all of them or none."""
    if threat.norm == CORRUPTION:
        return CORRUPTED
    forms = dict(ATTACK)
    if threat.target != "none":
        forms.update(TARGET)
    for group in (EIGHT_BIT, ROUNDS, CURVE):
        if group.keys() & arrays.keys():
            forms.update(group)
    return forms


def _malformed(arrays: Arrays, forms: Forms, sizes: Mapping[str, int]) -> Iterator[str]:
    if lacking := forms.keys() - arrays.keys():
        yield f"lacks {', '.join(sorted(lacking))}"
    for name, (kinds, axes) in forms.items():
        array = arrays[name]
        # Only the rounds may be as many as they are.
        expected = tuple(sizes.get(a, len(array) if array.ndim else 0) for a in axes)
        if array.dtype.kind not in kinds or array.shape != expected:
            kind = "real" if kinds == REAL else "whole"
            yield f"{name} is {array.dtype} {array.shape}, not {kind} numbers {expected}"


def _odd_values(arrays: Arrays) -> Iterator[str]:
    outcome = arrays["outcome"]
    if (outcome > max(Outcome)).any() or (outcome < 0).any():
        yield "outcome holds a number that is no outcome"
    for name in ("norm2", "distance", "distance8", "curve"):
        # A NaN is not 0 or more, either.
        if name in arrays and not (arrays[name] >= 0).all():
            yield f"{name} holds what is no distance"


def _odd_facts(facts: Mapping[str, Any]) -> Iterator[str]:
    flags, queries = facts.get("flags", ()), facts.get("preparation_queries", 0)
    if not isinstance(flags, list | tuple) or not all(isinstance(f, str) for f in flags):
        yield "its flags are no list of texts"
    if amount(queries) is None:
        yield "its preparation_queries are no number"
