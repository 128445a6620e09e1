"""DAA-BLOB: PGD with one particle, the kernel's gradient by autograd, the formula in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attack_kit import draws, judged, small
from torch import nn

from harness.api import Threat
from harness.target import Target
from harness_plugins.attacks.daa import DAA, pull
from harness_plugins.attacks.pgd import PGD

THREAT = Threat("Linf", 0.06)


net = pytest.fixture(small)


@pytest.fixture
def images():
    return 0.4 + 0.2 * torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def particles(n=3, m=6, seed=2):
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(n, m, 1, 4, 5, generator=rng, dtype=torch.float64)
    return x, torch.randn(x.shape, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_with_one_particle_it_is_pgd(net, images, loss):
    y = net(images).argmax(dim=1)
    for target in (Target.around(net, 5), judged(net, 16)):
        ours = DAA(steps=12, particles=1, loss=loss)(target, images, y, THREAT, draws(16))
        theirs = PGD(steps=12, loss=loss)(target, images, y, THREAT, draws(16))
        assert torch.equal(ours, theirs)
    one, other = judged(net, 16), judged(net, 16)
    DAA(steps=12, particles=1)(one, images, y, THREAT, draws(16))
    PGD(steps=12)(other, images, y, THREAT, draws(16))
    assert (one.ledger.forward == other.ledger.forward).all()


def test_without_coupling_it_is_pgd_from_as_many_starts(net, images):
    """Of its own particles: repeated rows draw one after the other."""
    y, m = net(images).argmax(dim=1), 3
    copies = torch.arange(16).repeat_interleave(m)
    rng, target = draws(16), Target.around(net, 5)
    every = PGD(steps=6)(target.at(copies), images[copies], y[copies], THREAT, rng.at(copies))
    every = every.view(16, m, *images.shape[1:])
    ours = DAA(steps=6, particles=m, coupling=0.0)(target, images, y, THREAT, draws(16))
    margins = torch.stack([adversarial(net, every[:, j], y) for j in range(m)], dim=1)
    best = margins.argmax(dim=1)
    assert len(best.unique()) > 1
    assert torch.equal(ours, every[torch.arange(16), best])


def adversarial(net, x, y):
    scores = net(x)
    others = scores.scatter(1, y[:, None], -torch.inf).amax(dim=1)
    return others - scores.gather(1, y[:, None])[:, 0]


def bandwidth(x):
    """2h² as numpy has the median: of all pairs of one sample, with the particles themselves."""
    flat = x.flatten(1).numpy()
    squared = ((flat[:, None] - flat[None]) ** 2).sum(axis=2)
    return np.median(squared) / math.log(len(flat))


@pytest.mark.parametrize("m", [2, 3, 6])
def test_the_pull_is_the_kernels_sum_less_its_gradient(m):
    """∇ by autograd, the bandwidth held fixed."""
    x, slope = particles(m=m)
    found = pull(x, slope)
    for sample in range(3):
        z = x[sample].flatten(1)
        twice = bandwidth(x[sample])
        for i in range(m):
            others = z.clone().requires_grad_()
            kernel = torch.exp(-(z[i] - others).square().sum(dim=1) / twice)
            (gradient,) = torch.autograd.grad(kernel.sum(), others)
            expected = kernel.detach() @ slope[sample].flatten(1) - gradient.sum(dim=0)
            torch.testing.assert_close(found[sample, i].flatten(), expected)


def test_where_no_gradient_is_left_the_particles_draw_together():
    x, _ = particles()
    toward = x.mean(dim=1, keepdim=True) - x
    along = pull(x, torch.zeros_like(x))
    assert ((along * toward).flatten(2).sum(dim=2) > 0).all()


def test_particles_in_one_place_do_not_move_each_other():
    """The median is 0 there."""
    x, slope = particles()
    together = x[:, :1].expand_as(x).contiguous()
    torch.testing.assert_close(
        pull(together, slope), slope.sum(dim=1, keepdim=True).expand_as(slope)
    )


def test_a_step_follows_the_sign_of_the_paper_s_sum(net, images):
    """One step, all in numpy but for the network's gradients; from the attack's own starts."""
    y, m = net(images).argmax(dim=1), 4
    copies = torch.arange(16).repeat_interleave(m)
    start = THREAT.random_start(images[copies], draws(16).at(copies))
    z = start.clone().requires_grad_()
    loss = nn.functional.cross_entropy(net(z), y[copies], reduction="sum")
    slope = torch.autograd.grad(loss, z)[0].view(16, m, -1).double().numpy()
    at = start.view(16, m, -1).double().numpy()
    moved = np.empty_like(at)
    for s in range(16):
        squared = ((at[s][:, None] - at[s][None]) ** 2).sum(axis=2)
        twice = np.median(squared) / math.log(m)
        kernel = np.exp(-squared / twice)
        for i in range(m):
            drawn = (2 / twice * kernel[i][:, None] * (at[s, i] - at[s])).sum(axis=0)
            along = slope[s, i] + 1.1 / m * (kernel[i] @ slope[s] - drawn)
            moved[s, i] = at[s, i] + 0.25 * THREAT.eps * np.sign(along)
    box = images.view(16, 1, -1).double().numpy()
    moved = np.clip(moved, box - THREAT.eps, box + THREAT.eps)
    ours = DAA(steps=1, particles=m, rel_step=0.25)(
        Target.around(net, 5), images, y, THREAT, draws(16)
    )
    difference = np.abs(moved - ours.view(16, 1, -1).double().numpy()).max(axis=2)
    assert (difference.min(axis=1) < 1e-5).all()  # one of the sample's particles


def test_returns_the_particle_that_fools_first_and_lets_the_sample_leave(net, images):
    y, m, threat = net(images).argmax(dim=1), 4, Threat("Linf", 0.09)
    target = judged(net, 16)
    x_adv = DAA(steps=10, particles=m)(target, images, y, threat, draws(16))
    fooled = net(x_adv).argmax(dim=1) != y
    out = torch.from_numpy(target.ledger.forward < 10 * m)
    assert 2 < out.sum() < 16
    assert fooled[out].all()
    assert (target.ledger.forward[~out.numpy()] == 10 * m + m).all()  # and a look at the last
    assert (target.ledger.backward[~out.numpy()] == 10 * m).all()
    assert threat.allows(x_adv, images).all()


def test_a_sample_does_not_depend_on_its_batch(net, images):
    y, attack = net(images).argmax(dim=1), DAA(steps=8, particles=3)
    whole = attack(judged(net, 16), images, y, THREAT, draws(16))
    for rows in ([3, 8, 15], [5]):
        at = torch.tensor(rows)
        few = attack(judged(net, 16).at(at), images[at], y[at], THREAT, draws(16).at(at))
        assert torch.equal(few, whole[at])


@pytest.mark.parametrize("m", [1, 2, 5])
def test_a_budget_of_zero_changes_nothing(net, images, m):
    y = net(images).argmax(dim=1)
    attack = DAA(steps=3, particles=m)
    assert torch.equal(attack(judged(net, 16), images, y, Threat("Linf", 0.0), draws(16)), images)


class Tied(nn.Module):
    """Both scores 0: the label is 0."""

    def forward(self, x):
        return 0 * x.flatten(1)[:, :2]


def test_a_tie_that_y_wins_is_not_a_success(images):
    target, y = judged(Tied(), 16, 2), torch.zeros(16, dtype=torch.long)
    DAA(steps=3, particles=2)(target, images, y, THREAT, draws(16))
    assert (target.ledger.backward == 6).all()


class Ramp(nn.Module):
    """Class 1 from a mean of 0.52; where that is below 0.5 the gradient is NaN."""

    def forward(self, x):
        mean = x.flatten(1).mean(dim=1)
        z = 1000 * (mean - 0.52)
        if z.requires_grad:
            low = mean.detach() < 0.5
            x.register_hook(lambda g: torch.where(low[:, None, None, None], torch.nan, g))
        return torch.stack([torch.zeros_like(z), z], dim=1)


def test_a_particle_without_a_gradient_spoils_no_other():
    x = torch.full((4, 1, 8, 8), 0.5)
    y, threat = torch.zeros(4, dtype=torch.long), Threat("Linf", 0.1)
    attack = DAA(steps=20, particles=6, loss="margin")
    x_adv = attack(judged(Ramp(), 4, 2), x, y, threat, draws(4))
    assert x_adv.isfinite().all()
    assert (Ramp()(x_adv).argmax(dim=1) == 1).all()
