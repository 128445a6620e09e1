"""The training loop: it descends, it can be killed, and it says when it diverged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from checkpoints import Kept, Killed
from torch import nn
from torch.nn import functional

from harness.api import Info, Run, TrainingSet
from harness.errors import PluginError
from harness_plugins.architectures import MLP, SmallConv
from harness_plugins.optimisation import SGD, Adam, Exponential, OneCycle
from harness_plugins.players import evaluating
from harness_plugins.training import Settings, cross_entropy, train

CPU = torch.device("cpu")
INFO = Info(shape=(1, 4, 4), classes=3, train=50)


@pytest.fixture
def data():
    """Three classes, each bright in a row of its own."""
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(50) % 3
    x = 0.5 * torch.rand(50, 1, 4, 4, generator=rng)
    x[torch.arange(50), 0, y] += 0.4
    return TrainingSet(INFO, x, y)


def network(dropout=0.0):
    torch.manual_seed(0)
    return SmallConv().build(INFO, dropout)


def run(seed=1, store=None):
    return Run(seed, CPU, _store=store or Kept())


def trained(data, settings, objective=cross_entropy, seed=1, net=None):
    net = net or network()
    train(net, data, run(seed), settings, objective)
    return net


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("optimiser", "lr"), [(Adam(), 0.02), (SGD(), 0.02), (SGD(0.0), 0.2)])
def test_learns_what_is_easy(data, optimiser, lr):
    torch.manual_seed(0)
    settings = Settings(epochs=30, batch=10, lr=lr, optimiser=optimiser)
    net = trained(data, settings, net=MLP(width=20).build(INFO))
    assert (net(data.x).argmax(dim=1) == data.y).all()


@pytest.mark.parametrize("optimiser", [Adam(), SGD(weight_decay=1e-3), SGD(momentum=0.0)])
@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_a_killed_training_ends_with_the_bits_of_one_that_was_not(data, optimiser, killed_after):
    """Order, dropped units, the objective's own draws, moments and rates are all taken up again."""

    def noisy(net, x, y, step):
        return functional.cross_entropy(net(x + 0.1 * step.rng.normal(*x.shape[1:])), y)

    settings = Settings(epochs=3, batch=16, optimiser=optimiser, schedule=OneCycle())
    whole = network(0.5)
    train(whole, data, run(), settings, noisy)

    store = Kept(kill_after=killed_after)
    with pytest.raises(Killed):
        train(network(0.5), data, run(store=store), settings, noisy)
    torch.manual_seed(99)  # another process has other global draws
    resumed = SmallConv().build(INFO, 0.5)
    train(resumed, data, run(store=store), settings, noisy)

    assert store.saves == 3
    assert same(whole, resumed)


def test_the_seed_fixes_the_training_and_global_generators_do_not(data):
    settings = Settings(epochs=2, batch=16)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    net = network(0.5)
    torch.set_rng_state(state)
    first = trained(data, settings, net=net)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, trained(data, settings, net=network(0.5)))
    assert not same(first, trained(data, settings, seed=2, net=network(0.5)))


def test_every_epoch_takes_every_image_once_in_another_order(data):
    seen, steps = [], []

    def spy(net, x, y, step):
        seen.append(x.flatten(1).sum(dim=1))
        steps.append(step.epochs)
        assert step.rng.normal(2).shape == (len(x), 2)
        return cross_entropy(net, x, y, step)

    trained(data, Settings(epochs=2, batch=20), spy)
    assert [len(x) for x in seen] == [20, 20, 10] * 2
    assert steps == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3])
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    everything = data.x.flatten(1).sum(dim=1).sort().values
    assert torch.equal(first.sort().values, everything)
    assert torch.equal(second.sort().values, everything)
    assert not torch.equal(first, second)


def test_draws_differ_between_batches_and_epochs(data):
    draws = []

    def spy(net, x, y, step):
        draws.append(step.rng.uniform(1)[:10])
        return cross_entropy(net, x, y, step)

    trained(data, Settings(epochs=2, batch=25), spy)
    assert len(torch.cat(draws).unique()) == 40


def test_other_units_are_dropped_in_every_epoch(data):
    masks = []

    def spy(net, x, y, step):
        masks.append(functional.dropout(torch.ones(200)))
        return cross_entropy(net, x, y, step)

    trained(data, Settings(epochs=2, batch=25), spy)
    assert len(torch.stack(masks).unique(dim=0)) == 4


def test_trains_in_train_mode_and_leaves_eval_mode(data):
    modes = []

    def spy(net, x, y, step):
        modes.append(net.training)
        return cross_entropy(net, x, y, step)

    net = trained(data, Settings(epochs=1), spy, net=network().eval())
    assert modes == [True]
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize("before", [True, False])
def test_evaluating_puts_the_mode_back_whatever_happens(before):
    net = network(0.5).train(before)
    within = []

    def work():
        with evaluating(net):
            within.extend(module.training for module in net.modules())
            raise Killed

    with pytest.raises(Killed):
        work()
    assert not any(within)
    assert all(module.training == before for module in net.modules())


@pytest.mark.parametrize("bad_epoch", [1, 3])
def test_a_training_that_diverges_says_when_and_what_to_try(data, bad_epoch):
    store = Kept()

    def diverging(net, x, y, step):
        loss = cross_entropy(net, x, y, step)
        return loss * (torch.nan if step.epochs > bad_epoch - 1 else 1)

    with pytest.raises(PluginError, match=f"epoch {bad_epoch} of 4.*step 2 of 3.*lr=0.25"):
        train(network(), data, run(store=store), Settings(epochs=4, batch=20, lr=0.25), diverging)
    assert store.saves == bad_epoch - 1  # no checkpoint of it: the last good weights stay


def test_weights_that_leave_the_numbers_in_the_last_step_are_seen(data):
    """The loss was still finite: nobody computed one with the broken weights."""

    def infinite_gradient(net, x, y, step):
        return cross_entropy(net, x, y, step) + (net.fc2.bias.sum() - net.fc2.bias.sum()).sqrt()

    with pytest.raises(PluginError, match="epoch 1 of 1"):
        trained(data, Settings(epochs=1, batch=50), infinite_gradient)


def test_a_finished_training_is_not_trained_again(data):
    store = Kept()
    first = network()
    train(first, data, run(store=store), Settings(epochs=2), cross_entropy)

    def never(net, x, y, step):
        raise AssertionError

    second = network(0.5)
    train(second, data, run(store=store), Settings(epochs=2), never)
    assert same(first, second)
    assert not second.training


def test_progress_counts_batches_to_the_end(data):
    seen = []
    told = replace(run(), progress=lambda done, total: seen.append((done, total)))
    train(network(), data, told, Settings(epochs=2, batch=20), cross_entropy)
    assert seen == [(i, 6) for i in range(1, 7)]


def test_exponential_falls_after_every_epoch():
    factor = Exponential(0.5).factor
    assert [factor(e, 9) for e in (0, 0.9, 1, 1.9, 3.5)] == [1, 1, 0.5, 0.5, 0.125]


def test_one_cycle_rises_to_one_and_falls_to_zero():
    factor = OneCycle(rise=0.25).factor
    assert [factor(e, 8) for e in (0, 1, 2, 5, 8)] == [0, 0.5, 1, 0.5, 0]


def test_the_schedule_multiplies_the_rate(data):
    """Plain gradient descent with one batch an epoch: each step is lr · factor · gradient."""

    class Weights(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

    def slope(net, x, y, step):
        return net.w.sum()

    settings = Settings(epochs=3, batch=50, lr=1.0, optimiser=SGD(0.0), schedule=Exponential(0.5))
    assert trained(data, settings, slope, net=Weights()).w.item() == -(1 + 0.5 + 0.25)
