"""Whether scikit-learn's trainings ended by themselves, and a word to the record where not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from harness.api import Run


def watched(fit: Callable[[], Any]) -> tuple[Any, bool]:
    """What it fits, and whether that converged. Its other warnings pass."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        found = fit()
    stopped = [w for w in caught if issubclass(w.category, ConvergenceWarning)]
    for other in (w for w in caught if w not in stopped):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return found, not stopped


def note_stopped(run: Run, converged: Tensor, what: str) -> None:
    """Have the record say how many of the trainings did not converge; bool, of any shape."""
    stopped = int((~converged).sum())
    if stopped:
        run.note(f"{stopped} of {converged.numel()} {what} had not converged, says scikit-learn")
