"""What the attacks that see labels alone share: starts, searches, and queries that run out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attack_kit import Halfspace, draws, halfspace, star
from decision_kit import UNBOUND, labelled
from support import board_text, run
from torch import nn

from harness.bind import Restarted
from harness.closest import Closest
from harness.outcome import CHECKPOINTS, against_queries
from harness.plugin import NORMS
from harness.target import Ledger, Source, Target
from harness_plugins.attacks.boundary import Boundary
from harness_plugins.attacks.decision import Decisions, coarse
from harness_plugins.attacks.hopskipjump import HopSkipJump

BOTH = pytest.mark.parametrize("attack", [HopSkipJump(), Boundary()], ids=["hop", "walk"])


class Guarded(nn.Module):
    """Class 1 but for a first pixel above 0.999, where no noise lies."""

    def forward(self, x):
        z = x[:, 0, 0, 0] - 0.999
        return torch.stack([z, -z], dim=1)


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_the_search_ends_where_the_boundary_is(norm):
    """At w = (1, 1) and x = (.4, .5) the way to (.9, .6) crosses x₁ + x₂ = 1 a sixth along the
    line; in Linf where both have grown by .05, a tenth of .5."""
    net = Halfspace(torch.tensor([-1.0, -1.0]))
    x, y = torch.tensor([[[[0.4, 0.5]]]]), torch.ones(1, dtype=torch.long)
    far = torch.tensor([[[[0.9, 0.6]]]])
    target = labelled(net, 1)
    asked = Decisions.of(target, x, y, UNBOUND[norm], draws(1))
    near = asked.search(torch.tensor([0]), far, 8)
    assert net(near).argmax(dim=1) == 0
    share = UNBOUND[norm].distance(near, x) / UNBOUND[norm].distance(far, x)
    crossing = {"L2": 1 / 6, "Linf": 1 / 10}[norm]
    assert crossing <= share <= crossing + 2**-8
    assert target.ledger.forward.tolist() == [8]
    assert torch.equal(asked.best.x_adv, near)


def test_noise_in_squares_has_one_value_in_each():
    noise = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(coarse(noise, 1), noise)
    squares = coarse(noise, 4)
    assert torch.equal(squares[1, 2, :4, :4], noise[1, 2, 0, 0].expand(4, 4))
    assert torch.equal(squares[0, 1, 4:, 4:], noise[0, 1, 4, 4].expand(1, 2))
    assert torch.equal(coarse(noise, 8), noise[:, :, :1, :1].expand_as(noise))


@BOTH
def test_a_sample_without_a_start_stays_and_stops_no_one_else(attack):
    """Of the second class is nearly the whole box, so its images find no other."""
    rng, net = draws(4), Guarded()
    x = 0.3 + 0.1 * torch.rand(4, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    x[:3, 0, 0, 0] = torch.tensor([1.0, 0.9995, 1.0])
    y = net(x).argmax(dim=1)
    assert y.tolist() == [0, 0, 0, 1]
    alone = attack(labelled(net, 3), x[:3], y[:3], UNBOUND["L2"], draws(4).at(torch.arange(3)))
    target = labelled(net, 4)
    x_adv = attack(target, x, y, UNBOUND["L2"], rng)
    assert torch.equal(x_adv[3], x[3])
    assert target.ledger.forward[3] == 1 + attack.starts
    assert torch.equal(x_adv[:3], alone)
    assert (net(x_adv[:3]).argmax(dim=1) == 1).all()


@BOTH
def test_what_has_no_other_class_stays(attack):
    net, x = Halfspace(torch.zeros(12), 1.0), torch.rand(3, 1, 3, 4)
    y = torch.ones(3, dtype=torch.long)
    assert torch.equal(attack(labelled(net, 3), x, y, UNBOUND["L2"], draws(3)), x)


@BOTH
@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_a_spent_budget_ends_a_sample_with_what_it_found(attack, norm):
    net, x, y = halfspace()
    medians = []
    for budget in (1, 2, 7, 30, 123, 500):
        target = labelled(net, 12, budget=budget)
        x_adv = attack(target, x, y, UNBOUND[norm], draws(12))
        assert (target.ledger.forward <= budget).all()
        moved = (x_adv != x).flatten(1).any(dim=1)
        assert torch.equal(moved, net(x_adv).argmax(dim=1) != y)
        distance = UNBOUND[norm].distance(x_adv, x)
        medians.append(torch.where(moved, distance, torch.inf).median().item())
        if budget == 123:  # far from done
            assert (target.ledger.forward >= budget - 1).all()
    assert medians[0] == math.inf
    assert medians[2] < math.inf
    assert medians[3] > medians[5]


@BOTH
def test_samples_may_have_different_amounts_left(attack):
    net, x, y = halfspace(4)
    spent = np.array([0, 380, 250, 399])

    def found(rows):
        target = labelled(net, len(rows), budget=400)
        target.ledger.forward[:] = spent[rows]
        return attack(target, x[rows], y[rows], UNBOUND["L2"], draws(4).at(torch.tensor(rows)))

    together = found([0, 1, 2, 3])
    for row in range(4):
        assert torch.equal(found([row])[0], together[row])
    distance = UNBOUND["L2"].distance(together, x)
    assert distance[0] < distance[1]
    assert distance[3] == 0


@BOTH
def test_every_pass_of_an_averaged_answer_is_within_the_budget(attack):
    net, x, y = halfspace(3)
    target = labelled(net, 3, budget=100, eot=3)
    x_adv = attack(target, x, y, UNBOUND["L2"], draws(3))
    assert (target.ledger.forward > 93).all()
    assert (target.ledger.forward <= 100).all()
    assert (net(x_adv).argmax(dim=1) != y).all()


@BOTH
def test_towards_a_given_label(attack):
    """As the harness presents it: labels are 1 where that label is, and y is 0."""
    net = star(4)
    x = 0.45 + 0.1 * torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    wanted = (net(x).argmax(dim=1) + 1) % 4
    target = labelled(net, 8, classes=4, wanted=wanted)
    x_adv = attack(target, x, torch.zeros_like(wanted), UNBOUND["L2"], draws(8))
    moved = (x_adv != x).flatten(1).any(dim=1)
    assert moved.sum() >= 6
    assert torch.equal(net(x_adv).argmax(dim=1) == wanted, moved)


@BOTH
def test_another_restart_starts_elsewhere(attack):
    net, x, y = halfspace(4)
    found = [
        attack(labelled(net, 4, budget=60), x, y, UNBOUND["L2"], draws(4, restart=restart))
        for restart in (0, 1, 0)
    ]
    assert torch.equal(found[0], found[2])
    assert (found[0] != found[1]).flatten(1).any(dim=1).all()


def test_in_a_cell_queries_are_capped_and_the_cell_is_ok(tmp_path):
    attacks = ["hopskipjump:query_budget=150", "boundary:query_budget=150,restarts=2"]
    ran = run(board_text(["mlp:epochs=2"], attacks, norm="L2"), tmp_path)
    for attack in attacks:
        record = ran.of("mlp:epochs=2", attack)
        assert record.status == "ok"
        assert record.facts["access"] == "labels"
        assert record.arrays["forward"].max() <= 150
        assert (record.arrays["outcome"] == 2).any()
        assert not (record.arrays["outcome"] > 2).any()


@BOTH
def test_restarts_end_where_the_queries_do(attack):
    """No sample is asked beyond its budget, none is run again, and each has the closest
    image that was asked about."""
    net, x, y = halfspace(5)
    ledger = Ledger(5, 400)
    target = Target(
        Source(net, 2, 512), "labels", ledger, np.arange(5), np.ones(5, np.int64),
        closest=Closest(x, y, UNBOUND["L2"]), judged=True,
    )  # fmt: skip
    found = Restarted(attack, 4)(target, x, y, UNBOUND["L2"], draws(5))
    assert ledger.forward.tolist() == [400] * 5
    assert torch.equal(found, target.closest.best)
    assert (net(found).argmax(dim=1) != y).all()


def test_a_spent_sample_is_given_to_no_further_restart():
    """Three queries and one for the verdict are the first run's; this attack asks regardless."""
    runs = []

    def thrice(target, x, y, threat, rng):
        runs.append(len(x))
        for _ in range(3):
            target.labels(x)
        return x

    net, x, y = halfspace(5)
    source, rows = Source(net, 2, 512), np.arange(5)
    target = Target(source, "labels", Ledger(5, 4), rows, np.ones(5, np.int64), judged=True)
    Restarted(thrice, 4)(target, x, y, UNBOUND["L2"], draws(5))
    assert runs == [5]


def test_a_record_has_the_distance_against_queries(tmp_path):
    """Cut short, an attack has the same curve up to there. A white-box attack has none."""
    attacks = ["hopskipjump:steps=4", "hopskipjump:steps=4,query_budget=200", "deepfool"]
    ran = run(board_text(["mlp:epochs=2"], [*attacks, "uniform_noise"], norm="L2"), tmp_path)
    whole, cut, white = (ran.of("mlp:epochs=2", attack).arrays for attack in attacks)
    assert "curve" not in white
    assert "curve" not in ran.of("mlp:epochs=2", "uniform_noise").arrays  # ten queries, one point
    right = whole["clean"] == whole["y"]
    curve, capped = whole["curve"][right, 0], cut["curve"][right, 0]
    assert curve.shape == (right.sum(), len(CHECKPOINTS))
    assert (curve[:, 1:] <= curve[:, :-1]).all()
    assert np.array_equal(capped[:, 0], curve[:, 0])
    assert np.array_equal(capped[:, 1:], np.repeat(capped[:, 1:2], len(CHECKPOINTS) - 1, axis=1))
    returned = whole["distance"][right, 0, NORMS.index("L2")]
    found = np.isfinite(curve[:, -1])
    assert found.any()
    # What was asked about last is no further than what was returned.
    assert (curve[found, -1] <= returned[found] * (1 + 1e-6)).all()
    points = against_queries(whole["curve"][:, 0].astype(np.float64), right)
    assert [q for q, _, _ in points] == list(CHECKPOINTS)
    assert points[-1][1] == found.mean()
    assert not ran.leaderboard.gaps
