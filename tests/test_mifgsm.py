"""MI-FGSM: ART's, image by image; BIM without momentum; a plain loop; leaving."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attack_kit import draws, grey, judged, small
from torch import nn

from harness.api import Threat
from harness.target import Target
from harness_plugins.attacks.mifgsm import MIFGSM
from harness_plugins.attacks.pgd import BIM

BUDGETS = [("Linf", 0.1), ("L2", 0.8)]


net = pytest.fixture(small)


@pytest.fixture
def images():
    """Inside the box by more than any budget here, so that it is never met."""
    return grey(16, (1, 8, 8))


@pytest.mark.parametrize(("norm", "eps"), BUDGETS)
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_is_arts(norm, eps, decay, net, images):
    pytest.importorskip("art", reason="adversarial-robustness-toolbox is not installed")
    from art.attacks.evasion import MomentumIterativeMethod
    from art.estimators.classification import PyTorchClassifier

    y = net(images).argmax(dim=1)
    classifier = PyTorchClassifier(
        net, nn.CrossEntropyLoss(), (1, 8, 8), 5, clip_values=(0, 1), device_type="cpu"
    )
    theirs = MomentumIterativeMethod(
        classifier,
        norm={"Linf": np.inf, "L2": 2}[norm],
        eps=eps,
        eps_step=eps / 12,
        decay=decay,
        max_iter=12,
        verbose=False,
    ).generate(images.numpy(), y.numpy())
    attack = MIFGSM(steps=12, decay=decay)
    ours = attack(Target.around(net, 5), images, y, Threat(norm, eps), draws(16))
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("norm", "eps"), BUDGETS)
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_without_decay_it_is_bim_with_steps_of_eps_over_their_number(norm, eps, loss, net, images):
    y, threat = net(images).argmax(dim=1), Threat(norm, eps)
    for target in (Target.around(net, 5), judged(net, 16)):
        ours = MIFGSM(decay=0.0, loss=loss)(target, images, y, threat, draws(16))
        theirs = BIM(steps=10, rel_step=0.1, loss=loss)(target, images, y, threat, draws(16))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


class Kink(nn.Module):
    """The gradient of the first entry is 3 until it is above 0.55, then −1; of the second, 1."""

    def forward(self, x):
        a, b = x.flatten(1)[:, 0], x.flatten(1)[:, 1]
        z = torch.where(a < 0.55, 3 * (a - 0.55), 0.55 - a) + b
        return torch.stack([torch.zeros_like(z), z], dim=1)


def test_momentum_outlasts_a_turn_of_the_gradient():
    """By hand, with y = 0 and the margin, steps of 0.1: gradients over their L1 norms are
    (3/4, 1/4), then (−1/2, 1/2). With decay 1 the sum of the first two is (1/4, 3/4) and the third
    (−1/4, 5/4): the first entry goes up twice, then down. With a decay of 0.1 it turns at once."""
    x = torch.tensor([0.5, 0.2]).view(1, 1, 1, 2)
    y, threat = torch.zeros(1, dtype=torch.long), Threat("Linf", 0.3)
    for decay, first in ((1.0, 0.6), (0.1, 0.4 + 0.1)):
        attack = MIFGSM(steps=3, decay=decay, loss="margin")
        x_adv = attack(Target.around(Kink(), 2), x, y, threat, draws(1)).flatten()
        torch.testing.assert_close(x_adv, torch.tensor([first + 0.1 * (decay < 1), 0.5]))


def test_samples_that_are_fooled_leave_and_change_nothing(net, images):
    y, threat = net(images).argmax(dim=1), Threat("Linf", 0.03)
    target = judged(net, 16)
    left = MIFGSM()(target, images, y, threat, draws(16))
    stayed = MIFGSM()(Target.around(net, 5), images, y, threat, draws(16))
    out = target.ledger.forward < 10
    assert 2 < out.sum() < 15
    fooled = net(left).argmax(dim=1) != y
    assert fooled[torch.from_numpy(out)].all()
    assert torch.equal(left[~fooled], stayed[~fooled])
    at = torch.tensor([9, 4, 13])
    few = MIFGSM()(judged(net, 16).at(at), images[at], y[at], threat, draws(16).at(at))
    assert torch.equal(few, left[at])


@pytest.mark.parametrize(("norm", "eps"), BUDGETS)
def test_keeps_to_ball_and_box(norm, eps, net, images):
    x = (4 * (images - 0.5) + 0.5).round()
    y, threat = net(x).argmax(dim=1), Threat(norm, eps)
    x_adv = MIFGSM()(judged(net, 16), x, y, threat, draws(16))
    assert threat.allows(x_adv, x).all()
    assert (x_adv != x).any()


class Odd(nn.Module):
    """Passes back a useless gradient for the first `entries` of images with a dark first pixel."""

    def __init__(self, net, value, entries=64):
        super().__init__()
        self.net, self.value, self.entries = net, value, entries

    def forward(self, x):
        if x.requires_grad:
            dark = x.detach()[:, 0, 0, 0] < 0.1
            odd = (dark[:, None] & (torch.arange(64) < self.entries)).view_as(x)
            x.register_hook(lambda g: torch.where(odd, self.value, g))
        return self.net(x)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
@pytest.mark.parametrize(("norm", "eps"), BUDGETS)
def test_a_gradient_without_a_use_leaves_its_sample_where_it_is(value, norm, eps, net, images):
    images[3, 0, 0, 0] = 0.0
    y, threat = net(images).argmax(dim=1), Threat(norm, eps)
    odd = MIFGSM()(Target.around(Odd(net, value), 5), images, y, threat, draws(16))
    assert torch.equal(odd[3], images[3])
    others = torch.arange(16) != 3
    plain = MIFGSM()(Target.around(net, 5), images, y, threat, draws(16))
    assert torch.equal(odd[others], plain[others])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(("norm", "eps"), BUDGETS)
def test_an_entry_that_is_not_finite_counts_as_zero(value, norm, eps, net, images):
    images[3, 0, 0, 0] = 0.0
    y, threat = net(images).argmax(dim=1), Threat(norm, eps)
    odd, zero = (
        MIFGSM()(Target.around(Odd(net, v, entries=9), 5), images, y, threat, draws(16))
        for v in (value, 0.0)
    )
    assert torch.equal(odd, zero)
    assert (odd[3] != images[3]).any()
