"""The driver: resume, retry, force, stale records, dead and hanging workers, real kills."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import board_text, run, session_of

from harness.executors.process import Process
from harness.plan import state
from harness.session import cache_folder, write_tables

TEXT = board_text(["tiny", "noisy"], ["ascend", "wander"], core=["ascend", "wander"])


def ran_cells(ran):
    return sorted(str(e.cell) for e in ran.events)


def test_a_second_run_does_nothing(tmp_path):
    first = run(TEXT, tmp_path)
    assert [e.status for e in first.events] == ["ok"] * 6
    assert run(TEXT, tmp_path).events == []


def test_only_what_is_missing_is_run_and_the_tables_are_byte_identical(tmp_path):
    whole = run(TEXT, tmp_path / "whole")
    part = run(board_text(["tiny"], ["ascend"]), tmp_path / "part")
    assert len(part.events) == 2
    rest = run(TEXT, tmp_path / "part")
    assert len(rest.events) == 4
    tables = []
    for folder, ran in (("whole", whole), ("part", rest)):
        session = session_of(TEXT, tmp_path / folder)
        write_tables(session.place, session.own.manifest, ran.records)
        tables.append((tmp_path / folder / "README.md").read_bytes())
    assert tables[0] == tables[1]


def test_failures_are_remembered_until_retry(tmp_path):
    text = board_text(["tiny"], ["misbehaves:how=raises", "wander"])
    first = run(text, tmp_path)
    assert first.of("tiny", "misbehaves:how=raises").status == "failed"
    assert run(text, tmp_path).events == []
    again = run(text, tmp_path, retry=True)
    assert [str(e.cell) for e in again.events] == ["misbehaves:how=raises on tiny Linf seed 0"]
    cell = again.events[0].cell
    assert state(cell, again.records) == "failed before"


def test_force_runs_everything_again(tmp_path):
    first = run(TEXT, tmp_path)
    assert ran_cells(run(TEXT, tmp_path, force=True)) == ran_cells(first)


def test_force_trains_again_and_replaces_the_cached_weights(tmp_path):
    text = board_text(["mlp:epochs=1"], ["wander"])
    first = run(text, tmp_path).of("mlp:epochs=1")
    (weights,) = (cache_folder() / "weights").glob("*.safetensors")
    before = weights.stat().st_mtime_ns
    assert run(text, tmp_path / "other").of("mlp:epochs=1").cost == first.cost  # from the cache
    assert weights.stat().st_mtime_ns == before
    again = run(text, tmp_path, force=True).of("mlp:epochs=1")
    assert weights.stat().st_mtime_ns > before
    assert again.weights == first.weights
    assert again.cost["start"] > first.cost["start"]


def test_a_transfer_from_a_model_that_was_fitted_anew_is_stale(tmp_path):
    text = board_text(["tiny:shift=0.1"], ["borrowed"])
    first = run(text, tmp_path)
    record = first.of("tiny:shift=0.1", "borrowed")
    (source,) = record.facts["sources"]
    other = first.records[source]
    first.store.write(type(other)(**{**vars(other), "weights": "0" * 64}))
    session = session_of(text, tmp_path)
    states = {c.label + c.attack_label: state(c, first.store.scan()[0])
              for c in session.plan.cells.values()}  # fmt: skip
    assert states["tiny:shift=0.1borrowed"] == "stale"


def test_what_plugins_print_is_not_on_stdout(tmp_path, capfd):
    run(board_text(["talkative"], ["wander"]), tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    assert "step 1" in err


def test_a_lost_cache_costs_nothing_until_weights_are_needed(tmp_path):
    run(board_text(["tiny"], ["ascend"]), tmp_path)
    shutil.rmtree(cache_folder() / "weights")
    assert run(board_text(["tiny"], ["ascend"]), tmp_path).events == []
    more = run(board_text(["tiny"], ["ascend", "wander"]), tmp_path)
    assert ran_cells(more) == ["fit tiny seed 0", "wander on tiny Linf seed 0"]


def test_a_record_of_other_weights_is_stale(tmp_path):
    first = run(board_text(["tiny"], ["ascend"]), tmp_path)
    fit = first.of("tiny")
    first.store.write(type(fit)(**{**vars(fit), "weights": "0" * 64}))
    session = session_of(board_text(["tiny"], ["ascend"]), tmp_path)
    records, _ = first.store.scan()
    states = {c.kind: state(c, records) for c in session.plan.cells.values()}
    assert states == {"fit": "cached", "attack": "stale"}


def test_processes_give_the_same_bits_as_one(tmp_path):
    text = board_text(["tiny", "noisy"], ["ascend", "student", "alone", "borrowed"])
    one = run(text, tmp_path / "one")
    two = run(text, tmp_path / "two", executor=Process(2))
    assert one.records.keys() == two.records.keys()
    for key, record in one.records.items():
        assert record.status == "ok"
        assert record.facts == two.records[key].facts
        for name, values in record.arrays.items():
            assert np.array_equal(values, two.records[key].arrays[name])


def test_a_hanging_and_a_dying_cell_cost_themselves_alone(tmp_path):
    attacks = ["misbehaves:how=hangs", "misbehaves:how=dies", "wander"]
    text = board_text(["tiny"], attacks, core=["wander"])
    ran = run(text, tmp_path, executor=Process(2, timeout=4.0))
    hung, died, fine = (ran.of("tiny", a) for a in attacks)
    assert (hung.status, hung.reason) == ("timeout", "took longer than 4 s")
    assert died.status == "failed"
    assert "worker died 2 times" in died.reason
    assert "SIGKILL" in died.reason
    assert fine.status == "ok"
    row = ran.leaderboard.tables[0].rows[0]
    assert row.rank == 1
    assert {c.attack: c.status for c in row.cells} == {
        "misbehaves:how=hangs": "timeout", "misbehaves:how=dies": "failed", "wander": "ok",
    }  # fmt: skip


def test_numbers_that_cannot_be_kept_fail_their_cell_alone(tmp_path):
    ran = run(board_text(["tiny"], ["student:tell_nan=true", "wander"]), tmp_path)
    record = ran.of("tiny", "student:tell_nan=true")
    assert record.status == "failed"
    assert "nan" in record.reason
    assert ran.of("tiny", "wander").status == "ok"


def test_kept_examples_are_those_that_were_judged(tmp_path):
    ran = run(board_text(["tiny"], ["ascend"]), tmp_path, keep_examples=True)
    record = ran.of("tiny", "ascend")
    kept = ran.store.examples(record.key)["x_adv"]
    assert kept.shape == (20, 3, 1, 4, 4)
    assert kept.dtype == np.float32


HARNESS = [sys.executable, "-m", "harness", "run", "--jobs", "2"]


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_a_killed_run_is_resumed_to_the_same_bytes(tmp_path):
    """SIGKILL (and now and then Ctrl-C) at random instants of whole runs, ten times and more;
    then a run to the end, whose table is an uninterrupted run's, byte by byte."""
    text = board_text(
        ["tiny", "noisy", "stepped"], ["ascend:restarts=3", "wander", "student"],
        core=["wander"], more="seeds = [0, 1]",
    ).replace("limit = 20", "limit = 10")  # fmt: skip

    def command(folder):
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        (path / "board.toml").write_text(text)
        return [*HARNESS, str(path)]

    whole = subprocess.run(command("whole"), capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    shutil.rmtree(cache_folder())
    dice = random.Random(0)
    kills = stored = 0
    for turn in range(100):
        if kills >= 10:
            break
        run_ = subprocess.Popen(
            command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            run_.wait(dice.uniform(0.5, 3.5))
        except subprocess.TimeoutExpired:
            kills += 1
            os.kill(run_.pid, signal.SIGINT if turn % 5 == 4 else signal.SIGKILL)
            code = run_.wait(20)
            assert code in (-signal.SIGKILL, -signal.SIGINT, 130)
        else:  # done already: begin anew
            shutil.rmtree(tmp_path / "killed")
            shutil.rmtree(cache_folder(), ignore_errors=True)
            stored = 0
            continue
        there = len(list((tmp_path / "killed" / "records").glob("*.json")))
        assert there >= stored
        stored = there
    assert kills >= 10
    assert _workers() == []
    last = subprocess.run(command("killed"), capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert "left out" not in last.stderr
    for name in ("README.md", "leaderboard.csv", "cells.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def _workers():
    """Processes of this test's runs that are still there a second after their drivers died."""
    deadline = time.time() + 5
    while True:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if "spawn_main" in line and f"HARNESS_CACHE={cache_folder()}" in environment:
                found.append(line)
        if not found or time.time() > deadline:
            return found
        time.sleep(0.2)
