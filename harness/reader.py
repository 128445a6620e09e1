"""Typed keys out of a TOML table: what was expected where, and what was got."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from harness.errors import UsageError, did_you_mean


class Reader:
    """Takes typed keys out of a TOML table, and says which key was wrong."""

    def __init__(self, table: Mapping[str, Any], where: str) -> None:
        self.table, self.where = dict(table), where
        self.known: list[str] = []

    def take(self, key: str, read: Callable[[Any], Any], expected: str, default: Any = ...) -> Any:
        self.known.append(key)
        if key not in self.table:
            if default is ...:
                raise UsageError(f"{self.where}: {key}: missing; expected {expected}")
            return default
        value = self.table.pop(key)
        try:
            return read(value)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{self.where}: {key}: expected {expected}, got {value!r}") from error

    def finish(self) -> None:
        for key in self.table:
            raise UsageError(
                f"{self.where}: unknown key {key!r}{did_you_mean(key, self.known)} "
                f"(known: {', '.join(self.known)})"
            )


def a_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def list_of(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    return lambda value: tuple(read(item) for item in a_list(value))


def a_text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError
    return value


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def positive(value: Any) -> int:
    if integer(value) < 1:
        raise ValueError
    return int(value)


def integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def scalar(value: Any) -> str | int | float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    return value


def selectable(value: Any) -> Any:
    if not isinstance(value, str | dict):
        raise TypeError
    return value


def a_mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def a_table(value: Any, where: str) -> Reader:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected a table, got {value!r}")
    return Reader(value, where)


def one_of(known: tuple[str, ...]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in known:
            raise ValueError
        return str(value)

    return read
