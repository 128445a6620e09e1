"""From what a user asked for to a plan: which board, which changes to it, which data, which store.

A flag replaces the board's list. Cells that are then not the board's own are run and stored, and
kept out of the board's table.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from harness import atomic
from harness.board import (
    Board,
    Choice,
    checked,
    draws_of,
    epsilons,
    grid_checked,
    limited,
    parse_board,
    read_board,
)
from harness.budget import parse_norm
from harness.data import DataOptions, DataRef, Files, Splits, apply, check, materialise
from harness.errors import NOT_FOUND, HarnessError, PluginError, RecordError, UsageError
from harness.leaderboard import Leaderboard, aggregate
from harness.lineup import attack_of, select
from harness.manifest import Manifest, ThreatRow
from harness.options import Resolved, resolve
from harness.plan import Plan, board_data, make_plan, seed_points
from harness.plugin import CORRUPTION, NORMS
from harness.records import Problem, Record, Store
from harness.registry import DISTRIBUTION, Catalogue
from harness.selection import parse_selection

QUICK = "digits"
CELLS = "cells.json"


@dataclass(frozen=True)
class Changes:
    """What the command line changes in a board; an empty tuple or None leaves the board's own."""

    models: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    dataset: str | None = None
    norms: tuple[str, ...] = ()
    eps: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    limit: int | None = None


@dataclass(frozen=True)
class Place:
    """A board and the folder its records and tables go to."""

    board: Board
    folder: Path
    raw: bytes

    @property
    def store(self) -> Store:
        return Store(self.folder / "records")


@dataclass(frozen=True)
class Session:
    """`plan` is what was asked for, `own` the board as written; they are one without changes.

    own:   None of another data set, and where a name that was not asked for cannot be looked up
    notes: what the user should know of it, a line each
    """

    place: Place
    catalogue: Catalogue
    plan: Plan
    own: Plan | None
    notes: tuple[str, ...] = ()

    @property
    def foreign(self) -> int:
        """Cells that are run and are not the board's own, as far as that is known."""
        if self.own is None and self.plan.board.dataset == self.place.board.dataset:
            return 0
        own = self.own.cells if self.own else {}
        return sum(key not in own for key in self.plan.cells)


def cache_folder() -> Path:
    """`HARNESS_CACHE`, or `robustness-harness` in the user's cache folder."""
    if named := os.environ.get("HARNESS_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "robustness-harness"


def locate(board: str | None, out: Path | None) -> Place:
    """The board that was named: a board.toml, a folder with one, a name below leaderboards/, or
    a built-in; without a name the built-in quick board."""
    built_in = {p.name.removesuffix(".toml"): p for p in _built_ins()}
    named = board or QUICK
    for path in (
        Path(named),
        Path(named) / "board.toml",
        Path("leaderboards", named, "board.toml"),
    ):
        if board and path.is_file():
            return _placed(read_board(path), out or path.parent, path.read_bytes())
    if named not in built_in:
        raise UsageError(
            f"no board {named!r}: neither a board.toml, nor a folder with one, nor a folder of "
            f"leaderboards/, nor built in ({', '.join(sorted(built_in))})"
        )
    raw = built_in[named].read_bytes()
    board_ = parse_board(raw, f"built-in {named}", DISTRIBUTION)
    return _placed(board_, out or Path("leaderboards", named), raw)


def _built_ins() -> list[Path]:
    folder = resources.files("harness") / "boards"
    return [Path(str(p)) for p in folder.iterdir() if p.name.endswith(".toml")]


def _placed(board: Board, folder: Path, raw: bytes) -> Place:
    """The place, after making sure that its folder is this very board's."""
    other = folder / "board.toml"
    with writing(folder):
        differs = other.is_file() and other.read_bytes() != raw
    if differs:
        there, here = (f"{b.name} version {b.version}" for b in (read_board(other), board))
        how = f"{there}, not {here}" if there != here else f"{there} too, but not the same text"
        raise UsageError(
            f"{other} is another board ({how}): run `harness run {folder}`, copy yours there to "
            "change it, or choose another --out"
        )
    return Place(board, folder, raw)


def settle(place: Place) -> None:
    """Make the folder and put board.toml there, so that it can be reported on its own."""
    path = place.folder / "board.toml"
    with writing(place.folder):
        place.store.folder.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            atomic.write(path, place.raw)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What is not possible in the folder is the user's to mend: UsageError."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise UsageError(f"{folder}: cannot be written ({why}); choose another --out") from error


def changed(board: Board, changes: Changes) -> Board:
    """The board with the command line's lists in place of its own."""
    where = "command line"
    new = board
    if changes.models:
        models = _choices(board, board.models, changes.models, "--model")
        new = replace(new, models=models)
    if changes.attacks:
        attacks = _choices(board, board.attacks, changes.attacks, "--attack")
        new = replace(new, attacks=attacks)
    if changes.dataset:
        new = limited(
            replace(new, dataset=parse_selection(changes.dataset, "--dataset")), "--dataset"
        )
        new = replace(new, home=board.home if new.dataset == board.dataset else "")
    if changes.norms:
        new = replace(new, threats=_norms(board.threats, changes))
    elif changes.eps:
        # Severities are no budgets: they change only where --norm asks for corruptions.
        grids = (t if t.norm == CORRUPTION else _regrid(t, changes.eps) for t in board.threats)
        new = replace(new, threats=tuple(grids))
    if changes.seeds:
        new = replace(new, seeds=changes.seeds)
    if changes.limit is not None:
        if changes.limit < 1:
            raise UsageError(f"--limit: expected an integer from 1, got {changes.limit}")
        new = replace(new, limit=changes.limit)
    return board if new == board else checked(new, where)


def _choices(
    board: Board, own: tuple[Choice, ...], texts: tuple[str, ...], flag: str
) -> tuple[Choice, ...]:
    """A label of the board stands for what the board means by it; else the text is a selection."""
    labelled = {c.label: c for c in own}
    same = {str(c.selection).removeprefix(f"{board.home}/"): c for c in own}

    def choice(text: str) -> Choice:
        if text in labelled:
            return labelled[text]
        selection = parse_selection(text, flag)
        label = str(selection)
        return same.get(label) or labelled.get(label) or Choice(selection, label, flag)

    return tuple(map(choice, texts))


def _norms(threats: tuple[ThreatRow, ...], changes: Changes) -> tuple[ThreatRow, ...]:
    rows = []
    for text in dict.fromkeys(changes.norms):
        norm = parse_norm(text, "--norm")
        own = [t for t in threats if t.norm == norm]
        if own:
            rows.append(_regrid(own[0], changes.eps) if changes.eps else own[0])
        elif changes.eps:
            grid = epsilons(changes.eps, "--eps")
            rows.append(grid_checked(ThreatRow(norm, grid, grid[-1], draws_of(norm)), "--eps"))
        else:
            raise UsageError(
                f"--norm {norm}: the board has no grid for it; give one with --eps "
                f"(its norms: {', '.join(t.norm for t in threats)})"
            )
    return tuple(rows)


def _regrid(threat: ThreatRow, texts: tuple[str, ...]) -> ThreatRow:
    """The threat model with another grid; its reference stays if the grid holds it."""
    grid = epsilons(texts, "--eps")
    kept = [e for e in grid if e.value == threat.reference.value]
    return grid_checked(replace(threat, eps=grid, reference=(kept or grid)[-1]), "--eps")


def load_data(
    board: Board, catalogue: Catalogue, data_dir: Path | None
) -> tuple[DataRef, Resolved]:
    """The board's data set, read, checked and laid out for workers. Raises UsageError."""
    name = board.dataset.name
    entry = catalogue.dataset(f"{board.home}/{name}" if board.home else name)
    dataset = resolve(board.dataset, entry, DataOptions, catalogue, f"dataset {board.dataset}")
    splits = read_data(dataset, data_dir)
    check(splits, entry.spec.name)
    return materialise(apply(splits, dataset.given), cache_folder() / "data"), dataset


def read_data(dataset: Resolved, data_dir: Path | None) -> Splits:
    """What the data set's `load` gives. Whatever else it does is its own fault: PluginError.

    Raises UsageError, with the pip command, where what the data set requires is not installed.
    """
    entry = dataset.entry
    if dataset.lacks:
        raise UsageError(dataset.lacks)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            splits = dataset.component.load(Files(data_dir, entry.spec.name, entry.spec.downloads))
    except HarnessError:
        raise
    except (Exception, SystemExit) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"data set {entry.full}: load() raised {text}") from error
    if not isinstance(splits, Splits):
        raise PluginError(f"data set {entry.full}: load() gave {splits!r}, not harness.data.Splits")
    return splits


def open_session(
    place: Place, changes: Changes, catalogue: Catalogue, data_dir: Path | None
) -> Session:
    """Plan what was asked for, and the board as written where that differs.

    A name of the board that cannot be looked up is an error only where it was asked for.
    """
    asked = changed(place.board, changes)
    notes: list[str] = []
    if changes.norms and not changes.attacks:
        asked, notes = _narrowed(asked, catalogue)
    plan = plan_board(asked, catalogue, data_dir)
    notes += [*plan.board.hints, *_blind(plan.manifest, asked, catalogue)]
    if asked == place.board:
        return Session(place, catalogue, plan, plan, tuple(notes))
    plan = _with_whole_core(plan, place.board, catalogue)
    own = None
    if asked.dataset == place.board.dataset:
        try:
            own = plan_board(place.board, catalogue, data_dir)
        except NOT_FOUND as error:
            notes.append(f"{error}; this was not asked for, and the board's table is left as it is")
    return Session(place, catalogue, plan, own, tuple(notes))


def _blind(manifest: Manifest, board: Board, catalogue: Catalogue) -> Iterator[str]:
    """Cores that cannot do justice to a model without gradients."""
    specs = {c.label: attack_of(c, board, catalogue).entry.spec for c in board.attacks}
    asking = {name for name, s in specs.items() if s.needs == "labels" and not s.parts}
    asking = {name for name in asking if specs[name].prepares or not specs[name].like}
    without = [model.label for model in manifest.models if model.level != "gradients"]
    for threat in manifest.threats:
        if without and threat.core and not asking & set(threat.core):
            yield (
                f"core: none of the {threat.norm} attacks asks for labels alone, and "
                f"{', '.join(without)} gives no gradients: it may rank too high"
            )


def _narrowed(board: Board, catalogue: Catalogue) -> tuple[Board, list[str]]:
    """Without the board's own attacks that support none of the norms asked for; a note of them."""
    norms = {t.norm for t in board.threats}
    kept = tuple(c for c in board.attacks if norms & set(_norms_of(c, board, catalogue)))
    left = [c.label for c in board.attacks if c not in kept]
    if not kept:
        raise UsageError(
            f"--norm {', '.join(sorted(norms))}: none of the board's attacks supports it; "
            "name one with --attack"
        )
    asked = ", ".join(t.norm for t in board.threats)
    notes = [f"--norm {asked} leaves out {', '.join(left)}"] if left else []
    return replace(board, attacks=kept), notes


def _with_whole_core(plan: Plan, own: Board, catalogue: Catalogue) -> Plan:
    """The plan with the core of the board as written: flags do not change what a rank is by.

    A model that was not attacked with all of it is not ranked.
    """
    core = {c.label: _norms_at_most(c, own, catalogue) for c in own.attacks if c.label in own.core}
    threats = tuple(
        replace(t, core=tuple(name for name, norms in core.items() if t.norm in norms))
        for t in plan.manifest.threats
    )
    return replace(plan, manifest=replace(plan.manifest, threats=threats))


def _norms_of(attack: Choice, board: Board, catalogue: Catalogue) -> tuple[str, ...]:
    norms: tuple[str, ...] = attack_of(attack, board, catalogue).entry.spec.norms
    return norms


def _norms_at_most(attack: Choice, board: Board, catalogue: Catalogue) -> tuple[str, ...]:
    """Its norms, or all there are where its name cannot be looked up."""
    try:
        return _norms_of(attack, board, catalogue)
    except NOT_FOUND:
        return (*NORMS, CORRUPTION)


def plan_board(board: Board, catalogue: Catalogue, data_dir: Path | None) -> Plan:
    """Look everything up, read the data, and cross."""
    models, attacks = select(board, catalogue)
    ref, dataset = load_data(board, catalogue, data_dir)
    data = board_data(board, ref, dataset, ref.open().test_y, seed_points([a for _, a in attacks]))
    return make_plan(board, data, models, attacks)


def write_tables(
    place: Place,
    manifest: Manifest,
    records: Mapping[str, Record],
    problems: Sequence[Problem] = (),
) -> Leaderboard:
    """README.md, leaderboard.csv and cells.json of a board, from its records; `problems` are the
    files among them that could not be read."""
    from harness.render import csv, markdown

    board = aggregate(manifest, records, problems)
    with writing(place.folder):
        atomic.write(place.folder / CELLS, manifest.to_json().encode())
        atomic.write(place.folder / "README.md", markdown.render(board).encode())
        atomic.write(place.folder / "leaderboard.csv", csv.render(board).encode())
    return board


def read_manifest(place: Place) -> Manifest | None:
    """The board's cells.json, or None where there is none of this very board.toml."""
    path = place.folder / CELLS
    if not path.is_file():
        return None
    try:
        manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{path}: not a list of cells ({error}); `harness run` writes it"
        ) from error
    return manifest if manifest.board_sha256 == place.board.sha256 else None
