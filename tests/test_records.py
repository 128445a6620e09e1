"""The store keeps what it acknowledged, shows what it cannot believe, and repairs nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from harness import atomic, provenance
from harness.errors import PluginError, RecordError
from harness.identity import key_of
from harness.records import DTYPES, Problem, Record, Store

KILLS = 100


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "records")


def make(seed=0, status="ok", **more):
    identity = {"attack": {"id": "pgd", "options": {"steps": 40}}, "eps": ["8/255"], "seed": seed}
    if status == "ok":
        more.setdefault("arrays", {"outcome": np.full((3, 2), seed, np.uint8)})
    return Record(key_of(identity), "attack", identity, status, **more)


def only_problem(store):
    _, problems = store.scan()
    (problem,) = problems
    return problem


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# What goes in comes out.


def test_a_record_comes_back_as_it_was(store):
    record = make(
        facts={"rounds": [{"accuracy": 0.5}], "note": "ε"},
        cost={"wall": 1.5, "forward": 7},
        provenance={"torch": "2.13.0"},
        weights="ab" * 32,
    )
    store.write(record)
    back = store.read(record.key)
    for name in ("key", "kind", "identity", "status", "reason", "facts", "cost", "provenance"):
        assert getattr(back, name) == getattr(record, name), name
    assert back.weights == record.weights
    np.testing.assert_array_equal(back.arrays["outcome"], record.arrays["outcome"])
    assert store.scan()[0].keys() == {record.key}


arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=8).filter(lambda n: n != "__metadata__"), arrays))
def test_arrays_come_back_bit_for_bit(store, monkeypatch, made):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    record = make(arrays=made)
    store.write(record)
    back = store.read(record.key).arrays
    assert back.keys() == made.keys()
    for name, array in made.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()


def test_arrays_that_are_not_in_c_order_are_not_scrambled(store):
    grid = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    views = {"turned": grid.T, "strided": grid[:, ::2, ::-1], "big": grid.astype(">f8")}
    record = make(arrays=views)
    store.write(record)
    for name, array in store.read(record.key).arrays.items():
        np.testing.assert_array_equal(array, views[name], err_msg=name)


def test_failures_are_stored_without_arrays(store):
    for seed, status in enumerate(("failed", "timeout", "oom")):
        store.write(make(seed, status, reason=f"ended {status}, \udcff"))
    records, problems = store.scan()
    assert sorted(r.status for r in records.values()) == ["failed", "oom", "timeout"]
    assert {r.reason for r in records.values()} >= {"ended oom, \udcff"}
    assert not problems
    assert not list(store.folder.glob("*.safetensors"))


def test_examples_are_kept_apart(store):
    images = {"x_adv": np.random.default_rng(0).random((3, 1, 2, 2), np.float32)}
    store.write(make(1), examples=images)
    store.write(make(2))
    np.testing.assert_array_equal(store.examples(make(1).key)["x_adv"], images["x_adv"])
    with pytest.raises(RecordError, match=r"not kept.*--keep-examples"):
        store.examples(make(2).key)
    with pytest.raises(RecordError, match="no such record"):
        store.examples(make(3).key)
    assert store.scan()[1] == ()


def test_files_are_those_that_the_design_names_and_diffs_are_small(store):
    record = make()
    store.write(record)
    data = save({"outcome": record.arrays["outcome"]})
    digest = hashlib.sha256(data).hexdigest()
    json_file, array_file = sorted(p.name for p in store.folder.iterdir())[::-1]
    assert json_file == f"{record.key}.json"
    assert array_file == f"{record.key}.{digest[:12]}.safetensors"
    before = (store.folder / json_file).read_text().splitlines()
    assert json.loads("\n".join(before))["arrays"] == digest
    store.write(make(reason="another"))
    after = (store.folder / json_file).read_text().splitlines()
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_writing_again_replaces_and_leaves_no_litter(store):
    key = make().key
    for round_ in range(3):
        fresh = {"a": np.full(4, round_)}
        store.write(make(arrays=fresh), examples=fresh if round_ < 2 else None)
    assert (store.read(key).arrays["a"] == 2).all()
    assert len(list(store.folder.iterdir())) == 2
    store.write(make(status="failed"))
    assert [p.name for p in store.folder.iterdir()] == [f"{key}.json"]


def test_discard_removes_one_record_and_its_arrays(store):
    store.write(make(1), examples={"x": np.zeros(3)})
    store.write(make(2))
    store.discard(make(1).key)
    store.discard(make(1).key)
    assert store.read(make(1).key) is None
    assert store.scan()[0].keys() == {make(2).key}
    assert len(list(store.folder.iterdir())) == 2


def test_a_folder_that_does_not_exist_is_an_empty_store(store):
    assert store.scan() == ({}, ())
    assert store.read(make().key) is None
    store.discard(make().key)
    store.sweep()
    assert not store.folder.exists()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"status": "interrupted"}, "status must be one of ok, failed, timeout, oom"),
        ({"kind": "train"}, "kind must be one of fit, attack"),
        ({"key": "0" * 32}, "not its identity's"),
        ({"status": "failed"}, "has no arrays"),
    ],
)
def test_a_record_that_cannot_be_is_refused(change, error):
    fields = vars(make()) | change
    with pytest.raises(RecordError, match=error):
        Record(**fields)


@pytest.mark.parametrize(
    "broken",
    [
        make(facts={"accuracy": float("nan")}),
        make(cost={"wall": np.float32(1)}),
        make(arrays={"a": np.array(["text"])}),
        make(arrays={"a": np.array([object()])}),
    ],
    ids=["nan", "numpy scalar", "text", "objects"],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(store, broken):
    with pytest.raises((RecordError, PluginError), match=r"accuracy|wall|'a'"):
        store.write(broken)
    assert not store.folder.exists()


# What cannot be believed is named, excluded, and left where it is.


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def empty(path):
    path.write_bytes(b"")


def nul(path):
    path.write_bytes(b"\0" * 100)


@pytest.mark.parametrize("tear", [cut, empty, nul])
@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_torn_file_is_named_and_left(store, tear, suffix):
    store.write(make(1))
    store.write(make(2))
    (victim,) = store.folder.glob(f"{make(1).key}*.{suffix}")
    tear(victim)
    before = {p: p.read_bytes() for p in store.folder.iterdir()}

    records, problems = store.scan()

    assert records.keys() == {make(2).key}
    assert [p.file for p in problems] == [f"{make(1).key}.json"]
    with pytest.raises(RecordError, match=make(1).key):
        store.read(make(1).key)
    assert before == {p: p.read_bytes() for p in store.folder.iterdir()}


def test_altered_arrays_are_found_by_one_bit(store):
    store.write(make())
    (path,) = store.folder.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "sha256" in only_problem(store).reason
    path.unlink()
    assert "missing" in only_problem(store).reason


def test_altered_examples_are_found_when_they_are_read(store):
    store.write(make(), examples={"x": np.zeros(3)})
    (path,) = store.folder.glob("*.examples.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert store.scan()[1] == ()
    with pytest.raises(RecordError, match=r"examples.*sha256"):
        store.examples(make().key)


def test_arrays_whose_sha256_is_right_may_still_be_no_arrays(store):
    store.write(make())
    digest = hashlib.sha256(b"pickle me").hexdigest()
    (store.folder / f"{make().key}.{digest[:12]}.safetensors").write_bytes(b"pickle me")
    rewrite(store.folder / f"{make().key}.json", arrays=digest)
    assert "no safetensors" in only_problem(store).reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"identity": make(2).identity}, "not its identity's"),
        ({"identity": {"eps": float("nan")}}, "nan"),
        ({"key": make(2).key}, "not the one it is named after"),
        ({"key": make(2).key, "identity": make(2).identity}, "not the one it is named after"),
        ({"schema": 2}, "schema 2; this version reads 1"),
        ({"status": "great"}, "status must be one of"),
        ({"status": "failed"}, "no arrays"),
        ({"arrays": "../../etc/passwd"}, "not a sha256"),
        ({"facts": []}, "'facts' is not a dict"),
        ({"stars": 5}, "stars"),
    ],
)
def test_an_altered_record_is_found(store, change, reason):
    store.write(make())
    rewrite(store.folder / f"{make().key}.json", **change)
    problem = only_problem(store)
    assert problem.file == f"{make().key}.json"
    assert reason in problem.reason


def test_a_missing_field_is_found(store):
    store.write(make())
    path = store.folder / f"{make().key}.json"
    raw = json.loads(path.read_text())
    del raw["weights"]
    path.write_text(json.dumps(raw))
    assert "weights" in only_problem(store).reason


@pytest.mark.parametrize("text", ["[1, 2]", "{}", "null", '{"schema": 1}', "[" * 100_000, "ÿ"])
def test_foreign_json_under_a_key_is_no_record(store, text):
    store.write(make(1))
    (store.folder / f"{make(2).key}.json").write_text(text, encoding="latin-1")
    assert only_problem(store).file == f"{make(2).key}.json"
    assert store.scan()[0].keys() == {make(1).key}


def test_foreign_files_are_named_and_left(store):
    store.write(make())
    for name in ("notes.txt", "x.json", "weights.safetensors", f"{make().key}.json.orig"):
        (store.folder / name).write_text("{}")
    (store.folder / "old").mkdir()
    (store.folder / f"{make(3).key}.json").mkdir()
    _, problems = store.scan()
    assert {p.file for p in problems} == {
        "notes.txt",
        "x.json",
        "weights.safetensors",
        f"{make().key}.json.orig",
        "old",
        f"{make(3).key}.json",
    }
    assert all(isinstance(p, Problem) and p.reason for p in problems)
    assert (store.folder / "notes.txt").exists()


def test_orphans_and_temporary_files_are_no_problem(store):
    store.write(make(1))
    store.write(make(2), examples={"x": np.zeros(3)})
    (store.folder / f"{make(2).key}.json").unlink()
    (store.folder / f"{make(1).key}.json.0badcafe.77.0badcafe.tmp").write_text("{")
    records, problems = store.scan()
    assert records.keys() == {make(1).key}
    assert problems == ()


def test_a_torn_record_is_replaced_when_its_cell_has_run_again(store):
    store.write(make())
    cut(store.folder / f"{make().key}.json")
    store.write(make())
    assert store.scan()[0].keys() == {make().key}
    assert store.scan()[1] == ()


# Temporary files.


def test_sweep_takes_what_the_dead_left_and_nothing_else(store):
    store.write(make())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    ours, here = f"{make(1).key}.json", atomic._host()
    dead = store.folder / f"{ours}.{here}.{ended.pid}.0badcafe.tmp"
    old = store.folder / f"{ours}.00000000.{os.getpid()}.0badcafe.tmp"
    kept = {
        store.folder / f"{ours}.{here}.{os.getpid()}.0badcafe.tmp",  # a writer that lives
        store.folder / f"{ours}.00000000.{ended.pid}.0badcafe.tmp",  # on another machine
        store.folder / f"thesis.doc.{here}.{ended.pid}.0badcafe.tmp",  # not of the store
        store.folder / "notes.tmp",
        store.folder / "notes.txt",
    }
    for path in (dead, old, *kept):
        path.write_text("half")
    two_hours_ago = time.time() - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))

    store.sweep()

    assert not dead.exists()
    assert not old.exists()
    assert all(path.exists() for path in kept)
    assert store.read(make().key)


def test_a_write_that_fails_changes_nothing(store, monkeypatch):
    store.write(make(arrays={"a": np.zeros(3)}))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        store.write(make(arrays={"a": np.ones(3)}))
    assert (store.read(make().key).arrays["a"] == 0).all()
    assert not list(store.folder.glob("*.tmp"))


def test_files_are_as_readable_as_the_umask_says(tmp_path):
    """Not 0600, which is what tempfile gives: records are shared."""
    plain = tmp_path / "plain"
    plain.write_text("")
    atomic.write(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == plain.stat().st_mode


# Kills. The nursery forks a writer for each line that it reads, so that no kill pays for imports.
# A writer goes round four keys; what it stores for version v of a key is made of v throughout.

NURSERY = """
import os, sys
from itertools import count
from pathlib import Path
import numpy as np
from harness.identity import key_of
from harness.records import Record, Store

def write_for_ever(store, version):
    for version in count(version):
        identity = {"cell": version % 4}
        values = {"a": np.full((50, 5), version), "b": np.full(2000, float(version))}
        record = Record(
            key_of(identity), "attack", identity, "ok", facts={"version": version}, arrays=values
        )
        store.write(record, examples=values if version % 3 else None)
        os.write(1, f"stored {record.key} {version}\\n".encode())

store = Store(Path(sys.argv[1]))
for line in sys.stdin:
    if (pid := os.fork()) == 0:
        write_for_ever(store, int(line))
    os.write(1, f"pid {pid} 0\\n".encode())
    os.waitpid(pid, 0)
    os.write(1, b"ended 0 0\\n")
"""


class Nursery:
    """Writers, one after the other, each killed."""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY, folder],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        os.set_blocking(self.process.stdout.fileno(), False)

    def kill_a_writer(self, version, acknowledgements, seconds, meanwhile):
        """Start one at a version, kill it so many seconds after so many acknowledgements, and
        return all that it acknowledged, in order: (key, version)."""
        said = self.said = bytearray()
        self.process.stdin.write(b"%d\n" % version)
        self.process.stdin.flush()
        until(lambda: self._listen(b"pid"))
        pid = int(said.split(b"pid ")[1].split()[0])
        try:
            while self._listen(b"stored") < acknowledgements:
                meanwhile()
            time.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGKILL)
        until(lambda: self._listen(b"ended"))
        words = [line.split() for line in said.decode().splitlines()]
        return [(key, int(number)) for what, key, number in words if what == "stored"]

    def _listen(self, word):
        """How often the word has been said by now."""
        with contextlib.suppress(BlockingIOError):
            self.said += os.read(self.process.stdout.fileno(), 1 << 16)
        return self.said.count(word)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.0005)


def seconds_of_a_write(folder):
    began = time.monotonic()
    for seed in range(5):
        Store(folder).write(make(seed), examples={"x": np.zeros(500)})
    return (time.monotonic() - began) / 5


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_no_kill_loses_what_was_acknowledged(store, tmp_path):
    """SIGKILL at random instants: each record is then the last version that was acknowledged, or
    whole, the one that was being written. Readers meanwhile never see anything else either."""
    chance = random.Random(0)
    stored = {}
    version = torn = 0
    write = seconds_of_a_write(tmp_path / "measured")

    def no_problems():
        assert store.scan()[1] == ()

    with Nursery(store.folder) as nursery:
        for kill in range(KILLS):
            reader = no_problems if kill % 2 else lambda: time.sleep(0.0005)
            instant = chance.randrange(4), chance.uniform(0, 1.5 * write)
            acknowledged = nursery.kill_a_writer(version, *instant, reader)
            stored |= dict(acknowledged)
            version += len(acknowledged)
            in_flight = key_of({"cell": version % 4})

            records, problems = store.scan()
            assert problems == ()
            assert records.keys() - {in_flight} == stored.keys() - {in_flight}
            assert in_flight in records or in_flight not in stored
            for key, record in records.items():
                found = record.facts["version"]
                assert found in {stored.get(key), version if key == in_flight else None}
                assert (record.arrays["a"] == found).all()
                assert (record.arrays["b"] == found).all()
                if found % 3:
                    assert (store.examples(key)["a"] == found).all()
            if in_flight in records:  # it may have been switched, and not yet acknowledged
                stored[in_flight] = records[in_flight].facts["version"]

            torn += len(list(store.folder.glob("*.tmp")))
            store.sweep()
            assert not list(store.folder.glob("*.tmp"))
    assert version >= KILLS
    assert torn > KILLS / 20  # else the kills hit nothing


# Provenance.


def test_provenance_is_plain_and_asked_once(monkeypatch):
    record = make(provenance=provenance.provenance("cpu", {"b": "2", "a": "1"}))
    assert list(record.provenance["plugins"].items()) == [("a", "1"), ("b", "2")]
    assert record.provenance["device"] == "cpu"
    assert record.provenance["numpy"] == np.__version__
    assert record.provenance["cpu"]
    key_of(record.provenance)

    def never(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr(subprocess, "run", never)
    assert provenance.provenance("cuda", {})["python"] == record.provenance["python"]


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("model name\t: EPYC\ncpu family\t: 25\nmodel\t\t: 17\n", "EPYC (family 25, model 17)"),
        ("model name: A\nmodel: 1\n\nmodel name: B\nmodel: 2\n", "A (model 1)"),
        ("model name: Neoverse\n", "Neoverse"),
        ("", platform.processor() or platform.machine()),
    ],
)
def test_the_cpu_has_the_numbers_that_tell_its_brands_generations_apart(
    told, name, tmp_path, monkeypatch
):
    (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(provenance, "CPUINFO", tmp_path / "cpuinfo")
    provenance._environment.cache_clear()
    try:
        assert provenance.provenance("cpu", {})["cpu"] == name
    finally:
        provenance._environment.cache_clear()


def git(root: Path, *arguments: str) -> str:
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", root, *name, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_and_dirt_of_a_checkout(tmp_path, monkeypatch):
    assert provenance.source_state(tmp_path) == {"commit": None, "dirty": None}
    git(tmp_path, "init", "-q")
    assert provenance.source_state(tmp_path) == {"commit": None, "dirty": None}
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "a.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert provenance.source_state(tmp_path) == {"commit": head, "dirty": False}
    (tmp_path / "leaderboards").mkdir()
    (tmp_path / "leaderboards" / "new.json").write_text("a record of this run")
    assert provenance.source_state(tmp_path)["dirty"] is False
    (tmp_path / "harness" / "b.py").write_text("a new module is code too")
    assert provenance.source_state(tmp_path)["dirty"] is True
    monkeypatch.setenv("PATH", "")
    assert provenance.source_state(tmp_path) == {"commit": None, "dirty": None}
