"""From a board to cells: what must be fitted, what must be attacked, and what does not fit.

Planning looks plugins up, validates their options and hashes identities. It fits nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from harness.board import Board, Choice
from harness.compatibility import applies, misfit
from harness.data import DataRef, choose
from harness.errors import UsageError
from harness.identity import key_of
from harness.manifest import Entry, Manifest, Published, Row, ThreatRow
from harness.options import Resolved
from harness.plugin import Selection
from harness.records import Record

PROTOCOL = 1  # raised when the referee or what a record holds changes

State = Literal["cached", "new", "stale", "failed before", "incompatible"]


@dataclass(frozen=True)
class Data:
    """The board's data set, loaded and checked.

    identity: the data set's own (name, version, options, content)
    slice:    which test images are evaluated
    reserved: test images that are not, for preparing attacks; each is given the last of them
    """

    ref: DataRef
    identity: Mapping[str, Any]
    how: str
    limit: int | None
    seed_points: int
    samples: int
    slice: Mapping[str, Any]
    reserved: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One unit of work: fit one model with one seed, or run one attack on it under one norm.

    needs: keys of the fit cells that must be there first
    row:   a row of the table; a model that is only referred to is fitted without being one
    """

    kind: Literal["fit", "attack"]
    key: str
    identity: Mapping[str, Any]
    seed: int
    model: Resolved
    label: str
    attack: Resolved | None = None
    attack_label: str = ""
    threat: ThreatRow | None = None
    needs: tuple[str, ...] = ()
    reason: str = ""
    row: bool = True

    @property
    def norm(self) -> str:
        return self.threat.norm if self.threat else ""

    def __str__(self) -> str:
        seed = f" seed {self.seed}"
        if self.kind == "fit":
            return f"fit {self.label}{seed}"
        return f"{self.attack_label} on {self.label} {self.norm}{seed}"


@dataclass(frozen=True)
class Plan:
    """Every cell of a board, fit cells first, and the manifest its table is made from."""

    board: Board
    data: Data
    cells: Mapping[str, Cell]
    manifest: Manifest
    incompatible: tuple[Cell, ...] = field(default=())


def board_data(board: Board, ref: DataRef, dataset: Resolved, test_y: Any, seeds: int) -> Data:
    """The slice of the loaded data set that the board evaluates. Raises UsageError."""
    evaluated, reserved = choose(test_y, board.samples, board.limit, seeds)
    _refuse_one_sided(board.samples, test_y[reserved], ref.classes)
    return Data(
        ref=ref,
        identity={**dataset.identity, "content": ref.content},
        how=board.samples,
        limit=board.limit,
        seed_points=seeds,
        samples=len(evaluated),
        slice={"ids": _digest(evaluated), "n": len(evaluated)},
        reserved=tuple(reserved.tolist()),
    )


def _refuse_one_sided(samples: str, seeds: Any, classes: int) -> None:
    """Raise UsageError where so many seed points could be of all classes, and are not."""
    absent = sorted(set(range(classes)) - set(seeds.tolist()))
    if absent and len(seeds) >= classes:
        named = ", ".join(map(str, absent))
        raise UsageError(
            f"seed_points={len(seeds)}: the last {len(seeds)} images in the order samples = "
            f"{samples!r} have none of class {named}"
            + ("; 'stratified' mixes the classes" if samples == "first" else "; give more of them")
        )


def _digest(ids: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i8").tobytes()).hexdigest()


def seed_points(attacks: list[Resolved]) -> int:
    """How many test images the board's preparing attacks need for themselves."""
    return max((own_seed_points(a) for a in attacks if a.entry.spec.prepares), default=0)


def own_seed_points(attack: Resolved) -> int:
    """How many of them this attack is given."""
    asked = attack.given.seed_points
    return int(attack.entry.spec.seed_points if asked is None else asked)


def weights_identity(
    data: Mapping[str, Any], model: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """What the weights of a fitted model are fixed by."""
    return {
        "protocol": PROTOCOL,
        "kind": "weights",
        "dataset": data,
        "model": model,
        "seed": seed,
    }


def make_plan(
    board: Board,
    data: Data,
    models: list[tuple[Choice, Resolved]],
    attacks: list[tuple[Choice, Resolved]],
) -> Plan:
    """Cross the board's models, attacks, threat models and seeds into cells."""
    pairs = [
        (c.label, a, t) for c, a in attacks for t in board.threats if applies(a.entry.spec, t.norm)
    ]
    asked = [t.norm for t in board.threats]
    for choice, attack in attacks:
        norms = attack.entry.spec.norms
        if not set(norms) & set(asked):
            raise UsageError(
                f"{choice.where}: {choice.label} supports {', '.join(norms)}, none of which the "
                f"board's threats ask for ({', '.join(asked)})"
            )
    cells: dict[str, Cell] = {}
    unfit: list[Cell] = []
    entries: list[Entry] = []
    for choice, model in models:
        for seed in board.seeds:
            for cell in _model_cells(board, data, (choice.label, model), pairs, seed):
                if cell.reason:
                    unfit.append(cell)
                else:
                    known = cells.get(cell.key)
                    cells[cell.key] = cell if known is None or cell.row else known
                if cell.row:
                    entries.append(_entry(cell))
    fits_first = dict(sorted(cells.items(), key=lambda item: item[1].kind != "fit"))
    manifest = _manifest(board, data, models, attacks, tuple(entries))
    return Plan(board, data, fits_first, manifest, tuple(unfit))


def _model_cells(
    board: Board,
    data: Data,
    labelled: tuple[str, Resolved],
    pairs: list[tuple[str, Resolved, ThreatRow]],
    seed: int,
) -> Iterator[Cell]:
    """The fit cell of one model with one seed, and its attack cells."""
    label, model = labelled
    yield from _referred(model, data, seed)
    fit = _fit_cell(label, model, data, seed)
    yield fit
    shared = {**fit.identity, "kind": "attack", "all_samples": board.all_samples}
    for attack_label, attack, threat in pairs:
        others = list(_referred(attack, data, seed))
        yield from others
        minimum = attack.entry.spec.kind == "minimum-norm"
        identity = {
            **shared,
            "attack": attack.identity,
            "threat": {
                "norm": threat.norm,
                "eps": None if minimum else [e.value for e in threat.eps],
                "draws": threat.draws,
                "target": threat.target,
            },
        }
        if attack.entry.spec.prepares:
            own = data.reserved[len(data.reserved) - own_seed_points(attack) :]
            identity["seeds"] = {"ids": _digest(own), "n": len(own)}
        yield Cell(
            kind="attack",
            key=key_of(identity),
            identity=identity,
            seed=seed,
            model=model,
            label=label,
            attack=attack,
            attack_label=attack_label,
            threat=threat,
            needs=(fit.key, *(c.key for c in others)),
            reason=fit.reason or misfit(model, attack, threat.norm, data.ref.info),
        )


def _fit_cell(label: str, model: Resolved, data: Data, seed: int, *, row: bool = True) -> Cell:
    identity = {
        "protocol": PROTOCOL,
        "kind": "fit",
        "dataset": data.identity,
        "slice": data.slice,
        "model": model.identity,
        "seed": seed,
    }
    needs = tuple(c.key for c in _referred(model, data, seed))
    return Cell(
        kind="fit",
        key=key_of(identity),
        identity=identity,
        seed=seed,
        model=model,
        label=label,
        needs=needs,
        reason=model.lacks,
        row=row,
    )


def _referred(component: Resolved, data: Data, seed: int) -> Iterator[Cell]:
    """Fit cells of the models that the component's options name, the deepest first."""
    for nested in component.refs:
        yield from _referred(nested.resolved, data, seed)
        if nested.kind == "model":
            yield _fit_cell(nested.resolved.label, nested.resolved, data, seed, row=False)


def _entry(cell: Cell) -> Entry:
    return Entry(
        kind=cell.kind,
        key=cell.key,
        model=cell.label,
        seed=cell.seed,
        attack=cell.attack_label,
        norm=cell.norm,
        state="incompatible" if cell.reason else "planned",
        reason=cell.reason,
    )


def _manifest(
    board: Board,
    data: Data,
    models: list[tuple[Choice, Resolved]],
    attacks: list[tuple[Choice, Resolved]],
    entries: tuple[Entry, ...],
) -> Manifest:
    def core(threat: ThreatRow) -> tuple[str, ...]:
        return tuple(
            c.label
            for c, a in attacks
            if c.label in board.core and threat.norm in a.entry.spec.norms
        )

    return Manifest(
        name=board.name,
        version=board.version,
        title=board.title,
        dataset=str(board.dataset),
        samples=data.samples,
        all_samples=board.all_samples,
        seeds=board.seeds,
        threats=tuple(ThreatRow(**{**_shallow(t), "core": core(t)}) for t in board.threats),
        models=tuple(Row(c.label, str(c.selection), m.entry.spec.offers) for c, m in models),
        attacks=tuple(
            Row(c.label, str(c.selection), a.entry.spec.needs, a.entry.spec.kind)
            for c, a in attacks
        ),
        entries=entries,
        board_sha256=board.sha256,
        published=tuple(p for p in board.published if _stands(p, board)),
        matrix=tuple(m for m in board.matrix if m.attack in [c.label for c, _ in attacks]),
    )


def _stands(figure: Published, board: Board) -> bool:
    """Whether the figure is of what is run: flags may have narrowed the board."""
    return (
        figure.model in [c.label for c in board.models]
        and figure.attack in ["", *(c.label for c in board.attacks)]
        and figure.norm in [t.norm for t in board.threats]
    )


def _shallow(threat: ThreatRow) -> dict[str, Any]:
    return {name: getattr(threat, name) for name in threat.__dataclass_fields__}


def state(cell: Cell, records: Mapping[str, Record]) -> State:
    """Where a cell stands: what the store holds of it, and whether that is still of its model."""
    if cell.reason:
        return "incompatible"
    record = records.get(cell.key)
    if record is None:
        return "new"
    if record.status != "ok":
        return "failed before"
    if cell.kind == "attack" and weights_of(records.get(cell.needs[0])) != record.weights:
        return "stale"
    if record.facts.get("sources", {}) != sources(cell, records):
        return "stale"
    return "cached"


def sources(cell: Cell, records: Mapping[str, Record]) -> dict[str, str]:
    """Digests of the models that the cell's options refer to, by the keys of their fit cells."""
    others = cell.needs if cell.kind == "fit" else cell.needs[1:]
    return {need: weights_of(records.get(need)) for need in others}


def weights_of(fit: Record | None) -> str:
    """The digest of a fitted model's weights; of one that is not there it is like no other."""
    return fit.weights if fit is not None and fit.status == "ok" else "not fitted"


def task(cell: Cell, data: Data) -> dict[str, Any]:
    """What a worker needs to run the cell, JSON-able."""
    threat = cell.threat
    return {
        "kind": cell.kind,
        "key": cell.key,
        "name": str(cell),
        "seed": cell.seed,
        "model": mapping(cell.model.selection),
        "attack": mapping(cell.attack.selection) if cell.attack else None,
        "threat": asdict(threat) if threat else None,
        "all_samples": bool(cell.identity.get("all_samples", False)),
        "data": {
            "ref": asdict(data.ref),
            "identity": data.identity,
            "how": data.how,
            "limit": data.limit,
            "seed_points": data.seed_points,
        },
    }


def mapping(selection: Selection) -> dict[str, Any]:
    """A selection as the table that `parse_selection` reads back."""
    options = {k: mapping(v) if isinstance(v, Selection) else v for k, v in selection.options}
    return {"use": selection.name, **options}
