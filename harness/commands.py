"""What the commands of the command line do. Prints to stdout what was asked for, else to stderr."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from harness.errors import UsageError
from harness.executors import Executor
from harness.executors.inline import Inline
from harness.executors.process import Process
from harness.leaderboard import Leaderboard, aggregate
from harness.lookup import FOREIGN
from harness.plan import Plan, state
from harness.records import Problem, Record
from harness.registry import Catalogue
from harness.session import (
    Place,
    Session,
    cache_folder,
    plan_board,
    read_manifest,
    settle,
    write_tables,
)


@dataclass(frozen=True)
class How:
    """The options of `harness run` that change how, not what."""

    device: str
    jobs: int | None
    executor: str | None
    timeout: float | None
    keep_examples: bool
    retry: bool
    force: bool

    def __post_init__(self) -> None:
        if self.timeout and self.executor == "inline":
            raise UsageError("--timeout needs --executor process: nothing can stop a cell in-line")


def run(session: Session, *, as_json: bool, how: How) -> int:
    """Run what is missing; print the leaderboard. Returns the exit code."""
    from harness.run import Driver, Settings

    device = device_name(how.device)
    place, plan = session.place, session.plan
    settle(place)
    store = place.store
    store.sweep()
    records, problems = store.scan()
    _left_out(problems)
    settings = Settings(
        cache=cache_folder(),
        device=device,
        keep_examples=how.keep_examples,
        retry=how.retry,
        force=how.force,
    )
    driver = Driver(plan, store, records, settings)
    if session.own is not None:  # the manifest is there from the start, for `harness report`
        write_tables(place, session.own.manifest, records, problems)
    if driver.todo:
        jobs = how.jobs or (os.cpu_count() or 1 if device == "cpu" else 1)
        with _progress(driver.todo) as tell, _executor(how, min(jobs, driver.todo)) as executor:
            driver.tell = tell
            driver.run(executor)
    records = driver.records
    problems = tuple(p for p in problems if p.key not in records)  # the others were made again
    if session.own is not None:
        write_tables(place, session.own.manifest, records, problems)
    board = aggregate(plan.manifest, records, problems)
    _print(session, board, records, as_json=as_json)
    believed = all(gap.status != FOREIGN for gap in board.gaps)
    return 0 if believed and all(_succeeded(plan, key, records) for key in plan.cells) else 1


def _left_out(problems: Iterable[Problem]) -> None:
    for problem in problems:
        click.echo(f"harness: {problem.file} left out: {problem.reason}", err=True)


def _succeeded(plan: Plan, key: str, records: dict[str, Record]) -> bool:
    return state(plan.cells[key], records) in ("cached", "incompatible")


def _print(
    session: Session, board: Leaderboard, records: dict[str, Record], *, as_json: bool
) -> None:
    plan, place = session.plan, session.place
    if as_json:
        for key in plan.cells:
            if key in records:
                click.echo(json.dumps(public(records[key]), sort_keys=True))
        return
    from harness.render import terminal

    terminal.render(board)
    if session.foreign:
        click.echo(
            f"{session.foreign} of {len(plan.cells)} cells are not the board's own: stored in "
            f"{place.folder / 'records'}, kept out of the board's table"
        )
    if session.own is not None:
        click.echo(f"Table: {place.folder / 'README.md'}")


def public(record: Record) -> dict[str, Any]:
    """A record without its arrays, JSON-able."""
    names = (
        "key",
        "kind",
        "identity",
        "status",
        "reason",
        "facts",
        "cost",
        "provenance",
        "weights",
    )
    return {name: getattr(record, name) for name in names}


def _executor(how: How, jobs: int) -> Executor:
    """In this process for one job, in others for more, or where a time-out has to be kept."""
    chosen = how.executor or ("process" if jobs > 1 or how.timeout else "inline")
    return Inline() if chosen == "inline" else Process(jobs, how.timeout)


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Tells of cells as they end: a bar on a terminal, else a line for each that failed, and for
    what a training notes."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("running", total=total)

        def tell(event: Any) -> None:
            lines = [f"note: {event.cell}: {note}" for note in event.notes]
            if event.status != "ok":
                lines.append(f"{event.status}: {event.cell}: {event.reason}")
            for line in lines:
                bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            bar.update(task, advance=1, description=str(event.cell)[:60].ljust(60))

        yield tell


def device_name(asked: str) -> str:
    """`cpu`, `cuda` or `cuda:i`; UsageError where there is no such device."""
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device: expected auto, cpu, cuda or cuda:i, got {asked!r}")
    if device.type == "cuda":
        there = torch.cuda.device_count()
        if (device.index or 0) >= there:
            raise UsageError(f"--device {asked}: there are {there} CUDA devices on this machine")
    return asked


def plan(session: Session, *, as_json: bool) -> None:
    """Every cell with its state and, where it is incompatible, why."""
    records, problems = session.place.store.scan()
    unread = {p.key: f"its record cannot be read: {p.reason}" for p in problems}
    rows = []
    for cell in (*session.plan.cells.values(), *session.plan.incompatible):
        record = records.get(cell.key)
        now = state(cell, records)
        failed = record.reason if record and now == "failed before" else ""
        rows.append((now, cell, cell.reason or failed or unread.get(cell.key, "")))
    if as_json:
        for now, cell, reason in rows:
            click.echo(
                json.dumps(
                    {
                        "state": now,
                        "kind": cell.kind,
                        "key": cell.key,
                        "model": cell.label,
                        "attack": cell.attack_label,
                        "norm": cell.norm,
                        "seed": cell.seed,
                        "reason": reason,
                    }
                )
            )
        return
    for now, cell, reason in rows:
        click.echo(f"{now:<13} {cell}" + (f"  ({reason})" if reason else ""))
    counts = Counter(now for now, _, _ in rows)
    click.echo(", ".join(f"{n} {now}" for now, n in counts.items()))


@dataclass(frozen=True)
class Shown:
    """What `harness report` shows, and how.

    matrix: the matrix of sources and targets, at the ε of the text `eps` or at the reference
    """

    form: str
    cost: bool = False
    matrix: bool = False
    eps: str | None = None

    def __post_init__(self) -> None:
        if self.eps is not None and not self.matrix:
            raise UsageError("--eps needs --matrix: the leaderboard has every ε of the grid")
        if self.matrix and (self.cost or self.form == "csv"):
            raise UsageError(
                f"--matrix: not with {'--cost' if self.cost else '--format csv'}; leaderboard.csv "
                "has its entries as adversarial_accuracy"
            )


def report(place: Place, data_dir: Path | None, shown: Shown) -> int:
    """The leaderboard from records alone."""
    from harness.render import cost, csv, markdown, matrix, terminal

    manifest = read_manifest(place)
    if manifest is None:  # no cells.json of this board.toml: plan it again
        from harness.registry import discover

        manifest = plan_board(place.board, discover(), data_dir).manifest
    records, problems = place.store.scan()
    board = aggregate(manifest, records, problems)
    if shown.matrix:
        titled = list(matrix.sections(board, shown.eps))
        if shown.form == "terminal":
            terminal.sections(titled)
        else:
            click.echo(markdown.sections(titled), nl=False)
    elif shown.form == "terminal" and not shown.cost:
        terminal.render(board)
    else:
        page = cost if shown.cost else {"markdown": markdown, "csv": csv}[shown.form]
        click.echo(page.render(board), nl=False)
    return 0


def verify(session: Session, device: str) -> int:
    """Re-check records and the adversarial images they kept. Returns the exit code."""
    from harness.recheck import verify_records
    from harness.run import Settings

    settings = Settings(cache=cache_folder(), device=device_name(device))
    verdicts: Counter[str] = Counter()
    kept = False
    for cell, reason in verify_records(session.plan, session.place.store, settings):
        verdict = "not kept" if reason is None else "DIFFERS" if reason else "agrees"
        verdicts[verdict] += 1
        kept = kept or (cell.kind == "attack" and reason is not None)
        click.echo(f"{verdict:<8} {cell}" + (f": {reason}" if reason else ""))
    if not kept and not verdicts["DIFFERS"]:
        raise UsageError(
            f"{session.place.folder}: no record has adversarial images; run the board with "
            "--keep-examples --force"
        )
    checked = verdicts["agrees"] + verdicts["DIFFERS"]
    click.echo(
        f"{verdicts['agrees']} of {checked} records agree with their models; "
        f"{verdicts['not kept']} kept no images"
    )
    return 1 if verdicts["DIFFERS"] else 0


def agreement(session: Session, judge: str, device: str, *, as_json: bool) -> None:
    """What one model of the board says of the adversarial images that were kept of the others."""
    from harness.agreement import agreements
    from harness.render import terminal
    from harness.render.agreement import lines, sections
    from harness.run import Settings
    from harness.stand_in import StandIn

    plan, place = session.plan, session.place
    settings = Settings(cache=cache_folder(), device=device_name(device))
    records, problems = place.store.scan()
    _left_out(problems)
    stand_in = StandIn.of(judge, plan, records, settings)
    found = agreements(plan.manifest, place.store, records, stand_in)
    if not found.kept:
        raise UsageError(
            f"{place.folder}: no record of a model other than {judge} has adversarial images; run "
            "the board with --keep-examples --force"
        )
    if as_json:
        for line in lines(found):
            click.echo(line)
    else:
        terminal.sections(sections(place.board.title or place.board.name, found))


def fetch(name: str, catalogue: Catalogue, data_dir: Path | None) -> None:
    """Download a data set's official files, and check them by reading them."""
    from harness.data import DataOptions
    from harness.fetch import fetch as download
    from harness.options import resolve
    from harness.plugin import Selection
    from harness.session import read_data

    entry = catalogue.dataset(name)
    if data_dir is None:
        raise UsageError("fetch: say where to with --data-dir (or HARNESS_DATA)")
    if not entry.spec.downloads:
        raise UsageError(f"fetch: {name} has no files to download")
    dataset = resolve(Selection(name), entry, DataOptions, catalogue, "dataset")
    paths = download(
        entry.spec.name,
        entry.spec.downloads,
        data_dir,
        lambda folder: read_data(dataset, folder),
    )
    for path in paths:
        click.echo(path)
