"""What a plugin may bring. Hooks bring specs and nothing else: none reaches into a run."""

from __future__ import annotations

from collections.abc import Iterable

from harness.plugin import AttackSpec, DatasetSpec, ModelSpec, hookspec


@hookspec
def harness_models() -> Iterable[ModelSpec]:
    """Defenses, one spec for each recipe that deserves a name of its own in a table."""
    return ()


@hookspec
def harness_attacks() -> Iterable[AttackSpec]:
    """Attacks, one spec for each algorithm that deserves a name of its own in a table."""
    return ()


@hookspec
def harness_datasets() -> Iterable[DatasetSpec]:
    """Data sets, one spec for each that a board may name."""
    return ()
