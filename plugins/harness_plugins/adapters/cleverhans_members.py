"""The functions of `cleverhans.torch.attacks`. Imports neither CleverHans nor torch."""

from __future__ import annotations

from harness.plugin import NORMS
from harness_plugins.adapters.members import FIXED, Instead, Member

CLEVERHANS_REQUIRES = ("cleverhans", "robustness-harness[cleverhans]")

_L2 = ("L2",)
_CH = "torch/attacks"
_NB_ITER = Instead(int, 40, "steps")
_EPS_ITER = Instead(float | None, None, "length of a step; 2.5 eps / nb_iter where it is none")

CLEVERHANS: dict[str, Member] = {
    "carlini_wagner_l2": Member(
        f"{_CH}/carlini_wagner_l2.py",
        "Carlini and Wagner's L2 attack",
        _L2,
        paper="arXiv:1608.04644",
        deterministic=True,
        instead={
            "confidence": Instead(float, 0.0, "how far beyond the boundary the scores must be")
        },
    ),
    "fast_gradient_method": Member(
        f"{_CH}/fast_gradient_method.py",
        "one step of length eps up the loss",
        ("Linf", "L2", "L1"),
        FIXED,
        paper="arXiv:1412.6572",
        deterministic=True,
    ),
    "hop_skip_jump_attack": Member(
        f"{_CH}/hop_skip_jump_attack.py",
        "the boundary's normal estimated by labels",
        ("L2", "Linf"),
        needs="labels",
        paper="arXiv:1904.02144",
    ),
    "noise": Member(
        f"{_CH}/noise.py", "one random point of the ball", ("Linf",), FIXED, needs="labels"
    ),
    "projected_gradient_descent": Member(
        f"{_CH}/projected_gradient_descent.py",
        "projected gradient descent from a random start",
        ("Linf", "L2"),
        FIXED,
        paper="arXiv:1706.06083",
        step="reach",
        instead={
            "nb_iter": _NB_ITER,
            "eps_iter": _EPS_ITER,
            "rand_minmax": Instead(float | None, None, "reach of the random start; eps where none"),
        },
    ),
    "semantic": Member(
        f"{_CH}/semantic.py",
        "the negative of the image; broken in 4.0.0, which reads a name that it never defines",
        NORMS,
        needs="labels",
        paper="arXiv:1703.06857",
        deterministic=True,
        requires=(("cleverhans>4.0.0", ""),),
    ),
    "sparse_l1_descent": Member(
        f"{_CH}/sparse_l1_descent.py",
        "projected gradient descent in L1 with sparse steps",
        ("L1",),
        FIXED,
        paper="arXiv:1904.13000",
        step="reach",
        instead={
            "eps_iter": _EPS_ITER,
            "grad_sparsity": Instead(float, 99.0, "share of the entries that a step leaves, in %"),
        },
    ),
    "spsa": Member(
        f"{_CH}/spsa.py",
        "gradients estimated from random differences of scores",
        ("Linf", "L2"),
        FIXED,
        needs="scores",
        paper="arXiv:1802.05666",
        instead={
            "nb_iter": _NB_ITER,
            "early_stop_loss_threshold": Instead(
                float | None, None, "the loss at which it ends; never where it is none"
            ),
        },
    ),
}
