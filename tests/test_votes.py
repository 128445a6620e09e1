"""Networks that vote: the counts by hand, gradients where there are any, and joint training."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from checkpoints import Kept, Killed
from torch import nn

from harness.api import Info, Run, TrainingSet
from harness.errors import UsageError
from harness.rng import StreamRng
from harness_plugins.architectures import MLP, SmallConv
from harness_plugins.defenses.ensembles import Average, Majority
from harness_plugins.samples import bootstrap, refuse_absent, without
from harness_plugins.training import cross_entropy, train
from harness_plugins.votes import Members, Votes, hard, one_by_one, soft

CPU = torch.device("cpu")
INFO = Info(shape=(1, 4, 4), classes=3, train=60)


@pytest.fixture
def data():
    """Three classes, each bright in a row of its own."""
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = 0.5 * torch.rand(60, 1, 4, 4, generator=rng)
    x[torch.arange(60), 0, y] += 0.4
    return TrainingSet(INFO, x, y)


def fitted(model, data, seed=0, store=None):
    torch.manual_seed(seed)
    return model.fit(data, Run(seed, CPU, _store=store or Kept()))


def images(n=16, shape=INFO.shape):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


# --- counts ------------------------------------------------------------------------------------


def test_hard_votes_are_counted_by_hand():
    """Four networks on three images: 3 to 1, a tie of classes 1 and 2, and a network's own tie."""
    labels = torch.tensor([[0, 2, 0, 0], [2, 1, 1, 2], [1, 1, 1, 1]])
    scores = nn.functional.one_hot(labels, 3).double()
    scores[2, 0] = 1  # all classes alike: the lowest
    shares = hard(scores)
    assert shares.tolist() == [[0.75, 0, 0.25], [0, 0.5, 0.5], [0.25, 0.75, 0]]
    assert shares.argmax(1).tolist() == [0, 1, 1]


@pytest.mark.parametrize("votes", range(1, 9))
def test_two_classes_are_the_mean_label_rounded_half_to_even(votes):
    labels = torch.tensor([[(i >> j) & 1 for j in range(votes)] for i in range(2**votes)])
    shares = hard(nn.functional.one_hot(labels, 2).float())
    rounded = [round(sum(row) / votes) for row in labels.tolist()]
    assert shares.argmax(1).tolist() == rounded


def test_soft_votes_are_the_logarithm_of_the_mean_probability():
    odds = torch.tensor([[[1.0, 1, 2], [6, 1, 1]]]).double()
    told = soft(odds.log())
    mean = [(1 / 4 + 6 / 8) / 2, (1 / 4 + 1 / 8) / 2, (2 / 4 + 1 / 8) / 2]
    assert told.exp()[0].tolist() == pytest.approx(mean)


def test_soft_votes_stay_finite_where_probabilities_vanish():
    scores = torch.tensor([[[0.0, 1e4], [0, 2e4]]])
    assert soft(scores)[0].tolist() == pytest.approx([-1e4 - math.log(2), 0])


# --- the classifier ----------------------------------------------------------------------------


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return Members(MLP(width=5, activation="tanh").build(INFO) for _ in range(3)).double()


def test_members_stand_in_their_order(networks):
    x = images().double()
    scores = networks(x)
    assert scores.shape == (16, 3, 3)
    for i, network in enumerate(networks):
        assert torch.equal(scores[:, i], network(x))


def test_a_soft_vote_has_the_networks_gradients(networks):
    x = images(4).double().requires_grad_()
    assert torch.autograd.gradcheck(Votes(networks, "soft"), x)


def test_a_hard_vote_has_none_and_its_surrogate_is_the_soft_vote(networks):
    x = images().double().requires_grad_()
    vote = Votes(networks, "hard")
    assert not vote(x).requires_grad
    assert torch.equal(vote.surrogate()(x), Votes(networks, "soft")(x))
    assert (vote(x) * 3 == (vote(x) * 3).round()).all()


# --- joint training ----------------------------------------------------------------------------


def test_each_network_is_what_it_would_be_alone(data):
    """Bit for bit: they see the same batches, and no network's loss is another's business."""
    model = Average(arch=SmallConv(), epochs=2, batch=16, votes=3, holdout=0)
    vote = fitted(model, data)
    torch.manual_seed(0)
    for network, together in zip(model.build(INFO).networks, vote.networks, strict=True):
        train(network, data, Run(0, CPU), model, cross_entropy)
        state = together.state_dict()
        assert all(torch.equal(a, state[name]) for name, a in network.state_dict().items())


def test_the_first_of_many_networks_are_those_of_few(data):
    model = Average(arch=MLP(width=9), epochs=1, votes=2)
    few, many = fitted(model, data), fitted(replace(model, votes=4), data)
    assert torch.equal(few.networks(data.x), many.networks(data.x)[:, :2])
    scores = many.networks(data.x)
    assert not any(torch.equal(scores[:, 0], scores[:, i]) for i in range(1, 4))


def test_average_and_majority_are_votes_of_the_same_networks(data):
    average, majority = (
        fitted(m(arch=MLP(), epochs=2, votes=5), data) for m in (Average, Majority)
    )
    x = images()
    assert torch.equal(average(x), soft(majority.networks(x)))
    assert torch.equal(majority(x), hard(average.networks(x)))
    assert torch.equal(majority.surrogate()(x), average(x))
    assert not average.training


def test_a_killed_vote_ends_with_the_bits_of_one_that_was_not(data):
    model = Average(arch=MLP(width=9), epochs=3, votes=3)
    whole, store = fitted(model, data), Kept(kill_after=2)
    with pytest.raises(Killed):
        fitted(model, data, store=store)
    resumed = fitted(model, data, store=store)
    assert store.saves == 3
    assert torch.equal(whole(data.x), resumed(data.x))


def test_build_takes_what_fit_gives(data):
    for model in (Average(epochs=1, votes=2), Majority(arch=MLP(), epochs=1, votes=3)):
        net = fitted(model, data)
        again = model.build(INFO)
        again.load_state_dict(net.state_dict())
        assert torch.equal(again.eval()(data.x), net(data.x))


# --- samples -----------------------------------------------------------------------------------


def test_the_holdout_is_a_share_of_each_class_whatever_the_seed(data):
    left = without(data, 0.2)
    assert torch.bincount(left.y).tolist() == [16, 16, 16]
    assert torch.equal(left.x, without(data, 0.2).x)
    assert without(data, 0) is data


def test_what_is_held_out_has_no_part_in_the_training(data):
    left = without(data, 0.2)
    model = Average(arch=MLP(width=9), epochs=1, votes=2)
    held, alone = fitted(model, data), fitted(replace(model, holdout=0), left)
    assert torch.equal(held(data.x), alone(data.x))


def test_a_class_that_no_image_has_is_named(data):
    with pytest.raises(UsageError, match="class 1 of 3 has no image among the images"):
        refuse_absent(replace(data, y=data.y * 2 % 3 * 0), "the images")
    rare = replace(data, x=data.x[:4], y=torch.tensor([0, 0, 1, 2]))
    with pytest.raises(
        UsageError, match=r"class \d of 3 has no image among those that holdout=0.9"
    ):
        without(rare, 0.9)


def test_a_bootstrap_draws_with_replacement_until_every_class_is_there():
    y = torch.tensor([0] * 7 + [1])
    rows = [bootstrap(y, StreamRng.keyed("test", i)) for i in range(40)]
    assert all(len(r) == 8 and len(y[r].unique()) == 2 for r in rows)
    assert any(len(r.unique()) < 7 for r in rows)
    assert len({tuple(r.tolist()) for r in rows}) == 40
    assert torch.equal(rows[0], bootstrap(y, StreamRng.keyed("test", 0)))


# --- one after the other -----------------------------------------------------------------------


@pytest.mark.parametrize("killed_after", [1, 2, 3, 4, 5])
def test_what_was_fitted_before_a_kill_is_not_fitted_again(killed_after):
    calls = []

    def training(store):
        run = Run(0, CPU, _store=store)
        first = one_by_one(
            "a", 2, run, lambda i: calls.append(("a", i)) or {"w": torch.ones(2) * i}
        )
        second = one_by_one(
            "b", 3, run, lambda i: calls.append(("b", i)) or {"w": torch.ones(()) * i + 5}
        )
        return first["w"], second["w"]

    store = Kept(kill_after=killed_after)
    with pytest.raises(Killed):
        training(store)
    a, b = training(store)
    assert a.tolist() == [[0, 0], [1, 1]]
    assert b.tolist() == [5, 6, 7]
    assert calls == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2)]
