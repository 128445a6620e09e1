"""The Square attack: its squares, bumps and schedule by hand, linear models, queries, and ART's."""

from __future__ import annotations

import dataclasses
import math
import os
import random
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from attack_kit import Halfspace, digits, draws, grey, judged, small
from laws import Linear, inner, shares
from support import board_text, run
from torch import nn

from harness.api import LOSSES, Threat
from harness.outcome import Outcome
from harness.target import Ledger, Target
from harness_plugins.attacks.score_search import Search
from harness_plugins.attacks.square import BLOCK, Bumps, Corners, Square, blocks, bumps, share

LINF, L2 = Threat("Linf", 0.1), Threat("L2", 1.0)
# On `small` and grey images a third or more are fooled in the steps that the tests take.
CLOSE = pytest.mark.parametrize(
    "threat", [Threat("Linf", 0.025), Threat("L2", 0.2)], ids=["Linf", "L2"]
)


class Recorder(nn.Module):
    """The same scores for every image unless a network is given; keeps what it was asked."""

    def __init__(self, net=None):
        super().__init__()
        self.net, self.asked = net, []

    def forward(self, x):
        self.asked.append(x.clone())
        return self.net(x) if self.net else torch.tensor([[1.0, 0.0]]).expand(len(x), 2)


def capped(net, n, budget, classes=5):
    return dataclasses.replace(judged(net, n, classes), ledger=Ledger(n, budget))


def fooled(net, x, y):
    return net(x).argmax(dim=1) != y


def test_the_schedule_is_the_published_one_stretched():
    divisors = {0: 1, 10: 1, 11: 2, 50: 2, 51: 4, 200: 4, 201: 8, 500: 8, 501: 16, 1000: 16}
    divisors |= {1001: 32, 2001: 64, 4001: 128, 6001: 256, 8000: 256, 8001: 512, 9999: 512}
    for step, divisor in divisors.items():
        assert share(0.8, step, 10_000) == 0.8 / divisor
    assert [share(0.8, step, 1000) for step in (1, 2, 5, 6)] == [0.8, 0.4, 0.4, 0.2]


@pytest.mark.parametrize("steps", [1, 2, 7, 100, 1000])
def test_blocks_are_the_schedule_in_order(steps):
    runs = list(blocks(0.5, steps))
    flat = list(chain.from_iterable(repeat(part, count) for part, count in runs))
    assert flat == [share(0.5, step, steps) for step in range(steps - 1)]
    assert all(0 < count <= BLOCK for _, count in runs)


@pytest.mark.parametrize(
    ("shape", "part", "linf", "l2"),
    [
        ((28, 28), 0.8, 25, 25),
        ((28, 28), 0.4, 18, 19),
        ((28, 28), 0.001, 1, 3),
        ((3, 40), 0.8, 3, 3),
        ((2, 2), 0.1, 1, 2),
        ((32, 32), 1.0, 32, 32),
    ],
)
def test_the_sides_of_squares(shape, part, linf, l2):
    assert Corners(LINF).side(part, *shape) == linf
    assert Bumps(L2).side(part, *shape) == l2


def test_a_bump_by_hand():
    upper = np.array([[0.25, 1.25, 0.25]])
    lower = np.array([[0.25, 0.25, 0.25], [0.25, 1.25, 0.25]])
    upper, lower = (v / np.sqrt((v**2).sum()) for v in (upper, lower))
    expected = np.concatenate([upper, -lower]) / math.sqrt(2)
    np.testing.assert_allclose(bumps(3)[0].numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(bumps(3)[1].numpy(), expected.T, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_proposal_is_one_square_of_one_sign_in_each_channel(channels):
    """Nothing is ever kept, so every query is seen against the stripes."""
    x = 0.5 * torch.rand(4, channels, 6, 7, generator=torch.Generator().manual_seed(1))
    net, steps = Recorder(), 400
    Square(steps=steps)(judged(net, 4, 2), x, torch.zeros(4).long(), LINF, draws(4))
    stripes, *proposals = (asked[:4] for asked in net.asked)  # the rest is padding
    assert len(proposals) == steps - 1
    ends = (x - 0.1).clamp_min(0), (x + 0.1).clamp_max(1)
    high = stripes == ends[1]
    assert (high | (stripes == ends[0])).all()
    assert (high == high[:, :, :1]).all()  # vertical
    sides = [
        Corners(LINF).side(part, 6, 7) for part, count in blocks(0.8, steps) for _ in range(count)
    ]
    seen, patterns = torch.zeros(6, 7), set()
    for side, proposal in zip(sides, proposals, strict=True):
        assert ((proposal == ends[0]) | (proposal == ends[1])).all()
        moved = proposal != stripes
        assert moved.flatten(1).any(dim=1).all()  # no query is wasted on what is known
        for i in range(4):
            rows, columns = moved[i].any(dim=0).nonzero().unbind(1)
            assert rows.max() - rows.min() < side
            assert columns.max() - columns.min() < side
            if side == 1:
                seen[rows, columns] += 1
                flipped = (
                    i,
                    int(rows[0]),
                    int(columns[0]),
                    tuple(moved[i].flatten(1).any(1).tolist()),
                )
                patterns.add(flipped[3])
    assert (seen > 0).all()  # the last row and column too
    assert len(patterns) == 2**channels - 1


def test_in_linf_it_finds_the_worst_image_of_a_linear_model_and_nothing_worse():
    """Also where the box cuts the ball."""
    rng = torch.Generator().manual_seed(0)
    w = torch.randn(36, generator=rng)
    x = torch.rand(6, 1, 6, 6, generator=rng)
    net = Halfspace(w)
    y = torch.ones(6).long()
    low, high = (x - 0.1).clamp_min(0), (x + 0.1).clamp_max(1)
    worst = torch.where(w.view(1, 1, 6, 6) > 0, low, high)
    x_adv = Square(steps=1500)(Target.around(net, 2), x, y, LINF, draws(6))
    assert torch.equal(x_adv, worst)


@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_in_l2_it_gets_most_of_what_a_smooth_linear_model_allows(loss):
    """Nothing passes ε‖w‖, and the best of 600 random directions gets a quarter."""
    net, x = Linear(2, shape=(1, 12, 12)), inner(6, shape=(1, 12, 12), spread=0.02)
    wave = torch.linspace(0, math.pi, 12).sin()
    net.w[1] = net.w[0] + (wave[:, None] * (2 * wave - 1)).flatten()
    y = net(x).argmax(dim=1)
    x_adv = Square(steps=600, loss=loss)(Target.around(net, 2), x, y, L2, draws(6))
    share = shares(net, x, x_adv, L2).amax(dim=1)
    assert (share <= 1 + 1e-6).all()
    assert share.min() > 0.55


def test_in_l2_every_query_uses_all_of_eps_inside_the_box_and_no_more_anywhere():
    net, x, threat = small(features=400), grey(8, shape=(1, 12, 12)), Threat("L2", 0.4)
    for images in (x, x.round(), (3 * x - 1).clamp(0, 1)):
        recorder = Recorder(net)
        target = dataclasses.replace(judged(recorder, 8), judged=False)
        y = net(images).argmax(dim=1)
        Square(steps=300)(target, images, y, threat, draws(8))
        assert len(recorder.asked) == 300
        for asked in recorder.asked:
            distance = threat.distance(asked, images)
            assert (distance <= 0.4).all()
            assert asked.min() >= 0
            assert asked.max() <= 1
            if images is x:  # no pixel can reach the box
                assert (distance >= 0.4 * (1 - 1e-5)).all()


def sides_of(steps):
    """Of each step on 12 × 12 pixels."""
    return [Bumps(L2).side(p, 12, 12) for p, count in blocks(0.8, steps) for _ in range(count)]


def test_two_squares_give_what_they_hold_to_the_first():
    """Outside of both nothing changes; the second, where it is not in the first, is as in x."""
    x, recorder = grey(8, shape=(1, 12, 12)), Recorder()
    Square(steps=60)(judged(recorder, 8, 2), x, torch.zeros(8).long(), L2, draws(8))
    start, *proposals = recorder.asked
    for side, proposal in zip(sides_of(60), proposals, strict=True):
        moved = (proposal != start).flatten(1).sum(dim=1)
        cleared = ((proposal == x) & (start != x)).flatten(1).sum(dim=1)
        assert (moved <= 2 * side**2).all()
        assert (moved - cleared <= side**2).all()
        assert (moved - cleared > side**2 / 2).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_what_the_box_cut_off_is_made_up_for_where_there_is_room(channels):
    """The left half is black, which half of all bumps cannot darken. A bump in the right half gets
    what that leaves of eps."""
    x, recorder = grey(8, shape=(channels, 12, 12)), Recorder()
    x[..., :6] = 0.0
    threat = Threat("L2", 0.4)
    Square(steps=60)(judged(recorder, 8, 2), x, torch.zeros(8).long(), threat, draws(8))
    start, *proposals = recorder.asked
    assert (threat.distance(start, x) < 0.35).all()
    right = 0
    for side, proposal in zip(sides_of(60), proposals, strict=True):
        bump = (proposal != start) & (proposal != x)
        there = bump[..., 6:].flatten(1).sum(dim=1) == channels * side**2  # all
        right += int(there.sum())
        distance = threat.distance(proposal, x)
        assert (distance[there] >= 0.4 * (1 - 1e-5)).all()
        assert (distance <= 0.4).all()
    assert right > 50


@CLOSE
def test_a_sample_leaves_with_the_image_that_fooled_and_pays_for_no_more(threat):
    net = small()
    x = grey(16, shape=(1, 8, 8))
    y = net(x).argmax(dim=1)
    target = judged(net, 16)
    x_adv = Square(steps=150)(target, x, y, threat, draws(16))
    out = fooled(net, x_adv, y)
    assert 2 < out.sum() < 16
    spent = torch.from_numpy(target.ledger.forward)
    assert (spent[~out] == 150).all()
    for i in out.nonzero()[:, 0]:  # alone, and one query short of it: not yet
        row, few = i[None], int(spent[i]) - 1
        part = capped(net, 16, few).at(row) if few else None
        if part is not None:
            short = Square(steps=150)(part, x[row], y[row], threat, draws(16).at(row))
            assert not fooled(net, short, y[row])


@CLOSE
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 30, 30)], ids=["small", "large"])
def test_a_sample_does_not_depend_on_its_batch(threat, shape):
    net = small(features=4 * (shape[1] - 2) ** 2)
    x = grey(11, shape=shape)
    y = net(x).argmax(dim=1)
    steps = 200 if shape[1] == 8 else 40
    whole = Square(steps=steps)(judged(net, 11), x, y, threat, draws(11))
    for rows in ([3, 8, 10, 1], [5]):
        at = torch.tensor(rows)
        few = Square(steps=steps)(judged(net, 11).at(at), x[at], y[at], threat, draws(11).at(at))
        assert torch.equal(few, whole[at])


@CLOSE
def test_a_sample_whose_budget_is_spent_keeps_its_best_and_stops_nobody(threat):
    net = small()
    x = grey(16, shape=(1, 8, 8))
    y = net(x).argmax(dim=1)
    free, poor = judged(net, 16), capped(net, 16, 110)
    poor.ledger.forward[:] = np.arange(16) * 2  # some have little left
    poor.ledger.forward[3] = 110
    attack = Square(steps=150)
    x_adv = attack(poor, x, y, threat, draws(16))
    all_of_it = attack(free, x, y, threat, draws(16))
    assert poor.ledger.forward.max() == 110
    assert torch.equal(x_adv[3], x[3])
    early = free.ledger.forward <= 110 - 2 * np.arange(16)
    early[3] = False
    assert early.any()
    assert torch.equal(x_adv[early], all_of_it[early])
    held = ~fooled(net, x_adv, y).numpy()
    assert (poor.ledger.forward[held] == 110).all()


def test_a_targeted_run_goes_to_its_label():
    net, x, _ = digits(24)
    wanted = torch.arange(24) % 10
    right = net(x).argmax(dim=1) == wanted
    target = dataclasses.replace(judged(net, 24, 10), wanted=wanted)
    for loss in ("margin", "ce"):
        attack = Square(steps=300, loss=loss)
        x_adv = attack(target, x, torch.zeros(24).long(), Threat("Linf", 0.3), draws(24))
        reached = net(x_adv).argmax(dim=1) == wanted
        assert (reached & ~right).sum() > 6


class Mean(nn.Module):
    """Class 1 from a mean of 0.8."""

    def forward(self, x):
        mean = x.flatten(1).mean(dim=1)
        return torch.stack([0 * mean, mean - 0.8], dim=1)


def test_only_what_is_better_is_kept():
    x, y = torch.zeros(3, 1, 2, 2), torch.zeros(3).long()
    search = Search(judged(Mean(), 3, 2), x, y, LOSSES["margin"], until_fooled=True)
    assert search.ask(x + 0.5).tolist() == [True] * 3
    levels = torch.tensor([0.4, 0.6, 0.9]).view(3, 1, 1, 1).expand_as(x)
    assert search.ask(levels).tolist() == [False, True, True]
    assert search.rows.tolist() == [0, 1]
    torch.testing.assert_close(search.result()[:, 0, 0, 0], torch.tensor([0.5, 0.6, 0.9]))


def test_in_a_cell_budgets_and_restarts_are_the_harnesss(tmp_path):
    attacks = ["square:steps=30", "square:steps=30,query_budget=8", "square:steps=9,restarts=2"]
    ran = run(board_text(["tiny"], attacks, eps=(0.1, 0.3)), tmp_path)
    for attack, most in zip(attacks, (30, 8, 2 * (9 + 1)), strict=True):
        record = ran.of("tiny", attack)
        assert record.status == "ok", record.reason
        assert 0 < record.arrays["forward"].max() <= most
        assert (record.arrays["outcome"] == Outcome.ADVERSARIAL).any()


def art_left(net, x, y, threat, steps, seed):
    """How many ART's attack leaves with as many proposals; it asks three times for each."""
    pytest.importorskip("art.attacks.evasion", reason="ART is not installed")
    from art.attacks.evasion import SquareAttack
    from art.estimators.classification import PyTorchClassifier

    shape, p = tuple(x.shape[1:]), {"Linf": np.inf, "L2": 2}[threat.norm]
    classifier = PyTorchClassifier(
        net, nn.CrossEntropyLoss(), shape, 10, clip_values=(0, 1), device_type="cpu"
    )
    np.random.seed(seed)
    random.seed(seed)
    attack = SquareAttack(classifier, norm=p, max_iter=steps - 1, eps=threat.eps, verbose=False)
    x_adv = torch.from_numpy(attack.generate(x.numpy(), y=y.numpy()))
    return int((~fooled(net, x_adv, y) | ~threat.allows(x_adv, x)).sum())


def ours_left(net, x, y, threat, steps, seed):
    target = judged(net, len(x), 10)
    x_adv = Square(steps=steps)(target, x, y, threat, draws(len(x), seed))
    assert target.ledger.forward.max() <= steps
    return int((~fooled(net, x_adv, y)).sum())


def test_is_no_weaker_than_arts_at_as_many_proposals():
    net, x, y = digits(48)
    case = (net, x, y, Threat("Linf", 0.12), 60)
    ours, theirs = (sum(f(*case, seed) for seed in range(4)) for f in (ours_left, art_left))
    assert ours <= theirs + 2 * math.sqrt(theirs)
    assert ours < 4 * 48


@pytest.mark.slow
@pytest.mark.skipif(
    not Path(os.environ.get("HARNESS_DATA", "/nonexistent"), "mnist").is_dir(),
    reason="HARNESS_DATA has no folder mnist",
)
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.15), ("L2", 2.0)])
@pytest.mark.parametrize("steps", [100, 300])
def test_is_no_weaker_than_arts_on_mnist(norm, eps, steps):
    net, x, y = mnist()
    case = (net, x, y, Threat(norm, eps), steps)
    ours, theirs = (sum(f(*case, seed) for seed in range(3)) for f in (ours_left, art_left))
    assert ours <= theirs + 2 * math.sqrt(theirs)


def mnist(n=100):
    """A small network that has seen MNIST's first 10,000 images once, and images it has right."""
    from harness.data import Files, as_images
    from harness_plugins.datasets import harness_datasets

    spec = next(s for s in harness_datasets() if s.name == "mnist")
    splits = spec_class(spec)().load(
        Files(Path(os.environ["HARNESS_DATA"]), "mnist", spec.downloads)
    )
    x, y = (
        as_images(splits.train_x, slice(10_000)),
        torch.from_numpy(splits.train_y[:10_000].astype("int64")),
    )
    torch.manual_seed(0)
    net = nn.Sequential(
        *[nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 16, 5, 2), nn.ReLU()],
        *[nn.Flatten(), nn.Linear(256, 10)],
    )
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    for rows in torch.randperm(10_000).split(50):
        adam.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        adam.step()
    net.requires_grad_(requires_grad=False)
    x, y = (
        as_images(splits.test_x, slice(500)),
        torch.from_numpy(splits.test_y[:500].astype("int64")),
    )
    right = (~fooled(net, x, y)).nonzero()[:n, 0]
    return net, x[right], y[right]


def spec_class(spec):
    from importlib import import_module

    module, name = spec.factory.split(":")
    return getattr(import_module(module), name)
