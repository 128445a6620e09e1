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

_SHORT_FOR_AVERAGES = {
    "lenet": "the 01-loss papers' LeNet, undefended, trained on 80 % of the images",
    "simplenet": "the 01-loss papers' SimpleNet80, undefended, trained on 80 % of the images",
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
        "at-fgsm",
        "harness_plugins.defenses.at_fgsm:FGSMTraining",
        summary="trained on clean images and on those of one step of FGSM",
        paper="arXiv:1412.6572",
    )
    yield ModelSpec(
        "trades",
        "harness_plugins.defenses.trades:Trades",
        summary="cross-entropy, and answers that an adversary cannot change much",
        paper="arXiv:1901.08573",
    )
    yield ModelSpec(
        "vat",
        "harness_plugins.defenses.vat:VirtualAdversarialTraining",
        summary="virtual adversarial training: flat where the answers change most",
        paper="arXiv:1507.00677",
    )
    yield ModelSpec(
        "margin",
        "harness_plugins.defenses.margin:MarginMaximization",
        summary="deep margin maximization: a hinge, and scores that change little with the input",
        paper="Matyasko and Chau, 2017, Margin maximization for robust classification, IJCNN",
    )
    yield ModelSpec(
        "critic",
        "harness_plugins.defenses.critic:AdversaryCritic",
        summary="adversary critic: what fools the classifier is to fool a second network too",
        paper="arXiv:1810.12576",
    )
    yield ModelSpec(
        "checkpoint",
        "harness_plugins.defenses.checkpoint:Checkpoint",
        summary="weights from a file, loaded into a named architecture",
    )
    yield from _votes()
    yield ModelSpec(
        "svm",
        "harness_plugins.defenses.svm:SVM",
        summary="linear support vector machines by scikit-learn, undefended",
        parts=("linear",),
    )
    yield ModelSpec(
        "scd01",
        "harness_plugins.defenses.zero_one:SCD01",
        summary="linear classifiers trained with the 01 loss; several vote",
        paper="arXiv:2002.03444",
        offers="scores",
        surrogate=True,
        parts=("sign_network", "linear"),
        parts_vary=True,
    )
    yield ModelSpec(
        "mlp01",
        "harness_plugins.defenses.zero_one:MLP01",
        summary="a hidden layer of sign units trained with the 01 loss; several networks vote",
        paper="arXiv:2008.09148",
        offers="scores",
        surrogate=True,
        parts=("sign_network",),
    )
    yield ModelSpec(
        "bnn",
        "harness_plugins.defenses.bnn:BNN",
        summary="binary weights and sign units, one network or a majority vote",
        paper="arXiv:1602.02830",
        offers="scores",
        surrogate=True,
    )
    for name, (summary, paper) in _SHORT_NAMES.items():
        factory = "harness_plugins.defenses.standard:Standard"
        yield ModelSpec(name, factory, 1, summary, paper, short_for=f"standard:arch={name}")
    for name, summary in _SHORT_FOR_AVERAGES.items():
        factory = "harness_plugins.defenses.ensembles:Average"
        yield ModelSpec(name, factory, 1, summary, short_for=f"average:arch={name}")


def _votes() -> Iterator[ModelSpec]:
    """Networks that vote softly, with gradients, and the same ones by majority, without."""
    yield ModelSpec(
        "average",
        "harness_plugins.defenses.ensembles:Average",
        summary="undefended networks whose probabilities are averaged",
    )
    yield ModelSpec(
        "majority",
        "harness_plugins.defenses.ensembles:Majority",
        summary="undefended networks, each with one vote",
        offers="scores",
        surrogate=True,
    )
    yield ModelSpec(
        "sklearn-mlp",
        "harness_plugins.defenses.sklearn_mlp:SklearnMLP",
        summary="logistic units trained by scikit-learn, undefended; several: averaged",
    )
    yield ModelSpec(
        "sklearn-mlp-majority",
        "harness_plugins.defenses.sklearn_mlp:SklearnMajority",
        summary="several sklearn-mlp, each with one vote",
        offers="scores",
        surrogate=True,
    )
