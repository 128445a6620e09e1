"""Models that scikit-learn trains: what torch computes is what scikit-learn would."""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import Kept, Killed
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import LinearSVC

from harness.api import Info, Run, TrainingSet
from harness.errors import PluginError, UsageError
from harness_plugins.convergence import watched
from harness_plugins.defenses import svm
from harness_plugins.defenses.sklearn_mlp import SklearnMajority, SklearnMLP
from harness_plugins.defenses.svm import SVM

CPU = torch.device("cpu")


def digits(classes, train=300):
    raw = load_digits(n_class=classes)
    x = torch.from_numpy(raw.images).float()[:, None] / 16
    y = torch.from_numpy(raw.target).long()
    info = Info((1, 8, 8), classes, train)
    return TrainingSet(info, x[:train], y[:train]), x[train:], y[train:]


DIGITS = {classes: digits(classes) for classes in (2, 3, 10)}


def fitted(model, data, seed=0, store=None):
    return model.fit(data, Run(seed, CPU, _store=store or Kept()))


def accuracy(net, x, y):
    return (net(x).argmax(1) == y).double().mean().item()


@pytest.fixture
def trained(monkeypatch):
    """What scikit-learn fitted, in order, and to how many different images."""
    found = []
    one, other = svm._fitted, SklearnMLP._fitted

    def machine(x, y, penalty):
        fit = one(x, y, penalty)
        found.append((fit[0], x))
        return fit

    def network(self, x, y, seed):
        fit = other(self, x, y, seed)
        found.append((fit[0], x))
        return fit

    monkeypatch.setattr(svm, "_fitted", machine)
    monkeypatch.setattr(SklearnMLP, "_fitted", network)
    return found


# --- svm ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", DIGITS)
@pytest.mark.parametrize("votes", [1, 4])
def test_an_svm_scores_with_scikit_learns_decision_functions(trained, classes, votes):
    data, x, _ = DIGITS[classes]
    net = fitted(SVM(C=0.1, votes=votes), data)
    flat = x.flatten(1).numpy()
    summed = sum(machine.decision_function(flat) for machine, _ in trained)
    labels = (summed > 0).astype(int) if classes == 2 else summed.argmax(1)
    assert np.array_equal(net(x).argmax(1), labels)
    expected = torch.from_numpy(summed / votes).float()
    if classes == 2:
        expected = torch.stack([torch.zeros(len(x)), expected], 1)
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)
    assert len(trained) == votes


def test_one_machine_is_fitted_to_the_images_and_votes_to_different_bootstraps(trained):
    data, _, _ = DIGITS[3]
    fitted(SVM(C=0.1), data)
    fitted(SVM(C=0.1, votes=3), data)
    whole, *samples = [x for _, x in trained]
    assert np.array_equal(whole, data.x.flatten(1))
    assert [len(np.unique(x, axis=0)) < 0.7 * len(x) for x in samples] == [True] * 3
    assert not any(np.array_equal(samples[i], samples[i - 1]) for i in range(3))


def test_the_part_linear_is_the_model():
    data, x, _ = DIGITS[3]
    net = fitted(SVM(C=0.1, votes=2), data)
    assert torch.equal(net.part("linear").scores(x), net(x))
    x = x[:5].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(x)[:, 1].sum(), x)
    assert torch.equal(gradient.flatten(1), net.part("linear").weight[1].expand(5, 64))


def test_cross_validation_chooses_what_a_grid_search_would():
    data, _, _ = DIGITS[10]
    grid = (10.0, 1e-4, 1e-2, 1e-6)
    net = fitted(SVM(grid=grid, folds=3), data)
    seed = int(Run(0, CPU).rng("folds").integers(2**32))
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    search = GridSearchCV(LinearSVC(dual=False), {"C": sorted(grid)}, cv=folds)
    search.fit(data.x.flatten(1).numpy(), data.y.numpy())
    assert net.penalty.item() == pytest.approx(search.best_params_["C"])
    assert len(set(search.cv_results_["mean_test_score"])) > 2


def test_of_equals_cross_validation_takes_the_smallest():
    net = fitted(SVM(grid=(1.0, 0.1, 10.0), folds=3), DIGITS[2][0])  # each is right on all images
    assert net.penalty.item() == pytest.approx(0.1)


def test_more_folds_than_images_of_a_class_is_one_clear_line():
    data, _, _ = DIGITS[2]
    few = replace(data, x=data.x[:20], y=torch.tensor([0] * 17 + [1] * 3))
    with pytest.raises(UsageError, match="folds=5: class 1 has 3 training images; give C"):
        fitted(SVM(), few)


# --- mlp ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", DIGITS)
@pytest.mark.parametrize("hidden", [(20,), (7, 5)])
def test_an_mlp_has_scikit_learns_probabilities(trained, classes, hidden):
    data, x, _ = DIGITS[classes]
    net = fitted(SklearnMLP(hidden=hidden, epochs=20, lr=0.1, votes=3), data)
    flat = x.flatten(1).numpy()
    mean = np.mean([network.predict_proba(flat) for network, _ in trained], 0)
    torch.testing.assert_close(net(x).exp(), torch.from_numpy(mean).float(), rtol=0, atol=1e-5)
    for i, (network, _) in enumerate(trained):
        own = net.networks(x)[:, i].argmax(1)
        assert np.array_equal(own, network.predict(flat))


def test_hard_votes_are_counts_of_scikit_learns_predictions(trained):
    data, x, _ = DIGITS[3]
    net = fitted(SklearnMajority(epochs=20, votes=4), data)
    labels = np.stack([network.predict(x.flatten(1).numpy()) for network, _ in trained], 1)
    counts = np.stack([(labels == c).sum(1) for c in range(3)], 1)
    assert np.array_equal(net(x) * 4, counts)
    assert len(np.unique(labels, axis=1).T) > 1
    soft = fitted(SklearnMLP(epochs=20, votes=4), data)
    assert torch.equal(net.surrogate()(x), soft(x))


def test_its_settings_are_the_papers(trained):
    fitted(SklearnMLP(), DIGITS[2][0])
    network = trained[0][0]
    told = {
        name: getattr(network, name)
        for name in ("activation", "solver", "alpha", "batch_size", "learning_rate", "tol")
    }
    assert told == {
        "activation": "logistic",
        "solver": "sgd",
        "alpha": 1e-4,
        "batch_size": "auto",
        "learning_rate": "constant",
        "tol": 1e-4,
    }
    assert (network.learning_rate_init, network.momentum) == (0.01, 0.9)
    assert (network.nesterovs_momentum, network.n_iter_no_change) == (True, 10)
    assert (network.early_stopping, network.max_iter) == (False, 200)


def test_seeds_share_the_images_and_bootstraps_do_not(trained):
    data, x, _ = DIGITS[3]
    seeds = fitted(SklearnMLP(epochs=3, votes=2), data)
    samples = fitted(SklearnMLP(epochs=3, votes=2, ensemble="bootstrap"), data)
    images = [len(np.unique(x, axis=0)) for _, x in trained]
    assert images[:2] == [len(np.unique(data.x.flatten(1), axis=0))] * 2
    assert max(images[2:]) < 0.7 * len(data.x)
    assert not np.array_equal(trained[2][1], trained[3][1])
    for net in (seeds, samples):
        assert not torch.equal(net.networks(x)[:, 0], net.networks(x)[:, 1])


def test_gradients_are_exact():
    data, x, _ = DIGITS[3]
    net = fitted(SklearnMLP(hidden=(5, 4), epochs=3, votes=3), data).double()
    assert torch.autograd.gradcheck(net, x[:3].double().requires_grad_())


def test_a_diverging_training_says_what_it_was_trained_with():
    failed = pytest.raises(PluginError, match=r"scikit-learn's training failed.*lr=1e\+300")
    with np.errstate(all="ignore"), failed as error:
        fitted(SklearnMLP(lr=1e300, epochs=5), DIGITS[3][0])
    assert "\n" not in str(error.value)


# --- what has not converged --------------------------------------------------------------------


def notes_of(model, data, store=None):
    told = []
    model.fit(data, Run(0, CPU, _store=store or Kept(), _tell=told.append))
    return told


@pytest.fixture
def impatient(monkeypatch):
    """scikit-learn's machines with fewer iterations than most of these need."""
    few = functools.partial(LinearSVC, max_iter=11)
    monkeypatch.setattr("sklearn.svm.LinearSVC", few)


def test_networks_that_ran_out_of_epochs_are_counted(trained):
    data, _, _ = DIGITS[3]
    counts = set()
    for epochs in (3, 40, 44, 48, 52, 200):
        start = len(trained)
        told = notes_of(SklearnMLP(hidden=(4,), lr=0.5, epochs=epochs, votes=6), data)
        stopped = sum(
            network.n_iter_ == epochs and network._no_improvement_count <= network.n_iter_no_change
            for network, _ in trained[start:]
        )
        assert told == [
            f"{stopped} of 6 networks with epochs={epochs} had not converged, says scikit-learn"
        ] * (stopped > 0)
        counts.add(stopped)
    assert len(counts) > 2  # none, all, and some


def test_machines_and_fits_of_the_cross_validation_are_counted(trained, impatient):
    data, _, _ = DIGITS[10]
    told = notes_of(SVM(grid=(1e-6, 10.0), folds=4, votes=3), data)
    stopped = [bool(machine.n_iter_ == 11) for machine, _ in trained]
    fits, machines = sum(stopped[:8]), sum(stopped[8:])
    assert 0 < fits < 8
    assert machines > 0
    assert told == [
        f"{fits} of 8 fits of the cross-validation had not converged, says scikit-learn",
        f"{machines} of 3 machines with C=10 had not converged, says scikit-learn",
    ]


def test_where_all_converged_nothing_is_said():
    assert notes_of(SVM(grid=(0.1, 0.01), folds=2, votes=2), DIGITS[3][0]) == []


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_a_killed_training_says_as_much_as_one_that_was_not(impatient, killed_after):
    data, _, _ = DIGITS[10]
    for model in (SVM(grid=(0.1, 10.0), folds=2, votes=2), SklearnMLP(epochs=3, votes=4)):
        whole, store = notes_of(model, data), Kept(kill_after=killed_after)
        with pytest.raises(Killed):
            notes_of(model, data, store)
        assert notes_of(model, data, store) == whole != []


def test_other_warnings_pass():
    with pytest.warns(RuntimeWarning, match="overflow") as caught:
        found = watched(lambda: [warnings.warn("overflow", RuntimeWarning, stacklevel=1), 7][1])
    assert (found, len(caught)) == ((7, True), 1)


# --- both --------------------------------------------------------------------------------------

MODELS = [
    SVM(C=0.1),
    SVM(C=0.1, votes=3),
    SklearnMLP(hidden=(6, 5), epochs=3, votes=3),
    SklearnMLP(epochs=3, votes=3, ensemble="bootstrap"),
    SklearnMajority(epochs=3, votes=3),
]


@pytest.mark.parametrize("model", MODELS)
def test_build_takes_what_fit_gives(model):
    data, x, _ = DIGITS[3]
    net, again = fitted(model, data), model.build(data.info)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))


@pytest.mark.parametrize("model", MODELS)
def test_the_seed_fixes_the_weights_and_global_generators_do_not(model):
    data, x, _ = DIGITS[3]
    np.random.seed(1)
    first = fitted(model, data)(x)
    np.random.seed(2)
    assert torch.equal(fitted(model, data)(x), first)
    other = fitted(model, data, seed=1)
    assert torch.equal(other(x), first) == (model == SVM(C=0.1))


@pytest.mark.parametrize("model", MODELS)
def test_rows_do_not_depend_on_the_batch(model):
    data, x, _ = DIGITS[3]
    net = fitted(model, data)
    assert torch.equal(net(x[:40])[16:24], net(x[16:24]))


@pytest.mark.parametrize("model", [SVM(grid=(0.1, 0.01), folds=2, votes=3), MODELS[2], MODELS[3]])
@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_a_killed_training_ends_with_the_bits_of_one_that_was_not(trained, model, killed_after):
    data, _, _ = DIGITS[3]
    whole, store = fitted(model, data), Kept(kill_after=killed_after)
    fits = len(trained)
    with pytest.raises(Killed):
        fitted(model, data, store=store)
    resumed = fitted(model, data, store=store)
    assert len(trained) == 2 * fits  # none of them twice
    assert all(torch.equal(a, resumed.state_dict()[k]) for k, a in whole.state_dict().items())


@pytest.mark.parametrize("model", [SVM(), SklearnMLP()])
def test_a_class_without_images_is_one_clear_line(model):
    data, _, _ = DIGITS[3]
    for labels, absent in ((data.y * 0, 1), (data.y.clamp_max(1), 2)):
        with pytest.raises(
            UsageError, match=f"class {absent} of 3 has no image among the training"
        ):
            fitted(model, replace(data, y=labels))


@pytest.mark.parametrize(
    ("model", "reached"), [(SVM(folds=3), 0.88), (SklearnMLP(lr=0.1, votes=3), 0.88)]
)
def test_learns_digits(model, reached):
    data, x, y = digits(10, 1297)
    assert accuracy(fitted(model, data), x, y) > reached
