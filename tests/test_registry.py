"""Discovery from real dist-info folders on sys.path, and look-up by name."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from harness import __version__
from harness.errors import BrokenPlugin, UnknownName, UsageError
from harness.installed import lacking
from harness.plugin import AttackSpec, DatasetSpec, ModelSpec, hookimpl
from harness.registry import catalogue, discover

THIRD_PARTY = Path(__file__).parent / "thirdparty"

ATTACK = """
from harness.plugin import AttackSpec, ModelSpec, hookimpl

@hookimpl
def harness_attacks():
    yield AttackSpec("{name}", "nowhere:Nothing", norms=("Linf",))
"""


class Site:
    """A folder on sys.path, and distributions written into it as an installer would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modules: list[str] = []

    def module(self, name: str, source: str) -> None:
        self.path.mkdir(exist_ok=True)
        (self.path / f"{name}.py").write_text(source)
        self.modules.append(name)

    def dist(self, name, points, *, version="1.0", requires=()):
        info = self.path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        lines = [f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {r}" for r in requires]
        (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")
        text = "".join(f"{key} = {value}\n" for key, value in points.items())
        (info / "entry_points.txt").write_text(f"[robustness_harness]\n{text}")
        return info

    def plugin(self, name, source, **metadata):
        """A distribution with one module and one entry point, called like the module."""
        module = name.replace("-", "_")
        self.module(module, source)
        return self.dist(name, {module: module}, **metadata)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The only plugins are those of this site: other distributions are not seen."""
    site = Site(tmp_path / "site")
    outside = [p for p in sys.path if not any(Path(p).glob("*-info"))]
    monkeypatch.setattr(sys, "path", [str(site.path), *outside])
    importlib.invalidate_caches()
    yield site
    for module in site.modules:
        sys.modules.pop(module, None)


def only(found, dist):
    (status,) = (p for p in found.plugins if p.dist == dist)
    return status


def test_a_good_plugin_is_found_with_what_it_brings(site):
    site.plugin("acme-attacks", ATTACK.format(name="nudge"), requires=["robustness-harness>=0.1"])
    found = discover()
    status = only(found, "acme-attacks")
    assert (status.id, status.status, status.reason) == ("acme-attacks:acme_attacks", "ok", "")
    assert (status.version, status.module) == ("1.0", "acme_attacks")
    assert status.names == {"models": (), "attacks": ("nudge",), "datasets": ()}
    assert status.import_ms > 0
    entry = found.attack("nudge")
    assert found.attack("acme-attacks/nudge") is entry
    assert (entry.full, entry.version) == ("acme-attacks/nudge", "1.0")


BAD = {
    "missing-import": ("import not_there", "import-error", "No module named 'not_there'"),
    "exits": ("import sys; sys.exit(7)", "import-error", "SystemExit: 7"),
    "syntax": ("def f(:", "import-error", "SyntaxError"),
    "misspelt": (
        ATTACK.format(name="x").replace("harness_attacks", "harness_atacks"),
        "hook-error",
        "unknown hook 'harness_atacks'",
    ),
    "no-mark": (ATTACK.format(name="x").replace("@hookimpl", ""), "hook-error", "it has no hook"),
    "halfway": (
        ATTACK.format(name="half") + "    raise RuntimeError('half\\nway')\n",
        "hook-error",
        "RuntimeError: half way",
    ),
    "second-hook": (
        ATTACK.format(name="first")
        + "@hookimpl\ndef harness_models():\n    yield ModelSpec('Bad Name', 'a:b')\n",
        "hook-error",
        "name 'Bad Name' is not of the form",
    ),
    "extra-argument": (
        ATTACK.format(name="x").replace("harness_attacks()", "harness_attacks(config)"),
        "hook-error",
        "config",
    ),
    "wrong-kind": (
        ATTACK.format(name="x").replace("harness_attacks", "harness_models"),
        "hook-error",
        "expected a ModelSpec",
    ),
    "not-iterable": (
        ATTACK.format(name="x").replace("    yield", "    return"),
        "hook-error",
        "expected AttackSpecs",
    ),
    "nothing": (
        "from harness.plugin import hookimpl\n@hookimpl\ndef harness_attacks(): pass\n",
        "hook-error",
        "gave None",
    ),
    "twice": (
        ATTACK.format(name="x") + "    yield AttackSpec('x', 'a:b', norms=('L2',))\n",
        "hook-error",
        "gave 'x' twice",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_plugin_is_a_row_with_a_reason_and_leaves_nothing(site, name):
    source, status, reason = BAD[name]
    site.plugin(name, source)
    site.plugin("good", ATTACK.format(name="nudge"))
    found = discover()
    row = only(found, name)
    assert row.status == status
    assert reason in row.reason
    assert "\n" not in row.reason
    assert not any(row.names.values())
    assert list(found.attacks) == ["good/nudge"]
    assert not found.models


def test_ctrl_c_is_not_a_broken_plugin(site):
    site.plugin("slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        discover()


@pytest.mark.parametrize(
    ("requirement", "status"),
    [
        ("robustness-harness>=999", "incompatible"),
        ("Robustness_Harness<0.0.1", "incompatible"),
        (f"robustness-harness=={__version__}", "import-error"),
        ("robustness-harness>=999; python_version < '3'", "import-error"),
        ("robustness-harness>=999; extra == 'dev'", "import-error"),
        ("something-else>=999", "import-error"),
        ("not a requirement at all!", "import-error"),
    ],
)
def test_a_version_conflict_is_seen_without_importing(site, requirement, status):
    site.plugin("future", "imported = open('/nonexistent')", requires=["x", requirement])
    row = only(discover(), "future")
    assert row.status == status
    assert row.import_ms == 0
    if status == "incompatible":
        assert "999" in row.reason or "0.0.1" in row.reason
        assert f"robustness-harness {__version__}" in row.reason


def test_what_a_plugin_prints_does_not_reach_stdout(site, capsys):
    site.plugin("loud", "print('hello')\n" + ATTACK.format(name="x") + "    print('again')\n")
    assert only(discover(), "loud").status == "ok"
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "hello\nagain\n"


def test_plugins_come_in_the_order_of_their_names(site):
    for name in ("Zeta", "acme", "beta_x"):
        site.plugin(name, ATTACK.format(name="x"))
    assert [p.dist for p in discover().plugins] == ["acme", "beta-x", "zeta"]


def test_names_that_two_distributions_bring_need_their_prefix(site):
    site.plugin(
        "acme", ATTACK.format(name="nudge") + "    yield AttackSpec('own', 'a:b', norms=('L2',))"
    )
    site.plugin("beta", ATTACK.format(name="nudge"))
    found = discover()
    assert {p.status for p in found.plugins} == {"ok"}
    assert found.attack("acme/nudge").dist == "acme"
    assert found.attack("beta/nudge").dist == "beta"
    with pytest.raises(UsageError, match="write acme/nudge or beta/nudge"):
        found.attack("nudge")
    assert found.short("acme/nudge") == "acme/nudge"
    assert found.short("acme/own") == "own"


def test_one_distribution_brings_a_name_once(site):
    site.module("one", ATTACK.format(name="nudge"))
    site.module("two", ATTACK.format(name="nudge"))
    site.dist("acme", {"a": "one", "b": "two"})
    found = discover()
    assert [(p.id, p.status) for p in found.plugins] == [("acme:a", "ok"), ("acme:b", "hook-error")]
    assert "acme/nudge" in found.plugins[1].reason
    assert found.attack("nudge").full == "acme/nudge"


def test_a_distribution_seen_twice_is_one_plugin(site, tmp_path, monkeypatch):
    site.plugin("acme", ATTACK.format(name="nudge"), version="2.0")
    older = Site(tmp_path / "older")
    older.dist("Acme", {"acme": "acme", "gone": "gone"}, version="1.0")
    monkeypatch.setattr(sys, "path", [*sys.path, str(older.path)])
    (status,) = discover().plugins
    assert (status.id, status.version, status.status) == ("acme:acme", "2.0", "ok")


def test_torn_metadata_is_a_row_too(site):
    site.plugin("good", ATTACK.format(name="nudge"))
    (site.dist("torn", {"torn": "torn"}) / "METADATA").unlink()
    (site.dist("garbled", {}) / "entry_points.txt").write_text("[robustness_harness]\ngarbage\n")
    (site.dist("foreign", {}) / "entry_points.txt").write_text("[others]\ngarbage\n")
    found = discover()
    rows = [p for p in found.plugins if p.status != "ok"]
    assert [(p.id, p.status) for p in rows] == [
        ("garbled:entry_points.txt", "import-error"),
        ("unknown:entry_points.txt", "import-error"),
    ]
    assert "the distribution of torn has no name" in rows[1].reason
    assert list(found.attacks) == ["good/nudge"]


def test_entry_points_that_are_not_text_are_a_row_where_they_are_ours(site):
    site.plugin("good", ATTACK.format(name="nudge"))
    ours = b"[robustness_harness]\nbinary = \xff\n"
    (site.dist("binary", {}) / "entry_points.txt").write_bytes(ours)
    (site.dist("foreign", {}) / "entry_points.txt").write_bytes(b"[others]\nx = \xff\n")
    (site.dist("nameless", {"a": "b"}) / "METADATA").write_bytes(b"Name: \xff\n")
    found = discover()
    assert list(found.attacks) == ["good/nudge"]
    rows = {p.id: p.reason for p in found.plugins if p.status != "ok"}
    assert set(rows) == {"binary:entry_points.txt", "unknown:entry_points.txt"}
    assert all("cannot be read" in reason for reason in rows.values())


def module(**hooks):
    """A plugin module whose hooks yield what is given."""
    made = ModuleType("made")
    for kind, specs in hooks.items():
        setattr(made, f"harness_{kind}", hookimpl(bringing(specs)))
    return made


def bringing(specs):
    return lambda: iter(specs)


def attack(name):
    return AttackSpec(name, "nowhere:Nothing", norms=("Linf",))


def model(name):
    return ModelSpec(name, "nowhere:Nothing")


@pytest.fixture
def small():
    return catalogue(
        ("robustness-harness", "0.1.0", module(attacks=[attack("pgd"), attack("fgsm")])),
        ("acme", "3", module(attacks=[attack("nudge")], models=[model("pgd")])),
        ("Acme_Data", "3", module(datasets=[DatasetSpec("digits", "a:b")])),
    )


def test_a_catalogue_of_given_modules(small):
    assert list(small.attacks) == [
        "robustness-harness/pgd",
        "robustness-harness/fgsm",
        "acme/nudge",
    ]
    assert small.dataset("digits").full == "acme-data/digits"
    assert small.model("pgd").full == "acme/pgd"
    assert small.short("acme/pgd") == "pgd"
    assert small.short("robustness-harness/pgd") == "pgd"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pdg", "no attack is called 'pdg', did you mean 'pgd'?"),
        ("FGSM", "did you mean 'fgsm'?"),
        ("acme/nugde", "did you mean 'acme/nudge'"),
        ("zzz", "(known: fgsm, nudge, pgd)"),
        ("acme/zzz", "no attack is called 'acme/zzz'"),
    ],
)
def test_an_unknown_name_is_told_what_was_meant(small, name, said):
    with pytest.raises(UnknownName) as error:
        small.attack(name)
    assert said in str(error.value)
    assert "failed to load" not in str(error.value)
    assert error.value.exit_code == 2


@pytest.fixture
def half(site):
    site.plugin("good", ATTACK.format(name="nudge"))
    site.module("bad_module", "import not_there")
    site.dist("harness-bad", {"boundary": "bad_module"})
    return discover()


@pytest.mark.parametrize(
    "name", ["boundary", "bad", "harness-bad", "harness-bad/x", "Harness_Bad/x"]
)
def test_what_a_broken_plugin_is_called_by_its_metadata_is_broken(half, name):
    with pytest.raises(BrokenPlugin, match=r"harness-bad:boundary.*not_there") as error:
        half.attack(name)
    assert error.value.exit_code == 4


def test_an_unknown_name_may_be_a_broken_plugins(half):
    with pytest.raises(UnknownName, match=r"'nugde', did you mean 'nudge'.*harness-bad:boundary"):
        half.attack("nugde")
    assert half.attack("nudge").dist == "good"


@pytest.mark.parametrize("name", ["good", "broken"])
def test_the_example_packages_are_what_they_say(site, monkeypatch, name):
    folder = THIRD_PARTY / name
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["robustness_harness"]
    site.dist(project["name"], points, requires=project["dependencies"])
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    found = discover()
    (row,) = found.plugins
    if name == "good":
        assert row.status == "ok"
        assert found.model("bit-depth").full == "harness-example/bit-depth"
        assert found.attack("random-corners").spec.needs == "labels"
    else:
        assert row.status == "import-error"
        assert "a_package_that_is_not_installed" in row.reason
        with pytest.raises(BrokenPlugin):
            found.attack("broken")


@pytest.mark.parametrize("file", ["defense.py", "attack.py"])
def test_each_example_is_under_thirty_lines(file):
    text = (THIRD_PARTY / "good" / "harness_example" / file).read_text()
    assert len(text.splitlines()) < 30


def test_looking_plugins_up_imports_neither_torch_nor_pydantic():
    code = (
        "import sys, harness.options, harness.registry, harness.selection;"
        "harness.registry.discover();"
        "print([m for m in ('torch', 'pydantic', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("spec", "facts", "said"),
    [
        (AttackSpec, {"kind": "minimum"}, "kind 'minimum' is not one of"),
        (AttackSpec, {"norms": ("Linf", "corruption")}, "corruption"),
        (AttackSpec, {"norms": ["Linf"]}, "norms"),
        (AttackSpec, {"norms": "Linf"}, "norms"),
        (AttackSpec, {"one_by_one": "yes"}, "one_by_one 'yes' is not a bool"),
        (AttackSpec, {"one_by_one": True, "prepares": True}, "one_by_one"),
        (AttackSpec, {"one_by_one": True, "pooled": True}, "one_by_one and pooled"),
        (AttackSpec, {"requires": ("scipy",)}, "is not a tuple of pairs"),
        (AttackSpec, {"seed_points": -1, "prepares": True}, "seed_points"),
        (AttackSpec, {"seed_points": 3}, "seed_points"),
        (AttackSpec, {"deterministic": 1}, "deterministic 1 is not a bool"),
        (AttackSpec, {"parts": "threshold"}, "parts 'threshold' is not a tuple"),
        (ModelSpec, {"parts": (1,)}, "parts"),
        (ModelSpec, {"surrogate": "yes"}, "surrogate 'yes' is not a bool"),
        (ModelSpec, {"randomised": None}, "randomised None is not a bool"),
        (ModelSpec, {"short_for": None}, "short_for None is not a str"),
        (ModelSpec, {"version": "2"}, "version '2' is not an int"),
        (ModelSpec, {"version": True}, "version True is not an int"),
        (ModelSpec, {"summary": 3}, "summary 3 is not a str"),
    ],
)
def test_a_spec_whose_facts_are_wrong_is_refused(spec, facts, said):
    plain = {"norms": ("Linf",)} if spec is AttackSpec else {}
    with pytest.raises(ValueError, match=f"^x: .*{said}"):
        spec("x", "a:b", **(plain | facts))


@pytest.mark.parametrize("name", ["family:A:B", "family:", ":A", "Family:A", "family: A"])
def test_a_name_is_one_word_or_a_familys_member(name):
    with pytest.raises(ValueError, match="nor family:Member"):
        AttackSpec(name, "a:b", norms=("Linf",))
    assert AttackSpec("family:A_b", "a:b", norms=("Linf",)).name == "family:A_b"


def test_what_a_spec_requires_is_looked_for_by_name_and_version():
    def lacks(*requires):
        return lacking(AttackSpec("x", "a:b", norms=("Linf",), requires=requires))

    assert lacks() == lacks(("pluggy", "p"), ("pluggy>=1.0", "p")) == ""
    assert lacks(("pluggy", "p"), ("no-such-thing", "acme[x]")) == (
        "x needs no-such-thing, which is not installed: pip install 'acme[x]'"
    )
    assert f"is not installed ({metadata.version('pluggy')} is)" in lacks(("pluggy>99", "p"))
    with pytest.raises(BrokenPlugin, match="no requirement"):
        lacks(("not one!", "p"))
