"""The referee: what an attack proposed, checked against the model and the threat model.

Nothing that an attack says of itself is used. For every returned image the shape, the type, the
box and the ball are checked, the distances recomputed in float64 and the label re-predicted by a
fresh pass in eval mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.eightbit import to_eight_bit
from harness.errors import PluginError
from harness.geometry import distances
from harness.outcome import ABSOLUTE_SLACK, RELATIVE_SLACK, Outcome
from harness.plugin import NORMS
from harness.predict import Predictor
from harness.threat import Threat

ALONE = 32  # samples of a cell whose label is predicted once more, alone


@dataclass(frozen=True)
class Samples:
    """Images as the referee knows them: x (n, c, h, w), labels y, labels `clean` predicted on x,
    all (n,), their ids, and `wanted`, the label to reach where the threat is targeted."""

    x: Tensor
    y: Tensor
    clean: Tensor
    ids: Sequence[int]
    wanted: Tensor | None = None

    def fooled(self, labels: Tensor) -> Tensor:
        return labels != self.y if self.wanted is None else labels == self.wanted

    def at(self, rows: Tensor) -> Samples:
        wanted = None if self.wanted is None else self.wanted[rows]
        ids = [self.ids[i] for i in rows.tolist()]
        return Samples(self.x[rows], self.y[rows], self.clean[rows], ids, wanted)


@dataclass(frozen=True)
class Verdict:
    """Of n images: outcome uint8 (n,), label int64 (n,), distance float64 (n, 4) by `NORMS`; and
    the same of the 8-bit images, where the data is on that grid."""

    outcome: Tensor
    label: Tensor
    distance: Tensor
    label8: Tensor | None = None
    distance8: Tensor | None = None


def judge(
    predictor: Predictor, samples: Samples, x_adv: Tensor, threat: Threat, *, eight_bit: bool
) -> Verdict:
    """Judge what an attack returned for the samples.

    `threat.eps` is infinite for a minimum-norm attack. Raises PluginError where the images have
    another shape or type than the samples'.
    """
    structure(x_adv, samples.x)
    x_adv = x_adv.detach().contiguous()
    distance = distances(torch.where(torch.isfinite(x_adv), x_adv, torch.inf), samples.x)
    outcome = _validity(x_adv, distance, threat)
    legal = outcome == Outcome.ROBUST
    counted = torch.where(legal.view(-1, 1, 1, 1), x_adv, samples.x)
    label = torch.where(legal, predictor.labels(counted, samples.ids), samples.clean)
    outcome[legal & samples.fooled(label)] = Outcome.ADVERSARIAL
    verdict = Verdict(outcome, label, distance)
    if not eight_bit:
        return verdict
    rounded = to_eight_bit(counted, samples.x, threat.norm, threat.eps)
    return replace(
        verdict,
        label8=predictor.labels(rounded, samples.ids),
        distance8=distances(rounded, samples.x),
    )


def unstable(predictor: Predictor, samples: Samples, x_adv: Tensor, label: Tensor) -> Tensor:
    """Positions among the first `ALONE` samples whose image, alone, has another label, int64."""
    few = range(min(ALONE, len(x_adv)))
    alone = [predictor.labels(x_adv[i : i + 1], samples.ids[i : i + 1]) for i in few]
    if not alone:
        return torch.zeros(0, dtype=torch.int64)
    return (torch.cat(alone) != label[: len(alone)]).nonzero()[:, 0]


def structure(x_adv: Tensor, x: Tensor) -> None:
    """Raise PluginError where what an attack returned is no batch of images like x."""
    if not isinstance(x_adv, Tensor):
        raise PluginError(f"the attack returned {type(x_adv).__name__}, not a tensor")
    told = (tuple(x_adv.shape), x_adv.dtype, x_adv.device.type)
    asked = (tuple(x.shape), x.dtype, x.device.type)
    for what, got, right in zip(("shape", "type", "device"), told, asked, strict=True):
        if got != right:
            raise PluginError(f"the attack returned images of {what} {got}, not {right}")


def _validity(x_adv: Tensor, distance: Tensor, threat: Threat) -> Tensor:
    """ROBUST for images that keep to the rules, else what they break, uint8 (n,)."""
    outcome = torch.full((len(x_adv),), int(Outcome.ROBUST), dtype=torch.uint8, device=x_adv.device)
    if threat.norm in NORMS:
        most = 0.0 if threat.eps == 0 else threat.eps * (1 + RELATIVE_SLACK) + ABSOLUTE_SLACK
        outcome[distance[:, NORMS.index(threat.norm)] > most] = Outcome.OUT_OF_BALL
    inside = ((x_adv >= threat.low) & (x_adv <= threat.high)).flatten(1).all(dim=1)
    outcome[~inside] = Outcome.OUT_OF_BOX
    outcome[~torch.isfinite(x_adv).flatten(1).all(dim=1)] = Outcome.NOT_FINITE
    return outcome
