"""ART's evasion attacks that take images and a classifier. Imports neither ART nor torch."""

from __future__ import annotations

from typing import Any

from harness.plugin import NORMS
from harness_plugins.adapters.members import FIXED, Instead, Member

_ALL = ("Linf", "L2", "L1")
_L2 = ("L2",)
_ALL_OF_IT = Instead(float | None, None, "length of the first step; eps where it is none")
_STEP = Instead(float | None, None, "length of a step; 2.5 eps / max_iter where it is none")
_DE = {"es": 1}  # differential evolution; CMA-ES, es=0, needs the undeclared package `cma`
_OUTPUT = {"layer": -1}  # the scores: the only representation that a target shows
_NUMBA = (("numba", "numba"),)
_THREE = 3  # classes: two are refused as one output, or a loss looks for the third score

ART_REQUIRES = ("adversarial-robustness-toolbox", "robustness-harness[art]")


def _steps(file: str, summary: str, norms: tuple[str, ...] = _ALL, **more: Any) -> Member:
    """A fixed-budget attack of ART's that takes steps of a given length."""
    return Member(file, summary, norms, FIXED, step="reach", instead={"eps_step": _STEP}, **more)


def _auto(file: str, summary: str, **more: Any) -> Member:
    instead = {"eps_step": _ALL_OF_IT}
    return Member(file, summary, _ALL, FIXED, step="all", classes=_THREE, instead=instead, **more)


_PGD = "attacks/evasion/projected_gradient_descent/projected_gradient_descent"
_PIXEL = "attacks/evasion/pixel_threshold.py"
_FEATURE = "attacks/evasion/feature_adversaries/feature_adversaries"
_CARLINI = "attacks/evasion/carlini.py"
_EVASION = "attacks/evasion"

ART: dict[str, Member] = {
    "AutoAttack": _auto(
        f"{_EVASION}/auto_attack.py",
        "ART's own line-up: APGD with two losses, DeepFool, Square",
        paper="arXiv:2003.01690",
        withheld=("attacks", "parallel_pool_size"),
        requires=(("multiprocess", "multiprocess"),),
    ),
    "AutoConjugateGradient": _auto(
        f"{_EVASION}/auto_conjugate_gradient.py",
        "conjugate gradients with the steps of APGD",
        paper="arXiv:2206.09628",
    ),
    "AutoProjectedGradientDescent": _auto(
        f"{_EVASION}/auto_projected_gradient_descent.py",
        "projected gradient descent that chooses its steps",
        paper="arXiv:2003.01690",
    ),
    "BasicIterativeMethod": _steps(
        f"{_EVASION}/iterative_method.py",
        "projected gradient descent from the clean image",
        ("Linf",),
        paper="arXiv:1607.02533",
        deterministic=True,
    ),
    "BoundaryAttack": Member(
        f"{_EVASION}/boundary.py",
        "a walk along the boundary, by labels",
        _L2,
        needs="labels",
        paper="arXiv:1712.04248",
    ),
    "BrendelBethgeAttack": Member(
        f"{_EVASION}/brendel_bethge.py",
        "along the boundary by gradients, from an adversarial start",
        NORMS,
        paper="arXiv:1907.01003",
        alone=True,
        requires=_NUMBA,
    ),
    "CarliniL0Method": Member(
        _CARLINI,
        "Carlini and Wagner's L0 attack: L2 on fewer and fewer pixels",
        ("L0",),
        paper="arXiv:1608.04644",
        deterministic=True,
        withheld=("mask",),
    ),
    "CarliniL2Method": Member(
        _CARLINI,
        "Carlini and Wagner's L2 attack",
        _L2,
        paper="arXiv:1608.04644",
        deterministic=True,
    ),
    "CarliniLInfMethod": Member(
        _CARLINI,
        "Carlini and Wagner's Linf attack",
        ("Linf",),
        paper="arXiv:1608.04644",
        deterministic=True,
    ),
    "DeepFool": Member(
        f"{_EVASION}/deepfool.py",
        "to the nearest boundary of the linearised model, again and again",
        _L2,
        paper="arXiv:1511.04599",
        deterministic=True,
    ),
    "ElasticNet": Member(
        f"{_EVASION}/elastic_net.py",
        "Carlini and Wagner's loss with an L1 term",
        ("L1", "L2"),
        paper="arXiv:1709.04114",
        deterministic=True,
    ),
    "FastGradientMethod": Member(
        f"{_EVASION}/fast_gradient.py",
        "one step of length eps up the loss",
        _ALL,
        FIXED,
        paper="arXiv:1412.6572",
        withheld=("eps_step", "minimal"),
    ),
    "FeatureAdversariesNumpy": Member(
        f"{_FEATURE}_numpy.py",
        "towards a guide's scores, by scores alone",
        ("Linf",),
        FIXED,
        needs="scores",
        paper="arXiv:1511.05122",
        budget="delta",
        fixed=_OUTPUT,
    ),
    "FeatureAdversariesPyTorch": Member(
        f"{_FEATURE}_pytorch.py",
        "towards a guide's scores",
        ("Linf",),
        FIXED,
        paper="arXiv:1511.05122",
        budget="delta",
        step="reach",
        fixed=_OUTPUT,
        withheld=("optimizer", "optimizer_kwargs"),
        instead={"step_size": _STEP},
    ),
    "GeoDA": Member(
        f"{_EVASION}/geometric_decision_based_attack.py",
        "the boundary's normal in a subspace of low frequencies, by labels",
        ("L2", "Linf", "L1"),
        needs="labels",
        paper="arXiv:2003.06468",
    ),
    "HopSkipJump": Member(
        f"{_EVASION}/hop_skip_jump.py",
        "the boundary's normal estimated by labels",
        ("L2", "Linf"),
        needs="labels",
        paper="arXiv:1904.02144",
    ),
    "MomentumIterativeMethod": _steps(
        f"{_EVASION}/momentum_iterative_method.py",
        "projected gradient descent with momentum",
        paper="arXiv:1710.06081",
        deterministic=True,
    ),
    "NewtonFool": Member(
        f"{_EVASION}/newtonfool.py",
        "down the label's probability by Newton's steps",
        _L2,
        asks="probabilities",
        deterministic=True,
    ),
    "PixelAttack": Member(
        _PIXEL,
        "the fewest pixels, by differential evolution",
        ("L0",),
        needs="scores",
        paper="arXiv:1710.08864",
        asks="probabilities",
        classes=_THREE,
        fixed=_DE,
    ),
    "ProjectedGradientDescent": _steps(
        f"{_PGD}.py", "projected gradient descent", paper="arXiv:1706.06083"
    ),
    "ProjectedGradientDescentNumpy": _steps(
        f"{_PGD}_numpy.py", "projected gradient descent, in numpy", paper="arXiv:1706.06083"
    ),
    "ProjectedGradientDescentPyTorch": _steps(
        f"{_PGD}_pytorch.py", "projected gradient descent, in torch", paper="arXiv:1706.06083"
    ),
    "RescalingAutoConjugateGradient": _auto(
        f"{_EVASION}/rescaling_auto_conjugate_gradient.py",
        "conjugate gradients, rescaled, with the steps of APGD",
    ),
    "SaliencyMapMethod": Member(
        f"{_EVASION}/saliency_map.py",
        "JSMA: pairs of pixels by their saliency, towards every other class",
        ("L0",),
        paper="arXiv:1511.07528",
        deterministic=True,
    ),
    "ShadowAttack": Member(
        f"{_EVASION}/shadow_attack.py",
        "large smooth changes that keep colours; bounded by no norm",
        _L2,
        paper="arXiv:2003.08937",
        alone=True,
        instead={"batch_size": Instead(int, 400, "noisy copies that a gradient is averaged over")},
    ),
    "SignOPTAttack": Member(
        f"{_EVASION}/sign_opt.py",
        "the direction of the nearest boundary, by labels",
        _L2,
        needs="labels",
        paper="arXiv:1909.10773",
        classes=_THREE,
        withheld=("eval_perform",),
    ),
    "SimBA": Member(
        f"{_EVASION}/simba.py",
        "one pixel or one frequency at a time, by probabilities",
        _L2,
        needs="scores",
        paper="arXiv:1905.07121",
        asks="probabilities",
    ),
    "SpatialTransformation": Member(
        f"{_EVASION}/spatial_transformation.py",
        "the worst rotation and translation of a grid; bounded by no norm",
        ("L2", "Linf"),
        needs="labels",
        paper="arXiv:1712.02779",
        deterministic=True,
    ),
    "SquareAttack": Member(
        f"{_EVASION}/square_attack.py",
        "random squares, by scores",
        ("Linf", "L2"),
        FIXED,
        needs="scores",
        paper="arXiv:1912.00049",
        withheld=("adv_criterion", "loss"),
    ),
    "ThresholdAttack": Member(
        _PIXEL,
        "the least change of any pixel, by differential evolution",
        ("Linf",),
        needs="scores",
        paper="arXiv:1906.06026",
        asks="probabilities",
        classes=_THREE,
        fixed=_DE,
    ),
    "VirtualAdversarialMethod": Member(
        f"{_EVASION}/virtual_adversarial.py",
        "the direction that changes the output most, by finite differences",
        _L2,
        FIXED,
        needs="scores",
        paper="arXiv:1507.00677",
        asks="probabilities",
    ),
    "Wasserstein": Member(
        f"{_EVASION}/wasserstein.py",
        "moving brightness between pixels; its ball is of no norm here",
        ("L2", "L1"),
        paper="arXiv:1902.07906",
        withheld=("norm", "ball"),
        instead={"eps": Instead(float, 0.3, "radius of its first Wasserstein ball")},
    ),
    "ZooAttack": Member(
        f"{_EVASION}/zoo.py",
        "Carlini and Wagner's L2 attack with estimated gradients",
        _L2,
        needs="scores",
        paper="arXiv:1708.03999",
    ),
}
