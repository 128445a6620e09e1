"""The attacker's handle: levels, counts, budgets, rows, and ''t against the rest'."""

import numpy as np
import pytest
import torch
from torch import nn

from harness.errors import BudgetSpent, PluginError
from harness.losses import LOSSES, cross_entropy, margin
from harness.rng import SampleRng
from harness.target import Active, Closest, Ledger, Source, Target, rest
from harness.threat import Threat

N, K = 6, 3


def linear():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, K))
    with torch.no_grad():
        net[1].weight.copy_(torch.arange(12.0).reshape(K, 4).sin())
        net[1].bias.zero_()
    return net.requires_grad_(requires_grad=False)


def images(n=N):
    return torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def target_of(level="gradients", budget=None, n=N, **more):
    source = Source(linear(), K, chunk=more.pop("chunk", 64), **more.pop("source", {}))
    rows, weight = np.arange(n), np.ones(n, np.int64)
    return Target(source, level, Ledger(n, budget), rows, weight, **more)


def test_levels_are_enforced():
    x, y = images(), torch.zeros(N, dtype=torch.int64)
    labels = target_of("labels")
    labels.labels(x)
    with pytest.raises(PluginError, match="declared that it needs labels and asked for scores"):
        labels.scores(x)
    scores = target_of("scores")
    scores.scores(x)
    with pytest.raises(PluginError, match="asked for gradients"):
        scores.gradient(cross_entropy, x, y)
    with pytest.raises(PluginError, match="'weights' without declaring"):
        target_of().part("weights")


def test_queries_are_counted_by_sample():
    target, x, y = target_of(), images(), torch.zeros(N, dtype=torch.int64)
    target.labels(x)
    target.gradient(cross_entropy, x, y)
    few = target.at(torch.tensor([1, 1, 4]))
    few.scores(x[[1, 1, 4]])
    few.at(torch.tensor([2])).gradient(margin, x[[4]], y[[4]])
    assert target.ledger.forward.tolist() == [2, 4, 2, 2, 4, 2]
    assert target.ledger.backward.tolist() == [1, 1, 1, 1, 2, 1]


def test_every_backward_through_kept_scores_counts():
    """A Jacobian row by row: one forward, K backward passes."""
    target, x = target_of(), images().requires_grad_()
    scores = target(x)
    for k in range(K):
        torch.autograd.grad(scores[:, k].sum(), x, retain_graph=True)
    assert target.ledger.forward.tolist() == [1] * N
    assert target.ledger.backward.tolist() == [K] * N


def test_wrong_number_of_images_is_the_attacks_mistake():
    with pytest.raises(PluginError, match=r"holds 6 samples and was asked for 2 images"):
        target_of().labels(images()[:2])
    with pytest.raises(PluginError, match="holds 6 samples"):
        target_of(chunk=2).labels(images(12))


def test_n_times_100_queries_are_chunked_and_counted():
    target = target_of(chunk=32)
    rows = torch.arange(N).repeat_interleave(100)
    many = images()[rows]
    labels = target.at(rows).labels(many)
    assert target.ledger.forward.tolist() == [100] * N
    assert torch.equal(labels, linear()(many).argmax(1))


def test_a_free_targets_call_is_refused_whole_whatever_its_chunks():
    for chunk in (2, 64):
        ledger = Ledger(1, budget=8)
        target = Target(Source(linear(), K, chunk), "labels", ledger)
        target.labels(images())
        with pytest.raises(BudgetSpent):
            target.labels(images())
        assert ledger.forward.tolist() == [6]


def test_a_spent_budget_refuses_the_whole_call_and_counts_nothing_of_it():
    target, x = target_of("labels", budget=2), images()
    target.labels(x)
    target.at(torch.tensor([3])).labels(x[[3]])
    assert target.remaining.tolist() == [1, 1, 1, 0, 1, 1]
    with pytest.raises(BudgetSpent, match="1 samples have spent their query budget of 2"):
        target.labels(x)
    assert target.ledger.forward.tolist() == [1, 1, 1, 2, 1, 1]


def test_the_closest_adversarial_query_is_kept_by_sample():
    x, y = images(2), linear()(images(2)).argmax(1)
    threat = Threat("L2", torch.inf)
    closest = Closest(x, y, threat)
    target = target_of("labels", budget=100, n=2, closest=closest)
    best = [torch.inf, torch.inf]
    g = torch.Generator().manual_seed(1)
    for _ in range(20):
        rows = torch.tensor([0, 0, 1])
        tried = torch.rand(3, 1, 2, 2, generator=g) * 1.2 - 0.1  # some leave the box
        labels = target.at(rows).labels(tried)
        for i, row in enumerate(rows.tolist()):
            inside = bool((tried[i] >= 0).all() and (tried[i] <= 1).all())
            if inside and labels[i] != y[row]:
                best[row] = min(best[row], float((tried[i] - x[row]).double().norm()))
    assert min(best) < torch.inf
    torch.testing.assert_close(closest.distance, torch.tensor(best, dtype=torch.float64))
    found = torch.isfinite(closest.distance)
    torch.testing.assert_close(threat.distance(closest.best, x)[found], closest.distance[found])
    assert torch.equal(closest.best[~found], x[~found])


@pytest.mark.parametrize("eot", [1, 3])
@pytest.mark.parametrize("chunk", [64, 2])
def test_the_least_distance_is_kept_at_counts_of_queries(monkeypatch, eot, chunk):
    """Within a call too: of a sample's three images the first counts from its first query on."""
    monkeypatch.setattr("harness.closest.CHECKPOINTS", counts := (1, 2, 3, 6, 7, 20, 90))
    x, y = images(2), torch.ones(2, dtype=torch.int64)
    closest = Closest(x, y, Threat("Linf", torch.inf))
    target = target_of("labels", n=2, closest=closest, chunk=chunk, source={"eot": eot})
    g, spent = torch.Generator().manual_seed(2), [0, 0]
    expected = np.full((2, len(counts)), np.inf)
    for _ in range(5):
        rows = torch.tensor([0, 1, 0, 0])
        tried = torch.rand(4, 1, 2, 2, generator=g)
        tried[2:] += 1  # outside the box: asked for nothing
        labels = target.at(rows).labels(tried)
        for i, row in enumerate(rows.tolist()):
            spent[row] += eot
            if labels[i] != y[row] and tried[i].max() <= 1:
                later = np.array(counts) >= spent[row]
                distance = float((tried[i].double() - x[row].double()).abs().max())
                expected[row, later] = np.minimum(expected[row, later], distance)
    assert len(np.unique(expected)) > 3
    np.testing.assert_allclose(closest.curve, expected)


def test_targeted_is_t_against_the_rest():
    """logsumexp over j ≠ t, by hand; the labels are exact where the two scores are cautious."""
    scores = torch.tensor([[2.0, 1.9, 1.0]])
    got = rest(scores, torch.tensor([0]))
    others = torch.log(torch.exp(torch.tensor(1.9)) + torch.exp(torch.tensor(1.0)))
    torch.testing.assert_close(got, torch.tensor([[others, 2.0]]))
    assert got.argmax() == 0  # z_t is the greatest and yet below the rest together

    x = images()
    wanted = linear()(x).argmax(1)
    target = target_of("scores", wanted=wanted)
    assert target.classes == 2
    assert target.labels(x).tolist() == [1] * N
    other = target_of("scores", wanted=(wanted + 1) % K)
    assert other.labels(x).tolist() == [0] * N
    assert other.at(torch.tensor([2, 0])).scores(x[[2, 0]]).shape == (2, 2)


def test_bpda_has_the_models_scores_and_the_surrogates_gradient():
    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear()

        def forward(self, x):
            return (3 * self.inner(x)).round()

    x, y = images(), torch.tensor([0, 1, 2, 0, 1, 2])
    target = target_of()
    source = Source(Rounded(), K, 64, backward=linear())
    target = Target(source, "gradients", target.ledger, target.rows, target.weight)
    gradient, scores = target.gradient(margin, x, y)
    assert torch.equal(scores, Rounded()(x))
    weight = linear()[1].weight
    others = scores.scatter(1, y[:, None], -torch.inf).argmax(1)
    assert torch.allclose(gradient.flatten(1), weight[others] - weight[y])


def test_eot_averages_and_counts_every_pass():
    class Noise(nn.Module):
        def forward(self, x, rng):
            return rng.normal(K)

    rng = SampleRng.keyed(0, ids=range(N), restart=0, device=torch.device("cpu"))
    again = SampleRng.keyed(0, ids=range(N), restart=0, device=torch.device("cpu"))
    source = Source(Noise(), K, 64, randomised=True, eot=4)
    target = target_of("scores")
    target = Target(source, "scores", target.ledger, target.rows, target.weight, rng=rng)
    expected = torch.stack([again.normal(K) for _ in range(4)]).mean(0)
    torch.testing.assert_close(target.scores(images()), expected)
    assert target.ledger.forward.tolist() == [4] * N


@pytest.mark.parametrize("judged", [True, False])
def test_fooled_samples_leave_only_where_the_model_is_the_one_judged(judged):
    """Each step adds 0.1; a sample that fools at step k returns the image of step k."""
    x = torch.zeros(3, 1, 1, 1)
    y = torch.zeros(3, dtype=torch.int64)
    limits = torch.tensor([0.15, 0.35, 9.0])

    target = target_of(n=3, judged=judged)
    active = Active(target, x, y, x)
    sizes = []
    for _ in range(5):
        sizes.append(len(active))
        rows = active._rows
        fooled = (active.x_adv.flatten() > limits[rows]).float()
        scores = torch.stack([1 - fooled, fooled, torch.zeros_like(fooled)], 1)
        active.move(active.x_adv + 0.1, scores)
    expected = [0.2, 0.4, 0.5] if judged else [0.5, 0.5, 0.5]
    torch.testing.assert_close(active.result().flatten(), torch.tensor(expected))
    assert sizes == ([3, 3, 3, 2, 2] if judged else [3] * 5)


def test_cutting_late_changes_nothing():
    """On a GPU the batch is cut every ten steps: the same images come back."""
    results = []
    for every in (1, 3):
        active = Active(target_of(n=4, judged=True), images(4), torch.zeros(4).long(), images(4))
        active.SYNC_EVERY = every
        active.x = active.x.clone()
        for step in range(7):
            fooled = (active.x_adv.flatten(1).sum(1) > 2.5 + 0.1 * step).float()
            scores = torch.stack([1 - fooled, fooled], 1)
            if every == 1 or (step + 1) % every == 0:
                active.move(active.x_adv + 0.03, scores)
            else:
                device, active.x = active.x, _Elsewhere(active.x)
                active.move(active.x_adv + 0.03, scores)
                active.x = device
        results.append(active.result())
    assert torch.equal(*results)


class _Elsewhere:
    """A tensor that says it lies on a GPU."""

    def __init__(self, x):
        self.ndim, self.device = x.ndim, torch.device("cuda")


@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_losses_are_positive_where_fooled(loss):
    scores = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    y = torch.arange(200) % 5
    assert torch.equal(LOSSES[loss](scores, y) > 0, scores.argmax(1) != y)


def test_dlr_by_hand_and_its_least_number_of_classes():
    value = LOSSES["dlr"](torch.tensor([[4.0, 1.0, 3.0, 2.0]]), torch.tensor([0]))
    torch.testing.assert_close(value, torch.tensor([(3.0 - 4.0) / (4.0 - 2.0)]))
    with pytest.raises(PluginError, match="3 classes or more"):
        LOSSES["dlr"](torch.zeros(1, 2), torch.tensor([0]))


def test_a_free_target_takes_any_images_and_their_subsets():
    target = Target.around(linear(), K)
    target.labels(images(5))
    target.at(torch.tensor([0, 3])).labels(images(2))
    assert target.ledger.forward.tolist() == [7]
