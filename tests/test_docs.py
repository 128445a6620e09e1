"""The documents, held to the code: what they quote, name, promise and draw."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from hashlib import sha256
from pathlib import Path

import click
import numpy as np
import pytest

import harness
from harness import api, hookspecs
from harness.board import parse_board
from harness.cli import cli
from harness.data import Files, check
from harness.errors import UsageError
from harness.fields import describe_fields
from harness.leaderboard import aggregate
from harness.lookup import ATTACK, CORRUPTED, CURVE, EIGHT_BIT, FIT, ROUNDS, TARGET
from harness.options import AttackOptions, ModelOptions
from harness.outcome import Outcome
from harness.plugin import AttackSpec, DatasetSpec, ModelSpec
from harness.registry import discover
from harness.render.grids import ranking
from harness.session import Changes, locate, open_session, plan_board
from harness.splits import DataOptions

ROOT = Path(__file__).parents[1]
CORE = Path(harness.__file__).parent
READING = ("leaderboard", "records", "manifest", "render")  # and all below them
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED_FILE = re.compile(r"^`([^`\n]+)`:\n\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def page(name):
    return (ROOT / name).read_text(encoding="utf-8")


PAGES = {n: page(n) for n in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")}


def named_in(text):
    """What stands in backquotes or in a code block, word by word."""
    code = [body for _, body in FENCE.findall(text)]
    return set(re.findall(r"[\w.-]+", " ".join(code + re.findall(r"`([^`\n]+)`", text))))


# Links, quotations, commands


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_leads_somewhere(name):
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", PAGES[name]))
    for link in (link for link in links if "://" not in link):
        path, _, anchor = link.partition("#")
        target = ROOT / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, link


def test_the_guides_example_is_the_tested_package():
    quoted = dict(NAMED_FILE.findall(PAGES["CONTRIBUTING.md"]))
    good = ROOT / "tests" / "thirdparty" / "good"
    files = {
        p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8")
        for p in good.rglob("*")
        if p.suffix in (".py", ".toml") and "build" not in p.parts
    }
    assert quoted == files


def commands(text):
    """Every `harness …` of the text, as a list of words."""
    blocks = [body for lang, body in FENCE.findall(text) if lang == "sh"]
    for line in [*"".join(blocks).splitlines(), *re.findall(r"`(harness [^`\n]+)`", text)]:
        for command in line.split("&&"):
            words = command.split()
            if words[:1] == ["harness"] and len(words) > 1:
                yield words[1:]


@pytest.mark.parametrize("name", PAGES)
def test_every_command_that_is_shown_can_be_typed(name):
    """Parsed by the real command line, but not run. A bare name may need an argument."""
    for words in commands(PAGES[name]):
        if words == ["--help"]:
            continue
        assert words[0] in cli.commands, words
        arguments = [w for w in words[1:] if w != "[BOARD]"]
        try:
            if arguments:
                cli.commands[words[0]].make_context(words[0], arguments).close()
        except click.UsageError as error:
            pytest.fail(f"harness {' '.join(words)}: {error.message}")


def test_every_command_and_every_exit_code_is_in_the_readme():
    readme = PAGES["README.md"]
    shown = {words[0] for words in commands(readme)}
    assert shown == set(cli.commands)
    flags = {o for c in cli.commands.values() for p in c.params for o in p.opts if o[:2] == "--"}
    assert not {flag for flag in flags if flag not in readme}
    for code in ("0", "1", "2", "3", "4", "130"):
        assert f"**{code}** " in readme


def test_the_readmes_table_is_of_the_quick_board_as_it_is():
    """Its title and its columns; the figures are of whoever ran it."""
    sample = PAGES["README.md"].partition("<!-- output of: harness run -->")[2].partition("<!--")[0]
    board = locate(None, None).board
    attacks = {c.label for c in board.attacks} - {"gaussian_noise"}  # its table is another
    assert not [name for name in {c.label for c in board.models} | attacks if name not in sample]
    assert f"ε = {board.threats[0].reference.text}: % of all {board.limit} evaluated" in sample
    plan = plan_board(board, discover(), None)
    table = aggregate(plan.manifest, {}, ()).tables[0]
    shown = next(line for line in sample.splitlines() if "Rank" in line)
    assert re.split(r" {2,}", shown.strip()) == list(ranking(table).header)


# The README's defense


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The package and the board of the README, written down as it says; the package installed."""
    root = tmp_path_factory.mktemp("readme")
    for path, text in NAMED_FILE.findall(PAGES["README.md"]):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    (toml,) = (body for lang, body in FENCE.findall(PAGES["README.md"]) if "[[threat]]" in body)
    (root / "leaderboards" / "mine").mkdir(parents=True)
    (root / "leaderboards" / "mine" / "board.toml").write_text(toml, encoding="utf-8")
    built = root / "dist"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)],
        cwd=root / "gradient-penalty", check=True, capture_output=True,
    )  # fmt: skip
    with zipfile.ZipFile(next(built.iterdir())) as wheel:
        wheel.extractall(root / "site")
    return root


def typed(root, *arguments):
    path = os.pathsep.join(filter(None, [str(root / "site"), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        cwd=root, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.fixture
def planned(example, monkeypatch):
    """What `harness run BOARD --model …` would run, where the README's reader stands."""
    monkeypatch.syspath_prepend(str(example / "site"))
    monkeypatch.chdir(example)

    def plan(board, *models):
        return open_session(locate(board, None), Changes(models=models), discover(), None)

    return plan


def test_the_readmes_board_fits_together(planned):
    plan = planned("mine").plan
    kinds = [cell.kind for cell in plan.cells.values()]
    assert (kinds.count("fit"), kinds.count("attack"), plan.incompatible) == (3, 9, ())


def test_on_the_quick_board_only_the_new_defense_is_not_stored_already(planned):
    (line,) = (c for c in commands(PAGES["README.md"]) if "MLP" in c)
    session = planned(None, *line[2::2])
    labels = {cell.label for cell in session.plan.cells.values()}
    assert labels == {"MLP", "CNN", "gradient-penalty"}
    new = {c.label for c in session.plan.cells.values() if c.key not in session.own.cells}
    assert new == {"gradient-penalty"}


def test_the_readmes_defense_is_ranked_beside_another(example):
    models = ("--model", "linear:epochs=1", "--model", "gradient-penalty:steps=40")
    done = typed(example, "run", "mine", *models, "--limit", "40", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if "gradient-penalty" in line]
    assert rows[0][0] == "1"
    assert float(rows[0][2]) > 70


def test_the_data_set_of_the_guide_is_one(tmp_path):
    (source,) = (body for _, body in FENCE.findall(PAGES["CONTRIBUTING.md"]) if "Splits(" in body)
    x, y = np.zeros((4, 1, 16, 16), np.uint8), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "shapes.npz", train_x=x, train_y=y, test_x=x, test_y=y)
    module = {"__name__": "shapes"}
    digest = sha256((tmp_path / "shapes.npz").read_bytes()).hexdigest()
    exec(source.replace("…", digest), module)
    splits = module["Shapes"]().load(Files(tmp_path, "shapes"))
    check(splits, "shapes")
    assert splits.names == ("circle", "square")
    with pytest.raises(UsageError, match=r"shapes\.npz"):
        module["Shapes"]().load(Files(tmp_path / "elsewhere", "shapes"))


# What there is, is documented


def options(*classes):
    return {option.name for cls in classes for option in describe_fields(cls)}


def test_every_hook_option_and_fact_is_documented():
    guide = PAGES["CONTRIBUTING.md"]
    rows = named_in("\n".join(re.findall(r"^\| ([^|]+) \|", guide, re.MULTILINE)))
    facts = {f.name for c in (ModelSpec, AttackSpec, DatasetSpec) for f in dataclasses.fields(c)}
    assert not (facts | options(AttackOptions)) - rows
    hooks = {name for name in vars(hookspecs) if name.startswith("harness_")}
    assert len(hooks) == 3
    assert not (hooks | options(ModelOptions, DataOptions) | set(api.__all__)) - named_in(guide)


def keys_of(toml):
    """The keys that a table may have, as its error message lists them."""
    with pytest.raises(UsageError) as caught:
        parse_board(toml.encode(), "board.toml")
    return set(str(caught.value).partition("(known: ")[2].rstrip(")").split(", "))


def test_every_key_of_a_board_is_documented():
    threat = '[[threat]]\nnorm = "Linf"\neps = [1]\n'
    board = f'name = "b"\ndataset = "d"\nmodels = ["m"]\nattacks = ["a"]\n{threat}'
    keys = keys_of(f"nonsense = 1\n{board}") | keys_of(f"{board}nonsense = 1\n")
    assert {"core", "draws", "all_samples"} <= keys
    assert not keys - named_in(PAGES["README.md"])


def test_messages_that_are_explained_exist():
    """What stands between the … of each is found in a string of the core."""
    strings = [
        node.value
        for path in CORE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    section = PAGES["CONTRIBUTING.md"].partition("## Messages")[2].partition("\n## ")[0]
    messages = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    assert len(messages) > 20
    for message in messages:
        for fragment in message.split("…"):
            assert any(fragment in string for string in strings), (message, fragment)


def test_outcomes_arrays_and_statuses_are_documented():
    words = named_in(PAGES["ARCHITECTURE.md"])
    assert not {o.name for o in Outcome} - words
    assert not {*FIT, *ATTACK, *CORRUPTED, *EIGHT_BIT, *TARGET, *ROUNDS, *CURVE} - words


# The layers


def layers():
    """Modules, without `harness.`, by layer, from the top: as ARCHITECTURE.md draws them."""
    section = PAGES["ARCHITECTURE.md"].partition("## Layers")[2]
    drawn: list[list[str]] = []
    for line in FENCE.search(section)[2].splitlines():
        name, _, modules = line.partition(" ")
        if name:
            drawn.append([])
        drawn[-1] += modules.strip().split(" · ")
    return drawn


def module_of(path):
    parts = path.relative_to(CORE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


MODULES = {module_of(path): path for path in sorted(CORE.rglob("*.py"))}


def imports(module):
    """What a module imports, wherever: modules of harness without `harness.`, others whole."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module == "harness":
                yield from (a.name if a.name in MODULES else "" for a in node.names)
            elif (inner := node.module.removeprefix("harness.")) != node.module:
                subs = [f"{inner}.{a.name}" for a in node.names]
                yield from {s if s in MODULES else inner for s in subs}
            else:
                yield node.module


GRAPH = {module: set(imports(module)) for module in MODULES}
INNER = {module: (found & MODULES.keys()) - {""} for module, found in GRAPH.items() if module}


def test_every_module_is_drawn_once_and_described():
    drawn = [module for layer in layers() for module in layer]
    assert sorted(drawn) == sorted(INNER)
    section = PAGES["ARCHITECTURE.md"].partition("## Modules")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)) == sorted(drawn)


def test_imports_point_down_only():
    height = {module: -i for i, layer in enumerate(layers()) for module in layer}
    upward = {(m, n) for m, found in INNER.items() for n in found if height[n] > height[m]}
    assert not upward


def test_there_is_no_circle_of_imports():
    left = {module: set(found) for module, found in INNER.items()}
    while free := [module for module, found in left.items() if not found & left.keys()]:
        for module in free:
            del left[module]
    assert not left


def test_the_package_itself_imports_specs_and_what_load_needs_when_it_is_called():
    tree = ast.parse((CORE / "__init__.py").read_text(encoding="utf-8"))
    top = {n.module for n in tree.body if isinstance(n, ast.ImportFrom)}
    assert top - {"__future__", "typing"} == {"harness.plugin"}


def test_reading_results_imports_no_torch_and_the_core_no_plugin():
    reading = {m for m in INNER if m.split(".")[0] in READING}
    while below := set().union(*(INNER[m] for m in reading)) - reading:
        reading |= below
    assert "measures" in reading
    assert not {m for m in reading if any(i.split(".")[0] == "torch" for i in GRAPH[m])}
    assert not {m for m in GRAPH if any(i.split(".")[0] == "harness_plugins" for i in GRAPH[m])}


def test_no_file_is_long_or_prints_or_asserts_or_asks_for_attributes():
    for module, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, module
        for node in ast.walk(ast.parse(text)):
            assert not isinstance(node, ast.Assert), (module, node.lineno)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "hasattr"), (module, node.lineno)


def test_plugins_import_the_public_face_alone():
    import harness_plugins

    public = {"harness.plugin", "harness.api", "harness.data", "harness.errors"}
    for path in Path(harness_plugins.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "harness":
                assert node.module in public, (path.name, node.module)


# The rest


def test_the_changelog_has_this_version():
    assert f"## [{harness.__version__}]" in PAGES["CHANGELOG.md"]


def test_tox_environments_are_documented():
    tox = page("tox.ini")
    listed = re.search(r"^env_list = (.+)$", tox, re.MULTILINE)[1].split(", ")
    named = re.findall(r"^\[testenv:(\w+)\]", tox, re.MULTILINE)
    section = PAGES["CONTRIBUTING.md"].partition("| Environment |")[2]
    assert {*listed, *named} <= set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


def test_the_pinned_torch_is_the_one_the_readme_names():
    pinned = re.search(r"^torch==(\S+)$", page("constraints.txt"), re.MULTILINE)[1]
    assert f"torch {pinned}" in PAGES["README.md"]
    assert tomllib.loads(page("pyproject.toml"))["project"]["version"] == harness.__version__
