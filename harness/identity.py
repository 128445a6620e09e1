"""The identity of a cell as text, and the key that names its record.

An identity is what the result depends on, and nothing else: plain data, nested mappings and lists
of text, numbers, Booleans and None. Equal identities give equal keys on every machine and in every
version of Python, because the text is fixed: JSON, keys sorted, floats by `repr`, ASCII.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from harness.errors import PluginError

KEY_LENGTH = 32


def canonical(identity: Mapping[str, Any]) -> str:
    """The one text of an identity; tuples and lists are the same. PluginError: see `plain`."""
    return json.dumps(plain(identity), sort_keys=True, separators=(",", ":"))


def key_of(identity: Mapping[str, Any]) -> str:
    """32 hexadecimal digits, the first half of the sha256 of the canonical text."""
    return hashlib.sha256(canonical(identity).encode("ascii")).hexdigest()[:KEY_LENGTH]


def plain(value: Any, where: str = "identity") -> Any:
    """The value as JSON gives it back: mappings are dicts, tuples are lists.

    Raises PluginError, naming the place below `where`, on what JSON would refuse or would change
    in silence: other types, keys that are not text, NaN and infinities.
    """
    try:
        return _plain(value)
    except _Refused as refused:
        raise PluginError(f"{where}{''.join(reversed(refused.path))} {refused}") from None


class _Refused(Exception):
    """Why a value is not plain. Its place is gathered on the way out: it is asked for rarely, and
    ten thousand identities are read at a time."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str] = []


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise _Refused(f"is {float(value)}, which JSON cannot hold; write it as text")
    if isinstance(value, Mapping):
        return {_name(key): _inner(item, key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_inner(item, i) for i, item in enumerate(value)]
    raise _Refused(
        f"is a {type(value).__name__}, not one of text, int, float, bool, None, list, dict"
    )


def _inner(value: Any, place: str | int) -> Any:
    if value is None or isinstance(value, str | int):
        return value
    try:
        return _plain(value)
    except _Refused as refused:
        refused.path.append(f".{place}" if isinstance(place, str) else f"[{place}]")
        raise


def _name(key: Any) -> str:
    if isinstance(key, str):
        return key
    raise _Refused(f"has the key {key!r}, a {type(key).__name__}; keys must be text")
