"""Other libraries' attacks, called alike: (net, x, y) to adversarial images.

CleverHans and ART are extras of this project; foolbox and adv-lib are peers for the benchmarks
alone:

    python -m pip install foolbox==3.3.4
    python -m pip install --no-deps adv-lib==0.2.8

adv-lib imports visdom and torchvision for plots and pretrained networks; they are put aside here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor, nn

Peer = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Counting(nn.Module):
    """A network that counts the images of its forward and backward passes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.forward_images = self.backward_images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forward_images += len(x)
        scores: Tensor = self.net(x)
        if scores.requires_grad:
            scores.register_hook(self._count)
        return scores

    def _count(self, gradient: Tensor) -> None:
        self.backward_images += len(gradient)


def foolbox(name: str, **options: object) -> Peer:
    """A minimum-norm attack of `foolbox.attacks`, untargeted."""

    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import foolbox as fb

        model = fb.PyTorchModel(net, bounds=(0, 1), device="cpu")
        _, found, _ = getattr(fb.attacks, name)(**options)(model, x, y, epsilons=None)
        return found

    return run


def foolbox_within(name: str, eps: float, **options: object) -> Peer:
    """A fixed-budget one."""

    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import foolbox as fb

        model = fb.PyTorchModel(net, bounds=(0, 1), device="cpu")
        _, found, _ = getattr(fb.attacks, name)(**options)(model, x, y, epsilons=eps)
        return found

    return run


def advlib(name: str, **options: object) -> Peer:
    """A function of `adv_lib.attacks`."""

    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        for module in ("visdom", "torchvision", "torchvision.models"):
            sys.modules.setdefault(module, MagicMock())
        from adv_lib import attacks

        return getattr(attacks, name)(net, x, y, **options).detach()

    return run


def cleverhans_cw(steps: int, search_steps: int, lr: float, c: float) -> Peer:
    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from cleverhans.torch.attacks.carlini_wagner_l2 import carlini_wagner_l2

        found = carlini_wagner_l2(
            net,
            x,
            10,
            y=y,
            lr=lr,
            initial_const=c,
            binary_search_steps=search_steps,
            max_iterations=steps,
        )
        return found.detach()

    return run


def cleverhans_pgd(eps: float, step: float, steps: int) -> Peer:
    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

        infinite = float("inf")
        return projected_gradient_descent(
            net, x, eps, step, steps, infinite, clip_min=0.0, clip_max=1.0, y=y
        ).detach()

    return run


def cleverhans_hsj(steps: int) -> Peer:
    """In L2. It leaves the label that the network gives the image."""

    def run(net: nn.Module, x: Tensor, _y: Tensor) -> Tensor:
        from cleverhans.torch.attacks.hop_skip_jump_attack import hop_skip_jump_attack

        return hop_skip_jump_attack(net, x, 2, num_iterations=steps, verbose=False)

    return run


class InFloat(nn.Module):
    """The network for ART's query attacks, which ask with doubles."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x.float())
        return scores


def art_labels(name: str, **options: object) -> Peer:
    """A query attack of ART's; see `art`."""

    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        np.random.seed(0)
        return art(name, **options)(InFloat(net).eval(), x, y)

    return run


def art(name: str, **options: object) -> Peer:
    """A class of `art.attacks.evasion`, untargeted and on one batch."""

    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        classifier = PyTorchClassifier(
            net,
            nn.CrossEntropyLoss(),
            tuple(x.shape[1:]),
            10,
            clip_values=(0, 1),
            device_type="cpu",
        )
        attack = getattr(evasion, name)(classifier, verbose=False, **options)
        return torch.from_numpy(attack.generate(x.numpy(), y=y.numpy()))

    return run


PACKAGES = {
    "foolbox": "foolbox",
    "adv-lib": "adv_lib",
    "CleverHans": "cleverhans",
    "ART": "art",
}


def installed(name: str) -> bool:
    """Whether a peer of `PACKAGES` is there."""
    return find_spec(PACKAGES[name]) is not None


def missing() -> Iterator[str]:
    """One line for each peer that is not installed."""
    return (f"{name}: not installed, not measured" for name in PACKAGES if not installed(name))
