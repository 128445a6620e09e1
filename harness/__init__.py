"""robustness-harness: defenses x attacks, re-verified, into leaderboards. Imports no torch."""

from harness.plugin import AttackSpec, DatasetSpec, ModelSpec, hookimpl

__version__ = "0.1.0"
__all__ = ["AttackSpec", "DatasetSpec", "ModelSpec", "__version__", "hookimpl"]
