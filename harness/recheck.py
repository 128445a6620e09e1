"""`harness verify`: every record against what its model says now.

A fit record is predicted again. An attack record is judged again on the images it kept, by the
referee that judged it, and its arrays have to come out the same, all but the counts of queries,
which only the attack could repeat. Of its facts those are held to it that follow from the plan,
from the outcomes or from the new predictions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.attack_cell import access, kind, stability
from harness.bench import Bench
from harness.cell import failure, fit, steady
from harness.craft import wanted_labels
from harness.eightbit import on_grid
from harness.errors import PluginError, RecordError
from harness.lookup import amount, unbelievable
from harness.outcome import Outcome
from harness.plan import Cell, Plan, state
from harness.plugin import CORRUPTION
from harness.predict import Predictor
from harness.records import Record, Store
from harness.run import Settings, job_of
from harness.threat import Threat
from harness.verify import Samples, Verdict, judge, unstable

Arrays = Mapping[str, NDArray[Any]]

# Queries, and images that were not kept.
UNCHECKED = {"forward", "backward", "curve", "round_label"}
LEGAL = (Outcome.ROBUST, Outcome.ADVERSARIAL)


def verify_records(
    plan: Plan, store: Store, settings: Settings
) -> Iterator[tuple[Cell, str | None]]:
    """Each cell with an `ok` record, and in what that differs from what its model says now: ''
    where it does not, None where it cannot be told, for no images were kept (of corruptions they
    never are)."""
    records: dict[str, Record] = {}
    for cell in plan.cells.values():
        try:
            record = store.read(cell.key)
        except RecordError as error:
            yield cell, str(error)
            continue
        if record is not None and record.status == "ok":
            records[cell.key] = record
            yield cell, _checked(cell, records, plan, store, settings)


def _checked(
    cell: Cell, records: Mapping[str, Record], plan: Plan, store: Store, settings: Settings
) -> str | None:
    """What `verify_records` says of one cell. records: its own, and those of its models."""
    record, board = records[cell.key], plan.manifest
    fit = records.get(cell.needs[0]) if cell.kind == "attack" else None
    if state(cell, records) == "stale":
        return "stale: made on models that were fitted again since, or have no record"
    n, everyone = board.samples, board.all_samples
    if why := unbelievable(record, fit, cell.threat, n, all_samples=everyone):
        return why
    kept: Arrays = {}
    if cell.kind == "attack":
        if cell.norm == CORRUPTION or not store.keeps_examples(cell.key):
            return _told_of_attack(cell, record) or None
        try:
            kept = store.examples(cell.key)
        except RecordError as error:
            return str(error)
    # Nothing is to be trained afresh, over weights that are to be checked.
    job = {**job_of(cell, plan, records, settings), "fresh": False}
    return difference(job, record, kept) or _told_of_attack(cell, record)


def difference(task: Mapping[str, Any], record: Record, kept: Arrays) -> str:
    """In what a believable record differs from what its model says now, in one line, or ''.

    kept: the adversarial images of an attack record, x_adv (n, columns, c, h, w)
    """
    steady(int(task["threads"]))
    bench: Bench | None = None
    try:
        bench = Bench.of(task, lambda _done, _total: None)
        if record.kind == "attack":
            return _unequal(_judged_again(bench, kept, record.arrays), record.arrays)
        fresh = fit(bench)
    except (Exception, SystemExit) as error:  # a plugin may raise anything
        return failure(error, bench).reason
    if fresh.weights != record.weights:
        return "the model fits to other weights here than the record's (another CPU or build)"
    # How many labels change between two calls may be chance; that some do is not.
    known = {name: fresh.facts[name] for name in ("clean_accuracy", "flags")}
    return _unequal(fresh.arrays, record.arrays) or _untold(record.facts, known, _without_numbers)


def _told_of_attack(cell: Cell, record: Record) -> str:
    """Where an attack record's facts are not those of the plan and of its outcomes, or ''."""
    if cell.attack is None:
        return ""
    known = {"access": access(cell.attack, cell.model), "kind": kind(cell.attack, cell.norm)}
    rounds = record.arrays.get("round_label")
    if rounds is not None and not np.array_equal(rounds[-1], record.arrays["label"]):
        return "the labels of its last round are not its labels"
    if cell.norm != CORRUPTION:
        columns = (record.arrays["outcome"] == Outcome.UNSTABLE).sum(axis=0)
        # Of earlier rounds there are no outcomes: they may have had more.
        doubtful = max(int(columns.max()), int(amount(record.facts.get("batch_dependent")) or 0))
        known |= stability(doubtful)
    return _untold(record.facts, known, str)


def _untold(facts: Mapping[str, Any], known: Mapping[str, Any], form: Callable[[str], str]) -> str:
    """Where a record's facts say otherwise than what is known, or keep quiet of it, or ''.

    form: what of a flag has to be the same
    """
    said = {form(flag) for flag in facts.get("flags", ())}
    hidden = [flag for flag in known.get("flags", ()) if form(flag) not in said]
    if hidden:
        return f"its facts keep quiet: {'; '.join(hidden)}"
    odd = [name for name in known if name != "flags" and facts.get(name) != known[name]]
    return f"its facts say {odd[0]} {facts.get(odd[0])!r}, not {known[odd[0]]!r}" if odd else ""


def _without_numbers(text: str) -> str:
    return re.sub(r"[\d.]+", "", text)


def _judged_again(bench: Bench, kept: Arrays, recorded: Arrays) -> Arrays:
    """The arrays of an attack record, all but the queries, from the images that it kept."""
    row, victim = bench.threat, bench.victim()
    if row is None:
        raise PluginError("an attack cell without a threat model")
    samples = bench.samples(victim.predictor)
    if row.target != "none":
        wanted = wanted_labels(row.target, samples, victim, bench.seed)
        samples = replace(samples, wanted=wanted)
    images = kept.get("x_adv", np.zeros(0))
    if images.shape != (*recorded["outcome"].shape, *samples.x.shape[1:]):
        raise RecordError(f"the kept images have the shape {images.shape}")
    verdicts = [
        _column(bench, victim.predictor, samples, images[:, column], threat)
        for column, threat in enumerate(_grid(bench, images.shape[1]))
    ]
    arrays = {
        "ids": np.asarray(samples.ids),
        "y": samples.y.cpu().numpy(),
        "clean": samples.clean.cpu().numpy(),
        "norm2": samples.x.double().flatten(1).norm(dim=1).cpu().numpy(),
        **{name: np.stack([v[name] for v in verdicts], axis=1) for name in verdicts[0]},
    }
    if samples.wanted is not None:
        arrays["target"] = samples.wanted.cpu().numpy()
    return arrays


def _grid(bench: Bench, columns: int) -> list[Threat]:
    row, attack = bench.threat, bench.attack
    if row is None or attack is None:
        raise PluginError("not an attack cell")
    once = attack.entry.spec.kind == "minimum-norm"
    grid = [math.inf] if once else [e.value for e in row.eps]
    if len(grid) != columns:
        raise RecordError(f"has {columns} columns; the attack has {len(grid)}")
    return [Threat(row.norm, eps) for eps in grid]


def _column(
    bench: Bench, predictor: Predictor, samples: Samples, images: NDArray[Any], threat: Threat
) -> dict[str, NDArray[Any]]:
    """One column of the record: the verdict, and what stands where none was attacked."""
    rows = torch.arange(len(samples.x), device=samples.x.device)
    if not bench.task["all_samples"]:
        rows = rows[samples.clean == samples.y]
    x_adv = torch.from_numpy(np.ascontiguousarray(images)).to(bench.device)[rows]
    eight_bit = on_grid(samples.x)
    verdict = _verdict(predictor, samples.at(rows), x_adv, threat, eight_bit=eight_bit)
    none = torch.zeros((len(samples.x), verdict.distance.shape[1]), dtype=torch.float64)
    skipped = Verdict(
        outcome=torch.full_like(samples.y, int(Outcome.SKIPPED), dtype=torch.uint8),
        label=samples.clean,
        distance=none,
        label8=samples.clean if eight_bit else None,
        distance8=none if eight_bit else None,
    )
    return {
        name: _spread(values, rows, getattr(verdict, name))
        for name, values in vars(skipped).items()
        if values is not None
    }


def _spread(everywhere: Tensor, rows: Tensor, values: Tensor) -> NDArray[Any]:
    whole = everywhere.cpu().numpy().copy()
    whole[rows.cpu().numpy()] = values.cpu().numpy()
    return whole


def _verdict(
    predictor: Predictor, part: Samples, x_adv: Tensor, threat: Threat, *, eight_bit: bool
) -> Verdict:
    """As the attack's cell judged: labels that depend on the batch are UNSTABLE."""
    verdict = judge(predictor, part, x_adv, threat, eight_bit=eight_bit)
    legal = torch.isin(verdict.outcome, verdict.outcome.new_tensor(LEGAL))
    shown = torch.where(legal.view(-1, 1, 1, 1), x_adv, part.x)
    verdict.outcome[unstable(predictor, part, shown, verdict.label)] = Outcome.UNSTABLE
    return verdict


def _unequal(fresh: Arrays, recorded: Arrays) -> str:
    """Which arrays of the record are others than the fresh ones, and in how many samples."""
    if odd := (fresh.keys() ^ recorded.keys()) - UNCHECKED:
        return f"arrays missing or not expected: {', '.join(sorted(odd))}"
    wrong = {name: _samples_that_differ(name, fresh, recorded) for name in fresh}
    told = ", ".join(f"{name} of {n}" for name, n in wrong.items() if n)
    return f"differs in {told} of {len(recorded['ids'])} samples" if told else ""


def _samples_that_differ(name: str, fresh: Arrays, recorded: Arrays) -> int:
    new, old = fresh[name], recorded[name]
    # Records keep float32; distances are judged in float64.
    real = new.dtype.kind == "f"
    same = np.isclose(old, new, rtol=1e-6, atol=1e-9, equal_nan=True) if real else old == new
    if name in ("label", "label8"):  # one that does not settle claims nothing
        same = same | (
            (fresh["outcome"] == Outcome.UNSTABLE) & (recorded["outcome"] == fresh["outcome"])
        )
    return int(np.count_nonzero(~same.reshape(len(old), -1).all(axis=1)))
