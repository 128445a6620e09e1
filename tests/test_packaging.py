"""Wheel, sdist and editable install: what lands on a user's machine, and nothing else."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SKIPPED = ("__pycache__", ".pyc")


def build(target, source, out):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)],
        cwd=source, check=True, capture_output=True, text=True,
    )  # fmt: skip
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {n: archive.read(n) for n in archive.namelist()}


def sources():
    for package in (ROOT / "harness", ROOT / "plugins" / "harness_plugins"):
        for path in package.rglob("*"):
            if path.is_file() and not any(s in str(path) for s in SKIPPED):
                yield str(path.relative_to(package.parent)), path.read_bytes()


def test_the_wheel_installs_two_packages_and_nothing_else(wheel):
    files = contents(wheel)
    assert {n.split("/")[0] for n in files} == {
        "harness", "harness_plugins", "robustness_harness-0.1.0.dist-info",
    }  # fmt: skip
    assert {n: files[n] for n, _ in sources()} == dict(sources())
    assert "harness/boards/digits.toml" in files
    points = files["robustness_harness-0.1.0.dist-info/entry_points.txt"].decode()
    assert "harness = harness.cli:main" in points
    assert "[robustness_harness]" in points


def test_the_sdist_builds_the_same_wheel(wheel, tmp_path):
    sdist = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert (source / "constraints.txt").is_file()
    assert (source / "tox.ini").is_file()
    again = contents(build("wheel", source, tmp_path / "wheel"))
    record = "robustness_harness-0.1.0.dist-info/RECORD"
    first = contents(wheel)
    assert again.keys() == first.keys()
    assert all(again[n] == first[n] for n in first if n != record)


def test_an_editable_install_sees_the_sources_and_the_built_ins(tmp_path):
    """Both roots are on the path, and the entry points find the plugins of the tree."""
    editable = build("wheel:editable", ROOT, tmp_path / "wheel")
    site = tmp_path / "site"
    with zipfile.ZipFile(editable) as archive:
        archive.extractall(site)
    code = (
        f"import site; site.addsitedir({str(site)!r});"
        "import harness, harness_plugins.attacks as a; from harness.registry import discover;"
        "print(harness.__file__, a.__file__, [p.status for p in discover().plugins])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r};{code}"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert "'ok', 'ok', 'ok'" in done.stdout


def test_modules_of_plugins_are_those_that_entry_points_name():
    """A plugin package that no entry point names would be unreachable."""
    from importlib.metadata import entry_points

    named = {
        e.value for e in entry_points(group="robustness_harness")
        if e.value.startswith("harness_plugins.")
    }  # fmt: skip
    packages = {
        f"harness_plugins.{p.parent.name}"
        for p in (ROOT / "plugins" / "harness_plugins").glob("*/__init__.py")
    }
    assert named == packages
