"""The command line as a user meets it: exit codes, one-line errors, what goes to stdout."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from support import board_text

from harness import cli
from harness.errors import UsageError


def harness(*arguments, cwd=None):
    """The real command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "harness", *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=cwd,
    )  # fmt: skip


@pytest.fixture
def call(monkeypatch, capfd):
    """`harness …` in this process: its exit code, stdout and stderr."""

    def call_(*arguments):
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code or 0
        out, err = capfd.readouterr()
        return code, out, err

    return call_


@pytest.fixture
def board(tmp_path):
    def make(text):
        folder = tmp_path / "board"
        folder.mkdir(exist_ok=True)
        (folder / "board.toml").write_text(text)
        return folder

    return make


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Another distribution on the path, here and in processes of their own."""

    def install(source, dist="acme"):
        site = tmp_path / "site"
        info = site / f"{dist}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{dist}_plugin.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[robustness_harness]\n{dist} = {dist}_plugin\n")
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ['PYTHONPATH']}")

    yield install
    for name in [n for n in sys.modules if n.endswith("_plugin")]:
        del sys.modules[name]


TEXT = board_text(["tiny", "stepped"], ["ascend", "wander"], core=["wander"])


def test_help_and_import_need_no_torch():
    for code in ("import harness, harness.plugin", "import harness.cli"):
        checked = f"{code}; import sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", checked], check=False).returncode == 0
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "harness", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "torch" not in done.stderr
    assert "quick board" in done.stdout


def test_every_command_and_option_has_help():
    for name, command in cli.cli.commands.items():
        result = CliRunner().invoke(cli.cli, [name, "--help"])
        assert result.exit_code == 0
        assert command.help
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (name, parameter.name)


def test_run_writes_the_board_and_running_again_only_prints(board, call):
    folder = board(TEXT)
    code, out, err = call("run", folder, "--jobs", 1)
    assert code == 0, err
    assert "kit: Linf" in out
    files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert {p.name for p in files} >= {"README.md", "leaderboard.csv", "cells.json", "board.toml"}
    code, again, _ = call("run", folder, "--jobs", 1)
    assert (code, again) == (0, out)
    assert files == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert call("report", folder)[1] == out.split("Table:")[0]


def test_report_needs_no_plugin_no_torch_and_no_data(board, call):
    folder = board(TEXT)
    call("run", folder, "--jobs", 1)
    code = (
        "import sys; sys.modules['torch'] = None; sys.path[:] = [p for p in sys.path"
        " if 'kit' not in p]; sys.argv = ['harness', 'report', sys.argv[1], '--format', 'csv'];"
        "from harness.cli import main; main()"
    )
    env = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env=env,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == (folder / "leaderboard.csv").read_text()


def test_load_gives_a_frame_of_what_the_tables_show(board, call):
    import harness as package

    folder = board(TEXT)
    with pytest.raises(UsageError, match="run the board first"):
        package.load(str(folder))
    call("run", folder, "--jobs", 1)
    frame = package.load(str(folder))
    assert set(frame["model"]) == {"tiny", "stepped"}
    assert len(frame) == len((folder / "leaderboard.csv").read_text().splitlines()) - 1


def test_flags_run_what_is_not_the_boards_and_keep_it_out_of_its_table(board, call):
    folder = board(TEXT)
    call("run", folder, "--jobs", 1)
    before = (folder / "README.md").read_bytes()
    code, out, _ = call("run", folder, "--jobs", 1, "--attack", "wander:restarts=3", "--eps", "0.3")
    assert code == 0
    assert "wander:restarts=3" in out
    assert "2 of 4 cells are not the board's own" in out
    assert (folder / "README.md").read_bytes() == before


def test_plan_shows_every_state_and_why(board, call):
    folder = board(board_text(["tiny", "stepped"], ["ascend", "misbehaves:how=raises"]))
    call("run", folder, "--jobs", 1, "--model", "tiny")
    code, out, _ = call("plan", folder, "--json")
    assert code == 0
    states = {(c["model"], c["attack"]): c for c in map(json.loads, out.splitlines())}
    assert states["tiny", ""]["state"] == "cached"
    assert states["tiny", "misbehaves:how=raises"]["state"] == "failed before"
    assert "attack is broken" in states["tiny", "misbehaves:how=raises"]["reason"]
    assert states["stepped", ""]["state"] == "new"
    assert states["stepped", "ascend"]["state"] == "incompatible"
    assert "offers labels" in states["stepped", "ascend"]["reason"]
    assert "2 cached" in call("plan", folder)[1]


def test_json_keeps_stdout_for_records(board, call):
    folder = board(TEXT)
    code, out, _ = call("run", folder, "--jobs", 1, "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert {r["kind"] for r in records} == {"fit", "attack"}
    assert all(r["status"] == "ok" and "identity" in r for r in records)


def test_what_a_training_notes_is_a_line_on_stderr(board, call):
    text = board_text(["sklearn-mlp:epochs=2,votes=3"], ["wander"])
    code, out, err = call("run", board(text), "--jobs", 1, "--json")
    note = "3 of 3 networks with epochs=2 had not converged, says scikit-learn"
    assert code == 0
    lines = [line for line in err.splitlines() if line]  # older rich ends with an empty one
    assert lines == [f"note: fit sklearn-mlp:epochs=2,votes=3 seed 0: {note}"]
    facts = {r["kind"]: r["facts"] for r in map(json.loads, out.splitlines())}
    assert facts["fit"]["notes"] == [note]


def test_a_failed_cell_is_exit_code_1_then_and_later(board, call):
    folder = board(board_text(["tiny"], ["misbehaves:how=raises", "wander"]))
    code, out, err = call("run", folder, "--jobs", 1)
    assert code == 1
    assert "failed: misbehaves:how=raises on tiny Linf seed 0: ValueError: attack is broken" in err
    assert "attack is broken" in out
    assert call("run", folder, "--jobs", 1)[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tinny"], "did you mean 'tiny'"),
        (["--attack", "asend"], "'ascend'"),
        (["--dataset", "blob"], "'blobs'"),
        (["--attack", "ascend:stpes=3"], "stpes"),
        (["--attack", "wander:restart=3"], "did you mean 'restarts'"),
        (["--attack", "wander:restarts=0"], "restarts"),
        (["--attack", "wander:restarts=many"], "many"),
        (["--attack", "shortest"], "supports L2, none of which"),
        (["--norm", "L3"], "L3"),
        (["--eps", "eight"], "eight"),
        (["--eps", "-1"], "-1"),
        (["--limit", "0"], "--limit"),
        (["--limit", "x"], "not a valid integer"),
        (["--device", "tpu"], "--device"),
        (["--device", "cuda:9"], "CUDA devices"),
        (["--model", "tiny("], "tiny("),
        (["--dataset", "blobs:kind=outside"], "[0, 1]"),
        (["--dataset", "blobs:kind=labels"], "label"),
        (["--dataset", "blobs:classes=0-7"], "7"),
        (["--timeout", "3", "--executor", "inline"], "--executor process"),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_2(board, call, arguments, message):
    code, out, err = call("run", board(TEXT), "--jobs", 1, *arguments)
    assert code == 2, err
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert len(err.strip().splitlines()) <= 4  # click adds its usage lines


def test_an_unknown_board_names_what_there_is(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("run", "nowhere")
    assert code == 2
    assert "built in (digits)" in err


def test_another_board_in_the_folder_is_not_overwritten(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "leaderboards" / "digits"
    folder.mkdir(parents=True)
    (folder / "board.toml").write_text(TEXT)
    code, _, err = call("run")
    assert code == 2
    assert "is another board (kit version 1, not digits version" in err
    assert (folder / "board.toml").read_text() == TEXT


def test_an_edited_board_is_told_from_the_one_of_its_name_in_the_folder(board, call, tmp_path):
    folder = board(TEXT)
    edited = tmp_path / "edited.toml"
    edited.write_text(TEXT + "\n# one line more\n")
    code, _, err = call("run", edited, "--out", folder)
    assert code == 2
    assert "is another board (kit version 1 too, but not the same text)" in err
    assert "copy yours there" in err


def test_torn_and_foreign_records_are_named_excluded_and_left(board, call):
    folder = board(TEXT)
    call("run", folder, "--jobs", 1)
    torn = sorted((folder / "records").glob("*.json"))[0]
    torn.write_bytes(torn.read_bytes()[:100])
    (folder / "records" / "notes.txt").write_text("hello")
    code, out, _ = call("report", folder)
    assert code == 0
    assert torn.name in out
    assert "notes.txt" in out
    assert len(torn.read_bytes()) == 100


def test_a_torn_record_is_made_again_and_then_no_longer_left_out(board, call):
    folder = board(board_text(["tiny"], ["ascend"], core=["ascend"]))
    whole = call("run", folder, "--jobs", 1)[1]
    pages = [folder / "README.md", folder / "leaderboard.csv"]
    before = [p.read_bytes() for p in pages]
    torn = sorted((folder / "records").glob("*.json"))
    for path in torn:
        path.write_bytes(path.read_bytes()[:100])
    code, out, err = call("plan", folder, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["state"] for row in rows] == ["new", "new"]
    assert all(row["reason"].startswith("its record cannot be read: torn, or") for row in rows)
    (folder / "records" / torn[0].stem).write_text("named like a record, and none")
    code, out, err = call("run", folder, "--jobs", 1)
    assert code == 0
    assert all(f"{path.name} left out: torn" in err for path in torn)
    for text in (out, pages[0].read_text()):
        assert not [path for path in torn if path.name in text]
        assert torn[0].stem in text
    (folder / "records" / torn[0].stem).unlink()
    assert call("run", folder, "--jobs", 1)[1] == whole
    assert [p.read_bytes() for p in pages] == before


def test_a_record_that_is_not_of_its_cell_is_exit_code_1(board, call):
    import numpy as np

    from harness.records import Store

    folder = board(board_text(["tiny"], ["ascend"]))
    assert call("run", folder, "--jobs", 1)[0] == 0
    store = Store(folder / "records")
    record = next(r for r in store.scan()[0].values() if r.kind == "attack")
    lie = {**record.arrays, "outcome": np.full_like(record.arrays["outcome"], 99)}
    store.write(type(record)(**{**vars(record), "arrays": lie}))
    code, out, _ = call("run", folder, "--jobs", 1)
    assert code == 1
    assert "outcome holds a number that is no outcome" in out
    assert call("report", folder)[0] == 0
    assert call("run", folder, "--jobs", 1, "--force")[0] == 0


def test_verify_agrees_and_finds_what_was_tampered_with(board, call):
    folder = board(board_text(["tiny"], ["ascend", "wander"]))
    code, _, err = call("verify", folder)
    assert code == 2
    assert "--keep-examples" in err
    call("run", folder, "--jobs", 1, "--keep-examples")
    code, out, _ = call("verify", folder)
    assert code == 0, out
    assert "3 of 3 records agree" in out

    import numpy as np

    from harness.records import Store

    store = Store(folder / "records")
    records, _ = store.scan()
    found = ((k, r) for k, r in records.items() if r.kind == "attack")
    key, record = next((k, r) for k, r in found if (r.arrays["outcome"] == 2).any())
    lie = {**record.arrays, "outcome": np.full_like(record.arrays["outcome"], 1)}
    store.write(type(record)(**{**vars(record), "arrays": lie}), store.examples(key))
    code, out, _ = call("verify", folder)
    assert code == 1
    assert "DIFFERS" in out


def test_verify_counts_what_was_not_kept_apart(board, call, monkeypatch):
    found = []
    monkeypatch.setattr("harness.recheck.verify_records", lambda *_: iter(found), raising=False)
    folder = board(TEXT)
    fit, attack = (SimpleNamespace(kind=kind) for kind in ("fit", "attack"))
    found[:] = [(fit, ""), (attack, ""), (attack, None), (attack, None)]
    code, out, _ = call("verify", folder)
    assert code == 0
    assert out.splitlines()[-1] == "2 of 2 records agree with their models; 2 kept no images"
    found.append((attack, "column 0"))
    assert call("verify", folder)[0] == 1
    found[:] = [(fit, ""), (attack, None)]
    code, _, err = call("verify", folder)
    assert code == 2
    assert "--keep-examples" in err


def test_list_and_show(call):
    code, out, _ = call("list", "attacks")
    assert code == 0
    assert "ascend" in out
    names = [json.loads(line)["name"] for line in call("list", "models", "--json")[1].splitlines()]
    assert {"tiny", "standard", "at"} <= set(names)
    code, out, _ = call("show", "scd01")
    assert code == 0
    assert re.search(r"parts: +sign_network linear", out)
    code, out, _ = call("show", "pgd")
    assert code == 0
    for expected in ("steps", "restarts", "1706.06083", "gradients"):
        assert expected in out
    code, _, err = call("show", "pdg")
    assert code == 2
    assert "pgd" in err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pgd:steps=3", "'pgd:steps=3', did you mean 'pgd', without options?"),
        ("pgd:steps", "did you mean 'pgd' or 'pgd:steps=…'?"),
        ("standart", "did you mean 'standard'?"),
        ("digist", "did you mean 'digits'?"),
        ("nosuch", "'nosuch' (known: "),
    ],
)
def test_show_looks_through_all_kinds_for_a_name_without_options(call, name, said):
    code, out, err = call("show", name)
    assert (code, out) == (2, "")
    assert said in err
    assert "no model, attack or data set is called" in err
    assert len(err.splitlines()) == 1


def test_every_built_in_is_shown_with_a_summary(call):
    for kind in ("models", "attacks", "datasets"):
        for line in call("list", kind, "--json")[1].splitlines():
            row = json.loads(line)
            if row["from"].startswith("robustness-harness"):
                assert row["summary"]
                assert call("show", row["name"])[0] == 0


def test_internal_errors_are_exit_code_3(call, monkeypatch):
    def broken(*_):
        raise RuntimeError("oops")

    monkeypatch.setattr("harness.registry.discover", broken)
    code, _, err = call("list", "models")
    assert code == 3
    assert "internal error: RuntimeError: oops" in err


def test_ctrl_c_is_exit_code_130_and_loses_nothing(board, call, monkeypatch):
    import harness.run as running

    folder = board(TEXT)
    real, calls = running.run_cell, []

    def interrupted(task):
        calls.append(task)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(task)

    monkeypatch.setattr(running, "run_cell", interrupted)
    code, _, err = call("run", folder, "--executor", "inline")
    assert code == 130
    assert "run again to go on" in err
    assert len(list((folder / "records").glob("*.json"))) == 2
    monkeypatch.setattr(running, "run_cell", real)
    assert call("run", folder, "--jobs", 1)[0] == 0


def test_the_quick_board_is_small():
    """At most six models and six attacks, two norms; its name is its folder's."""
    from harness.board import read_board
    from harness.plugin import CORRUPTION

    board = read_board(Path(cli.__file__).parent / "boards" / "digits.toml")
    assert len(board.models) <= 6
    assert len(board.attacks) <= 6
    assert len([t for t in board.threats if t.norm != CORRUPTION]) == 2
    assert board.name == "digits"


MIXED = board_text(
    ["tiny"], ["ascend", "fog"], core=["ascend"],
    more='[[threat]]\nnorm = "corruption"\neps = [0.1, 0.2]',
)  # fmt: skip


def planned(out):
    return {(c["attack"], c["norm"]) for c in map(json.loads, out.splitlines()) if c["attack"]}


def test_a_norm_leaves_out_the_boards_attacks_that_it_does_not_concern(board, call):
    folder = board(MIXED)
    code, out, err = call("plan", folder, "--json", "--norm", "Linf")
    assert code == 0
    assert planned(out) == {("ascend", "Linf")}
    (line,) = err.splitlines()
    assert "--norm" in line
    assert "fog" in line
    code, out, err = call("plan", folder, "--json", "--norm", "corruption")
    assert (code, planned(out)) == (0, {("fog", "corruption")})
    assert "ascend" in err
    assert call("plan", folder)[2] == ""


def test_an_attack_that_does_not_concern_the_norms_is_refused_where_it_was_asked_for(board, call):
    folder = board(MIXED)
    code, _, err = call("plan", folder, "--norm", "Linf", "--attack", "fog")
    assert code == 2
    assert "fog supports corruption, none of which" in err
    code, _, err = call("plan", folder, "--norm", "L0", "--eps", "3")
    assert code == 2
    assert "L0" in err
    folder = board(board_text(["tiny"], ["ascend", "fog"]))
    assert call("plan", folder)[0] == 2


@pytest.mark.parametrize("norm", ["Linf", "L2", "L0", "corruption"])
def test_every_norm_can_be_asked_of_the_quick_board(call, tmp_path, monkeypatch, norm):
    monkeypatch.chdir(tmp_path)
    eps = ["--eps", "3"] if norm == "L0" else []
    code, out, err = call("plan", "--json", "--norm", norm, *eps)
    assert code == 0, err
    assert {n for _, n in planned(out)} == {norm}


RIVAL = """
from harness.plugin import AttackSpec, DatasetSpec, ModelSpec, hookimpl

@hookimpl
def harness_attacks():
    for name in ("pgd", "fgsm"):
        yield AttackSpec(name, "not_there:Nothing", norms=("Linf",))

@hookimpl
def harness_models():
    for name in ("linear", "mlp", "standard"):
        yield ModelSpec(name, "not_there:Nothing")

@hookimpl
def harness_datasets():
    yield DatasetSpec("digits", "not_there:Nothing")
"""


def test_no_plugin_can_take_a_name_of_the_quick_board_over(call, plugin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = call("plan", "--json")[1]
    plugin(RIVAL)
    code, out, err = call("plan", "--json")
    assert code == 0, err
    assert out == before
    code, _, err = call("plan", "--attack", "pgd:steps=3")
    assert code == 2
    assert "write acme/pgd or robustness-harness/pgd" in err
    same = ["--model", "mlp:epochs=60", "--attack", "fgsm", "--dataset", "digits"]
    code, out, _ = call("plan", "--json", *same)
    assert code == 0
    assert all(line in before.splitlines() for line in out.splitlines())


@pytest.mark.parametrize("rival", [RIVAL, ""])
@pytest.mark.parametrize("core", [[], ["rival"]])
def test_a_name_of_the_board_that_is_not_clear_blocks_only_what_asks_for_it(
    board, call, plugin, rival, core
):
    """`fgsm` is brought by two plugins, and another name by none."""
    if rival:
        plugin(rival)
    name = "fgsm" if rival else "fmsg"
    text = board_text(["tiny"], [name, "ascend"], core=["ascend"])
    if core:
        text = text.replace(f"'{name}'", f"{{ use = '{name}', label = 'rival' }}")
        text = text.replace("core = ['ascend']", "core = ['rival']")
    folder = board(text)
    place = f"{folder}/board.toml: attacks[0]: "
    said = "write acme/fgsm or robustness-harness/fgsm" if rival else "no attack is called 'fmsg'"
    code, out, err = call("run", folder, "--jobs", 1)
    assert (code, out) == (2, "")
    assert place in err
    assert said in err
    for asked in (["--attack", "ascend"], ["--attack", "robustness-harness/fgsm"]):
        code, out, err = call("run", folder, "--jobs", 1, *asked)
        assert code == 0, err
        assert place in err
        assert said in err
        assert "the board's table is left as it is" in err
        assert "not the board's own" not in out
        assert "Table:" not in out
        assert not core or "unranked: lacks rival" in out
    assert not (folder / "README.md").exists()


def test_an_unknown_model_is_named_with_its_place(board, call):
    folder = board(board_text(["tinny", "tiny"], ["ascend"]))
    code, _, err = call("run", folder)
    assert code == 2
    assert f"{folder}/board.toml: models[0]: no model is called 'tinny'" in err
    assert call("plan", folder, "--model", "tiny")[0] == 0


def test_a_plugin_of_the_board_that_did_not_load_blocks_only_what_asks_for_it(board, call, plugin):
    plugin("import not_there")
    folder = board(board_text(["tiny"], ["acme/nudge", "ascend"]))
    code, _, err = call("plan", folder)
    assert code == 4
    assert "board.toml: attacks[0]: attack 'acme/nudge': plugin acme:acme failed to load" in err
    assert call("plan", folder, "--attack", "ascend")[0] == 0


def test_workers_take_the_built_ins_too(plugin, tmp_path):
    plugin(RIVAL)
    done = harness(
        "run", "--model", "linear", "--attack", "fgsm", "--norm", "Linf", "--limit", 20,
        "--jobs", 1, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "robustness-harness/" not in done.stdout


def test_a_core_without_labels_alone_is_noted_where_a_model_has_no_gradients(board, call):
    models, attacks = ["tiny", "stepped"], ["ascend", "wander", "linear_sign"]

    def told(models, *core):
        code, _, err = call("plan", board(board_text(models, attacks, core=core)))
        assert code == 0
        return "none of the Linf attacks asks for labels alone, and stepped gives" in err

    assert told(models, "ascend")
    assert told(models, "ascend", "linear_sign")  # knows the parts, whatever it asks for
    assert not told(models, "ascend", "wander")
    assert not told(["tiny"], "ascend")


def test_flags_do_not_change_the_core_that_ranks_are_by(board, call):
    folder = board(board_text(["tiny"], ["ascend", "wander"], core=["wander", "ascend"]))
    for flags, ranked in ((["ascend", "wander"], True), (["wander"], False)):
        asked = [word for name in flags for word in ("--attack", name)]
        code, out, _ = call("run", folder, "--jobs", 1, *asked)
        assert code == 0
        assert ("lacks ascend" not in out) == ranked


LOUD = """
import sys
from dataclasses import dataclass

from harness.plugin import DatasetSpec, hookimpl

@hookimpl
def harness_datasets():
    for name in ("Raises", "Exits", "Nothing", "Prints"):
        yield DatasetSpec(name.lower(), f"acme_plugin:{name}")

@dataclass(frozen=True)
class Raises:
    def load(self, files):
        raise KeyError("no\\nsuch key")

@dataclass(frozen=True)
class Exits:
    def load(self, files):
        sys.exit("bye")

@dataclass(frozen=True)
class Nothing:
    def load(self, files):
        return 3

@dataclass(frozen=True)
class Prints:
    def __post_init__(self):
        print("made")

    def load(self, files):
        from testkit_parts import Blobs
        print("loading")
        return Blobs().load(files)
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [("raises", "KeyError"), ("exits", "bye"), ("nothing", "3, not harness.data.Splits")],
)
def test_a_data_set_that_breaks_is_named_with_its_error(board, call, plugin, name, said):
    plugin(LOUD)
    code, out, err = call("plan", board(TEXT), "--dataset", name)
    assert (code, out) == (1, "")
    assert f"data set acme/{name}: " in err
    assert said in err
    assert len(err.splitlines()) == 1


def test_what_plugins_print_does_not_reach_stdout(board, call, plugin):
    plugin(LOUD)
    code, out, err = call("plan", board(TEXT), "--dataset", "prints", "--json")
    assert code == 0, err
    assert all(json.loads(line) for line in out.splitlines())
    assert "loading" in err


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_cells_print_does_not_reach_stdout(board, plugin, jobs):
    plugin(
        "from dataclasses import dataclass\n"
        "from harness.plugin import AttackSpec, hookimpl\n"
        "@hookimpl\n"
        "def harness_attacks():\n"
        "    yield AttackSpec('talks', 'acme_plugin:Talks', norms=('Linf',), needs='labels')\n"
        "@dataclass(frozen=True)\n"
        "class Talks:\n"
        "    def __call__(self, target, x, y, threat, rng):\n"
        "        print('talking')\n"
        "        return x\n"
    )
    done = harness(
        "run", board(board_text(["tiny"], ["talks", "wander"])), "--json", "--jobs", jobs
    )
    assert done.returncode == 0, done.stderr
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 3
    assert "talking" in done.stderr


def test_a_folder_that_cannot_be_written_is_exit_code_2(board, call, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    code, out, err = call("run", board(TEXT), "--jobs", 1, "--out", tmp_path / "file" / "x")
    assert (code, out) == (2, "")
    assert str(tmp_path / "file" / "x") in err
    assert len(err.splitlines()) == 1
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file" / "cache"))
    code, out, err = call("run", board(TEXT), "--jobs", 1)
    assert (code, out) == (2, "")
    assert "HARNESS_CACHE" in err
    assert len(err.splitlines()) == 1


def test_a_timeout_in_line_is_refused_before_anything_is_written(board, call):
    folder = board(TEXT)
    code, _, err = call("run", folder, "--timeout", "3", "--executor", "inline")
    assert code == 2
    assert "--executor process" in err
    assert [p.name for p in folder.iterdir()] == ["board.toml"]


def test_a_plugin_whose_class_is_wrong_is_exit_code_4(board, call, plugin):
    plugin(
        "from dataclasses import dataclass\n"
        "from harness.plugin import AttackSpec, hookimpl\n"
        "@hookimpl\n"
        "def harness_attacks():\n"
        "    yield AttackSpec('clash', 'acme_plugin:Clash', norms=('Linf',))\n"
        "    yield AttackSpec('thawed', 'acme_plugin:Thawed', norms=('Linf',))\n"
        "@dataclass(frozen=True)\n"
        "class Clash:\n"
        "    restarts: int = 1\n"
        "@dataclass\n"
        "class Thawed:\n"
        "    steps: int = 1\n"
    )
    for name, said in (("clash", "field 'restarts'"), ("thawed", "must be a frozen dataclass")):
        code, _, err = call("plan", board(TEXT), "--attack", name)
        assert code == 4
        assert said in err
