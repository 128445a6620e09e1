"""SCD01 and MLP01: classifiers of sign units trained under the 01 loss by stochastic coordinate
descent (Xue, Xie and Roshan, 2020: 'On the transferability of adversarial examples between convex
and 01 loss models', 'Towards adversarial robustness with 01 loss neural networks', 'Defending
against substitute model black box adversarial attacks with the 01 loss').

Their decisions have no gradient. That hides them from attacks that need one and protects them from
no attack that does without: `surrogate()` is a smooth stand-in, and `sign_network` the structure.

Where this differs from the papers and their code, on purpose: candidates may be cut anywhere
(`window=0`; the published window of ranks saves work there and costs accuracy), only thresholds
that separate different projections are scored, the cut with all rows off is one of them, equally
good moves are drawn from uniformly, the best network is sought anew when the objective changes,
every network has draws of its own, and a single network is one run, not the best of many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import nn

from harness.api import Info, Run, TrainingSet
from harness.errors import UsageError
from harness_plugins.sign_descent import Rule
from harness_plugins.sign_networks import SignNetwork, SignVotes
from harness_plugins.sign_training import Course, trained

DataName = Literal["cifar10", "mnist", "stl10", "imagenet", "gtsrb", "celeba"]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True)
class Preset:
    """What the papers' scripts use for a data set."""

    features: int = 256
    share: float = 0.75
    step: float = 0.17


PRESETS: Mapping[DataName, Preset] = {
    "cifar10": Preset(features=128),
    "mnist": Preset(features=64),
    "stl10": Preset(),
    "imagenet": Preset(),
    "gtsrb": Preset(share=0.25, step=0.1),
    "celeba": Preset(),
}


@dataclass(frozen=True)
class Options:
    """What SCD01 and MLP01 have both; what is none is the preset's.

    preset:     the papers' settings for a data set, whatever the data set here is
    votes:      independent networks, of each class where there are more than two
    features:   pixels of a unit that an iteration tries, each up and down: 64 for mnist, 128 for
                cifar10, else 256, or all there are
    share:      of each class's images that an iteration looks at: .75, for gtsrb .25
    step:       by which a weight of a unit moves before the unit is scaled to length 1: .17, for
                gtsrb .1
    iterations: of each network: 500 for scd01, 50 for each unit of mlp01, and 1000 at least
    window:     how many ranks from the current cut the candidates' cuts may be; 0: anywhere. The
                papers' is 20, their supplement's 10; it costs ten times the time here
    objective:  accuracy (unbalanced), the mean of the classes' accuracies (balanced), their sum
                (sum), or balanced and then their sum (scheduled); auto is unbalanced for two
                classes and scheduled for more
    balanced:   the share of the iterations that `scheduled` begins with; without effect elsewhere
    """

    preset: DataName = "cifar10"
    votes: Annotated[int, Ge(1)] = 1
    features: Annotated[int, Ge(1)] | None = None
    share: Share | None = None
    step: Positive | None = None
    iterations: Annotated[int, Ge(1)] | None = None
    window: Annotated[int, Ge(0)] = 0
    objective: Literal["auto", "unbalanced", "balanced", "sum", "scheduled"] = "auto"
    balanced: Share = 0.2


@dataclass(frozen=True)
class MLP01(Options):
    """A hidden layer of sign units, each and the output's weights of length 1.

    units:       of the hidden layer
    output_step: by which a weight of the output moves
    init:        median: units start with half of the images on; code: as in the published code
    activation:  what units put out: 0 or 1, or −1 or 1
    """

    units: Annotated[int, Ge(1)] = 20
    output_step: Annotated[float, Ge(1e-3)] = 0.2
    init: Literal["median", "code"] = "median"
    activation: Literal["01", "sign"] = "01"

    def build(self, info: Info) -> nn.Module:
        return SignVotes(_blank(info, self.votes, self.units, self.low))

    @property
    def low(self) -> Literal[0, -1]:
        return 0 if self.activation == "01" else -1

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        iterations = self.iterations or max(1000, 50 * self.units)
        rule = replace(
            _rule(self, data.info),
            units=self.units,
            output_step=self.output_step,
            init=self.init,
            low=self.low,
        )
        course = _course(self, data.info, iterations)
        return SignVotes(trained(data, run, self.votes, rule, course))


@dataclass(frozen=True)
class SCD01(Options):
    """A linear classifier."""

    def parts(self, info: Info) -> tuple[str, ...]:
        """Votes, and one against the rest, are no linear classifier any more."""
        alone = self.votes == 1 and info.classes == 2
        return ("sign_network", "linear") if alone else ("sign_network",)

    def build(self, info: Info) -> nn.Module:
        return SignVotes(_blank(info, self.votes, 1, 0))

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        course = _course(self, data.info, self.iterations or 500)
        return SignVotes(trained(data, run, self.votes, _rule(self, data.info), course))


def _rule(options: Options, info: Info) -> Rule:
    """What both have, for a linear classifier. Raises UsageError for features there are not."""
    preset, (c, h, w) = PRESETS[options.preset], info.shape
    if options.features and options.features > c * h * w:
        raise UsageError(
            f"features={options.features} of an iteration: the images have {c * h * w} pixels; "
            "give no more than that"
        )
    return Rule(
        units=0,
        features=options.features or min(preset.features, c * h * w),
        share=options.share or preset.share,
        step=options.step or preset.step,
        output_step=1.0,
        window=options.window or None,
        init="median",
        low=0,
    )


def _course(options: Options, info: Info, iterations: int) -> Course:
    auto: Literal["unbalanced", "scheduled"] = "unbalanced" if info.classes == 2 else "scheduled"
    objective = auto if options.objective == "auto" else options.objective
    if objective == "scheduled":
        return Course(iterations, "balanced", "sum", options.balanced)
    return Course(iterations, objective, objective, 0.0)


def _blank(info: Info, votes: int, units: int, low: Literal[0, -1]) -> SignNetwork:
    """Networks of the right shapes."""
    labels = [1] if info.classes == 2 else range(info.classes)
    c, h, w = info.shape
    v = len(labels) * votes
    return SignNetwork(
        hidden=torch.zeros(v, units, c * h * w),
        thresholds=torch.zeros(v, units),
        output=torch.zeros(v, units),
        bias=torch.zeros(v),
        votes_for=torch.tensor(labels).repeat_interleave(votes),
        classes=info.classes,
        low=low,
    )
