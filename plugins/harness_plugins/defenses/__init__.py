"""Defenses that come with the harness. Importing this imports no torch: specs name the rest."""

from __future__ import annotations

from collections.abc import Iterator

from harness.plugin import ModelSpec, hookimpl

_SHORT_NAMES = {
    "linear": ("one linear map from pixels to scores, undefended", ""),
    "mlp": ("fully connected network, undefended", ""),
    "lenet5": ("LeNet-5 with 32 and 64 maps and 512 units, undefended", "doi:10.1109/5.726791"),
    "smallconv": ("convolutional network for images from 4x4, undefended", ""),
}


@hookimpl
def harness_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        "standard",
        "harness_plugins.defenses.standard:Standard",
        summary="no defense: trained with cross-entropy",
    )
    yield ModelSpec(
        "dropout",
        "harness_plugins.defenses.dropout:Dropout",
        summary="trained with cross-entropy while hidden units are dropped at random",
        paper="https://jmlr.org/papers/v15/srivastava14a.html",
    )
    yield ModelSpec(
        "at",
        "harness_plugins.defenses.at:AdversarialTraining",
        summary="trained on the adversarial images of an inner attack",
        paper="arXiv:1706.06083",
    )
    yield ModelSpec(
        "checkpoint",
        "harness_plugins.defenses.checkpoint:Checkpoint",
        summary="weights from a file, loaded into a named architecture",
    )
    for name, (summary, paper) in _SHORT_NAMES.items():
        factory = "harness_plugins.defenses.standard:Standard"
        yield ModelSpec(name, factory, 1, summary, paper, short_for=f"standard:arch={name}")
