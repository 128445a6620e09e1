"""Architectures: shapes and sizes counted by hand, and what a checkpoint relies on."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from harness.api import Info
from harness.errors import PluginError
from harness_plugins.architectures import (
    ARCHITECTURES,
    MLP,
    NIN,
    AllConv,
    LeNet,
    LeNet5,
    Linear,
    Madry,
    SimpleNet,
    SmallConv,
)

MNIST = Info(shape=(1, 28, 28), classes=10, train=60000)
DIGITS = Info(shape=(1, 8, 8), classes=10, train=1000)
CIFAR = Info(shape=(3, 32, 32), classes=10, train=50000)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("arch", "info", "parameters"),
    [
        (Linear(), MNIST, 784 * 10 + 10),
        (MLP(), MNIST, (784 * 200 + 200) + (200 * 200 + 200) + (200 * 10 + 10)),
        (MLP(width=30, depth=1), DIGITS, (64 * 30 + 30) + (30 * 10 + 10)),
        (LeNet5(), MNIST, (25 * 32 + 32) + (32 * 25 * 64 + 64) + (1024 * 512 + 512) + 5130),
        (LeNet5(), CIFAR, (75 * 32 + 32) + (32 * 25 * 64 + 64) + (1600 * 512 + 512) + 5130),
        (SmallConv(), DIGITS, (9 * 32 + 32) + (32 * 9 * 64 + 64) + (256 * 128 + 128) + 1290),
        (Madry(), MNIST, (25 * 32 + 32) + (32 * 25 * 64 + 64) + (3136 * 1024 + 1024) + 10250),
        (
            AllConv(),
            CIFAR,
            (27 * 96 + 96)
            + 9 * (96 * 96 + 96 * 192 + 3 * 192 * 192 + 192 * 192)
            + (96 + 5 * 192)
            + (4 * 192 * 384 + 384)
            + (6144 * 1200 + 1200)
            + 12010,
        ),
        (LeNet(), CIFAR, 456 + 2416 + (1024 * 120 + 120) + (120 * 84 + 84) + 850),
        (LeNet(), DIGITS, 156 + 2416 + (64 * 120 + 120) + (120 * 84 + 84) + 850),
        (SimpleNet(), CIFAR, 456 + 2416 + (1024 * 80 + 80) + 810),
        (SimpleNet(width=500), CIFAR, 456 + 2416 + (1024 * 500 + 500) + 5010),
        (
            NIN(),
            CIFAR,
            (75 * 192 + 192)
            + (192 * 160 + 160)
            + (160 * 96 + 96)
            + (25 * 96 * 192 + 192)
            + 2 * (192 * 192 + 192)
            + (9 * 192 * 192 + 192)
            + (192 * 192 + 192)
            + 1930,
        ),
    ],
)
def test_has_the_parameters_that_its_description_says(arch, info, parameters):
    assert count(arch.build(info)) == parameters


@pytest.mark.parametrize("arch", [architecture() for architecture in ARCHITECTURES.values()])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 16, 23)])
def test_maps_images_to_one_score_per_class(arch, shape):
    net = arch.build(Info(shape=shape, classes=7, train=1))
    assert net(torch.rand(5, *shape)).shape == (5, 7)


def test_lenet5_says_from_which_size_it_works():
    assert LeNet5().build(Info((1, 16, 16), 2, 1))(torch.rand(1, 1, 16, 16)).shape == (1, 2)
    with pytest.raises(PluginError, match=r"16x16 or larger, not 15x40.*smallconv"):
        LeNet5().build(Info((1, 15, 40), 2, 1))


def test_smallconv_says_from_which_size_it_works():
    assert SmallConv().build(Info((1, 4, 5), 2, 1))(torch.rand(1, 1, 4, 5)).shape == (1, 2)
    with pytest.raises(PluginError, match="4x4 or larger, not 8x3"):
        SmallConv().build(Info((1, 8, 3), 2, 1))


@pytest.mark.parametrize(
    ("arch", "least"), [(Madry(), 4), (AllConv(), 8), (LeNet(), 4), (SimpleNet(), 4), (NIN(), 4)]
)
def test_says_from_which_size_it_works(arch, least):
    shape = (1, least, least + 1)
    assert arch.build(Info(shape, 2, 1))(torch.rand(1, *shape)).shape == (1, 2)
    with pytest.raises(PluginError, match=f"{least}x{least} or larger, not {least}x{least - 1}"):
        arch.build(Info((1, least, least - 1), 2, 1))


@pytest.mark.parametrize(
    ("arch", "info", "before_each_dropout"),
    [
        (MLP(depth=3, activation="tanh"), DIGITS, ["tanh1", "tanh2", "tanh3"]),
        (LeNet5(), MNIST, ["pool2", "relu3"]),
        (SmallConv(), DIGITS, ["pool2", "relu3"]),
        (Madry(), MNIST, ["pool2", "relu3"]),
        (AllConv(), CIFAR, ["relu8", "relu9"]),
        (LeNet(), CIFAR, ["pool2", "relu3", "relu4"]),
        (SimpleNet(), CIFAR, ["pool2", "relu3"]),
        (NIN(dropout=0.9), CIFAR, ["pool1", "pool2"]),
    ],
)
def test_dropout_stands_after_the_hidden_layers(arch, info, before_each_dropout):
    layers = list(arch.build(info, 0.3).named_children())
    found = [
        (before, layer.p)
        for (before, _), (_, layer) in pairwise(layers)
        if isinstance(layer, nn.Dropout)
    ]
    assert found == [(name, 0.3) for name in before_each_dropout]


@pytest.mark.parametrize("arch", [MLP(), LeNet5(), SmallConv()])
def test_weights_fit_with_and_without_dropout(arch):
    plain, dropping = arch.build(MNIST), arch.build(MNIST, 0.5)
    dropping.load_state_dict(plain.state_dict())
    x = torch.rand(8, 1, 28, 28)
    assert torch.equal(dropping.eval()(x), plain(x))
    assert not torch.equal(dropping.train()(x), plain(x))


def test_nin_drops_half_unless_it_is_told_otherwise():
    def drops(net):
        return [layer.p for layer in net if isinstance(layer, nn.Dropout)]

    assert drops(NIN().build(CIFAR)) == [0.5, 0.5]
    assert drops(NIN(dropout=0.2).build(CIFAR)) == [0.2, 0.2]
    assert drops(NIN(dropout=0).build(CIFAR)) == []
    net, x = NIN().build(DIGITS), torch.rand(8, 1, 8, 8)
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


def test_nin_pools_what_lies_in_the_image_and_scores_means_of_rectified_maps():
    """32 → 16 → 8, windows of the last row and column 2 pixels wide: nothing is padded, so that
    the average over equal values is that value, and a maximum below 0 stays."""
    net = NIN().build(CIFAR).eval()
    ones = torch.ones(1, 1, 32, 32)
    for pool in (net.pool1, net.pool2):
        assert torch.equal(pool(-ones), -torch.ones(1, 1, 16, 16))
    assert net.pool2(net.pool1(ones)).shape == (1, 1, 8, 8)
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    assert net.pool1(ramp)[0, 0, 0].tolist() == [*range(2, 31, 2), 31]
    assert net.pool2(ramp)[0, 0, 0].tolist() == [*range(1, 30, 2), 30.5]
    x = torch.rand(3, 3, 32, 32)
    features = net[: list(dict(net.named_children())).index("conv9")](x)
    maps = nn.functional.conv2d(features, net.conv9.weight).clamp_min(0)  # zero biases
    assert (maps == 0).any()
    assert features.shape == (3, 192, 8, 8)
    torch.testing.assert_close(net(x), maps.sum((2, 3)) / 64)


def test_a_linear_model_has_nothing_to_drop():
    with pytest.raises(PluginError, match="no hidden unit"):
        Linear().build(DIGITS, 0.5)


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", torch.relu), ("tanh", torch.tanh), ("sigmoid", torch.sigmoid)],
)
def test_an_mlp_computes_what_its_weights_say(activation, function):
    net = MLP(width=5, depth=2, activation=activation).build(DIGITS)
    x = torch.rand(3, 1, 8, 8)
    h = x.reshape(3, 64)
    for name in ("fc1", "fc2"):
        layer = net.get_submodule(name)
        h = function(h @ layer.weight.T + layer.bias)
    torch.testing.assert_close(net(x), h @ net.get_submodule("fc3").weight.T)  # zero biases


NORMAL = ("lenet", "simplenet")


@pytest.mark.parametrize("name", NORMAL)
def test_weights_are_he_and_glorot_normal_and_biases_zero(name):
    """He: variance 2 / fan-out; Glorot: 2 / (fan-in + fan-out). Enough maps and units to tell."""
    for layer in ARCHITECTURES[name]().build(CIFAR):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            outputs, inputs = layer.weight.shape[:2]
            fans = outputs * 25 if isinstance(layer, nn.Conv2d) else outputs + inputs
            count = layer.weight.numel()
            spread = layer.weight.std().item() / (2 / fans) ** 0.5
            assert spread == pytest.approx(1, abs=4 / (2 * count) ** 0.5)
            assert layer.weight.abs().max() > 1.8 * (2 / fans) ** 0.5  # not uniform
            assert (layer.bias == 0).all()


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - set(NORMAL)))
def test_weights_fill_glorots_interval_and_biases_are_zero(name):
    for layer in ARCHITECTURES[name]().build(CIFAR):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            window = layer.weight[0, 0].numel() if layer.weight.ndim == 4 else 1
            fans = (layer.weight.shape[0] + layer.weight.shape[1]) * window
            bound = (6 / fans) ** 0.5
            assert 0.97 * bound < layer.weight.abs().max() <= bound * (1 + 1e-6)
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
            assert (layer.bias == 0).all()


@pytest.mark.parametrize("arch", [LeNet5(), SmallConv()])
def test_memory_format_changes_speed_and_nothing_else(arch):
    """Flatten reads channel by channel whatever the memory: a checkpoint made elsewhere fits."""
    net = arch.build(CIFAR)
    assert net.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.rand(8, 3, 32, 32)
    there = net(x)
    here = net.to(memory_format=torch.contiguous_format)(x)
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_do_not_depend_on_the_batch(name):
    """Scores and gradients of 8 rows, alone and among 40, are the same bits."""
    net = ARCHITECTURES[name]().build(MNIST).eval()

    def scores_and_gradient(x):
        x = x.clone().requires_grad_()
        scores = net(x)
        (gradient,) = torch.autograd.grad(scores.logsumexp(dim=1).sum(), x)
        return scores, gradient

    x = torch.rand(40, 1, 28, 28)
    for many, few in zip(scores_and_gradient(x), scores_and_gradient(x[16:24]), strict=True):
        assert torch.equal(many[16:24], few)


@pytest.mark.parametrize("arch", [MLP(width=400, init="he"), LeNet5(init="he")])
def test_hes_weights_are_normal_with_variance_two_over_fan_in(arch):
    torch.manual_seed(0)
    for layer in arch.build(Info((1, 28, 28), 10, 0)):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            weights, fan_in = layer.weight.detach().flatten(), layer.weight[0].numel()
            spread = (2 / fan_in) ** 0.5
            assert weights.std().item() == pytest.approx(spread, rel=0.08)
            assert weights.abs().max() > 2.2 * spread  # a uniform one ends at 1.7
            assert not layer.bias.any()
