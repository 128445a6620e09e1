"""Attacks that come with the harness. Importing this imports no torch: specs name the rest."""

from __future__ import annotations

from collections.abc import Iterator

from harness.plugin import CORRUPTION, NORMS, AttackSpec, hookimpl


@hookimpl
def harness_attacks() -> Iterator[AttackSpec]:
    yield AttackSpec(
        "fgsm",
        "harness_plugins.attacks.pgd:FGSM",
        summary="one step of length eps up the loss",
        paper="arXiv:1412.6572",
        norms=("Linf", "L2", "L1"),
        deterministic=True,
    )
    yield AttackSpec(
        "bim",
        "harness_plugins.attacks.pgd:BIM",
        summary="projected gradient descent from the clean image",
        paper="arXiv:1607.02533",
        norms=("Linf", "L2", "L1"),
        deterministic=True,
    )
    yield AttackSpec(
        "pgd",
        "harness_plugins.attacks.pgd:PGD",
        summary="projected gradient descent from a random start",
        paper="arXiv:1706.06083",
        norms=("Linf", "L2", "L1"),
    )
    yield AttackSpec(
        "gaussian_noise",
        "harness_plugins.attacks.noise:GaussianNoise",
        summary="Gaussian noise of standard deviation σ, clipped to the box: a corruption",
        norms=(CORRUPTION,),
        needs="labels",
    )
    yield AttackSpec(
        "uniform_noise",
        "harness_plugins.attacks.noise:UniformNoise",
        summary="the first of several random points of the ball that is misclassified",
        norms=NORMS,
        needs="labels",
    )
