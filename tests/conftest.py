"""Plugins for tests come in through entry points, here and in the workers that tests start."""

import os
import signal
import sys
from pathlib import Path

import pytest

KIT = str(Path(__file__).parent / "kit")
sys.path.insert(0, KIT)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [KIT, os.environ.get("PYTHONPATH")]))

# A shell starts its background jobs with SIGINT ignored, and so would be all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Weights and data of a test are its own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HARNESS_CACHE", str(folder))
    return folder
