"""Transfer: images made on one model, judged on another.

Papernot et al., 2016, arXiv:1605.07277, section 3. Which norms it supports and whether it has a
budget is the inner attack's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from harness.api import Attack, Rng, Target, Threat
from harness.plugin import AttackRef, ModelRef, ref


@dataclass(frozen=True)
class Transfer:
    """Images of an attack on the source, never asking the model that is judged.

    Nobody leaves the batch there, so samples that the source misclassifies are perturbed too, as in
    the papers' tables; where the source is the judged model, this is the attack itself.

    source: the model that the images are made on
    attack: what makes them
    """

    source: Annotated[Target, ModelRef()]
    attack: Annotated[Attack, AttackRef()] = ref("fgsm")

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        return self.attack(self.source, x, y, threat, rng)
