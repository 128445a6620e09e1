"""Training under the 01 loss: cuts and moves against enumeration, descent against recomputation."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_plugins import sign_descent as descent_module
from harness_plugins import sign_moves as moves_module
from harness_plugins.sign_cuts import (
    DOWN,
    NONE,
    UNIT,
    UP,
    Gains,
    Window,
    best_cuts,
    thresholds,
)
from harness_plugins.sign_descent import Descent, Nets, Rule, on_grid
from harness_plugins.sign_moves import Candidates, best_cut, best_moves
from harness_plugins.sign_pixels import Pixels

RULE = Rule(
    units=5, features=6, share=0.75, step=0.17, output_step=0.2, window=None, init="median", low=0
)


def value_at(q, group, up, down, threshold):
    """What a threshold is worth, by its definition."""
    on = q > threshold
    return up * int((on & (group == UP)).sum()) - down * int((on & (group == DOWN)).sum())


def best_by_enumeration(q, group, up, down):
    """The best of every threshold that tells projections apart."""
    levels = np.concatenate([[-np.inf], np.unique(q)])
    return max(value_at(q, group, up, down, level) for level in levels)


def problems(rng, rows, kinds=(NONE, UP, DOWN), values=None):
    q = rng.standard_normal(rows) if values is None else rng.choice(values, rows)
    return q.astype(np.float32), rng.choice(kinds, rows).astype(np.int8)


@pytest.mark.parametrize("values", [None, [-1.0, -0.0, 0.0, 0.5, 2.0]], ids=["reals", "ties"])
@pytest.mark.parametrize("rows", [1, 2, 7, 60])
def test_the_best_cut_is_that_of_enumeration(rows, values):
    rng = np.random.default_rng(rows)
    for up, down in itertools.product((1, 3), (1, 5)):
        q, group = problems(rng, rows, values=values)
        gains = Gains(torch.tensor([up]), torch.tensor([down]))
        cuts = best_cuts(torch.from_numpy(q)[None, None], torch.from_numpy(group)[None], gains)
        best = best_by_enumeration(q, group, up, down)
        assert cuts.value.item() == best
        below = cuts.below[0]
        level = thresholds(torch.from_numpy(q)[None], torch.ones(1, rows, dtype=torch.bool), below)
        assert value_at(q, group, up, down, level.item()) == best
        active = group != NONE
        value, lone = best_cut(q[active], group[active] == DOWN, (up, down))
        assert value == best
        assert value_at(q, group, up, down, lone) == best


def test_a_window_keeps_the_cut_within_its_ranks():
    rng = np.random.default_rng(0)
    q, group = problems(rng, 50, kinds=(UP, DOWN))
    gains = Gains(torch.tensor([1]), torch.tensor([1]))
    order = np.sort(q)
    for middle, width in itertools.product((0, 3, 25, 49), (1, 4, 100)):
        window = Window(torch.tensor([middle]), width, 50)
        cuts = best_cuts(
            torch.from_numpy(q)[None, None], torch.from_numpy(group)[None], gains, window
        )
        allowed = range(max(0, middle - width), min(50, middle + width - 1) + 1)
        levels = [-np.inf if t == 0 else order[t - 1] for t in allowed]
        assert cuts.value.item() == max(value_at(q, group, 1, 1, level) for level in levels)
        assert cuts.rank.item() in allowed


def test_rows_that_are_not_looked_at_are_behind_the_windows_ranks():
    """Two of five rows are outside: no cut between them, whatever they would gain."""
    q = torch.tensor([[[0.1, float("inf"), 0.3, float("inf"), 0.2]]])
    group = torch.tensor([[DOWN, NONE, DOWN, NONE, DOWN]], dtype=torch.int8)
    window = Window(torch.tensor([3]), 10, 3)
    cuts = best_cuts(q, group, Gains(torch.tensor([1]), torch.tensor([1])), window)
    assert (cuts.value.item(), cuts.rank.item()) == (0, 3)
    assert cuts.below.item() == pytest.approx(0.3)


def test_thresholds_separate_neighbouring_floats():
    one = torch.tensor(1.0)
    q = torch.stack([one, torch.nextafter(one, one + 1)])[None]
    level = thresholds(q, torch.ones(1, 2, dtype=torch.bool), torch.tensor([1.0]))
    assert (q > level[:, None]).tolist() == [[False, True]]


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 80),
    features=st.integers(1, 12),
    kind=st.sampled_from(["reals", "bytes", "binary", "signs"]),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    step=st.sampled_from([0.17, 0.2, 1e-4, 1e-7, 30.0]),
)
@settings(max_examples=300, deadline=None)
def test_screening_finds_the_moves_that_sorting_finds(seed, rows, features, kind, share, step):
    """Also among many equals, and where the step is lost beside the projections."""
    rng = np.random.default_rng(seed)
    draw = {
        "reals": lambda: rng.random((features, rows)),
        "bytes": lambda: rng.integers(0, 256, (features, rows)) / 255,
        "binary": lambda: rng.integers(0, 2, (features, rows)),
        "signs": lambda: rng.choice([-1.0, 1.0], (features, rows)),
    }
    columns = draw[kind]().astype(np.float32)
    base = (rng.standard_normal(rows) * rng.choice([0.01, 1, 30])).astype(np.float32)
    group = np.where(rng.random(rows) < share, rng.choice([UP, DOWN], rows), NONE)
    up, down = (int(w) for w in rng.choice([1, 2, 7, 10**9], 2))
    candidates = Candidates(
        base=torch.from_numpy(base)[None],
        source=Pixels.of(torch.from_numpy(columns.T.copy())),
        features=torch.arange(features)[None],
        step=step,
        group=torch.from_numpy(group.astype(np.int8))[None],
        gains=Gains(torch.tensor([up]), torch.tensor([down])),
    )
    ties = torch.from_numpy(rng.random((1, 2 * features)))
    q = candidates.q[0].numpy()
    values = [best_by_enumeration(each, group, up, down) for each in q]
    best = max(values)
    equal = [i for i, value in enumerate(values) if value == best]
    assert best_moves(candidates, ties).item() == max(equal, key=lambda i: ties[0, i].item())


def test_equal_moves_are_drawn_uniformly():
    """Two pixels that are one and the same, moved by ties alone."""
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    candidates = Candidates(
        base=torch.zeros(1, 4),
        source=Pixels.of(x),
        features=torch.tensor([[0, 1]]),
        step=0.17,
        group=torch.tensor([[DOWN, UP, DOWN, UP]], dtype=torch.int8),
        gains=Gains(torch.tensor([1]), torch.tensor([1])),
    )
    rng = np.random.default_rng(0)
    taken = [
        best_moves(candidates, torch.from_numpy(rng.random((1, 4)))).item() for _ in range(400)
    ]
    assert set(taken) == {0, 2}  # both add the pixel; taking it away would lose
    assert 140 < taken.count(0) < 260


# --- descent ----------------------------------------------------------------------------------


def blobs(n=80, d=16, seed=0):
    """Images of two classes that no linear classifier tells apart: by the sign of a product."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, d)).astype(np.float32) / np.float32(255)
    return torch.from_numpy(x), torch.from_numpy((x[:, 0] - 0.5) * (x[:, 1] - 0.5) > 0)


def descent(rule=RULE, seeds=(1,), **data):
    x, y = blobs(**data)
    return Descent(Pixels.of(x), y, rule, seeds)


def outputs_from_scratch(nets: Nets, x, v):
    """What network v says of each image, by its weights and thresholds alone."""
    on = (x @ nets.hidden[v].T).double() > nets.level[v].double()
    units = torch.where(on, 1.0, 0.0).double()
    return (units * nets.output[v].double()).sum(1) > nets.cut[v].double()


def accuracy(says, y):
    return (says == y).double().mean().item()


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("units", [0, 1, 5])
def test_every_score_is_that_of_the_network_recomputed(units, window):
    """Projections come along by updates; a sample on a threshold may differ by rounding."""
    x, y = blobs()
    training = descent(replace(RULE, units=units, window=window))
    nets = training.start("unbalanced")
    for iteration in range(60):
        score = training.iterate(nets, iteration, "unbalanced")
        says = outputs_from_scratch(nets, x, 0)
        assert abs(score.item() / UNIT - accuracy(says, y)) <= 1.01 / len(y)
        assert torch.equal(
            nets.total > nets.cut[:, None],
            (nets.output[:, None] @ nets.on)[:, 0] > nets.cut[:, None],
        )


def test_projections_agree_with_recomputed_ones_after_1000_steps():
    x, _ = blobs()
    training = descent()
    nets = training.start("unbalanced")
    for iteration in range(1000):
        training.iterate(nets, iteration, "unbalanced")
    torch.testing.assert_close(nets.projection[0], nets.hidden[0] @ x.T, rtol=0, atol=1e-4)
    torch.testing.assert_close(nets.hidden.norm(dim=-1), torch.ones(1, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(nets.output.norm(dim=-1), torch.ones(1), rtol=0, atol=1e-4)


def batch_objective(training, nets, batch, x):
    says = outputs_from_scratch(nets, x, 0)
    right = (says == training.y) & batch.taken[0]
    return sum(int(batch.worth[c]) * int((right & (training.y == bool(c))).sum()) for c in (0, 1))


@pytest.mark.parametrize("objective", ["unbalanced", "balanced", "sum"])
def test_no_step_makes_the_batch_worse(objective):
    """Each half of an iteration cuts anew and moves only where that is strictly better."""
    x, _ = blobs(n=120)
    training = descent(n=120)
    nets = training.start(objective)
    for iteration in range(40):
        draws = training._draw(iteration)
        batch = training._batch(draws.keys, objective)
        before = batch_objective(training, nets, batch, x)
        training._move_output(nets, batch, draws.output_ties)
        between = batch_objective(training, nets, batch, x)
        training._move_unit(nets, batch, draws)
        after = batch_objective(training, nets, batch, x)
        assert before <= between <= after


def test_a_unit_takes_the_best_of_all_its_moves():
    """Against every candidate of a step, each evaluated as a network of its own."""
    x, y = blobs(n=60)
    training = descent(n=60)
    nets = training.start("unbalanced")
    for iteration in range(12):
        draws = training._draw(iteration)
        batch = training._batch(draws.keys, "unbalanced")
        unit = int(draws.unit[0])
        training._move_output(nets, batch, draws.output_ties)
        w, taken = nets.hidden[0, unit].clone(), batch.taken[0]
        others = nets.total[0] - nets.output[0, unit] * nets.on[0, unit]
        moves = [w] + [
            w + sign * 0.17 * torch.eye(16)[feature]
            for feature in draws.features[0]
            for sign in (1, -1)
        ]
        best = 0
        for move in moves:
            q = x @ move
            for level in [-np.inf, *q[taken].tolist()]:
                on = torch.where(q > level, 1.0, 0.0)
                says = others + nets.output[0, unit] * on > nets.cut[0]
                best = max(best, int(((says == y) & taken).sum()))
        training._move_unit(nets, batch, draws)
        says = nets.total[0] > nets.cut[0]
        assert int(((says == y) & taken).sum()) == best


def test_networks_are_the_same_whatever_they_are_trained_beside():
    seeds = (3, 1, 4)
    together = descent(seeds=seeds)
    nets = together.start("unbalanced")
    for iteration in range(50):
        together.iterate(nets, iteration, "unbalanced")
    for v, seed in enumerate(seeds):
        alone = descent(seeds=(seed,))
        own = alone.start("unbalanced")
        for iteration in range(50):
            alone.iterate(own, iteration, "unbalanced")
        for name, tensor in own.tensors().items():
            assert torch.equal(tensor[0], nets.tensors()[name][v]), name
    assert not torch.equal(nets.hidden[0], nets.hidden[1])


def test_the_sorting_of_a_gpu_trains_the_same_networks(monkeypatch):
    """Its batched cuts and moves, made to run here, against those of a CPU."""
    fast = descent(seeds=(1, 2))
    nets = fast.start("sum")
    for iteration in range(30):
        fast.iterate(nets, iteration, "sum")

    def sorted_moves(candidates, ties, window=None):
        values = moves_module._sorted_values(candidates, window)
        return torch.where(values == values.amax(1, keepdim=True), ties, -1.0).argmax(1)

    def sorted_cuts(q, group, gains):
        cuts = best_cuts(q[:, None], group, gains)
        return descent_module.Cuts(cuts.value[:, 0], cuts.rank[:, 0], cuts.below[:, 0])

    monkeypatch.setattr(descent_module, "best_moves", sorted_moves)
    monkeypatch.setattr(descent_module, "_each_cut", sorted_cuts)
    slow = descent(seeds=(1, 2))
    again = slow.start("sum")
    for iteration in range(30):
        slow.iterate(again, iteration, "sum")
    for name, tensor in nets.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name


def test_batches_have_each_classes_share():
    training = descent(n=90)
    ones = int(training.y.sum())
    batch = training._batch(training._draw(0).keys, "unbalanced")
    assert int((batch.taken & training.y).sum()) == int(0.75 * ones)
    assert int((batch.taken & ~training.y).sum()) == int(0.75 * (90 - ones))
    tiny = descent(replace(RULE, share=0.001))
    assert int(tiny._batch(tiny._draw(0).keys, "unbalanced").taken.sum()) == 4


def test_sums_over_the_outputs_grid_are_exact():
    """In any order: a network of 400 units whose float32 sums equal those in float64."""
    rng = torch.Generator().manual_seed(0)
    output = torch.randn(400, generator=rng)
    output = on_grid(output / output.norm())
    on = (torch.rand(400, 500, generator=rng) > 0.5).float()
    order = torch.randperm(400, generator=rng)
    plain = output @ on
    assert torch.equal(plain.double(), output.double() @ on.double())
    assert torch.equal(plain, output[order] @ on[order])


@pytest.mark.parametrize("values", [256, 257])
def test_pixels_are_what_was_laid_out(values):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.choice(np.linspace(0, 1, values, dtype=np.float32), (700, 5)))
    x[:257, 0] = torch.linspace(0, 1, 257) if values > 256 else x[:257, 0]
    pixels = Pixels.of(x)
    assert (pixels.values is None) == (values > 256)
    some, rows = np.array([4, 0]), np.array([1, 699])
    assert torch.equal(pixels[torch.tensor([4, 0])], x.T[[4, 0]])
    assert (pixels.columns(some, rows) == x.T[[4, 0]][:, [1, 699]].numpy()).all()
    weights = torch.randn(3, 5)
    torch.testing.assert_close(pixels.project(weights), weights @ x.T)


def test_training_learns_what_no_linear_classifier_can():
    """A band of one pixel: two units and their difference."""
    x, _ = blobs(n=400, d=4, seed=2)
    y = (x[:, 0] - 0.5).abs() < 0.25
    found = {}
    for units in (0, 5):
        training = Descent(Pixels.of(x), y, replace(RULE, units=units, features=4), (0,))
        nets = training.start("unbalanced")
        scores = [training.iterate(nets, i, "unbalanced").item() / UNIT for i in range(200)]
        found[units] = max(scores)
    assert found[0] < 0.8
    assert found[5] > 0.95
