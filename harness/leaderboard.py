"""From a manifest and records to leaderboards: pure functions to frozen dataclasses.

Order, membership and core come from the manifest alone: a record that it does not name is not
read, and the order in which records come changes nothing. A cell without an `ok` record never
raises a number: it is a gap, listed with its reason, and where it leaves a row without a core
attack, the row is shown and unranked. So is a row that a core attack returned invalid images for:
its samples might have been broken there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from harness.crossing import GRADIENTS, Crossed, cross
from harness.lookup import NOT_FITTED, Found, Lookup, amount, status_of, statuses
from harness.manifest import Manifest, ThreatRow
from harness.measures import (
    Bools,
    average,
    read_attack,
    read_corruption,
    reference_column,
    share,
)
from harness.plugin import CORRUPTION
from harness.records import Problem, Record
from harness.standings import (
    AttackCell,
    CorruptionRow,
    CorruptionTable,
    Cost,
    Curve,
    Gap,
    Leaderboard,
    Row,
    Table,
)
from harness.statistics import ranks

__all__ = ["INVALID", "NO_GRADIENT", "OUTDONE", "RELABELLED", "Leaderboard", "aggregate"]

Shared = Mapping[int, Bools]

# The kinds of attack, as a row names them, in the order of what they see of the model.
KINDS = {
    "gradients": "gradient",
    "bpda": "surrogate gradient",
    "surrogate": "surrogate gradient",
    "parts": "parts",
    "scores": "score",
    "labels": "decision",
    "transfer": "transfer",
    "substitute": "substitute",
}
OUTDONE = "white-box weaker than black-box"
NO_GRADIENT = "no gradient reached"
INVALID = "images invalid at the reference"
RELABELLED = "clean labels changed since the fit"


def aggregate(
    manifest: Manifest, records: Mapping[str, Record], problems: Iterable[Problem] = ()
) -> Leaderboard:
    """The leaderboards of a board, from what its store holds; `problems` are files it left out."""
    lookup = Lookup(manifest, records)
    corruptions = [t for t in manifest.threats if t.norm == CORRUPTION]
    return Leaderboard(
        board=manifest,
        samples=manifest.samples,
        tables=tuple(_table(lookup, t) for t in manifest.threats if t not in corruptions),
        corruptions=tuple(_corruption(lookup, t) for t in corruptions),
        gaps=tuple(_gaps(lookup)),
        costs=tuple(_costs(lookup)),
        problems=tuple(sorted(problems, key=lambda p: (p.file, p.reason))),
    )


def _table(lookup: Lookup, threat: ThreatRow) -> Table:
    attacks = lookup.attacks(threat.norm)
    shared = _shared(lookup)
    pairs = [_row(lookup, threat, attacks, shared, m.label) for m in lookup.manifest.models]
    rows = _ranked(threat, [row for row, _ in pairs], [survivors for _, survivors in pairs])
    optimality = tuple(_mean_optimality(rows, a) for a in range(len(attacks)))
    return Table(threat, rows, attacks, optimality)


def _row(
    lookup: Lookup, threat: ThreatRow, attacks: Sequence[str], shared: Shared, model: str
) -> tuple[Row, list[Bools]]:
    """A row without its rank, and for each seed who survived the core, (n,)."""
    n = lookup.manifest.samples
    crossed = [_crossed(lookup, threat, attacks, fit, shared) for fit in lookup.seeds(model)]
    there = [c for c in crossed if c is not None]
    cells = tuple(_attack_cell(lookup, threat, there, model, attack) for attack in attacks)
    eight = [c.core8 for c in there if c.core8 is not None]
    row = Row(
        model=model,
        clean=share([c.clean for c in there], n),
        core=_curve([c.core for c in there if c.core], n),
        everything=_curve([c.everything for c in there if c.everything], n),
        eight=share(eight, n) if len(eight) == len([c for c in there if c.core]) else None,
        cells=cells,
        reached=_reached(there),
        flags=tuple(dict.fromkeys(_flags(lookup, threat, there, model))),
        reason=_why_unranked(lookup, threat, model) or _unfinished(there),
    )
    return row, [c.survivors for c in there if c.survivors is not None]


def _crossed(
    lookup: Lookup, threat: ThreatRow, attacks: Sequence[str], fit: Found, shared: Shared
) -> Crossed | None:
    if fit.record is None:
        return None
    correct = _correct(fit.record)
    model, seed = fit.entry.model, fit.entry.seed
    attacked = {}
    for attack in attacks:
        found = lookup.found.get((model, seed, attack, threat.norm))
        if found is not None and found.record is not None:
            attacked[attack] = read_attack(found.record, threat, correct, shared[seed])
    return cross(attacked, threat.core, threat, correct)


def _reached(crossed: Iterable[Crossed]) -> tuple[str, ...]:
    """The kinds of attack with a result."""
    there = {a.access for c in crossed for a in c.attacked.values()}
    return tuple(dict.fromkeys(kind for access, kind in KINDS.items() if access in there))


def _correct(fit: Record) -> Bools:
    right: Bools = fit.arrays["clean"] == fit.arrays["y"]
    return right


def _shared(lookup: Lookup) -> Shared:
    """For each seed the samples, (n,), that every model fitted with it has right."""
    right: dict[int, list[Bools]] = {}
    for model in lookup.manifest.models:
        for fit in lookup.seeds(model.label):
            if fit.record is not None:
                right.setdefault(fit.entry.seed, []).append(_correct(fit.record))
    return {seed: np.all(masks, axis=0) for seed, masks in right.items()}


def _curve(seeds: Sequence[Sequence[float]], n: int) -> Curve:
    """Shares at each eps, from one curve for each seed; empty where there is none."""
    shares = (share(values, n) for values in zip(*seeds, strict=True))
    return tuple(s for s in shares if s is not None)


def _attack_cell(
    lookup: Lookup, threat: ThreatRow, crossed: Sequence[Crossed], model: str, attack: str
) -> AttackCell:
    found = lookup.seeds(model, attack, threat.norm)
    core, status = attack in threat.core, status_of(found)
    ran = [c for c in crossed if attack in c.curves]
    if not ran:
        return AttackCell(attack, core, status)
    eight = [c.eight[attack] for c in ran if attack in c.eight]
    return AttackCell(
        attack=attack,
        core=core,
        status=status,
        access=ran[0].attacked[attack].access,
        robust=_curve([c.curves[attack] for c in ran], lookup.manifest.samples),
        eight=share(eight, lookup.manifest.samples) if len(eight) == len(ran) else None,
        figures=average([c.figures[attack] for c in ran]),
    )


def _why_unranked(lookup: Lookup, threat: ThreatRow, model: str) -> str:
    """'' where every core attack has a result with every seed."""
    fits = lookup.seeds(model)
    if status_of(fits) != "ok":
        return f"{NOT_FITTED}: {statuses(fits)}"
    if not threat.core:
        return "the board names no core attack for this norm"
    lacking = [
        f"{name}: {statuses(lookup.seeds(model, name, threat.norm))}"
        for name in threat.core
        if status_of(lookup.seeds(model, name, threat.norm)) != "ok"
    ]
    return f"lacks {', '.join(lacking)}" if lacking else ""


def _unfinished(crossed: Sequence[Crossed]) -> str:
    """'' where no core attack returned an invalid image for a sample that survived the core."""
    images: Counter[str] = Counter()
    for c in crossed:
        images.update(c.unfinished)
    counts = ", ".join(f"{name} {n}" for name, n in images.items() if n)
    return f"invalid images of samples left robust: {counts}" if counts else ""


def _flags(
    lookup: Lookup, threat: ThreatRow, crossed: Sequence[Crossed], model: str
) -> Iterator[str]:
    """What the records say of themselves, then what their images and their comparison say."""
    yield from _told(lookup.seeds(model))
    for attack in lookup.attacks(threat.norm):
        told = _told(lookup.seeds(model, attack, threat.norm))
        yield from (f"{attack}: {flag}" for flag in told)
        ran = [c for c in crossed if attack in c.attacked]
        if invalid := sum(c.invalid[attack] for c in ran):
            of = sum(c.attacked[attack].returned for c in ran)
            yield f"{attack}: {invalid} of {of} {INVALID}"
    for c in crossed:
        for name, a in c.attacked.items():
            if a.disagree:
                yield f"{name}: {a.disagree} {RELABELLED}"
        yield from (f"{OUTDONE}: {name}" for name in c.outdone_by)
        if c.attacked and not any(a.access in GRADIENTS for a in c.attacked.values()):
            yield NO_GRADIENT


def _told(seeds: Iterable[Found]) -> Iterator[str]:
    for found in seeds:
        if found.record is not None:
            yield from map(str, found.record.facts.get("flags", ()))


def _ranked(
    threat: ThreatRow, rows: Sequence[Row], survivors: Sequence[Sequence[Bools]]
) -> tuple[Row, ...]:
    """Rows with their ranks: the ranked ones first, then by robust accuracy, then as they came."""
    able = [i for i, row in enumerate(rows) if not row.reason]
    ranked = list(rows)
    if able:
        robust = np.stack([np.stack(survivors[i], axis=1) for i in able])
        for i, rank in zip(able, ranks(robust).tolist(), strict=True):
            ranked[i] = replace(rows[i], rank=rank)

    at = reference_column(threat)

    def order(row: Row) -> tuple[float, float]:
        return (row.rank or math.inf, -row.core[at].mean if row.core else math.inf)

    return tuple(sorted(ranked, key=order))


def _mean_optimality(rows: Iterable[Row], attack: int) -> float:
    known = [r.cells[attack].figures.optimality for r in rows]
    known = [o for o in known if not math.isnan(o)]
    return sum(known) / len(known) if known else math.nan


def _corruption(lookup: Lookup, threat: ThreatRow) -> CorruptionTable:
    pairs = ((m.label, a) for m in lookup.manifest.models for a in lookup.attacks(threat.norm))
    return CorruptionTable(threat, tuple(_corrupted(lookup, threat, m, a) for m, a in pairs))


def _corrupted(lookup: Lookup, threat: ThreatRow, model: str, attack: str) -> CorruptionRow:
    n = lookup.manifest.samples
    fits = [f.record for f in lookup.seeds(model) if f.record is not None]
    found = lookup.seeds(model, attack, threat.norm)
    ran = [read_corruption(f.record) for f in found if f.record is not None]
    clean = share([float(_correct(fit).mean()) for fit in fits], n)
    return CorruptionRow(model, attack, status_of(found), clean, _curve(ran, n))


def _gaps(lookup: Lookup) -> Iterator[Gap]:
    """Cells without a result but those that only miss their fit, seeds of one kind together."""
    seeds: dict[tuple[str, str, str, str, str], list[int]] = {}
    for found in lookup.found.values():
        if found.status not in ("ok", NOT_FITTED):
            e = found.entry
            same = (e.model, e.attack, e.norm, found.status, found.reason)
            seeds.setdefault(same, []).append(e.seed)
    for (model, attack, norm, status, reason), which in seeds.items():
        yield Gap(model, attack, norm, tuple(which), status, reason)


def _costs(lookup: Lookup) -> Iterator[Cost]:
    for (model, attack, norm), found in lookup.over_seeds().items():
        cost = [f.stored.cost for f in found if f.stored is not None]
        if cost:
            wall, cpu, forward, backward = (
                sum(amount(c.get(name)) or 0.0 for c in cost)
                for name in ("wall_seconds", "cpu_seconds", "forward", "backward")
            )
            status = status_of(found)
            yield Cost(model, attack, norm, status, wall, cpu, int(forward), int(backward))
