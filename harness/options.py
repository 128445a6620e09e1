"""Options: from a selection to a plugin's own dataclass, read once, at the border.

A plugin's options are the fields of its dataclass, and the harness's own (restarts, targets, …)
are the fields of a dataclass here. What a field's type allows is `harness.fields`'s business;
this module knows what needs the catalogue: references to other plugins, whose options nest, and
the identity that follows from it all. A plugin's module is imported here, and not before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from harness.budget import Saturation
from harness.errors import (
    NOT_FOUND,
    BrokenPlugin,
    HarnessError,
    UsageError,
    did_you_mean,
)
from harness.fields import Marker, Option, OptionInfo, as_choice, describe_fields, options_of
from harness.installed import lacking
from harness.plugin import (
    Added,
    AttackRef,
    AttackSpec,
    File,
    ModelRef,
    ModelSpec,
    OneOf,
    RecipeRef,
    Reference,
    Selection,
)
from harness.registry import Catalogue, Entry
from harness.selection import parse_selection

Kind = Literal["model", "recipe", "attack"]
_KINDS: dict[type, Kind] = {ModelRef: "model", RecipeRef: "recipe", AttackRef: "attack"}


@dataclass(frozen=True)
class AttackOptions:
    """What the harness gives to every attack.

    restarts:     independent runs; each sample keeps the best
    target:       none, or how a targeted attack chooses the label to reach
    eot:          passes of a randomised model that are averaged into one answer
    gradient:     exact, or through the model's surrogate: its backward pass alone (bpda) or all
    query_budget: forward queries a sample may cost; all of what an attack that prepares asks
    seed_points:  images an attack that prepares is given; its own number where it is none
    """

    restarts: Annotated[int, Ge(1)] = 1
    target: Literal["none", "random", "least", "next"] = "none"
    eot: Annotated[int, Ge(1)] = 1
    gradient: Literal["exact", "bpda", "surrogate"] = "exact"
    query_budget: Annotated[int, Ge(1)] | None = None
    seed_points: Annotated[int, Ge(1)] | None = None


@dataclass(frozen=True)
class ModelOptions:
    """What the harness gives to every model.

    noise:    σ of the Gaussian noise in the copies that join the training images; 0: no copies
    saturate: p from 2 to inf: trained on saturated images x^(p), and its input is saturated too.
              It then has no parts, for they speak of the saturated input
    """

    noise: Annotated[float, Ge(0)] = 0.0
    saturate: Annotated[Saturation, Added()] = None


@dataclass(frozen=True)
class Resolved:
    """A selection whose plugin was found and whose options were read.

    selection: what it stands for, in full (`dist/standard:arch=mlp` where `mlp` was written)
    component: the plugin's dataclass; fields marked as references hold a `ResolvedRef`
    given:     the harness's own options
    identity:  JSON-able; equal for two selections that mean the same
    refs:      every reference it holds, also those inside a `OneOf`
    label:     as written, by the shortest name
    lacks:     what it, or what it refers to, requires and is not installed; '' where all is. Its
               own options are then taken as they were written, and `component` may be None
    """

    selection: Selection
    entry: Entry[Any]
    component: Any
    given: Any
    identity: dict[str, Any]
    refs: tuple[ResolvedRef, ...]
    label: str
    lacks: str = ""


@dataclass(frozen=True)
class ResolvedRef:
    """Another plugin that an option names: a fitted model, a model to train, or an attack."""

    kind: Kind
    resolved: Resolved


def load_factory(entry: Entry[Any]) -> type:
    """The plugin's dataclass. Raises BrokenPlugin if there is none, or not a frozen one."""
    module, _, name = entry.spec.factory.partition(":")
    try:
        factory = attrgetter(name)(importlib.import_module(module))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # importing runs a stranger's code, sys.exit included
        reason = f"{type(error).__name__}: {error}"
        raise BrokenPlugin(f"{entry.full}: cannot load {entry.spec.factory}: {reason}") from error
    if not (isinstance(factory, type) and dataclasses.is_dataclass(factory)):
        raise BrokenPlugin(f"{entry.full}: {entry.spec.factory} is not a dataclass")
    if not factory.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise BrokenPlugin(
            f"{entry.full}: {entry.spec.factory} must be a frozen dataclass: state would leak from "
            "one eps to the next"
        )
    return factory


def resolve(
    selection: Selection,
    entry: Entry[Any],
    harness_options: type | None,
    catalogue: Catalogue,
    where: str,
) -> Resolved:
    """Read a selection's options. `where` (a flag, a file and key) begins the error's message.

    Raises UsageError for what was typed, BrokenPlugin for what the plugin is.
    """
    with contextlib.redirect_stdout(sys.stderr):  # importing and making it runs a stranger's code
        return _resolve(selection, harness_options, _Scope(catalogue, where, entry))


def describe(entry: Entry[Any], harness_options: type | None) -> list[OptionInfo]:
    """The plugin's own options, those of its `OneOf` choices, and the harness's."""
    with contextlib.redirect_stdout(sys.stderr):
        own = list(describe_fields(load_factory(entry)))
    if isinstance(entry.spec, ModelSpec) and entry.spec.short_for:
        preset = parse_selection(entry.spec.short_for, f"{entry.full}: short_for").given
        own = [replace(o, default=str(preset.get(o.name, o.default))) for o in own]
    return own + (list(describe_fields(harness_options)) if harness_options else [])


@dataclass(frozen=True)
class _Scope:
    """Whose options are being read: for messages, for look-ups, and against circles.

    path: the selections that are being resolved, outermost first
    """

    catalogue: Catalogue
    where: str
    entry: Entry[Any]
    path: tuple[str, ...] = ()

    @property
    def at(self) -> str:
        return f"{self.where}: {self.catalogue.short(self.entry.full)}"

    def find(self, kind: Kind, name: str) -> Entry[Any]:
        return self.catalogue.attack(name) if kind == "attack" else self.catalogue.model(name)

    def find_own(self, kind: Kind, name: str) -> Entry[Any]:
        """What a plugin itself refers to is its distribution's own, whoever else has the name."""
        entries = self.catalogue.attacks if kind == "attack" else self.catalogue.models
        return entries.get(f"{self.entry.dist}/{name}") or self.find(kind, name)


@dataclass(frozen=True)
class _Read:
    """What was read: a value for the plugin, its identity, and the references inside it."""

    value: Any
    identity: Any
    refs: tuple[ResolvedRef, ...] = ()


_NOTHING = _Read(None, None)


def _resolve(written: Selection, harness_options: type | None, scope: _Scope) -> Resolved:
    named = scope.entry
    selection, entry = _expanded(written, scope)
    step = str(Selection(entry.full, selection.options))
    if step in scope.path:
        circle = " → ".join((*scope.path, step))
        raise UsageError(f"{scope.where}: the references go round in a circle: {circle}")
    scope = replace(scope, entry=entry, path=(*scope.path, step))
    ours = options_of(harness_options) if harness_options else {}
    lacks = lacking(entry.spec)
    try:
        factory = load_factory(entry)
    except BrokenPlugin:
        if not lacks:
            raise
        read = _unread(selection.given, ours)
    else:
        own = options_of(factory)
        for name in own.keys() & ours.keys():
            raise BrokenPlugin(
                f"{entry.full}: field {name!r} is an option of the harness's; rename it"
            )
        _check_known(selection.given, [*own, *ours], _spoken(written, selection, scope))
        read = _fill(factory, selection.given, scope)
    harness = _fill(harness_options, selection.given, scope) if harness_options else _NOTHING
    entry = replace(entry, spec=_effective(entry, read.value, harness.value))
    harness = _fitting(entry.spec, harness, scope)
    return Resolved(
        selection=replace(selection, name=entry.full),
        entry=entry,
        component=read.value,
        given=harness.value,
        identity={
            "name": entry.full,
            "version": entry.spec.version,
            "options": read.identity,
            "harness": harness.identity,
        },
        refs=read.refs,
        label=str(replace(written, name=scope.catalogue.short(named.full))),
        lacks=lacks or next((r.resolved.lacks for r in read.refs if r.resolved.lacks), ""),
    )


def _effective(entry: Entry[Any], component: Any, given: Any) -> Any:
    """The spec with the facts that follow from its options."""
    spec = entry.spec
    if isinstance(spec, AttackSpec) and spec.like and component is not None:
        held = getattr(component, spec.like, None)
        if not isinstance(held, ResolvedRef) or held.kind != "attack":
            raise BrokenPlugin(f"{entry.full}: like={spec.like!r}: no option that names an attack")
        return spec.following(held.resolved.entry.spec)
    saturated = isinstance(given, ModelOptions) and given.saturate is not None
    return replace(spec, parts=()) if saturated else spec


def _unread(given: Mapping[str, Any], ours: Iterable[str]) -> _Read:
    """Options of a plugin that cannot be asked which it has: as they were written."""
    options = {name: str(value) for name, value in given.items() if name not in ours}
    return _Read(None, options)


def _expanded(selection: Selection, scope: _Scope) -> tuple[Selection, Entry[Any]]:
    """`mlp:epochs=3` as `standard:arch=mlp,epochs=3`; where both say something, what was given."""
    entry, seen = scope.entry, {scope.entry.full}
    while isinstance(entry.spec, ModelSpec) and entry.spec.short_for:
        base = parse_selection(entry.spec.short_for, f"{entry.full}: short_for")
        selection = Selection(base.name, tuple({**base.given, **selection.given}.items()))
        entry = replace(scope, entry=entry).find_own("model", base.name)
        if entry.full in seen:
            raise UsageError(f"{scope.where}: {entry.full} is short for itself")
        seen.add(entry.full)
    return selection, entry


def _spoken(written: Selection, selection: Selection, scope: _Scope) -> str:
    """Whose option is missing, in the user's words."""
    short = "" if written.name == selection.name else f" (short for {selection})"
    return f"{scope.where}: {written.name}{short}"


def _check_known(given: Iterable[str], known: Iterable[str], whose: str) -> None:
    known = list(known)
    for name in given:
        if name not in known:
            meant = did_you_mean(name, known)
            listed = f"its options: {', '.join(known) or 'none'}"
            raise UsageError(f"{whose} has no option {name!r}{meant or f' ({listed})'}")


def _fill(cls: type, given: Mapping[str, Any], scope: _Scope) -> _Read:
    """An instance of the dataclass, of what is given for its fields, and of their defaults."""
    options = options_of(cls)
    read = {
        name: _read(option, given.get(name, MISSING), scope) for name, option in options.items()
    }
    try:
        instance = cls(**{name: field.value for name, field in read.items()})
    except HarnessError:
        raise
    except ValueError as error:
        raise UsageError(f"{scope.at}: {' '.join(str(error).split())}") from error
    except Exception as error:
        raise BrokenPlugin(f"{scope.entry.full}: {cls.__name__}(…) raised {error!r}") from error
    refs = tuple(found for field in read.values() for found in field.refs)
    identity = {
        name: field.identity
        for name, field in read.items()
        if not (options[name].added and field.value == options[name].default)
    }
    return _Read(instance, identity, refs)


def _read(option: Option, raw: Any, scope: _Scope) -> _Read:
    """One field. What was typed wrongly is its author's fault, a wrong default the plugin's."""
    at = f"{scope.at}: option {option.name!r}"
    value = option.default if raw is MISSING else option.none_or(raw)
    if value is MISSING:
        raise UsageError(f"{at} is missing; expected {option.expected}")
    if option.marker is not None and value is None:
        return _NOTHING
    try:
        if option.marker is None:
            return _Read(*option.read(value))
        return _marked(option.marker, value, at, scope)
    except ValueError as error:
        if raw is MISSING:
            raise BrokenPlugin(f"{at}: its default is wrong: {error}") from error
        raise UsageError(f"{at}: {error}") from error


def _marked(marker: Marker, value: Any, at: str, scope: _Scope) -> _Read:
    match marker:
        case OneOf():
            return _choice(marker, value, at, scope)
        case File():
            return _file(value)
        case _:
            return _reference(_KINDS[type(marker)], value, at, scope)


def _choice(one_of: OneOf, value: Any, at: str, scope: _Scope) -> _Read:
    if isinstance(value, str | Selection):
        selection = _selection(value, at)
    else:
        selection = as_choice(one_of, value)
    if selection.name not in one_of.choices:
        names = ", ".join(one_of.choices)
        meant = did_you_mean(selection.name, one_of.choices)
        raise ValueError(f"expected one of {names}; got {selection.name!r}{meant}")
    chosen = one_of.choices[selection.name]
    _check_known(selection.given, options_of(chosen), f"{at}: {selection.name}")
    read = _fill(chosen, selection.given, scope)
    return replace(read, identity={"name": selection.name, "options": read.identity})


def _file(value: Any) -> _Read:
    try:
        path = Path(str(value)).expanduser().absolute()
        with path.open("rb") as file:
            return _Read(path, {"sha256": hashlib.file_digest(file, "sha256").hexdigest()})
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ of a user that does not exist
        raise ValueError(f"cannot read {str(value)!r}: {error}") from error


def _reference(kind: Kind, value: Any, at: str, scope: _Scope) -> _Read:
    default = isinstance(value, Reference)
    selection = _selection(value.text if default else value, at)
    try:
        entry = (scope.find_own if default else scope.find)(kind, selection.name)
    except NOT_FOUND as error:
        raise type(error)(f"{at}: {error}") from error
    harness_options = AttackOptions if kind == "attack" else ModelOptions
    found = ResolvedRef(kind, _resolve(selection, harness_options, replace(scope, entry=entry)))
    if kind == "recipe" and found.resolved.given != ModelOptions():
        raise UsageError(f"{at}: noise and saturate belong to the model that it is trained in")
    return _Read(found, found.resolved.identity, (found,))


def _selection(value: Any, at: str) -> Selection:
    return value if isinstance(value, Selection) else parse_selection(value, at)


def _fitting(spec: Any, read: _Read, scope: _Scope) -> _Read:
    """The harness's options, if this attack can have them, with the seed points it asks for."""
    given = read.value
    if not (isinstance(spec, AttackSpec) and isinstance(given, AttackOptions)):
        return read
    if spec.deterministic and given.restarts > 1:
        raise UsageError(
            f"{scope.at}: restarts={given.restarts} of a deterministic attack is one run, "
            f"{given.restarts} times; leave it out"
        )
    if given.seed_points is not None and not spec.prepares:
        raise UsageError(f"{scope.at}: seed_points is for attacks that prepare, and it does not")
    if given.seed_points is None and spec.prepares:
        given = replace(given, seed_points=spec.seed_points)
    return _Read(given, {**read.identity, "seed_points": given.seed_points})
