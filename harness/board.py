"""board.toml: a data set x models x attacks x threat models x seeds.

    name = "digits"
    version = 1
    title = "Quick board"
    dataset = "digits"
    limit = 300                     # evaluated test images; all of them where it is left out
    models = ["linear", "at:eps=0.1", { use = "mlp", label = "MLP" }]
    attacks = ["pgd:steps=40", "uniform_noise"]
    core = ["pgd:steps=40", "uniform_noise"]      # what a rank is by; labels of attacks

    [[threat]]
    norm = "Linf"
    eps = ["1/16", 0.125]
    reference = "1/16"              # the budget that ranks; the grid's last where it is left out

A threat of norm `corruption` has a grid of severities, and `draws` that are averaged.

    [matrix]
    sources = { MLP = "fgsm", linear = ["fgsm", "pgd:steps=40"] }

is short for one attack for each of them, `transfer:source=…,attack=…`, labelled `from MLP`,
`from linear (fgsm)` and so on: images made on a model of the board, judged on all of them.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.budget import Epsilon, near_fraction, parse_epsilon, parse_norm
from harness.errors import UsageError, did_you_mean
from harness.manifest import MatrixRow, Published, ThreatRow
from harness.plugin import CORRUPTION, Selection
from harness.published import published
from harness.reader import (
    Reader,
    a_list,
    a_mapping,
    a_table,
    a_text,
    boolean,
    integer,
    list_of,
    one_of,
    positive,
    scalar,
    selectable,
)
from harness.selection import parse_selection

TARGETS = ("none", "random", "least", "next")
ORDERS = ("stratified", "first")
CORRUPTION_DRAWS = 10
TRANSFER = "transfer"  # the attack that a [matrix] is made of


@dataclass(frozen=True)
class Choice:
    """A model or an attack of a board, and the label its tables show.

    where: where it was asked for, as messages begin: a flag, or a file and key
    """

    selection: Selection
    label: str
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Board:
    """A board as read, nothing looked up yet.

    core:   labels of attacks; with flags, not all of them need be among `attacks`
    matrix: which attacks are transferred from which model
    named:  the models as written, whatever flags have left of them: labels that an option may name
    home:   the distribution that the data set's name is of, where the board is built in
    sha256: of the file's bytes
    """

    name: str
    dataset: Selection
    models: tuple[Choice, ...]
    attacks: tuple[Choice, ...]
    threats: tuple[ThreatRow, ...]
    core: tuple[str, ...] = ()
    version: int = 1
    title: str = ""
    samples: str = "stratified"
    limit: int | None = None
    seeds: tuple[int, ...] = (0,)
    all_samples: bool = False
    published: tuple[Published, ...] = ()
    matrix: tuple[MatrixRow, ...] = ()
    named: tuple[Choice, ...] = ()
    home: str = ""
    sha256: str = ""
    hints: tuple[str, ...] = field(default=(), compare=False)


def read_board(path: Path) -> Board:
    """The board in a board.toml. Raises UsageError: file, key, expected, got."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_board(raw, str(path))


def parse_board(raw: bytes, where: str, home: str = "") -> Board:
    """The board in the bytes of a board.toml.

    home: of a built-in board, the distribution whose models, attacks and data set its names mean,
          whoever else has the names
    """
    try:
        table = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}: not TOML: {error}") from error
    reader = Reader(table, where)
    models = _choices(reader, "models", home)
    matrix = _matrix(
        reader.take("matrix", a_mapping, "a table", None), models, f"{where}: matrix", home
    )
    attacks = _choices(reader, "attacks", home, [] if matrix else ...)
    attacks += tuple(choice for _, choice in matrix)
    threats = tuple(
        _threat(a_table(t, f"{where}: threat[{i}]"))
        for i, t in enumerate(reader.take("threat", a_list, "one [[threat]] or more"))
    )
    board = Board(
        name=reader.take("name", a_text, "a text"),
        dataset=parse_selection(reader.take("dataset", selectable, "a name"), f"{where}: dataset"),
        models=models,
        attacks=attacks,
        threats=threats,
        core=reader.take("core", list_of(a_text), "a list of attacks", ()),
        version=reader.take("version", positive, "an integer from 1", 1),
        title=reader.take("title", a_text, "a text", ""),
        samples=reader.take("samples", one_of(ORDERS), f"one of {ORDERS}", "stratified"),
        limit=reader.take("limit", positive, "an integer from 1", None),
        seeds=reader.take("seeds", list_of(integer), "a list of integers", (0,)),
        all_samples=reader.take("all_samples", boolean, "true or false", default=False),
        published=tuple(
            figure
            for i, block in enumerate(reader.take("published", a_list, "[[published]]", []))
            for figure in published(
                a_table(block, f"{where}: published[{i}]"),
                threats,
                [c.label for c in models],
                [c.label for c in attacks],
            )
        ),
        matrix=tuple(row for row, _ in matrix),
        named=models,
        home=home,
        sha256=hashlib.sha256(raw).hexdigest(),
    )
    reader.finish()
    board = checked(limited(board, where), where)
    _check_core(board, where)
    return board


def limited(board: Board, where: str) -> Board:
    """`dataset = "mnist:limit=500"` as the board's limit, for it is no option of the data set:
    which images are evaluated must not change what is trained."""
    options = dict(board.dataset.options)
    if "limit" not in options:
        return board
    text = str(options.pop("limit"))
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{where}: dataset: limit: expected an integer from 1, got {text!r}")
    return replace(
        board, dataset=replace(board.dataset, options=tuple(options.items())), limit=int(text)
    )


def _check_core(board: Board, where: str) -> None:
    attacks = [c.label for c in board.attacks]
    for name in board.core:
        if name not in attacks:
            raise UsageError(
                f"{where}: core: {name!r} is not an attack of the board"
                f"{did_you_mean(name, attacks)} (attacks: {', '.join(attacks)})"
            )


def checked(board: Board, where: str) -> Board:
    """The board, if its parts fit together; with hints about budgets that look mistyped."""
    for kind, labels in (("models", board.models), ("attacks", board.attacks)):
        names = [c.label for c in labels]
        if not names:
            raise UsageError(f"{where}: {kind}: nothing selected")
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"{where}: {kind}: {name!r} stands twice; give one a label")
    norms = [t.norm for t in board.threats]
    if not norms:
        raise UsageError(f"{where}: threat: nothing selected")
    if len(set(norms)) < len(norms):
        raise UsageError(f"{where}: threat: a norm stands twice in {norms}")
    if not board.seeds or len(set(board.seeds)) < len(board.seeds):
        raise UsageError(f"{where}: seeds: expected different integers, got {list(board.seeds)}")
    hints = [near_fraction(e) for t in board.threats if t.norm != CORRUPTION for e in t.eps]
    return replace(board, hints=tuple(f"{where}: {h}" for h in hints if h))


def _choices(reader: Reader, kind: str, home: str, default: Any = ...) -> tuple[Choice, ...]:
    items = enumerate(reader.take(kind, a_list, "a list", default))
    return tuple(_choice(item, f"{reader.where}: {kind}[{i}]", home) for i, item in items)


def _matrix(
    table: dict[str, Any] | None, models: tuple[Choice, ...], where: str, home: str
) -> list[tuple[MatrixRow, Choice]]:
    """The attacks of a [matrix], each from one of the models to all of them."""
    if table is None:
        return []
    reader = Reader(table, where)
    expected = 'a table of models and attacks, { MLP = "fgsm" }'
    sources = reader.take("sources", a_mapping, expected)
    reader.finish()
    labelled = {c.label: c.selection for c in models}
    rows = []
    for source, written in sources.items():
        at = f"{where}: sources: {source}"
        if source not in labelled:
            raise UsageError(
                f"{where}: sources: {source!r} is not a model of the board"
                f"{did_you_mean(source, labelled)} (models: {', '.join(labelled)})"
            )
        several = isinstance(written, list)
        for item in written if several else [written]:
            inner = _choice(item, at, home)
            label = f"from {source} ({inner.label})" if several else f"from {source}"
            options = (("source", labelled[source]), ("attack", inner.selection))
            name = f"{home}/{TRANSFER}" if home else TRANSFER
            rows.append(
                (MatrixRow(source, inner.label, label), Choice(Selection(name, options), label, at))
            )
    if not rows:
        raise UsageError(f"{where}: sources: expected {expected}, got none")
    return rows


def _choice(item: Any, where: str, home: str) -> Choice:
    label = None
    if isinstance(item, Mapping):
        label = item.get("label")
        if label is not None and not (isinstance(label, str) and label.strip()):
            raise UsageError(f"{where}: label: expected a text, got {label!r}")
        item = {k: v for k, v in item.items() if k != "label"}
    selection = parse_selection(item, where)
    label = label or str(selection)
    if home:
        selection = replace(selection, name=f"{home}/{selection.name}")
    return Choice(selection, label, where)


def _threat(reader: Reader) -> ThreatRow:
    where = reader.where
    norm = parse_norm(reader.take("norm", scalar, "Linf, L2, L1, L0 or corruption"), where)
    expected = "a list of budgets such as [0.1, '8/255']"
    texts = reader.take("eps", a_list, expected)
    if not texts:
        raise UsageError(f"{where}: eps: is empty; expected {expected}")
    grid = tuple(parse_epsilon(e, f"{where}: eps") for e in texts)
    reference = parse_epsilon(
        reader.take("reference", scalar, "a budget of the grid", texts[-1]),
        f"{where}: reference",
    )
    draws = reader.take("draws", positive, "an integer from 1", None)
    if draws is not None and norm != CORRUPTION:
        raise UsageError(f"{where}: draws: {draws} of {norm}; only corruptions are drawn")
    row = ThreatRow(
        norm=norm,
        eps=grid,
        reference=reference,
        draws=draws or draws_of(norm),
        target=reader.take("target", one_of(TARGETS), f"one of {TARGETS}", "none"),
    )
    reader.finish()
    return grid_checked(row, where)


def draws_of(norm: str) -> int:
    """How many draws of a threat model are averaged, unless the board says so."""
    return CORRUPTION_DRAWS if norm == CORRUPTION else 1


def grid_checked(row: ThreatRow, where: str) -> ThreatRow:
    """The threat model, if its grid increases and holds its reference."""
    values = [e.value for e in row.eps]
    if any(b <= a for a, b in pairwise(values)):
        raise UsageError(
            f"{where}: eps: expected an increasing grid, got {[e.text for e in row.eps]}"
        )
    if row.reference.value not in values:
        raise UsageError(
            f"{where}: reference: {row.reference.text} is not in the grid "
            f"{[e.text for e in row.eps]}"
        )
    return row


def epsilons(texts: tuple[str, ...], where: str) -> tuple[Epsilon, ...]:
    """A grid from the command line, in increasing order."""
    return tuple(sorted((parse_epsilon(t, where) for t in texts), key=lambda e: e.value))
