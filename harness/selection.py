"""Selections: a plugin by name with options, as text or as a TOML table.

    pgd                                              the plugin and its defaults
    pgd:steps=100,restarts=10                        with options
    art:DeepFool                                     a member of a family: a word without '='
    art:DeepFool:max_iter=50                         a member, with options
    acme/pgd:steps=100                               of one distribution
    transfer:source=mlp,attack=(pgd:steps=40)        a selection inside one, in parentheses
    { use = "pgd", steps = 100 }                     the same in TOML, where a string may also
    { use = "transfer", attack = "pgd:steps=40" }    hold a selection without parentheses

Whether names and options exist is not asked here (see `harness.registry`, `harness.options`).
What is read can be written and read again: `parse_selection(str(s))` selects what s does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness.errors import UsageError
from harness.plugin import Selection

FORM = (
    "the form is name:option=value,option=value, a selection as a value in parentheses; another "
    "library's attack is library:Name, its options after a second colon"
)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_MEMBER = re.compile(r"[A-Za-z0-9][\w.-]*")
_KEY = re.compile(r"[A-Za-z_]\w*")
_NESTED = re.compile(
    rf"{_NAME.pattern}\s*:\s*({_MEMBER.pattern}\s*:\s*)?{_KEY.pattern}\s*=.*", re.DOTALL
)
_DEEPEST = 20


def parse_selection(raw: str | Mapping[str, Any], where: str) -> Selection:
    """The selection in a text or a TOML table. `where` begins the message of a UsageError."""
    try:
        return _table(raw) if isinstance(raw, Mapping) else _text(raw)
    except ValueError as error:
        shown = dict(raw) if isinstance(raw, Mapping) else raw
        raise UsageError(f"{where}: {shown!r}: {error}; {FORM}") from None


def _text(text: Any) -> Selection:
    if not isinstance(text, str):
        raise ValueError("expected a text or a table with the key 'use'")
    _check_parentheses(text)
    name, colon, rest = (part.strip() for part in text.partition(":"))
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name" if name else "the name is missing")
    member, second, beyond = (part.strip() for part in rest.partition(":"))
    if _MEMBER.fullmatch(member):  # a bare word: of the name, `art:DeepFool`
        name, colon, rest = f"{name}:{member}", second, beyond
    if not colon:
        return Selection(name)
    return Selection(name, _unique([_option(part) for part in _split(rest)]))


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise ValueError(f"option {key!r} has no '=value'" if key else "an option is missing")
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not an option's name")
    if _NESTED.fullmatch(value):
        raise ValueError(f"{key}={value} is not clear; write {key}=({value})")
    return key, _value(value)


def _value(text: str) -> Any:
    """Text as it stands, or what stands in parentheses: a selection if it has options."""
    if text.startswith("(") and text.endswith(")"):
        return _bare(_text(text[1:-1]))
    if len(_split(text)) > 1:
        raise ValueError(f"the value {text!r} has a comma, which ends a value")
    return text


def _bare(selection: Selection) -> Selection | str:
    """A selection without options is its name: one way to write it, one way to hold it."""
    return selection if selection.options else selection.name


def _table(table: Mapping[str, Any]) -> Selection:
    if "use" not in table:
        raise ValueError("the key 'use' is missing; it names the plugin")
    base = _text(table["use"])
    own = [(key, _toml_value(value)) for key, value in table.items() if key != "use"]
    for key, _ in own:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not an option's name")
    return Selection(base.name, _unique([*base.options, *own]))


def _toml_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _bare(_table(value))
    if isinstance(value, list | tuple):
        return tuple(map(_toml_value, value))
    if not isinstance(value, str):
        return value
    text = value.strip()
    if _NESTED.fullmatch(text):
        return _text(text)
    _check_parentheses(text)
    return _value(text)


def _unique(options: list[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    keys = [key for key, _ in options]
    twice = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
    if twice:
        raise ValueError(f"option {twice[0]!r} is given twice")
    return tuple(options)


def _split(text: str) -> list[str]:
    """The parts between commas that stand in no parentheses; those of `text` are in order."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _check_parentheses(text: str) -> None:
    depth = 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if depth < 0:
            raise ValueError("a ')' without its '('")
        if depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} parentheses inside one another")
    if depth:
        raise ValueError("a '(' without its ')'")
