"""VAT, TRADES and FGSM training: their inner maxima, against what is known of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.api import Info, Run, Threat, TrainingSet
from harness.rng import StreamRng
from harness_plugins.architectures import MLP
from harness_plugins.defenses.at_fgsm import FGSMTraining
from harness_plugins.defenses.standard import Standard
from harness_plugins.defenses.trades import Trades
from harness_plugins.defenses.vat import VirtualAdversarialTraining, divergence, unit
from harness_plugins.training import Step

CPU = torch.device("cpu")
SMALL = MLP(width=30, depth=1)


def data(n=90):
    """Three classes, each bright in a row of its own, and noise of little weight."""
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    x = 0.4 * torch.rand(n, 1, 4, 4, generator=rng)
    x[torch.arange(n), 0, y] += 0.3
    return TrainingSet(Info((1, 4, 4), 3, n), x, y)


def step(n):
    return Step(0.0, StreamRng.keyed("test", n=n))


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()


def test_unit_vectors_have_length_one_and_nothing_stays_nothing():
    r = torch.randn(4, 1, 2, 2)
    r[2] = 0
    lengths = unit(r).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 1.0, 0.0, 1.0]))


def test_power_iterations_find_the_top_eigenvector_of_the_divergences_hessian():
    """Of a linear softmax classifier that Hessian is Wᵀ (diag p − p pᵀ) W."""
    net, model = linear(), VirtualAdversarialTraining()
    x = torch.rand(5, 1, 4, 4, dtype=torch.float64)
    clean = net(x).detach().log_softmax(1)
    r = unit(torch.randn(5, 1, 4, 4, dtype=torch.float64))
    for _ in range(200):
        r = unit(model._steepest(net, x, clean, r))
    w = net[1].weight.detach()
    for i, p in enumerate(clean.exp()):
        hessian = w.T @ (torch.diag(p) - torch.outer(p, p)) @ w
        values, vectors = torch.linalg.eigh(hessian)
        if values[-1] > 1.2 * values[-2]:
            assert abs(vectors[:, -1] @ r[i].flatten()) > 0.999


def test_one_power_iteration_is_worse_than_chance_nowhere():
    """From the same random directions, the divergence at eps is larger after it, on average far."""
    net, model = linear(1), VirtualAdversarialTraining()
    x = torch.rand(200, 1, 4, 4, dtype=torch.float64)
    clean = net(x).detach().log_softmax(1)
    r = unit(torch.randn(200, 1, 4, 4, dtype=torch.float64))
    better = unit(model._steepest(net, x, clean, r))
    before, after = (divergence(clean, net(x + 0.5 * d).log_softmax(1)).item() for d in (r, better))
    assert after > 2 * before


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_adversary_of_trades_raises_the_divergence_within_the_ball(norm):
    net = linear(2)
    x = 0.3 + 0.4 * torch.rand(50, 1, 4, 4, dtype=torch.float64)
    model = Trades(norm=norm, eps=0.1)
    threat = Threat(norm, 0.1)
    x_adv = model._worst_case(net, x, threat, step(50))
    assert threat.within(x_adv, x).all()
    clean = net(x).detach().log_softmax(1)
    reached = divergence(clean, net(x_adv).log_softmax(1)).item()
    chance = threat.random_start(x, StreamRng.keyed("chance", n=50))
    assert reached > 3 * divergence(clean, net(chance).log_softmax(1)).item()


def test_divergence_is_the_kullback_leibler_one():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    wanted = 0.5 * torch.log(torch.tensor(0.5 / 0.9)) + 0.5 * torch.log(torch.tensor(0.5 / 0.1))
    assert divergence(p.log(), q.log()).item() == pytest.approx(wanted.item())


def slope(net, x, y):
    """How much the loss rises by a step of FGSM of 0.05, on average."""
    x = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(net(x), y)
    (gradient,) = torch.autograd.grad(loss, x)
    with torch.no_grad():
        return (nn.functional.cross_entropy(net(x + 0.05 * gradient.sign()), y) - loss).item()


@pytest.mark.parametrize(
    "model",
    [
        VirtualAdversarialTraining(arch=SMALL, epochs=30, batch=30, eps=0.5),
        Trades(arch=SMALL, epochs=30, batch=30, eps=0.1),
        FGSMTraining(arch=SMALL, epochs=30, batch=30, eps=0.1),
    ],
    ids=["vat", "trades", "at-fgsm"],
)
def test_training_makes_the_loss_rise_less(model):
    train = data()
    plain = Standard(arch=SMALL, epochs=30, batch=30, lr=5e-3).fit(train, Run(0, CPU))
    other = type(model)(**{**vars(model), "lr": 5e-3}).fit(train, Run(0, CPU))
    assert (other(train.x).argmax(1) == train.y).float().mean() > 0.9
    assert slope(other, train.x, train.y) < 0.9 * slope(plain, train.x, train.y)


def test_fgsm_training_adds_the_loss_at_the_adversarial_image():
    """One batch, by hand: the gradient is that of both losses, the image a constant."""
    train = data(30)
    model = FGSMTraining(arch=SMALL, epochs=1, batch=30, eps=0.2, weight=0.5)
    seen = {}

    def spy(net, data, run, settings, objective):
        x, y = data.x, data.y
        loss = objective(net, x, y, step(30))
        z = x.clone().requires_grad_()
        clean = nn.functional.cross_entropy(net(z), y)
        (gradient,) = torch.autograd.grad(clean, z)
        far = nn.functional.cross_entropy(net(x + 0.2 * gradient.sign()), y)
        seen["pair"] = loss.item(), (clean + 0.5 * far).item()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness_plugins.defenses.at_fgsm.train", spy)
        model.fit(train, Run(0, CPU))
    ours, by_hand = seen["pair"]
    assert ours == pytest.approx(by_hand)


def test_the_virtual_direction_is_that_of_the_network_without_dropped_units():
    """With dropout it is what it is without: masks would make the difference of xi a random one."""
    seen = []

    class Spied(VirtualAdversarialTraining):
        def _steepest(self, net, x, clean, r):
            gradient = super()._steepest(net, x, clean, r)
            seen.append((net.training, unit(gradient)))
            return gradient

    info = Info((1, 4, 4), 3, 90)
    for dropout in (0.0, 0.5):
        torch.manual_seed(0)
        net = SMALL.build(info, dropout)
        Spied(arch=Fixed(net), epochs=1, batch=90).fit(data(), Run(0, CPU))
    (plain_mode, plain), (dropped_mode, dropped) = seen
    assert (plain_mode, dropped_mode) == (False, False)
    torch.testing.assert_close(dropped, plain)


class Fixed:
    """An architecture that is one network."""

    def __init__(self, net):
        self.net = net

    def build(self, info, dropout=0.0):
        return self.net
