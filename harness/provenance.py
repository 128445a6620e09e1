"""Where a record came from: versions, machine, and the state of the project's own source.

None of it is part of an identity, and none of it names a person, a host or a folder.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from harness import __version__

SOURCE = Path(__file__).resolve().parents[1]
CPUINFO = Path("/proc/cpuinfo")


def provenance(device_name: str, distributions: Mapping[str, str]) -> dict[str, Any]:
    """What a record says of its making, as plain data.

    device_name:   what the cell ran on, as a person would call it ("cpu", "NVIDIA H200")
    distributions: the versions of the distributions whose plugins took part, by name
    """
    return {
        **_environment(),
        "device": device_name,
        "plugins": dict(sorted(distributions.items())),
    }


@cache
def _environment() -> dict[str, Any]:
    """The part that does not change while a process lives."""
    return {
        "harness": __version__,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "numpy": _version("numpy"),
        "platform": platform.platform(),
        "cpu": _cpu(CPUINFO),
        **source_state(SOURCE),
    }


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _cpu(cpuinfo: Path) -> str:
    """Its name with its family and model: a name may be the brand's alone, "AMD EPYC"."""
    try:
        lines = cpuinfo.read_text(errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        lines = []
    told = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    parts = [f"{k.removeprefix('cpu ')} {told[k]}" for k in ("cpu family", "model") if k in told]
    return f"{name} ({', '.join(parts)})" if parts else name


def source_state(root: Path) -> dict[str, Any]:
    """`commit`, and `dirty`: code differs from it; both None where `root` is no git checkout."""
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    if commit is None:
        return {"commit": None, "dirty": None}
    # Code alone: the records of this very run lie in the same checkout.
    changes = _git(root, "status", "--porcelain", "--", "harness", "plugins", "pyproject.toml")
    return {"commit": commit, "dirty": None if changes is None else changes != ""}


def _git(root: Path, *arguments: str) -> str | None:
    """What git says; None where it says nothing to the purpose, or is not installed."""
    # GIT_DIR and its kin, set inside a git hook, would point git elsewhere.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
