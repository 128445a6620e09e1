"""Options: what is typed, what a plugin gets, and what identifies it."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le, MinLen, Predicate
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from harness.compatibility import check_options, incompatible
from harness.errors import AmbiguousName, BrokenPlugin, UnknownName, UsageError
from harness.options import (
    AttackOptions,
    ModelOptions,
    ResolvedRef,
    describe,
    load_factory,
    resolve,
)
from harness.plugin import (
    Added,
    AttackRef,
    AttackSpec,
    File,
    ModelRef,
    ModelSpec,
    OneOf,
    RecipeRef,
    hookimpl,
    ref,
)
from harness.registry import catalogue
from harness.selection import parse_selection


class Colour(enum.Enum):
    RED = "red"
    SEVEN = 7


@dataclass(frozen=True)
class PGD:
    """Steps.

    steps:      how many, and this doc
                goes on
    loss, grid: one of three, and numbers
    """

    steps: Annotated[int, Ge(1)] = 40
    reach: Annotated[float, Gt(0), Le(9)] | None = None
    loss: Literal["ce", "margin", "none"] = "ce"
    eps: float = 1
    early: bool = False
    grid: Annotated[tuple[float, ...], MinLen(1)] = (0.5, 1)
    order: Literal[1, 2] = 2
    colour: Colour = Colour.RED
    even: Annotated[int, Predicate(lambda n: n % 2 == 0)] = 0
    name: Annotated[str, Field(pattern="^[a-z]*$")] = ""
    keep: tuple[int | str, ...] = ()
    how: Literal["none", "some"] | None = None

    def __post_init__(self) -> None:
        if self.reach is not None and self.reach > self.steps:
            raise ValueError(f"reach {self.reach} is\nmore than {self.steps} steps")


@dataclass(frozen=True)
class MLP:
    """width: units"""

    width: Annotated[int, Ge(1)] = 200


@dataclass(frozen=True)
class Linear:
    pass


@dataclass(frozen=True)
class Standard:
    arch: Annotated[Any, OneOf({"mlp": MLP, "linear": Linear})] = MLP(width=100)
    epochs: int = 10


@dataclass(frozen=True)
class AT:
    inner: Annotated[Callable[..., Any], AttackRef()] = ref("pgd:steps=7")
    eps: float = 0.3


@dataclass(frozen=True)
class Grown:
    """Of which records were made while it had `steps` alone."""

    steps: int = 1
    size: Annotated[float, Gt(0), Added()] = 0.5
    shape: Annotated[Any, OneOf({"mlp": MLP}), Added()] = MLP()


@dataclass(frozen=True)
class Transfer:
    attack: Annotated[Any, AttackRef()]
    source: Annotated[Any, ModelRef()] = ref("mlp")
    student: Annotated[Any | None, RecipeRef()] = None


@dataclass(frozen=True)
class Checkpoint:
    path: Annotated[Path, File()]


@dataclass(frozen=True)
class Ring:
    inner: Annotated[Any, AttackRef()] = ref("gnir:steps=1")


@dataclass(frozen=True)
class Gnir:
    inner: Annotated[Any, AttackRef()] = ref("ring")
    steps: int = 1


@dataclass(frozen=True)
class Clash:
    restarts: int = 1


@dataclass(frozen=True)
class BadDefault:
    steps: Annotated[int, Ge(1)] = 0


@dataclass(frozen=True)
class BadType:
    model: ModuleType | None = None


@dataclass(frozen=True)
class BadHint:
    steps: NotImported = 3  # noqa: F821


@dataclass(frozen=True)
class Raises:
    def __post_init__(self) -> None:
        raise TypeError("oh")


@dataclass(frozen=True)
class Mutable:
    sizes: list[int] = field(default_factory=lambda: [3, 4])


@dataclass
class Thawed:
    steps: int = 1


NotADataclass = dict


def attack(name, factory, **facts):
    return AttackSpec(name, f"{__name__}:{factory.__name__}", norms=("Linf",), **facts)


def model(name, factory=Standard, **facts):
    return ModelSpec(name, f"{__name__}:{factory.__name__}", **facts)


class Home:
    @hookimpl
    def harness_attacks(self):
        yield attack("pgd", PGD, version=3)
        yield attack("once", MLP, deterministic=True)
        yield attack("transfer", Transfer)
        yield AttackSpec("fog", f"{__name__}:MLP", norms=("corruption",), needs="labels")
        yield attack("blind", MLP, needs="labels")
        yield attack("learn", MLP, prepares=True, seed_points=150)
        yield attack("ring", Ring)
        yield attack("gnir", Gnir)
        for factory in (Clash, BadDefault, BadType, BadHint, Raises, Mutable, Thawed):
            yield attack(factory.__name__.lower(), factory)
        yield AttackSpec("gone", "not_there.at_all:X", norms=("L2",))
        yield AttackSpec("lost", f"{__name__}:Lost", norms=("L2",))
        yield AttackSpec("plain", f"{__name__}:NotADataclass", norms=("L2",))

    @hookimpl
    def harness_models(self):
        yield model("standard")
        yield model("mlp", short_for="standard:arch=mlp")
        yield model("small", short_for="mlp:epochs=2")
        yield model("loop", short_for="pool")
        yield model("pool", short_for="loop")
        yield model("at", AT)
        yield model("closed", offers="labels")
        yield model("checkpoint", Checkpoint)
        yield model("grown", Grown)


class Rival:
    """Another distribution that has a pgd and a standard of its own."""

    @hookimpl
    def harness_attacks(self):
        yield attack("pgd", Linear)

    @hookimpl
    def harness_models(self):
        yield model("standard", Linear)


HOME = catalogue(("home", "1", Home()))
BOTH = catalogue(("home", "1", Home()), ("rival", "1", Rival()))


def resolved(raw, found=HOME, where="--attack"):
    selection = parse_selection(raw, where)
    name = selection.name
    if name.rpartition("/")[2] in {a.spec.name for a in found.attacks.values()}:
        return resolve(selection, found.attack(name), AttackOptions, found, where)
    return resolve(selection, found.model(name), ModelOptions, found, where)


def identity(raw, found=HOME):
    return resolved(raw, found).identity


# --- one field -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("steps=7", "steps", 7),
        ({"steps": 7}, "steps", 7),
        ({"steps": 7.0}, "steps", 7),
        ("reach=2", "reach", 2.0),
        ("reach=none", "reach", None),
        ("eps=8/255", "eps", 8 / 255),
        ({"eps": "8/255"}, "eps", 8 / 255),
        ("eps=1e-3", "eps", 0.001),
        ("loss=none", "loss", "none"),
        ("how=none", "how", "none"),
        ("early=true", "early", True),
        ({"early": True}, "early", True),
        ("grid=1/4+2e+0+3", "grid", (0.25, 2.0, 3.0)),
        ("grid=5", "grid", (5.0,)),
        ({"grid": [1, 0.5]}, "grid", (1.0, 0.5)),
        ({"grid": 5}, "grid", (5.0,)),
        ("order=1", "order", 1),
        ({"order": 1}, "order", 1),
        ("colour=red", "colour", Colour.RED),
        ("colour=7", "colour", Colour.SEVEN),
        ({"colour": 7}, "colour", Colour.SEVEN),
        ("name=abc", "name", "abc"),
        ("keep=1+2-3", "keep", ("1", "2-3")),
        ({"keep": [1, "2-3"]}, "keep", ("1", "2-3")),
    ],
)
def test_text_and_toml_come_in_the_fields_type(typed, name, value):
    raw = f"pgd:{typed}" if isinstance(typed, str) else {"use": "pgd"} | typed
    got = getattr(resolved(raw).component, name)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("typed", "expected", "got"),
    [
        ("steps=many", "expected int, ≥ 1", "'many'"),
        ("steps=0", "expected int, ≥ 1", "'0'"),
        ("steps=", "expected int, ≥ 1", "''"),
        ({"steps": True}, "expected int, ≥ 1", "True"),
        ({"steps": 1.5}, "expected int, ≥ 1", "1.5"),
        ({"steps": [1, 2]}, "expected int, ≥ 1", "(1, 2)"),
        ("steps=(pgd:steps=1)", "expected int, ≥ 1", "'pgd:steps=1'"),
        ("reach=10", "expected float | none, > 0, ≤ 9", "'10'"),
        ("loss=cw", "expected ce | margin | none", "'cw'"),
        ("eps=nan", "expected float", "'nan'"),
        ("eps=1/0", "expected float", "'1/0'"),
        ({"grid": []}, "expected float+…, length ≥ 1", "()"),
        ("order=3", "expected 1 | 2", "'3'"),
        ("colour=blue", "expected red | 7", "'blue'"),
        ("name=A", "expected str, of the form ^[a-z]*$", "'A'"),
        ({"name": 3}, "expected str", "3"),
        ("restarts=0", "expected int, ≥ 1", "'0'"),
        ("target=worst", "expected none | random | least | next", "'worst'"),
    ],
)
def test_a_wrong_value_is_said_with_option_plugin_expected_and_got(typed, expected, got):
    raw = f"pgd:{typed}" if isinstance(typed, str) else {"use": "pgd"} | typed
    option = typed.partition("=")[0] if isinstance(typed, str) else next(iter(typed))
    with pytest.raises(UsageError) as error:
        resolved(raw)
    message = str(error.value)
    assert message.startswith(f"--attack: pgd: option {option!r}: {expected}")
    assert f"got {got}" in message
    assert "\n" not in message


def test_a_constraint_without_words_of_its_own_is_still_a_usage_error():
    with pytest.raises(UsageError, match=r"option 'even': expected int; got '3' \(Predicate"):
        resolved("pgd:even=3")


def test_an_unknown_option_is_told_what_was_meant():
    with pytest.raises(UsageError) as error:
        resolved("pgd:step=4")
    assert str(error.value) == "--attack: pgd has no option 'step', did you mean 'steps'?"
    with pytest.raises(UsageError, match="did you mean 'restarts'"):
        resolved("pgd:restart=4")
    with pytest.raises(UsageError, match=r"its options: steps, reach, .*, restarts, target"):
        resolved("pgd:zzz=4")
    with pytest.raises(UsageError, match=r"mlp \(short for standard:arch=mlp,width=3\) has no"):
        resolved("mlp:width=3")
    with pytest.raises(UsageError, match="option 'arch': mlp has no option 'widht', did you mean"):
        resolved("standard:arch=(mlp:widht=3)")


def test_fields_that_do_not_fit_together_are_said_in_the_plugins_words():
    with pytest.raises(UsageError, match=r"^--attack: pgd: reach 5\.0 is more than 2 steps$"):
        resolved("pgd:reach=5,steps=2")


# --- the harness's own options ---------------------------------------------------------------


def test_the_harness_options_stand_beside_the_plugins():
    got = resolved("pgd:restarts=10,steps=3,target=least")
    assert got.component == PGD(steps=3)
    assert got.given == AttackOptions(restarts=10, target="least")
    assert resolved("standard:noise=0.5").given == ModelOptions(noise=0.5)


def test_restarts_of_a_deterministic_attack_are_refused():
    assert resolved("once:restarts=1").given.restarts == 1
    with pytest.raises(UsageError, match="once: restarts=2 of a deterministic attack"):
        resolved("once:restarts=2")


def test_seed_points_are_for_attacks_that_prepare():
    assert resolved("learn").given.seed_points == 150
    assert identity("learn") == identity("learn:seed_points=150")
    assert identity("learn") != identity("learn:seed_points=1")
    with pytest.raises(UsageError, match="pgd: seed_points is for attacks that prepare"):
        resolved("pgd:seed_points=3")
    with pytest.raises(UsageError, match=r"'seed_points': expected int \| none, ≥ 1; got '0'"):
        resolved("learn:seed_points=0")


def test_without_harness_options_there_are_none():
    found = resolve(parse_selection("pgd", ""), HOME.attack("pgd"), None, HOME, "here")
    assert found.given is None
    with pytest.raises(UsageError, match="no option 'restarts'"):
        resolve(parse_selection("pgd:restarts=2", ""), HOME.attack("pgd"), None, HOME, "here")


# --- references, choices, files --------------------------------------------------------------


def test_references_nest_and_carry_the_harness_options():
    got = resolved("transfer:source=(standard:epochs=3,noise=0.1),attack=(pgd:steps=4,restarts=2)")
    source, inner = got.component.source, got.component.attack
    assert isinstance(source, ResolvedRef)
    assert (source.kind, source.resolved.component.epochs) == ("model", 3)
    assert source.resolved.given == ModelOptions(noise=0.1)
    assert (inner.kind, inner.resolved.given.restarts) == ("attack", 2)
    assert inner.resolved.component.steps == 4
    assert got.component.student is None
    assert set(map(id, got.refs)) == {id(source), id(inner)}
    assert got.identity["options"]["attack"] == identity("pgd:steps=4,restarts=2")
    assert got.identity["options"]["student"] is None


def test_a_reference_may_be_a_recipe_or_none():
    got = resolved("transfer:attack=pgd,student=small")
    assert got.component.student.kind == "recipe"
    assert got.component.student.resolved.component == Standard(MLP(200), epochs=2)
    assert resolved("transfer:attack=pgd,student=none").component.student is None


def test_a_reference_is_required_where_it_has_no_default():
    with pytest.raises(UsageError, match="transfer: option 'attack' is missing; expected attack"):
        resolved("transfer")


def test_what_is_wrong_in_a_reference_is_said_where_it_stands():
    with pytest.raises(UnknownName, match="option 'attack': no attack is called 'pdg', did you"):
        resolved("transfer:attack=pdg")
    with pytest.raises(UsageError, match="--attack: pgd: option 'steps': expected int"):
        resolved("transfer:attack=(pgd:steps=0)")
    with pytest.raises(UsageError, match="--attack: transfer: option 'attack': 3: expected a text"):
        resolved({"use": "transfer", "attack": 3})


def test_a_default_reference_is_the_distributions_own():
    """Installing another package with a pgd must not change what `at` trains with."""
    assert identity("at", BOTH) == identity("at", HOME)
    assert identity("mlp", BOTH) == identity("mlp", HOME)
    with pytest.raises(AmbiguousName, match=r"option 'inner': attack 'pgd' is .* home/pgd or r"):
        resolved("at:inner=pgd", BOTH)
    assert resolved("at:inner=rival/pgd", BOTH).component.inner.resolved.entry.dist == "rival"


def test_what_it_selects_is_looked_up_alike_where_names_are_shared():
    """A worker looks up what the driver found, also where another plugin has the short name."""
    got = resolve(parse_selection("home/mlp", ""), BOTH.model("home/mlp"), ModelOptions, BOTH, "")
    assert str(got.selection) == "home/standard:arch=mlp"
    assert got.label == "mlp"
    again = resolve(got.selection, BOTH.model(got.selection.name), ModelOptions, BOTH, "")
    assert again.identity == got.identity
    inner = resolved("transfer:attack=home/pgd", BOTH).refs[0].resolved
    assert (inner.selection.name, inner.label) == ("home/pgd", "home/pgd")


def test_a_circle_of_references_is_a_usage_error():
    with pytest.raises(UsageError, match=r"circle: home/ring → home/gnir:steps=1 → home/ring$"):
        resolved("ring")
    with pytest.raises(UsageError, match="home/loop is short for itself"):
        resolved("loop")
    deep = resolved("transfer:attack=(transfer:attack=(transfer:attack=pgd))")
    assert deep.component.attack.resolved.component.attack.resolved.label == "transfer:attack=pgd"


def test_one_of_several():
    assert resolved("standard").component.arch == MLP(width=100)
    assert resolved("standard:arch=mlp").component.arch == MLP(width=200)
    assert resolved("standard:arch=(mlp:width=7)").component.arch == MLP(width=7)
    assert resolved({"use": "standard", "arch": {"use": "mlp", "width": 7}}).component.arch == MLP(
        7
    )
    assert resolved("standard:arch=linear").component.arch == Linear()
    assert identity("standard")["options"]["arch"] == {"name": "mlp", "options": {"width": 100}}
    with pytest.raises(UsageError, match="expected one of mlp, linear; got 'linaer', did you mean"):
        resolved("standard:arch=linaer")
    with pytest.raises(UsageError, match="option 'width': expected int, ≥ 1; got '0'"):
        resolved("standard:arch=(mlp:width=0)")
    with pytest.raises(UsageError, match="option 'arch': 3 is none of mlp, linear"):
        resolved({"use": "standard", "arch": 3})


def test_a_file_is_its_content(tmp_path):
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    one.write_bytes(b"weights")
    same.write_bytes(b"weights")
    other.write_bytes(b"other")
    got = resolved(f"checkpoint:path={one}")
    assert got.component.path == one
    assert got.identity["options"]["path"] == {"sha256": hashlib.sha256(b"weights").hexdigest()}
    assert got.identity == identity(f"checkpoint:path={same}")
    assert got.identity != identity(f"checkpoint:path={other}")


@pytest.mark.parametrize("path", ["not/there", ".", "~nobody-has-this-name/x", "a\0b"])
def test_a_file_that_cannot_be_read_is_a_usage_error(path):
    with pytest.raises(UsageError, match="checkpoint: option 'path': "):
        resolved(f"checkpoint:path={path}")
    with pytest.raises(UsageError, match="option 'path' is missing; expected file"):
        resolved("checkpoint")


# --- identity and label ----------------------------------------------------------------------


def test_short_names_have_the_identity_of_what_they_are_short_for():
    short, full = resolved("mlp:epochs=3"), resolved("standard:arch=mlp,epochs=3")
    assert short.identity == full.identity
    assert (short.entry.full, str(short.selection)) == (
        "home/standard",
        "home/standard:arch=mlp,epochs=3",
    )
    assert (short.label, full.label) == ("mlp:epochs=3", "standard:arch=mlp,epochs=3")
    assert identity("mlp:arch=linear") == identity("standard:arch=linear")
    assert identity("small") == identity("standard:epochs=2,arch=(mlp:width=200)")
    assert identity("small:epochs=5") == identity("mlp:epochs=5")


SAME = [
    ("pgd:steps=3,eps=1", "pgd:eps=1,steps=3"),
    ("pgd", "pgd:steps=40,reach=none,loss=ce,eps=1,early=false,grid=0.5+1,order=2,colour=red"),
    ("pgd", "pgd:restarts=1,target=none,query_budget=none,gradient=exact"),
    ("pgd:eps=1", {"use": "pgd", "eps": 1.0}),
    ("home/pgd", "pgd"),
    ("standard", "standard:arch=(mlp:width=100),epochs=10,noise=0"),
    ("at", "at:inner=(pgd:steps=7),eps=0.3"),
    ("at", "at:inner=(pgd:loss=ce,steps=7)"),
    ("transfer:attack=pgd", "transfer:source=mlp,attack=(pgd:steps=40)"),
    ("transfer:attack=pgd", "transfer:attack=pgd,source=(standard:arch=mlp)"),
    ("mutable", "mutable:sizes=3+4"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_what_means_the_same_has_one_identity(one, other):
    assert json.dumps(identity(one), sort_keys=True) == json.dumps(identity(other), sort_keys=True)


@pytest.mark.parametrize(
    "other",
    ["pgd:steps=41", "pgd:restarts=2", "pgd:reach=3", "pgd:grid=0.5", "pgd:early=true", "once"],
)
def test_what_means_something_else_has_another(other):
    assert identity("pgd") != identity(other)


def test_what_was_added_is_in_an_identity_where_it_is_not_its_default():
    assert identity("grown")["options"] == {"steps": 1}
    assert identity("grown:size=1/2,shape=(mlp:width=200)") == identity("grown")
    assert identity("grown:size=0.25")["options"] == {"steps": 1, "size": 0.25}
    shape = {"name": "mlp", "options": {"width": 7}}
    assert identity("grown:shape=(mlp:width=7)")["options"] == {"steps": 1, "shape": shape}
    assert resolved("grown").component == Grown()
    assert resolved("grown:size=2").component.size == 2


def test_an_identity_in_full():
    assert identity("at:eps=8/255") == {
        "name": "home/at",
        "version": 1,
        "options": {"inner": identity("pgd:steps=7"), "eps": 8 / 255},
        "harness": {"noise": 0.0},
    }
    assert identity("pgd")["version"] == 3
    assert identity("pgd")["options"]["colour"] == "red"


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "steps": st.integers(10, 99),
            "reach": st.floats(0.01, 9),
            "early": st.booleans(),
            "grid": st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1),
            "restarts": st.integers(1, 9),
            "query_budget": st.integers(1, 9),
        },
    )
)
def test_a_label_means_what_the_table_does(options):
    """What TOML gave and what its label says are the same cell."""
    got = resolved({"use": "pgd"} | options)
    assert identity(got.label) == got.identity
    assert json.loads(json.dumps(got.identity)) == got.identity


# --- plugins that break the contract ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("clash", "home/clash: field 'restarts' is an option of the harness's"),
        ("baddefault", "option 'steps': its default is wrong: expected int, ≥ 1; got 0"),
        ("badtype", "field 'model' has a type that text cannot give"),
        ("badhint", r"BadHint: its types cannot be read: name 'NotImported'"),
        ("raises", r"Raises\(…\) raised TypeError\('oh'\)"),
        ("plain", "NotADataclass is not a dataclass"),
        ("thawed", "must be a frozen dataclass: state would leak from one eps to the next"),
    ],
)
def test_a_plugin_that_breaks_the_contract_is_named(name, said):
    with pytest.raises(BrokenPlugin, match=said):
        resolved(name)


@pytest.mark.parametrize(
    ("name", "said"), [("gone", "No module named 'not_there'"), ("lost", "no attribute 'Lost'")]
)
def test_a_factory_that_does_not_load_is_a_broken_plugin(name, said):
    with pytest.raises(BrokenPlugin, match=f"home/{name}: cannot load .*{said}"):
        load_factory(HOME.attack(name))
    with pytest.raises(BrokenPlugin):
        resolved(f"transfer:attack={name}")


# --- what fits what ----------------------------------------------------------------------


def test_restarts_of_a_corruption_are_refused():
    check_options(resolved("fog"), "--attack")
    with pytest.raises(UsageError, match=r"^--attack: fog is a corruption.* `draws`"):
        check_options(resolved("fog:restarts=2"), "--attack")


def test_what_an_attack_is_made_on_must_offer_what_the_attack_inside_needs():
    victim = HOME.model("standard").spec

    def why(raw):
        got = resolved(raw)
        return incompatible(victim, got.entry.spec, got.given, "Linf", got.refs)

    assert why("transfer:attack=pgd") == ""
    assert why("transfer:attack=blind,source=closed") == ""
    assert why("transfer:attack=pgd,source=closed") == (
        "pgd needs gradients, and closed, which transfer makes its images on, offers labels"
    )
    assert "blind" not in why("transfer:attack=(transfer:attack=blind),source=closed")


# --- harness show ----------------------------------------------------------------------------


def shown(entry, harness_options=None):
    return {o.name: (o.type, o.default, o.constraint) for o in describe(entry, harness_options)}


def test_options_are_described_as_one_types_them():
    options = shown(HOME.attack("pgd"), AttackOptions)
    assert options["steps"] == ("int", "40", "≥ 1")
    assert options["reach"] == ("float | none", "none", "> 0, ≤ 9")
    assert options["loss"] == ("ce | margin | none", "ce", "")
    assert options["early"] == ("bool", "false", "")
    assert options["grid"] == ("float+…", "0.5+1", "length ≥ 1")
    assert options["colour"] == ("red | 7", "red", "")
    assert options["name"] == ("str", "", "of the form ^[a-z]*$")
    assert options["query_budget"] == ("int | none", "none", "≥ 1")
    assert list(options)[-6:] == list(AttackOptions.__dataclass_fields__)


def test_references_and_choices_are_described():
    assert shown(HOME.attack("transfer")) == {
        "attack": ("attack", "required", ""),
        "source": ("model", "mlp", ""),
        "student": ("model", "none", ""),
    }
    assert shown(HOME.model("standard")) == {
        "arch": ("mlp | linear", "mlp:width=100", ""),
        "arch=(mlp:width)": ("int", "200", "≥ 1"),
        "epochs": ("int", "10", ""),
    }
    assert shown(HOME.model("mlp"))["arch"] == ("mlp | linear", "mlp", "")
    assert shown(HOME.model("at"))["inner"] == ("attack", "pgd:steps=7", "")
    assert shown(HOME.model("checkpoint")) == {"path": ("file", "required", "")}


def test_docstrings_say_what_options_mean():
    docs = {o.name: o.doc for o in describe(HOME.attack("pgd"), AttackOptions)}
    assert docs["steps"] == "how many, and this doc goes on"
    assert docs["loss"] == docs["grid"] == "one of three, and numbers"
    assert docs["restarts"] == "independent runs; each sample keeps the best"
    assert docs["eps"] == ""
    assert all(o.doc for kind in (AttackOptions, ModelOptions) for o in describe_own(kind))


def describe_own(kind):
    return [o for o in describe(HOME.attack("once"), kind) if o.name != "width"]
