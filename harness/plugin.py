"""What a plugin author needs to say what a plugin brings. Imports no torch.

A plugin is a module named by an entry point of the group `robustness_harness`. It implements the
hooks it has something for, and each yields frozen specs:

    from harness.plugin import AttackSpec, hookimpl

    @hookimpl
    def harness_attacks():
        yield AttackSpec("nudge", "my_package.nudge:Nudge", norms=("Linf",))

A spec names its factory as text, so that the heavy import waits until a cell needs it, and it
carries the facts that a plan needs: nothing is fitted to learn that two things do not fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import pluggy

PROJECT = "robustness_harness"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Level = Literal["labels", "scores", "gradients"]
LEVELS: tuple[Level, ...] = ("labels", "scores", "gradients")
NORMS = ("Linf", "L2", "L1", "L0")
CORRUPTION = "corruption"
KINDS = ("fixed-budget", "minimum-norm")
FOLLOWED = ("norms", "kind", "deterministic", "one_by_one", "pooled")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*(:[A-Za-z0-9][A-Za-z0-9._-]*)?")


@dataclass(frozen=True)
class Spec:
    """What every spec has.

    name:     lower case, `[a-z0-9._-]`, or `family:Member` for one of a family that is not one's
              own (`art:DeepFool`); short while it is unique, else `dist/name`
    factory:  `"package.module:Class"`, a frozen dataclass whose fields are its options
    version:  raised whenever the outputs change: it is part of every record's identity
    requires: (requirement, what pip is to install for it, '' where nothing helps): distributions
              that it needs and that its own need not bring; without them, what it would do is
              `incompatible`
    """

    name: str
    factory: str
    version: int = 1
    summary: str = ""
    paper: str = ""
    requires: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise ValueError(
                f"name {self.name!r} is not of the form [a-z0-9._-], nor family:Member"
            )
        for field in fields(self):
            _check_type(self.name, field.name, getattr(self, field.name), str(field.type))
        if self.factory.count(":") != 1:
            raise ValueError(f"{self.name}: factory {self.factory!r} is not 'package.module:Class'")
        if self.version < 1:
            raise ValueError(f"{self.name}: version {self.version} is not 1 or more")


def _check_type(spec: str, field: str, value: object, annotation: str) -> None:
    """Raise ValueError unless the fact is what its field is declared as, said in full here."""
    plain = {"str": str, "int": int, "bool": bool}.get(annotation)
    if plain and type(value) is not plain:
        article = "an" if annotation == "int" else "a"
        raise ValueError(f"{spec}: {field} {value!r} is not {article} {annotation}")
    if annotation == "tuple[str, ...]" and not (
        isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    ):
        raise ValueError(f"{spec}: {field} {value!r} is not a tuple of texts")
    if annotation == "tuple[tuple[str, str], ...]" and not (
        isinstance(value, tuple) and all(map(_is_pair, value))
    ):
        raise ValueError(f"{spec}: {field} {value!r} is not a tuple of pairs of texts")


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(item, str) for item in value)
    )


@dataclass(frozen=True)
class ModelSpec(Spec):
    """A defense as a recipe (contract: `harness.api.Model`).

    offers:     the most an attacker can get from the trained classifier
    surrogate:  the classifier has `surrogate()`, a differentiable stand-in
    randomised: the classifier's forward is `forward(x, rng)`
    parts:      named parts an attack may ask for (`classifier.part(name)`)
    parts_vary: which of them there are depends on the options or the data: the recipe has
                `parts(info)`, which names them
    short_for:  this name is short for a selection of another model (`standard:arch=mlp`)
    """

    offers: Level = "gradients"
    surrogate: bool = False
    randomised: bool = False
    parts: tuple[str, ...] = ()
    parts_vary: bool = False
    short_for: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.offers not in LEVELS:
            raise ValueError(f"{self.name}: offers {self.offers!r} is not one of {LEVELS}")


@dataclass(frozen=True)
class AttackSpec(Spec):
    """An attack (contract: `harness.api.Attack`).

    norms:         those of `NORMS` it supports, or `corruption`
    needs, parts:  the level, or the named parts, it needs of its target
    kind:          fixed-budget attacks run at each eps of the grid, minimum-norm ones once
    prepares:      it has `prepare(target, seeds, rng)` (see `harness.api.PreparingAttack`)
    seed_points:   how many images `prepare` is given unless the option `seed_points` says else
    deterministic: two runs from one start are the same, so restarts are a usage error
    one_by_one:    another library's query attack: it is run image by image, with the global
                   generators seeded by the sample, so that its counts and draws are the sample's
    pooled:        another library's attack on whole batches: it asks `target.pooled()`, and its
                   counts are means over a batch; run image by image where a query budget, targets
                   or a randomised model need to know which sample is asked about
    like:          an option that names the attack inside: the facts of `FOLLOWED` are that
                   attack's, whatever stands here, and it is run on the models this one refers to
    """

    norms: tuple[str, ...] = ()
    needs: Level = "gradients"
    parts: tuple[str, ...] = ()
    kind: Literal["fixed-budget", "minimum-norm"] = "fixed-budget"
    prepares: bool = False
    seed_points: int = 0
    deterministic: bool = False
    one_by_one: bool = False
    pooled: bool = False
    like: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [n for n in self.norms if n not in (*NORMS, CORRUPTION)]
        if unknown or not self.norms:
            raise ValueError(f"{self.name}: norms {self.norms} must be some of {NORMS}")
        if CORRUPTION in self.norms and len(self.norms) > 1:
            raise ValueError(f"{self.name}: norms {self.norms}: a corruption is nothing besides")
        if self.kind not in KINDS:
            raise ValueError(f"{self.name}: kind {self.kind!r} is not one of {KINDS}")
        if self.seed_points < 0 or (self.seed_points and not self.prepares):
            raise ValueError(
                f"{self.name}: seed_points {self.seed_points}: 0, or more where it prepares"
            )
        if self.one_by_one + self.pooled + self.prepares > 1:
            raise ValueError(f"{self.name}: prepares, one_by_one and pooled exclude one another")
        if self.needs not in LEVELS:
            raise ValueError(f"{self.name}: needs {self.needs!r} is not one of {LEVELS}")

    def following(self, inner: AttackSpec) -> AttackSpec:
        """Itself with the facts of the attack inside."""
        return replace(self, **{name: getattr(inner, name) for name in FOLLOWED})


@dataclass(frozen=True)
class DatasetSpec(Spec):
    """A data set (contract: `harness.data.Dataset`).

    downloads: (file name, URL) of the official files, for `harness fetch`
    """

    downloads: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Selection:
    """A plugin by name with the options that were given: `pgd:steps=100,restarts=10`.

    Values are text, as typed, or what TOML read; a parenthesised value is a Selection.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def given(self) -> Mapping[str, Any]:
        return dict(self.options)

    def __str__(self) -> str:
        options = ",".join(f"{k}={_value(v)}" for k, v in self.options)
        return f"{self.name}:{options}" if options else self.name


def _value(value: Any) -> str:
    if isinstance(value, Selection):
        return f"({value})" if value.options else str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "+".join(map(_value, value))
    return str(value)


@dataclass(frozen=True)
class ModelRef:
    """Marks an option that names another model: `source: Annotated[Target, ModelRef()]`.

    The harness fits that model with the cell's own seed and hands its target to the attack.
    """


@dataclass(frozen=True)
class RecipeRef:
    """Marks an option that names a model to train oneself: `Annotated[Model, RecipeRef()]`."""


@dataclass(frozen=True)
class AttackRef:
    """Marks an option that names an attack: `inner: Annotated[Attack, AttackRef()]`."""


@dataclass(frozen=True)
class Added:
    """Marks an option that came after records were made: at its default, an identity is without
    it, as those of the records are. `beta: Annotated[float, Gt(0), Added()] = 0.9`."""


@dataclass(frozen=True)
class File:
    """Marks an option that is a path, `Annotated[Path, File()]`: its sha256 is its identity."""


def ref(text: str) -> Any:
    """The default of an option marked as a reference: `inner: … = ref("pgd:steps=7")`."""
    return Reference(text)


@dataclass(frozen=True)
class Reference:
    """A reference as text, before the harness has resolved it."""

    text: str


@dataclass(frozen=True)
class OneOf:
    """Marks an option that is one of several named dataclasses, each with options of its own.

    `arch: Annotated[Architecture, OneOf({"mlp": MLP})]` takes `arch=mlp` and
    `arch=(mlp:width=200)`, and holds the MLP instance. The default is an instance too.
    """

    choices: Mapping[str, type]

    def __hash__(self) -> int:
        return hash(tuple(self.choices))
