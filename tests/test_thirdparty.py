"""The example of the author's guide, held to the contracts it is an example of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from harness.api import Info, Run, StreamRng, Target, Threat, TrainingSet
from harness.target import Ledger, Source
from harness_plugins.architectures import Linear
from harness_plugins.defenses.standard import Standard

GOOD = Path(__file__).parent / "thirdparty" / "good"
INFO = Info(shape=(1, 8, 8), classes=10, train=1500)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    x = torch.from_numpy((data.images[:, None] / 16).astype(np.float32))
    return TrainingSet(INFO, x, torch.from_numpy(data.target))


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(GOOD))
    from harness_example import attack, defense

    return attack, defense


def test_the_defense_learns_and_its_state_fits_what_build_gives(example, digits):
    _, defense = example
    recipe = defense.BitDepth(Standard(arch=Linear(), epochs=20, lr=0.01))
    done = []
    run = Run(0, torch.device("cpu"), lambda *progress: done.append(progress))
    torch.manual_seed(0)
    net = recipe.fit(TrainingSet(INFO, digits.x[:1500], digits.y[:1500]), run)
    assert done[-1] == (300, 300)  # 20 epochs of 15 batches

    again = recipe.build(INFO)
    again.load_state_dict(net.state_dict())
    x, y = digits.x[1500:], digits.y[1500:]
    assert torch.equal(again(x), net(x))
    assert (net(x).argmax(1) == y).float().mean() > 0.85


def test_the_defense_rounds_to_eight_levels_and_its_surrogate_does_not(example):
    _, defense = example
    net = defense.BitDepth(Standard(arch=Linear())).build(INFO)
    levels = torch.randint(8, (4, 1, 8, 8)) / 7
    off = (levels + 0.4 / 7).clamp(0, 1).requires_grad_()
    torch.testing.assert_close(net(off), net.surrogate()(levels))
    (shattered,) = torch.autograd.grad(net(off).sum(), off)
    (smooth,) = torch.autograd.grad(net.surrogate()(off)[:, 0].sum(), off)
    assert not shattered.any()
    assert smooth.any()


class Sign(torch.nn.Module):
    """Class 1 where the mean is above 1/2: of a corner, where most signs are +."""

    def forward(self, x):
        z = x.flatten(1).mean(1) - 0.5
        return torch.stack([-z, z], dim=1)


def test_the_attack_keeps_the_first_corner_that_fools(example):
    attack, _ = example
    x = torch.full((40, 1, 3, 3), 0.4)  # the corner's mean must rise by 0.1 = eps / 2: 7 of 9 signs
    y = torch.zeros(40, dtype=torch.long)
    threat = Threat("Linf", 0.2)
    ledger = Ledger(40)
    source = Source(Sign(), classes=2, chunk=512)
    target = Target(source, "labels", ledger, np.arange(40), np.ones(40, np.int64))
    rng = StreamRng.keyed(0, n=40)

    x_adv = attack.RandomCorners(tries=5)(target, x, y, threat, rng)

    fooled = Sign()(x_adv).argmax(1) == 1
    assert threat.allows(x_adv, x).all()
    torch.testing.assert_close((x_adv - x)[fooled].abs(), torch.full_like(x[fooled], 0.2))
    assert torch.equal(x_adv[~fooled], x[~fooled])
    # P(7 or more of 9 signs) = 46/512; five tries: 1 − (1 − 46/512)^5 = 0.375
    assert 5 <= fooled.sum() <= 26
    assert (ledger.forward[~fooled.numpy()] == 5).all()
    assert (ledger.forward[fooled.numpy()] < 5).any()
