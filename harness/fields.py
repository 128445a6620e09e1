"""One field of an options dataclass: how its value is read, and how it is described.

Text from the command line, what TOML read, and the field's own default go through the same door,
so that `8/255`, `width=100+50` and `none` mean the same wherever they were written. pydantic
checks types and constraints; it is imported when the first value is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, replace
from enum import Enum
from fractions import Fraction
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from harness.errors import BrokenPlugin
from harness.plugin import Added, AttackRef, File, ModelRef, OneOf, RecipeRef, Reference, Selection

Marker = ModelRef | RecipeRef | AttackRef | OneOf | File
_MARKED = {ModelRef: "model", RecipeRef: "model", AttackRef: "attack", File: "file"}
_SEQUENCES = (tuple, list, set, frozenset)
_PLUS = re.compile(r"(?<![0-9][eE])\+")  # 1e+9 is one number
_UNEXPECTED = ("value_error", "assertion_error", "predicate_failed", "finite_number")
_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
    "minLength": "length ≥ {}",
    "maxLength": "length ≤ {}",
    "minItems": "length ≥ {}",
    "maxItems": "length ≤ {}",
    "pattern": "of the form {}",
}


@dataclass(frozen=True)
class OptionInfo:
    """An option as `harness show` prints it. `name` is `arch=(mlp:width)` inside a `OneOf`."""

    name: str
    type: str
    default: str
    constraint: str
    doc: str


@dataclass(frozen=True, eq=False)
class Option:
    """A field. `hint` is its type with what `Annotated` adds; `default` is MISSING if required."""

    name: str
    hint: Any
    default: Any
    owner: str

    @functools.cached_property
    def marker(self) -> Marker | None:
        return next((m for m in self._metadata if isinstance(m, Marker)), None)

    @functools.cached_property
    def added(self) -> bool:
        """Whether identities are without it where it has its default."""
        return any(isinstance(m, Added) for m in self._metadata)

    def none_or(self, value: Any) -> Any:
        """None for the text 'none', where the type has None and no such word of its own."""
        none = value == "none" and NoneType in self._parts and "none" not in self._words
        return None if none else value

    def read(self, value: Any) -> tuple[Any, Any]:
        """The value in its type, and as JSON. Raises ValueError: what was expected, and got."""
        from pydantic import ValidationError

        try:
            read = self._adapter.validate_python(self._plain(value))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            why = f" ({first['msg']})" if first["type"] in _UNEXPECTED else ""
            got = str(value) if isinstance(value, Selection) else value
            raise ValueError(f"expected {self.expected}; got {got!r}{why}") from None
        return read, self._adapter.dump_python(read, mode="json")

    @property
    def expected(self) -> str:
        return ", ".join(filter(None, (self.type, self.constraint)))

    @property
    def type(self) -> str:
        if isinstance(self.marker, OneOf):
            return " | ".join(self.marker.choices)
        return _MARKED[type(self.marker)] if self.marker else _type(self.hint)

    @functools.cached_property
    def constraint(self) -> str:
        from pydantic.errors import PydanticUserError

        if self.marker:
            return ""
        try:
            return ", ".join(_bounds(self._adapter.json_schema()))
        except PydanticUserError:  # a type without a JSON schema, such as a callable
            return ""

    @functools.cached_property
    def _adapter(self) -> Any:
        from pydantic import ConfigDict, TypeAdapter
        from pydantic.errors import PydanticUserError

        try:
            return TypeAdapter(self.hint, config=ConfigDict(allow_inf_nan=False))
        except PydanticUserError as error:
            raise BrokenPlugin(
                f"{self.owner}: field {self.name!r} has a type that text cannot give; "
                "mark it with OneOf, File or a reference"
            ) from error

    @functools.cached_property
    def _metadata(self) -> tuple[Any, ...]:
        annotated = (part for part in self._parts if get_origin(part) is Annotated)
        return tuple(m for part in annotated for m in get_args(part)[1:])

    @functools.cached_property
    def _parts(self) -> tuple[Any, ...]:
        return tuple(_parts(self.hint))

    @functools.cached_property
    def _words(self) -> Mapping[str, Any]:
        """The values of its `Literal`s and enumerations, by their text."""
        return {str(word): word for part in self._parts for word in _words(part)}

    def _plain(self, value: Any) -> Any:
        """What pydantic is given: for a sequence the items of a list, or of `100+50`."""
        if not any((get_origin(part) or part) in _SEQUENCES for part in self._parts):
            return self._scalar(value)
        if isinstance(value, str):
            value = _PLUS.split(value) if value else []
        items = value if isinstance(value, _SEQUENCES) else [value]
        return [self._scalar(item) for item in items]

    def _scalar(self, value: Any) -> Any:
        """Numbers and Booleans of TOML go as text, lest `steps = true` be 1 and `k = 3` not "3"."""
        if isinstance(value, bool | int | float | Selection):
            value = str(value).lower() if isinstance(value, bool) else str(value)
        if not isinstance(value, str):
            return value
        if "/" in value and float in self._parts:
            with contextlib.suppress(ValueError, ArithmeticError):
                return float(Fraction(value))
        return self._words.get(value, value)


@functools.cache
def options_of(cls: type) -> Mapping[str, Option]:
    """The options that a dataclass has, by name. Raises BrokenPlugin if a type cannot be read."""
    owner = f"{cls.__module__}.{cls.__qualname__}"
    try:
        hints = get_type_hints(cls, include_extras=True)
    except Exception as error:
        raise BrokenPlugin(f"{owner}: its types cannot be read: {error}") from error
    return {
        field.name: Option(field.name, hints[field.name], _default(field), owner)
        for field in dataclasses.fields(cls)
        if field.init
    }


def describe_fields(cls: type) -> Iterator[OptionInfo]:
    """The options of a dataclass, each `OneOf` followed by the options of its choices."""
    docs = _docs(cls)
    for name, option in options_of(cls).items():
        default = _shown(option.default, option.marker)
        yield OptionInfo(name, option.type, default, option.constraint, docs.get(name, ""))
        choices = option.marker.choices if isinstance(option.marker, OneOf) else {}
        for choice, chosen in choices.items():
            for inner in describe_fields(chosen):
                yield replace(inner, name=f"{name}=({choice}:{inner.name})")


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _parts(hint: Any) -> Iterator[Any]:
    """A type and every type inside it."""
    yield hint
    if get_origin(hint) is Annotated:
        yield from _parts(get_args(hint)[0])
    elif get_origin(hint) is not Literal:
        for inner in get_args(hint):
            yield from _parts(inner)


def _words(hint: Any) -> tuple[Any, ...]:
    """The values of a `Literal` or an enumeration; none for another type."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return tuple(member.value for member in hint)
    return ()


def _type(hint: Any) -> str:
    """A type as help shows it: `int | none`, `ce | margin | dlr`, `int+int+…`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _type(args[0])
    if origin in (Union, UnionType):
        return " | ".join(map(_type, args))
    if origin in _SEQUENCES:
        return "+".join("…" if arg is Ellipsis else _type(arg) for arg in args)
    return _plain_type(hint)


def _plain_type(hint: Any) -> str:
    if hint is NoneType:
        return "none"
    if words := _words(hint):
        return " | ".join(map(str, words))
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _bounds(schema: Any) -> Iterator[str]:
    """The constraints that stand anywhere in a JSON schema."""
    if isinstance(schema, list):
        for inner in schema:
            yield from _bounds(inner)
    elif isinstance(schema, dict):
        found = ((text, schema[key]) for key, text in _BOUNDS.items() if key in schema)
        yield from (text.format(_plain(bound)) for text, bound in found)
        for key, value in schema.items():
            if key not in _BOUNDS:
                yield from _bounds(value)


def _plain(bound: Any) -> Any:
    """9.0 as 9: pydantic's versions write a bound in either way."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _shown(value: Any, marker: Marker | None = None) -> str:
    """A default as one would type it."""
    if value is MISSING:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, Reference):
        return value.text
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(marker, OneOf):
        return str(as_choice(marker, value))
    return str(Selection("", (("", value),))).removeprefix(":=")


def as_choice(one_of: OneOf, instance: Any) -> Selection:
    """The selection that gives an instance of one of the choices, which a default is.

    Raises ValueError if it is an instance of none of them.
    """
    cls: type = type(instance)
    names = {choice: name for name, choice in one_of.choices.items()}
    if cls not in names:
        raise ValueError(f"{instance!r} is none of {', '.join(one_of.choices)}")
    options = options_of(cls)
    values = {key: getattr(instance, key) for key in options}
    changed = {key: value for key, value in values.items() if value != options[key].default}
    return Selection(names[cls], tuple(changed.items()))


def _docs(cls: type) -> dict[str, str]:
    """What docstrings say of the fields, `name: text` or `name, name: text`; a subclass's first."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__doc__ or "")
        found = re.findall(r"^(\w+(?:, \w+)*): +(.+(?:\n[ ]{2,}.+)*)", text, re.MULTILINE)
        docs |= {name: " ".join(doc.split()) for names, doc in found for name in names.split(", ")}
    return docs
