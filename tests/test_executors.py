"""A cell that fails, hangs or dies costs itself; no ending of the driver leaves a worker behind."""

from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError, as_completed, wait
from pathlib import Path

import pytest

from harness.errors import PluginError
from harness.executors import CellTimeout, WorkerDied
from harness.executors.inline import Inline
from harness.executors.process import Process, _Worker

# Workers import cells by name, so these are a module of their own, wherever the tests lie.
CELLS = '''
import os, signal, sys, time
from pathlib import Path

class TwoWords(Exception):
    """Pickles, and cannot be unpickled: __init__ wants two, args holds one."""
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")

def double(spec):
    return 2 * spec["x"]

def who(spec):
    time.sleep(spec.get("seconds", 0))
    return os.getpid()

def mark_and_sleep(spec):
    Path(spec["folder"], str(os.getpid())).touch()
    time.sleep(spec["seconds"])

def stubborn(spec):
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass

def deep_in_c(spec):
    sum(range(10**12))

def kill_itself(spec):
    os.kill(os.getpid(), spec["signal"])
    time.sleep(60)

def leave(spec):
    os._exit(spec["code"])

def fail(spec):
    raise {
        "value": ValueError("eps must be positive"),
        "time": TimeoutError("Task of the plugin's own"),
        "words": TwoWords("this", "that"),
        "exit": SystemExit(3),
    }[spec["how"]]

def interrupt(spec):
    raise KeyboardInterrupt

def surroundings(spec):
    return {
        "threads": os.environ["OMP_NUM_THREADS"],
        "torch": "torch" in sys.modules,
        "ignores": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
    }

def large(spec):
    return b"x" * spec["bytes"]
'''


@pytest.fixture
def cells(tmp_path, monkeypatch):
    (tmp_path / "kit_cells.py").write_text(CELLS)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("kit_cells", None)
    yield importlib.import_module("kit_cells")
    del sys.modules["kit_cells"]


@pytest.fixture(params=["inline", "process"])
def executor(request):
    with Inline() if request.param == "inline" else Process(2) as executor:
        yield executor


def alive(pid):
    """A zombie that nobody has waited for is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def in_session(session):
    """Live processes of a session, by pid: a driver's, and all that it ever started."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.add(int(stat.parent.name))
    return found


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")


# The seam: what both do.


def test_each_future_has_its_own_cells_result(executor, cells):
    order = random.Random(0).sample(range(20), 20)
    futures = {executor.submit(cells.double, {"x": x}): x for x in order}
    assert {futures[f]: f.result() for f in as_completed(futures, timeout=20)} == {
        x: 2 * x for x in range(20)
    }


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("value", ValueError, "^eps must be positive$"),
        ("time", TimeoutError, "Task of the plugin's own"),
        ("words", Exception, "this and that"),
        ("exit", PluginError, r"tried to end the process: SystemExit\(3\)"),
    ],
)
def test_what_a_cell_raises_arrives_and_the_next_cell_runs(executor, cells, how, kind, message):
    failed = executor.submit(cells.fail, {"how": how})
    after = executor.submit(cells.double, {"x": 4})
    assert wait([failed, after], timeout=20).not_done == set()
    with pytest.raises(kind, match=message) as caught:
        failed.result()
    assert not isinstance(caught.value, CellTimeout)
    assert after.result() == 8


def test_an_interrupt_ends_an_inline_run(cells):
    with pytest.raises(KeyboardInterrupt), Inline() as executor:
        executor.submit(cells.interrupt, {})


# Processes.


def test_workers_are_prepared_before_torch(cells):
    with Process(1, threads=3) as executor:
        assert executor.submit(cells.surroundings, {}).result() == {
            "threads": "3",
            "torch": False,
            "ignores": True,
        }


def test_jobs_run_side_by_side_and_workers_are_kept(cells):
    with Process(2) as executor:
        futures = [executor.submit(cells.who, {"seconds": 0.05}) for _ in range(12)]
        assert len({f.result() for f in futures}) == 2


def test_a_timeout_kills_its_cell_alone(cells):
    with Process(2, timeout=0.6) as executor:
        hung = executor.submit(cells.stubborn, {})
        others = [executor.submit(cells.who, {"seconds": 0.05}) for _ in range(8)]
        with pytest.raises(CellTimeout, match=r"killed after 0\.6 s") as caught:
            hung.result(timeout=20)
        assert caught.value.seconds == 0.6
        assert len([f.result(timeout=20) for f in others]) == 8
        assert executor.submit(cells.double, {"x": 1}).result(timeout=20) == 2


def test_a_timeout_is_kept_deep_in_c(cells):
    """Where no Python handler of a signal would run; pebble alone would wait 3 s more."""
    with Process(1, timeout=0.3) as executor:
        executor.submit(cells.double, {"x": 1}).result(timeout=20)
        began = time.monotonic()
        with pytest.raises(CellTimeout):
            executor.submit(cells.deep_in_c, {}).result(timeout=20)
        assert time.monotonic() - began < 3


def test_time_in_the_queue_does_not_count(cells):
    with Process(1, timeout=0.5) as executor:
        futures = [executor.submit(cells.who, {"seconds": 0.2}) for _ in range(5)]
        assert len({f.result(timeout=20) for f in futures}) == 1


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ({"signal": signal.SIGKILL}, -9, "SIGKILL: out of memory, perhaps"),
        ({"signal": signal.SIGSEGV}, -11, "SIGSEGV"),
        ({"code": 7}, 7, "exit code 7"),
    ],
)
def test_a_dead_worker_costs_its_cell_alone(cells, how, code, message):
    with Process(2) as executor:
        others = [executor.submit(cells.who, {"seconds": 0.05}) for _ in range(4)]
        dies = executor.submit(cells.leave if "code" in how else cells.kill_itself, how)
        others += [executor.submit(cells.who, {"seconds": 0.05}) for _ in range(4)]
        with pytest.raises(WorkerDied, match=message) as caught:
            dies.result(timeout=20)
        assert caught.value.exit_code_of_worker == code
        assert len([f.result(timeout=20) for f in others]) == 8


def test_an_idle_worker_that_is_killed_costs_nothing(cells):
    with Process(1) as executor:
        pid = executor.submit(cells.who, {}).result(timeout=20)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not executor._workers[0]._pool.active)  # before that, it costs the next cell
        assert executor.submit(cells.who, {}).result(timeout=20) != pid


def test_a_storm_of_kills_loses_only_the_cells_it_hits(cells):
    """What a driver does: each cell that lost its worker is submitted again."""
    chance = random.Random(0)
    kills = lost = 0
    done = set()
    with Process(3) as executor:
        pending = {executor.submit(cells.who, {"seconds": 0.05}): x for x in range(40)}
        while pending:
            finished, _ = wait(pending, timeout=20, return_when="FIRST_COMPLETED")
            assert finished
            for future in finished:
                x = pending.pop(future)
                if isinstance(future.exception(), WorkerDied):
                    lost += 1
                    pending[executor.submit(cells.who, {"seconds": 0.05})] = x
                    continue
                done.add(x)
                if kills < 8 and chance.random() < 0.3 and alive(future.result()):
                    time.sleep(chance.uniform(0, 0.02))
                    os.kill(future.result(), signal.SIGKILL)
                    kills += 1
    assert done == set(range(40))
    assert 0 < lost <= kills


@pytest.mark.parametrize("seconds", [0.1, 0.2])
def test_a_worker_killed_while_it_answers_costs_its_cell_alone(cells, seconds):
    """Half an answer in a pipe, and the pipe's lock gone with the worker."""
    with Process(1) as executor:
        pid = executor.submit(cells.who, {}).result(timeout=20)
        answer = executor.submit(cells.large, {"bytes": 200_000_000})
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        wait([answer], timeout=20)
        assert answer.exception() is None or isinstance(answer.exception(), WorkerDied)
        try:
            after = executor.submit(cells.double, {"x": 3}).result(timeout=20)
        except WorkerDied:  # it was killed after the answer, and this was its next cell
            after = executor.submit(cells.double, {"x": 3}).result(timeout=20)
        assert after == 6


# Endings.


@linux
def test_close_waits_and_leaves_no_worker(cells):
    with Process(2) as executor:
        futures = [executor.submit(cells.who, {"seconds": 0.1}) for _ in range(6)]
    pids = {f.result(timeout=0) for f in futures}
    assert not any(map(alive, pids))
    with pytest.raises(RuntimeError):
        executor.submit(cells.who, {})


@linux
def test_cancel_stops_what_runs_and_what_waits_at_once(cells, tmp_path):
    pids = tmp_path / "pids"
    pids.mkdir()
    began = time.monotonic()
    executor = Process(2)
    spec = {"folder": str(pids), "seconds": 60}
    futures = [executor.submit(cells.mark_and_sleep, spec) for _ in range(5)]
    until(lambda: len(list(pids.iterdir())) == 2)
    with pytest.raises(KeyboardInterrupt), executor:
        raise KeyboardInterrupt
    assert time.monotonic() - began < 10
    assert not any(alive(p.name) for p in pids.iterdir())
    assert all(f.done() for f in futures)
    for future in futures:
        with pytest.raises(CancelledError):
            future.result()


def test_a_cell_that_is_begun_after_the_cancel_is_cancelled(cells):
    """Its thread had taken it from the queue, and had not yet handed it to the process."""
    worker = _Worker(timeout=None, threads=1)
    worker.cancel()
    with pytest.raises(CancelledError):
        worker.run(cells.who, {"seconds": 60})
    worker.end()


def test_close_before_anything_ran(cells):
    Process(2).close(cancel=False)
    Process(2).close(cancel=True)


DRIVER = """
import sys
from concurrent.futures import wait
import kit_cells
from harness.executors.process import Process

if __name__ == "__main__":
    with Process(2) as executor:
        spec = {"folder": sys.argv[1], "seconds": 60}
        futures = [executor.submit(kit_cells.mark_and_sleep, spec) for _ in range(4)]
        print("submitted", flush=True)
        wait(futures)
"""


@pytest.fixture
def driver(cells, tmp_path):
    """A driver with two cells running and two waiting, in a session of its own."""
    (tmp_path / "driver.py").write_text(DRIVER)
    (tmp_path / "pids").mkdir()
    process = subprocess.Popen(
        [sys.executable, tmp_path / "driver.py", tmp_path / "pids"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def both_cells_run(tmp_path):
    return len(list((tmp_path / "pids").iterdir())) == 2


@linux
def test_a_driver_that_is_killed_takes_its_workers_along(driver, tmp_path):
    """At once, and not after their cells, which have a minute to go."""
    until(lambda: both_cells_run(tmp_path))
    driver.kill()
    driver.wait()
    until(lambda: not in_session(driver.pid), seconds=5)


@linux
@pytest.mark.parametrize("seconds", [None, 0.05, 0.15])
def test_ctrl_c_ends_the_driver_alone_and_leaves_nothing(driver, tmp_path, seconds):
    """A terminal sends SIGINT to every process. Workers that are only just starting get it too:
    only the driver may speak of it."""
    if seconds is None:
        until(lambda: both_cells_run(tmp_path))
    else:
        time.sleep(seconds)
    os.killpg(driver.pid, signal.SIGINT)
    _, errors = driver.communicate(timeout=10)
    assert errors.count("Traceback") == 1, errors
    assert errors.rstrip().endswith("KeyboardInterrupt")
    until(lambda: not in_session(driver.pid), seconds=5)
