"""MLP01 and SCD01 as models: votes, ties, parts, stand-ins, and trainings that are killed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import Kept, Killed
from pairs import pair

from harness.api import Info, Run, TrainingSet
from harness.errors import PluginError, UsageError
from harness_plugins import sign_training as training
from harness_plugins.datasets.cifar10 import Cifar10
from harness_plugins.defenses.zero_one import MLP01, SCD01
from harness_plugins.sign_networks import SignNetwork, SignVotes
from harness_plugins.sign_training import Course

CPU = torch.device("cpu")


def data(classes=2, n=90, seed=0):
    """Classes by which of the first pixels is the brightest."""
    x = torch.from_numpy(np.random.default_rng(seed).random((n, 1, 3, 4), np.float32))
    return TrainingSet(Info((1, 3, 4), classes, n), x, x.flatten(1)[:, :classes].argmax(1))


def run(seed=1, store=None):
    return Run(seed, CPU, _store=store or Kept())


def network(output, bias, *, classes=2, votes_for=None, low=0):
    """v networks whose two units are on where the first and the second pixel exceed ½."""
    v = len(bias)
    hidden = torch.zeros(v, 2, 12)
    hidden[:, 0, 0] = hidden[:, 1, 1] = 1.0
    return SignNetwork(
        hidden=hidden,
        thresholds=torch.full((v, 2), -0.5),
        output=torch.tensor(output),
        bias=torch.tensor(bias),
        votes_for=torch.tensor(votes_for or [1] * v),
        classes=classes,
        low=low,
    )


def image(first, second):
    x = torch.zeros(1, 1, 3, 4)
    x.flatten()[:2] = torch.tensor([first, second])
    return x


def test_a_network_says_what_its_units_say():
    """On where the first unit is and the second is not: an output of 1 − 1 − ½ and of 1 − ½."""
    net = SignVotes(network([[1.0, -1.0]], [-0.5]))
    assert net(image(0.6, 0.4)).tolist() == [[0.0, 1.0]]
    assert net(image(0.6, 0.6)).tolist() == [[1.0, 0.0]]
    assert net(image(0.5, 0.4)).tolist() == [[1.0, 0.0]]  # exactly on a threshold: off


def test_units_that_are_off_may_put_out_minus_one():
    """Both off: −1 + 1 + ½ > 0, which with zeros for units is ½ > 0 too; the first alone tells."""
    net = SignVotes(network([[1.0, 1.0]], [0.5], low=-1))
    assert net(image(0.6, 0.4)).tolist() == [[0.0, 1.0]]
    assert net(image(0.4, 0.4)).tolist() == [[1.0, 0.0]]
    assert SignVotes(network([[1.0, 1.0]], [0.5]))(image(0.4, 0.4)).tolist() == [[0.0, 1.0]]


def test_a_tie_of_two_classes_is_class_0():
    net = SignVotes(network([[1.0, 0.0], [0.0, 1.0]], [-0.5, -0.5]))
    scores = net(image(0.6, 0.4))
    assert scores.tolist() == [[0.5, 0.5]]
    assert scores.argmax(1).item() == 0


def test_one_vs_all_counts_each_classes_votes_and_the_lowest_class_wins_a_tie():
    """Three classes, two votes each: 1 of class 0, 2 of class 1, 2 of class 2."""
    first, second, both = [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]
    net = SignVotes(
        network(
            [first, second, first, both, first, both],
            [-0.5] * 6,
            classes=3,
            votes_for=[0, 0, 1, 1, 2, 2],
        )
    )
    scores = net(image(0.6, 0.4))
    assert scores.tolist() == [[0.5, 1.0, 1.0]]
    assert scores.argmax(1).item() == 1


@pytest.mark.parametrize(
    "model", [SCD01(iterations=40, features=5), MLP01(iterations=40, units=3, features=5)]
)
@pytest.mark.parametrize("classes", [2, 3])
def test_what_is_trained_is_what_is_kept(model, classes):
    net = model.fit(data(classes), run())
    blank = model.build(data(classes).info)
    blank.load_state_dict(net.state_dict())
    x = data(classes, seed=9).x
    assert torch.equal(blank(x), net(x))
    clean = (net(data(classes).x).argmax(1) == data(classes).y).float().mean()
    assert clean > {2: 0.75, 3: 0.55}[classes]


@pytest.mark.parametrize("classes", [2, 3])
def test_votes_are_the_single_networks(classes):
    """Five networks of a class, two computations of them, beside one trained as the only one."""
    few = MLP01(votes=1, iterations=30, units=3, features=5).fit(data(classes), run())
    many = MLP01(votes=5, iterations=30, units=3, features=5).fit(data(classes), run())
    each = range(1 if classes == 2 else classes)
    for name in ("hidden", "thresholds", "output", "bias"):
        one, all_of = few.state_dict()[name], many.state_dict()[name]
        for label in each:
            assert torch.equal(one[label], all_of[5 * label]), name
    assert len(many.hidden.flatten(1).unique(dim=0)) == 5 * len(each)


@pytest.mark.parametrize("kills", [(4,), (8,), (20,), (9, 17, 26)])
def test_a_killed_training_goes_on_where_it_was(kills, monkeypatch):
    """Two groups of networks, each checkpointed as it goes; killed at those of the saves."""
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    model = MLP01(votes=6, iterations=16, units=3, features=5, objective="scheduled")
    whole = model.fit(data(), run())
    store = Kept()
    for store.kill_after in kills:
        with pytest.raises(Killed):
            model.fit(data(), run(store=store))
    store.kill_after = None
    again = model.fit(data(), run(store=store))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_what_is_kept_is_not_what_is_trained(monkeypatch):
    """Between two saves of its own a group's checkpoint stays as it was saved."""
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    model = MLP01(votes=1, iterations=9, units=3, features=5)
    store = Kept(kill_after=3)
    with pytest.raises(Killed):
        model.fit(data(), run(store=store))
    kept = store(None)
    store.kill_after = None
    monkeypatch.setattr(training, "SAVE_EVERY", 1e9)
    held = []
    monkeypatch.setattr(training._Session, "_save", lambda self, *_: held.append(dict(self._kept)))
    model.fit(data(), run(store=store))
    for name, tensor in held[0].items():
        assert torch.equal(tensor, kept[name]), name


def test_progress_counts_what_was_done_before():
    told = []
    model = MLP01(votes=6, iterations=60, units=3, features=5)
    store = Kept()
    model.fit(data(), run(store=store))
    again = Run(1, CPU, lambda done, total: told.append((done, total)), store)
    model.fit(data(), again)
    assert told[-1] == (120, 120)


def test_an_absent_class_is_named():
    lacking = TrainingSet(Info((1, 3, 4), 3, 90), data(2).x, data(2).y)
    with pytest.raises(UsageError, match="class 2 of 3 has no image"):
        MLP01(iterations=1, features=5).fit(lacking, run())


def test_networks_that_are_done_are_not_trained_again(monkeypatch):
    store = Kept()
    model = MLP01(votes=6, iterations=12, units=3, features=5)
    whole = model.fit(data(), run(store=store))

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(training.Descent, "iterate", never)
    again = model.fit(data(), run(store=store))
    assert torch.equal(whole.hidden, again.hidden)


def test_the_objective_changes_once_and_the_best_is_sought_anew():
    course = Course(10, "balanced", "sum", 0.2)
    assert [course.objective(i) for i in range(4)] == ["balanced", "balanced", "sum", "sum"]


def test_the_best_of_the_first_objective_does_not_outlive_it(monkeypatch):
    """Scores fall all the time: kept is the first network under the second objective."""

    def falls(_self, nets, iteration, _objective):
        nets.cut = torch.full_like(nets.cut, iteration)
        return torch.tensor([100 - 10 * iteration])

    monkeypatch.setattr(training.Descent, "iterate", falls)
    model = MLP01(iterations=4, features=5, objective="scheduled", balanced=0.5)
    assert model.fit(data(), run()).bias.tolist() == [-2.0]


def test_more_features_than_pixels_are_refused():
    with pytest.raises(UsageError, match=r"features=13 .* 12 pixels"):
        MLP01(features=13, iterations=1).fit(data(), run())
    SCD01(preset="imagenet", iterations=1).fit(data(), run())  # a preset's are cut to what there is


def test_scd01_has_a_linear_part_and_votes_have_none():
    one = SCD01(iterations=20, features=5).fit(data(), run())
    linear = one.part("linear")
    x = data(seed=3).x
    assert torch.equal(linear.scores(x).argmax(1), one(x).argmax(1))
    with pytest.raises(PluginError, match="2 networks of 1 units"):
        SCD01(votes=2, iterations=5, features=5).fit(data(), run()).part("linear")


@pytest.mark.parametrize("low", [0, -1])
def test_the_surrogate_becomes_the_network_as_it_steepens(low, monkeypatch):
    rng = torch.Generator().manual_seed(0)
    net = SignVotes(
        SignNetwork(
            hidden=torch.randn(7, 4, 12, generator=rng),
            thresholds=torch.randn(7, 4, generator=rng),
            output=torch.randn(7, 4, generator=rng),
            bias=torch.randn(7, generator=rng),
            votes_for=torch.ones(7, dtype=torch.int64),
            classes=2,
            low=low,
        )
    )
    x = torch.rand(50, 1, 3, 4, generator=rng)
    smooth = net.surrogate()
    scores = smooth(x.requires_grad_())
    scores[:, 1].sum().backward()
    assert (x.grad.flatten(1).norm(dim=1) > 0).all()
    monkeypatch.setattr("harness_plugins.sign_networks.UNIT_SLOPE", 1e7)
    monkeypatch.setattr("harness_plugins.sign_networks.OUTPUT_SLOPE", 1e7)
    torch.testing.assert_close(smooth(x), net(x), rtol=0, atol=1e-3)


# --- the papers' data ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cifar_pair():
    train, x, y = pair(Cifar10(), "cifar10")
    return train, (x, y)


@pytest.mark.slow
def test_mlp01_on_the_first_two_classes_of_cifar10(cifar_pair):
    """81 to 84 % for single networks of three seeds (the papers' best of 32 has 84.2 %)."""
    train, (x, y) = cifar_pair
    nets = [MLP01().fit(train, run(seed)) for seed in range(3)]
    clean = [(net(x).argmax(1) == y).float().mean().item() for net in nets]
    assert 0.81 <= np.mean(clean) <= 0.84, clean


@pytest.mark.slow
def test_scd01_on_the_first_two_classes_of_cifar10(cifar_pair):
    """At least 79 % (the papers: 81.1 %, the best of 32)."""
    train, (x, y) = cifar_pair
    nets = [SCD01().fit(train, run(seed)) for seed in range(3)]
    clean = [(net(x).argmax(1) == y).float().mean().item() for net in nets]
    assert np.mean(clean) >= 0.79, clean


@pytest.mark.slow
def test_thirty_two_votes_on_the_first_two_classes_of_cifar10(cifar_pair):
    """At least 85.5 % (the papers: 86 %), and what a surrogate gradient leaves of a single one."""
    train, (x, y) = cifar_pair
    net = MLP01(votes=32).fit(train, run(0))
    assert (net(x).argmax(1) == y).float().mean().item() >= 0.855
