"""Attacks that come with the harness. Importing this imports no torch: specs name the rest."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from harness.plugin import CORRUPTION, NORMS, AttackSpec, hookimpl

_FIXED_BUDGET = (
    AttackSpec(
        "fgsm",
        "harness_plugins.attacks.pgd:FGSM",
        summary="one step of length eps up the loss",
        paper="arXiv:1412.6572",
        norms=("Linf", "L2", "L1"),
        deterministic=True,
    ),
    AttackSpec(
        "bim",
        "harness_plugins.attacks.pgd:BIM",
        summary="projected gradient descent from the clean image",
        paper="arXiv:1607.02533",
        norms=("Linf", "L2", "L1"),
        deterministic=True,
    ),
    AttackSpec(
        "pgd",
        "harness_plugins.attacks.pgd:PGD",
        summary="projected gradient descent from a random start",
        paper="arXiv:1706.06083",
        norms=("Linf", "L2", "L1"),
    ),
    AttackSpec(
        "mifgsm",
        "harness_plugins.attacks.mifgsm:MIFGSM",
        summary="iterated steps along the gradients' momentum",
        paper="arXiv:1710.06081",
        norms=("Linf", "L2"),
        deterministic=True,
    ),
    AttackSpec(
        "slide",
        "harness_plugins.attacks.slide:SLIDE",
        summary="projected gradient descent with sparse L1 steps",
        paper="arXiv:1904.13000",
        norms=("L1",),
    ),
    AttackSpec(
        "daa",
        "harness_plugins.attacks.daa:DAA",
        summary="projected gradient descent of particles that a kernel couples",
        paper="arXiv:1808.05537",
        norms=("Linf",),
    ),
)

_minimum = partial(AttackSpec, kind="minimum-norm")
_MINIMUM_NORM = (
    _minimum(
        "deepfool",
        "harness_plugins.attacks.deepfool:DeepFool",
        summary="from one linearised decision boundary to the next",
        paper="arXiv:1511.04599",
        norms=("L2", "Linf"),
        deterministic=True,
    ),
    _minimum(
        "high_confidence",
        "harness_plugins.attacks.high_confidence:HighConfidence",
        summary="past the nearest boundary until the new class is as sure as the old one was",
        paper="arXiv:1810.12576",
        norms=("L2",),
        deterministic=True,
    ),
    _minimum(
        "sparsefool",
        "harness_plugins.attacks.sparsefool:SparseFool",
        summary="few pixels, to a boundary linearised where DeepFool ends",
        paper="arXiv:1811.02248",
        norms=("L1",),
        deterministic=True,
    ),
    _minimum(
        "cw",
        "harness_plugins.attacks.cw:CW",
        summary="Carlini and Wagner's L2 attack",
        paper="arXiv:1608.04644",
        norms=("L2",),
        deterministic=True,
    ),
    _minimum(
        "ead",
        "harness_plugins.attacks.ead:EAD",
        summary="the elastic-net attack",
        paper="arXiv:1709.04114",
        norms=("L1", "L2"),
        deterministic=True,
    ),
    _minimum(
        "lbfgs",
        "harness_plugins.attacks.lbfgs:LBFGS",
        summary="box-constrained L-BFGS with a line search on c",
        paper="arXiv:1312.6199",
        norms=("L2",),
        deterministic=True,
    ),
    _minimum(
        "ddn",
        "harness_plugins.attacks.ddn:DDN",
        summary="decoupled direction and norm",
        paper="arXiv:1811.09600",
        norms=("L2",),
        deterministic=True,
    ),
    _minimum(
        "fab",
        "harness_plugins.attacks.fab:FAB",
        summary="fast adaptive boundary: projections onto linearised boundaries",
        paper="arXiv:1907.02044",
        norms=("Linf", "L2", "L1"),
    ),
    _minimum(
        "pdgd",
        "harness_plugins.attacks.pdpgd:PDGD",
        version=2,
        summary="primal-dual gradient descent",
        paper="arXiv:2106.01538",
        norms=("L2",),
    ),
    _minimum(
        "pdpgd",
        "harness_plugins.attacks.pdpgd:PDPGD",
        summary="primal-dual proximal gradient descent",
        paper="arXiv:2106.01538",
        norms=("Linf", "L2", "L1", "L0"),
    ),
)

_DECISION = (
    _minimum(
        "hopskipjump",
        "harness_plugins.attacks.hopskipjump:HopSkipJump",
        summary="labels alone: along the boundary's normal, as random probes tell it, and back",
        paper="arXiv:1904.02144",
        norms=("L2", "Linf"),
        needs="labels",
    ),
    _minimum(
        "boundary",
        "harness_plugins.attacks.boundary:Boundary",
        summary="labels alone: a random walk along the boundary towards the image",
        paper="arXiv:1712.04248",
        norms=("L2", "Linf"),
        needs="labels",
    ),
)

_NOISE = (
    AttackSpec(
        "gaussian_noise",
        "harness_plugins.attacks.noise:GaussianNoise",
        summary="Gaussian noise of standard deviation σ, clipped to the box: a corruption",
        norms=(CORRUPTION,),
        needs="labels",
    ),
    AttackSpec(
        "uniform_noise",
        "harness_plugins.attacks.noise:UniformNoise",
        summary="the first of several random points of the ball that is misclassified",
        norms=NORMS,
        needs="labels",
    ),
)

_ZERO_ONE = (
    "Xue, Xie and Roshan, 2020, On the transferability of adversarial examples between convex and "
    "01 loss models"
)
_structure = partial(AttackSpec, norms=("Linf",), needs="labels")
_STRUCTURE = (
    _structure(
        "linear_sign",
        "harness_plugins.attacks.linear_sign:LinearSign",
        summary="the worst image of a linear model, in one step",
        paper=_ZERO_ONE,
        parts=("linear",),
        deterministic=True,
    ),
    _structure(
        "hidden_node",
        "harness_plugins.attacks.hidden_node:HiddenNode",
        summary="across the hyperplane of one sign unit after the other",
        paper=_ZERO_ONE,
        parts=("sign_network",),
    ),
    _structure(
        "sign_search",
        "harness_plugins.attacks.sign_search:SignSearch",
        summary="exact or near-exact search on the structure of a sign network",
        parts=("sign_network",),
    ),
)

_SCORES = (
    AttackSpec(
        "square",
        "harness_plugins.attacks.square:Square",
        summary="random search: small squares to the ends of the ball, by scores",
        paper="arXiv:1912.00049",
        norms=("Linf", "L2"),
        needs="scores",
    ),
    _minimum(
        "simba",
        "harness_plugins.attacks.simba:SimBA",
        summary="one pixel after the other, by scores",
        paper="arXiv:1905.07121",
        norms=("L2",),
        needs="scores",
    ),
)

_TRANSFER = AttackSpec(
    "transfer",
    "harness_plugins.attacks.transfer:Transfer",
    summary="made on another model by another attack",
    paper="arXiv:1605.07277",
    norms=NORMS,
    needs="labels",
    like="attack",
)
_SUBSTITUTE = AttackSpec(
    "substitute",
    "harness_plugins.attacks.substitute:Substitute",
    summary="made on a network that has learnt the target's labels",
    paper="arXiv:1602.02697",
    norms=NORMS,
    needs="labels",
    prepares=True,
    seed_points=200,
    like="attack",
)


@hookimpl
def harness_attacks() -> Iterator[AttackSpec]:
    yield from (*_FIXED_BUDGET, *_MINIMUM_NORM, *_DECISION, *_SCORES, *_NOISE, *_STRUCTURE)
    yield from (_TRANSFER, _SUBSTITUTE)
