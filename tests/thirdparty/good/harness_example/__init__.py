"""What this package brings. It names its classes as text, so that listing them imports no torch."""

from collections.abc import Iterator

from harness.plugin import AttackSpec, ModelSpec, hookimpl


@hookimpl
def harness_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        "bit-depth",
        "harness_example.defense:BitDepth",
        summary="pixels rounded to eight levels, then another model",
        paper="arXiv:1704.01155",
        offers="scores",
        surrogate=True,
    )


@hookimpl
def harness_attacks() -> Iterator[AttackSpec]:
    yield AttackSpec(
        "random-corners",
        "harness_example.attack:RandomCorners",
        summary="the first of several random corners of the ball that is misclassified",
        norms=("Linf",),
        needs="labels",
    )
