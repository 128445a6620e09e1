"""Figures of papers that a board sets beside its own: `[[published]]` in board.toml.

    [[published]]
    source = "Matyasko 2020, table 5.1"
    norm = "Linf"
    measure = "mean_distance"              # as leaderboard.csv calls it
    note = "why the board's figures differ, where they do"
    [published.values."Linf-AT 0.3"]       # a model of the board, its attacks and their figures
    FAB = 0.326
    PDPGD = 0.315

Accuracies are shares in [0, 1], as everywhere; those at a budget name it, `eps = "0.3"`, and those
at several have a number for each: `eps = [0.2, 0.3]`, `FAB = [0.947, 0.914]`. Of a measure that
needs no attack, `values` has one number for each model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from harness.budget import parse_norm
from harness.errors import UsageError, did_you_mean
from harness.manifest import Published, ThreatRow
from harness.reader import Reader, a_mapping, a_table, a_text, one_of, scalar

AT_A_BUDGET = ("robust_accuracy", "adversarial_accuracy")
OF_THE_MODEL = ("clean_accuracy",)
OF_AN_ATTACK = (
    "success",
    "mean_distance",
    "median_distance",
    "shared_mean_distance",
    "shared_median_distance",
    "rho",
    "rho_all",
    "to_success",
)
MEASURES = (*OF_THE_MODEL, *AT_A_BUDGET, *OF_AN_ATTACK)


def published(
    reader: Reader, threats: Iterable[ThreatRow], models: list[str], attacks: list[str]
) -> Iterator[Published]:
    """The figures of one block, checked against the board's norms, budgets, models and attacks."""
    where, grids = reader.where, {t.norm: [e.text for e in t.eps] for t in threats}
    source = reader.take("source", a_text, "a text: paper and table")
    norm = parse_norm(reader.take("norm", scalar, "a norm of the board"), where)
    _known("norm", norm, list(grids), where)
    measure = reader.take("measure", one_of(MEASURES), f"one of {', '.join(MEASURES)}")
    eps = _budgets(reader, grids[norm]) if measure in AT_A_BUDGET else ""
    note = reader.take("note", a_text, "a text", "")
    values = reader.take("values", a_mapping, "a table of models")
    reader.finish()
    for model, figures in values.items():
        _known("values", model, models, where)
        named = {"": figures} if measure in OF_THE_MODEL else figures
        for attack, value in a_table(named, f"{where}: values.{model}").table.items():
            if attack:
                _known(f"values.{model}", attack, attacks, where)
            for budget, figure in _figures(value, eps, f"{where}: values.{model}"):
                yield Published(source, norm, model, attack, measure, budget, figure, note)


def _budgets(reader: Reader, grid: list[str]) -> str | list[str]:
    """One of the grid's, or a list of them, as texts."""
    eps: str | list[str] = reader.take("eps", _texts, "a budget of the grid, or several, each once")
    for one in eps if isinstance(eps, list) else [eps]:
        _known("eps", one, grid, reader.where)
    return eps


def _texts(value: Any) -> str | list[str]:
    if not isinstance(value, list):
        return str(scalar(value))
    texts = [str(scalar(v)) for v in value]
    if not texts or len(set(texts)) < len(texts):
        raise ValueError
    return texts


def _figures(value: Any, eps: str | list[str], where: str) -> Iterator[tuple[str, float]]:
    """Each budget with its number: a list of budgets has a list of numbers."""
    if isinstance(eps, list) and not (isinstance(value, list) and len(value) == len(eps)):
        raise UsageError(f"{where}: expected {len(eps)} numbers, one for each eps, got {value!r}")
    for one, figure in zip(eps, value, strict=True) if isinstance(eps, list) else [(eps, value)]:
        if isinstance(figure, bool) or not isinstance(figure, int | float):
            raise UsageError(f"{where}: expected a number, got {figure!r}")
        yield one, float(figure)


def _known(key: str, name: str, names: list[str], where: str) -> None:
    if name not in names:
        raise UsageError(
            f"{where}: {key}: {name!r} is not on the board{did_you_mean(name, names)} "
            f"(there: {', '.join(names)})"
        )
