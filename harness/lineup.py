"""The board's models and attacks, looked up and validated: from choices to what they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from harness.board import Board, Choice
from harness.compatibility import check_options
from harness.errors import NOT_FOUND, BrokenPlugin
from harness.fields import options_of
from harness.options import AttackOptions, ModelOptions, Resolved, load_factory, resolve
from harness.plugin import ModelRef, Selection
from harness.registry import Catalogue, Entry

Lineup = list[tuple[Choice, Resolved]]


def select(board: Board, catalogue: Catalogue) -> tuple[Lineup, Lineup]:
    """The board's models and attacks."""
    models = [(c, _model(c, catalogue)) for c in board.models]
    attacks = [(c, attack_of(c, board, catalogue)) for c in board.attacks]
    for choice, attack in attacks:
        check_options(attack, choice.where)
    return models, attacks


def _model(choice: Choice, catalogue: Catalogue) -> Resolved:
    entry = _found(catalogue.model, choice)
    return resolve(choice.selection, entry, ModelOptions, catalogue, choice.where)


def attack_of(choice: Choice, board: Board, catalogue: Catalogue) -> Resolved:
    """The attack, in which a label of the board stands for the model that the board means by it."""
    entry = _found(catalogue.attack, choice)
    selection = _relabelled(choice.selection, entry, board)
    return resolve(selection, entry, AttackOptions, catalogue, choice.where)


def _found(look_up: Callable[[str], Entry[Any]], choice: Choice) -> Entry[Any]:
    """What has the choice's name. Where nothing has, the error says where it was asked for."""
    try:
        return look_up(choice.selection.name)
    except NOT_FOUND as error:
        raise type(error)(f"{choice.where}: {error}") from error


def _relabelled(selection: Selection, entry: Entry[Any], board: Board) -> Selection:
    labels = {c.label: c.selection for c in board.named}
    if not any(isinstance(v, str) and v in labels for v in selection.given.values()):
        return selection
    try:
        options = options_of(load_factory(entry))
    except BrokenPlugin:  # said when it is resolved, or it lacks something
        return selection
    models = {name for name, o in options.items() if isinstance(o.marker, ModelRef)}
    return replace(
        selection,
        options=tuple(
            (name, labels.get(value, value) if name in models and isinstance(value, str) else value)
            for name, value in selection.options
        ),
    )
