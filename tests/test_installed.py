"""A stranger's packages beside the installed wheel: the good one plays, the broken one is a row."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest


def installed(name):
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


pytestmark = pytest.mark.skipif(
    not (installed("harness-example") and installed("harness-broken")),
    reason="the packages of tests/thirdparty/ are not installed (tox -e thirdparty)",
)

BOARD = """
name = "mixed"
dataset = "digits"
limit = 40
models = ["bit-depth:inner=(linear:epochs=2)", "linear:epochs=2"]
attacks = ["random-corners", "fgsm", "fgsm:gradient=bpda"]
core = ["random-corners"]
[[threat]]
norm = "Linf"
eps = [0.1, 0.3]
"""


def harness(*arguments, **more):
    command = [sys.executable, "-m", "harness", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


def test_the_good_one_runs_on_a_board_beside_the_built_ins(tmp_path):
    (tmp_path / "board.toml").write_text(BOARD)
    done = harness("run", str(tmp_path), "--jobs", "1")
    assert done.returncode == 0, done.stderr
    states = {}
    for line in harness("plan", str(tmp_path), "--json").stdout.splitlines():
        cell = json.loads(line)
        states[cell["model"], cell["attack"]] = (cell["state"], cell["reason"])
    assert states["bit-depth:inner=(linear:epochs=2)", "random-corners"][0] == "cached"
    assert states["linear:epochs=2", "random-corners"][0] == "cached"
    assert states["bit-depth:inner=(linear:epochs=2)", "fgsm:gradient=bpda"][0] == "cached"
    state, reason = states["bit-depth:inner=(linear:epochs=2)", "fgsm"]
    assert (state, "gradient=bpda" in reason) == ("incompatible", True)


def test_the_broken_one_is_a_row_with_a_reason_and_breaks_nothing():
    rows = {}
    for line in harness("plugins", "--json").stdout.splitlines():
        row = json.loads(line)
        rows[row["plugin"].split(":")[0]] = row
    assert rows["harness-example"]["status"] == "ok"
    assert rows["harness-broken"]["status"] == "import-error"
    assert rows["harness-broken"]["reason"]
    assert harness("list", "attacks").returncode == 0


def test_asking_for_what_is_broken_is_exit_code_4_with_its_reason(tmp_path):
    done = harness("run", "--model", "harness-broken/anything", "--out", str(tmp_path))
    assert done.returncode == 4
    line = done.stderr.strip().splitlines()[-1]
    assert "harness-broken" in line
    assert "ModuleNotFoundError" in line
