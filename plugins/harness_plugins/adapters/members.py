"""What a signature does not say of another library's attack: a `Member`.

Whether it has a budget or looks for the least distance, in which norms, and what of the model it
asks. Its options are read from the installed library (`signatures`), except those that the harness
gives (`GIVEN`) and those that a member withholds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.plugin import AttackSpec, Level

Kind = Literal["fixed-budget", "minimum-norm"]
FIXED: Kind = "fixed-budget"
MINIMUM: Kind = "minimum-norm"


@dataclass(frozen=True)
class Instead:
    """An option whose type or default is not the library's, and why."""

    type: Any
    default: Any
    doc: str


@dataclass(frozen=True)
class Member:
    """One attack of a library.

    file:     that defines it, below the package
    alone:    its white-box code takes one image, or draws for a batch at once: image by image
    asks:     what the scores are made: `scores` as the model gives them, or `probabilities`
    budget:   the parameter that takes eps
    classes:  the fewest that its code takes; a model of fewer is shown with more, that never win
    step:     the step's length where it is not given, in eps: 'all' of it, or 'reach', 2.5 eps by
              all steps together; '' where there is none
    withheld: parameters that are no options here, left at the library's default
    fixed:    parameters given a value of ours
    instead:  options whose type or default is not the library's
    requires: other distributions, which the library does not declare
    """

    file: str
    summary: str
    norms: tuple[str, ...]
    kind: Kind = MINIMUM
    needs: Level = "gradients"
    paper: str = ""
    deterministic: bool = False
    alone: bool = False
    asks: Literal["scores", "probabilities"] = "scores"
    budget: str = "eps"
    classes: int = 2
    step: Literal["", "all", "reach"] = ""
    withheld: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    instead: Mapping[str, Instead] = field(default_factory=dict)
    requires: tuple[tuple[str, str], ...] = ()

    @property
    def single(self) -> bool:
        """It is given one image at a time."""
        return self.alone or self.needs != "gradients"

    def spec(self, library: str, name: str, requires: tuple[str, str]) -> AttackSpec:
        return AttackSpec(
            f"{library}:{name}",
            f"harness_plugins.adapters.{library}:{name}",
            summary=self.summary,
            paper=self.paper,
            norms=self.norms,
            needs=self.needs,
            kind=self.kind,
            deterministic=self.deterministic,
            one_by_one=self.single,
            pooled=not self.single,
            requires=(requires, *self.requires),
        )


# Given by the harness: the model, the budget, the box, labels, batches, progress.
GIVEN = frozenset(
    (
        *("classifier", "estimator", "estimator_orig", "model_fn", "n_classes"),
        *("x", "y", "y_target", "image_target", "targeted"),
        *("norm", "order", "constraint", "eps", "clip_min", "clip_max"),
        *("batch_size", "verbose", "verbose_es", "is_debug", "sanity_checks"),
        *("summary_writer", "tensor_board"),
    )
)
