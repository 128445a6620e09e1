"""What a function of an installed library takes, read from its source without importing it.

Importing ART costs seconds and CleverHans torch; options must be known before a cell needs either.
What cannot be told from the text (a default that is computed, a type that a command line cannot
give) is marked so, and left to the library.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import BrokenPlugin

OPAQUE = object()  # a default that the text does not tell
REQUIRED = object()  # no default
_SCALARS: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}
_CONSTANTS = {"inf": math.inf, "pi": math.pi}


@dataclass(frozen=True)
class Parameter:
    """One parameter: `type` is None where a command line cannot give its values."""

    name: str
    type: Any
    default: Any
    doc: str = ""


@cache
def parameters(package: str, file: str, name: str) -> tuple[Parameter, ...]:
    """Those of the function, or of the class's constructor without `self`, that the file defines.

    Raises BrokenPlugin where the package is not installed or has no such thing.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.origin:
        raise BrokenPlugin(f"{package} is not installed")
    path = Path(found.origin).parent / file
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError) as error:
        raise BrokenPlugin(f"{package} has no {file} that can be read: {error}") from error
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return tuple(_read(node))
        if isinstance(node, ast.ClassDef) and node.name == name:
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
                    return tuple(_read(inner))[1:]
    raise BrokenPlugin(f"{package} has no {name} in {file}")


def _read(function: ast.FunctionDef) -> Iterator[Parameter]:
    docs = _docs(ast.get_docstring(function) or "")
    given = function.args.args
    missing = [REQUIRED] * (len(given) - len(function.args.defaults))
    for arg, default in zip(given, [*missing, *map(_value, function.args.defaults)], strict=True):
        hint = _hint(arg.annotation) if arg.annotation else _SCALARS.get(type(default).__name__)
        yield Parameter(arg.arg, hint, default, docs.get(arg.arg, ""))


def _value(node: ast.expr) -> Any:
    """A default as a value: literals, `np.inf` and their like, and arithmetic on them."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Attribute(attr=attr) if attr in _CONSTANTS:
            return _CONSTANTS[attr]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = _value(operand)
            return -value if isinstance(value, int | float) else OPAQUE
        case _:
            return OPAQUE


def _hint(node: ast.expr) -> Any:
    """The type that an annotation leaves to a command line: `int | float | str` is float."""
    names = set(_names(node))
    plain = [_SCALARS[n] for n in ("bool", "float", "int", "str") if n in names]
    if not plain:
        return None
    return plain[0] | None if "None" in names else plain[0]


def _names(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Name(id=name):
            yield name
        case ast.Constant(value=None):
            yield "None"
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            yield from _names(left)
            yield from _names(right)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            yield "None"
            yield from _names(inner)
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=inner)):
            for one in inner:
                yield from _names(one)


def _docs(text: str) -> dict[str, str]:
    """The text of each `:param name: text` of a docstring, on one line."""
    found = re.findall(r":param (\w+):?\s+(.+?)(?=\n\s*:|\n\s*\n|\Z)", text, re.DOTALL)
    return {name: " ".join(doc.split()) for name, doc in found}
