"""Deep margin maximization against brute force, the linear SVM, and finite differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from attack_kit import run
from sklearn.svm import SVC
from torch import nn

from harness.api import Info, Run, TrainingSet
from harness_plugins.architectures import MLP, NIN, LeNet5, Linear
from harness_plugins.attacks.deepfool import DeepFool
from harness_plugins.defenses.margin import MarginMaximization, hinge, size, steepest
from harness_plugins.optimisation import SGD, Exponential

CPU = torch.device("cpu")
NORMS = ["L2", "L2-unsquared", "L1"]


def network(k=4, seed=0):
    """Smooth, in float64: finite differences need both."""
    torch.manual_seed(seed)
    layers = nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, k)
    return nn.Sequential(nn.Flatten(), *layers).double()


def images(n=6, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 3, 4, generator=rng, dtype=torch.float64)
    return x, torch.randint(4, (n,), generator=rng)


def jacobian(net, x):
    """∂z_j/∂x of one image, (k, 12), one output at a time."""
    rows = []
    for j in range(net(x[None]).shape[1]):
        x = x.detach().requires_grad_()
        (row,) = torch.autograd.grad(net(x[None])[0, j], x)
        rows.append(row.flatten())
    return torch.stack(rows)


def by_pairs(net, x, y, norm):
    """The sensitivity by its definition, each sample and each pair of classes alone."""
    found = []
    for image, label in zip(x, y, strict=True):
        rows = jacobian(net, image)
        others = [j for j in range(len(rows)) if j != label]
        norms = {
            "L2": lambda d: (d**2).sum(),
            "L2-unsquared": torch.linalg.norm,
            "L1": lambda d: d.abs().sum(),
        }
        found.append(max(norms[norm](rows[label] - rows[j]) for j in others))
    return torch.stack(found)


@pytest.mark.parametrize("norm", NORMS)
def test_the_sensitivity_is_that_of_the_worst_pair_of_classes(norm):
    net, (x, y) = network(), images()
    x.requires_grad_()
    found = steepest(net(x), x, y, norm)
    torch.testing.assert_close(found, by_pairs(net, x, y, norm), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_its_gradient_by_the_weights_is_that_of_finite_differences(norm):
    """Through the double backward pass, the class of the largest sensitivity a constant."""
    net, (x, y) = network(), images()

    def value():
        with torch.enable_grad():
            z = x.clone().requires_grad_()
            return steepest(net(z), z, y, norm).sum()

    value().backward()
    for parameter in net.parameters():
        for index in itertools.islice(np.ndindex(*parameter.shape), 12):
            h = 1e-6
            with torch.no_grad():
                parameter[index] += h
                above = value()
                parameter[index] -= 2 * h
                below = value()
                parameter[index] += h
            slope = (above - below).item() / (2 * h)
            told = 0.0 if parameter.grad is None else parameter.grad[index].item()
            assert told == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_a_linear_networks_sensitivity_is_of_its_weights_alone():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()
    x, y = images()
    x.requires_grad_()
    w = net[1].weight
    widest = [max(((w[c] - w[j]) ** 2).sum() for j in range(4)) for c in y.tolist()]
    torch.testing.assert_close(steepest(net(x), x, y, "L2"), torch.stack(widest))


class Bent(nn.Module):
    """A linear network and, of weight `bend`, one that is not."""

    def __init__(self, bend, k=4):
        super().__init__()
        torch.manual_seed(1)
        self.straight = nn.Linear(12, k).double()
        self.curved, self.bend = network(k, seed=2), bend

    def forward(self, x):
        return self.straight((x - 0.5).flatten(1)) + self.bend * self.curved(20 * (x - 0.5))


def promised_and_found(bend):
    """What the geometric margin promises of each image, gap over sensitivity, and DeepFool's
    distances."""
    net = Bent(bend)
    x = 0.5 + 0.05 * torch.randn(60, 1, 3, 4, dtype=torch.float64)
    y = net(x).argmax(1)
    x_adv, _ = run(DeepFool(preset="C", overshoot=1e-6, bisections=40), net, x)
    scores = net(x.requires_grad_())
    gap = scores.gather(1, y[:, None])[:, 0] - scores.scatter(1, y[:, None], -torch.inf).amax(1)
    promised = gap / steepest(scores, x, y, "L2-unsquared")
    return promised.detach(), (x_adv - x).detach().flatten(1).norm(dim=1)


def test_the_geometric_margin_is_a_lower_bound_of_distances_as_networks_become_linear():
    """Exactly so without a bend; with a small one, up to as small a share."""
    torch.manual_seed(0)
    promised, found = promised_and_found(0.0)
    assert (promised <= found * (1 + 1e-5)).all()
    excess = []
    for bend in (0.03, 0.003, 0.0003):
        promised, found = promised_and_found(bend)
        excess.append((promised / found).amax().item() - 1)
    assert excess[2] < 0.01
    assert excess[2] < excess[0]


def test_deepfools_distance_is_that_of_the_linearised_network_as_it_becomes_linear():
    """With two classes the promise is the distance itself."""
    off = []
    for bend in (0.03, 0.003, 0.0003, 0.0):
        torch.manual_seed(0)
        net = Bent(bend, k=2)
        x = 0.5 + 0.05 * torch.randn(60, 1, 3, 4, dtype=torch.float64)
        y = net(x).argmax(1)
        x_adv, _ = run(DeepFool(preset="C", overshoot=1e-6, bisections=40), net, x)
        scores = net(x.requires_grad_())
        gap = (scores.gather(1, y[:, None]) - scores.gather(1, 1 - y[:, None]))[:, 0]
        promised = gap / steepest(scores, x, y, "L2-unsquared")
        found = (x_adv - x).flatten(1).norm(dim=1)
        off.append((promised / found - 1).abs().mean().item())
    assert off == sorted(off, reverse=True)
    assert off[2] < 0.01
    assert off[3] < 1e-4


def test_the_hinge_is_crammer_and_singers():
    scores = torch.tensor([[3.0, 1.0, 2.5], [0.0, 2.0, -1.0]])
    assert hinge(scores, torch.tensor([0, 1])).item() == pytest.approx((0.5 + 0) / 2)
    assert hinge(scores, torch.tensor([1, 0])).item() == pytest.approx((3 + 3) / 2)


def test_a_linear_network_becomes_the_support_vector_machine():
    """mean hinge + C‖w‖², w = w₁ − w₀, is the SVM of penalty 1 / (2 C n), without a regularised
    intercept. Its solution and the objective, against scikit-learn's."""
    rng = np.random.default_rng(0)
    n, c = 120, 0.05
    x = rng.random((n, 1, 2, 3), np.float32)
    y = (x.reshape(n, 6) @ [1, -1, 0.5, 0, 0.3, -0.6] + 0.1 * rng.standard_normal(n) > 0.1) * 1
    data = TrainingSet(Info((1, 2, 3), 2, n), torch.from_numpy(x), torch.from_numpy(y))
    model = MarginMaximization(
        arch=Linear(),
        C=c,
        epochs=500,
        batch=n,
        lr=0.5,
        optimiser=SGD(momentum=0.9),
        schedule=Exponential(0.985),
    )
    net = model.fit(data, Run(0, CPU))
    svm = SVC(kernel="linear", C=1 / (2 * c * n), tol=1e-8).fit(x.reshape(n, 6), y)

    def objective(w, b):
        margins = np.where(y, 1, -1) * (x.reshape(n, 6) @ w + b)
        return np.maximum(0, 1 - margins).mean() + c * (w**2).sum()

    weight, bias = (t.detach().numpy() for t in net.parameters())
    ours = objective(weight[1] - weight[0], bias[1] - bias[0])
    best = objective(svm.coef_[0], svm.intercept_[0])
    assert best <= ours <= 1.005 * best
    agree = net(data.x).argmax(1).numpy() == svm.predict(x.reshape(n, 6))
    assert agree.mean() >= 0.98


@pytest.mark.parametrize("arch", [MLP(width=30, depth=2), LeNet5()], ids=["mlp", "lenet5"])
@pytest.mark.parametrize("sensitivity", ["L2", "L1"])
def test_training_makes_the_network_less_sensitive(arch, sensitivity):
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = 0.3 * torch.rand(60, 1, 16, 16, generator=rng)
    x[torch.arange(60), 0, 5 * y] += 0.6
    data = TrainingSet(Info((1, 16, 16), 3, 60), x, y)
    found, weight = {}, 0.1 if sensitivity == "L2" else 0.03
    for c in (0.0, weight):
        torch.manual_seed(0)  # the weights that both begin with
        model = MarginMaximization(arch=arch, sensitivity=sensitivity, C=c, epochs=40, batch=20)
        net = model.fit(data, Run(0, CPU))
        z = x.clone().requires_grad_()
        found[c] = steepest(net(z), z, y, sensitivity).mean().item()
        assert (net(x).argmax(1) == y).float().mean() > 0.9
    assert found[weight] < 0.7 * found[0.0]


def test_nins_sensitivity_is_differentiated_through_its_pools():
    """Maximum and average, twice: against finite differences of a weight of each convolution."""
    torch.manual_seed(0)
    net = NIN(dropout=0).build(Info((3, 5, 4), 3, 1)).double()
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 5, 4, generator=rng, dtype=torch.float64).requires_grad_()
    y = torch.tensor([0, 1, 2, 0])

    def value():
        return 1e6 * steepest(net(x), x, y, "L2").sum()

    value().backward()
    for layer in (m for m in net if isinstance(m, nn.Conv2d)):
        index, h = int(layer.weight.grad.abs().argmax()), 1e-6
        index = np.unravel_index(index, layer.weight.shape)
        told = layer.weight.grad[index].item()
        with torch.no_grad():
            layer.weight[index] += h
        above = value().item()
        with torch.no_grad():
            layer.weight[index] -= 2 * h
        slope = (above - value().item()) / (2 * h)
        with torch.no_grad():
            layer.weight[index] += h
        assert told != 0
        assert told == pytest.approx(slope, rel=1e-3)


def test_nin_trains_an_epoch_with_cross_entropy():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.rand(20, 3, 8, 8, generator=rng), torch.arange(20) % 3
    data = TrainingSet(Info((3, 8, 8), 3, 20), x, y)

    def weights(c):
        model = MarginMaximization(arch=NIN(), C=c, loss="cross-entropy", epochs=1, batch=10)
        torch.manual_seed(0)
        net = model.fit(data, Run(0, CPU))
        assert torch.equal(net(x), net(x))  # nothing is dropped any more
        return [layer.weight for layer in net if isinstance(layer, nn.Conv2d)]

    for plain, margin in zip(weights(0.0), weights(100.0), strict=True):
        assert margin.isfinite().all()
        assert not torch.equal(plain, margin)


def test_sizes():
    d = torch.tensor([[[[3.0, -4.0]]]])
    assert [round(size(d, norm).item(), 5) for norm in NORMS] == [25, 5, 7]
