"""HopSkipJump. What it shares with the boundary attack is in test_decision.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attack_kit import Halfspace, digits, draws
from decision_kit import UNBOUND, art_classifier, inside, labelled, optimum

from harness_plugins.attacks.decision import Decisions
from harness_plugins.attacks.hopskipjump import HopSkipJump, _normal


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_distances_on_a_linear_model_approach_the_optimum_with_queries(norm):
    net, x, y = inside()
    least, ratios = optimum(net, x, norm), []
    for steps in (1, 6, 40):
        x_adv = HopSkipJump(steps=steps)(labelled(net, 12), x, y, UNBOUND[norm], draws(12))
        assert (net(x_adv).argmax(dim=1) != y).all()
        ratio = UNBOUND[norm].distance(x_adv, x) / least
        assert (ratio >= 1 - 1e-4).all()
        ratios.append(ratio.mean())
    assert ratios[0] > ratios[1] > ratios[2]
    assert ratio.max() < 1.01


class Given:
    """Draws that were written down: the same for every sample."""

    def __init__(self, *vectors):
        self.vectors = torch.tensor(vectors)

    def at(self, rows):
        return self

    def normal(self, size, *shape):
        taken, self.vectors = self.vectors[:size], self.vectors[size:]
        return taken.view(1, size, *shape)


@pytest.mark.parametrize(
    ("b", "expected"),
    [
        (0.0, [2.0, -1.0, -1.0]),  # φ = 1, −1, −1, whose mean is −1/3: (4e₁ − 2e₂ − 2e₃)/3
        (1.0, [-1.0, -1.0, -1.0]),  # none fools: away from where they lie
        (-1.0, [1.0, 1.0, 1.0]),  # all do
    ],
)
@pytest.mark.parametrize("count", [3, 4])
def test_the_direction_is_the_probes_mean_weighted_by_what_they_say_less_its_mean(
    b, expected, count
):
    """Of four probes the last is not asked about: one query is left for the step."""
    net = Halfspace(torch.tensor([-1.0, 1.0, 1.0]), b)
    x, y = torch.full((1, 1, 1, 3), 0.5), torch.ones(1, dtype=torch.long)
    # Their length is no matter.
    rng = Given([3.0, 0, 0], [0, 0.5, 0], [0, 0, 1.0], [0.3, -0.8, 0.4])
    target = labelled(net, 1, budget=4)
    asked = Decisions.of(target, x, y, UNBOUND["L2"], rng)
    way = _normal(asked, torch.tensor([0]), x, torch.tensor([0.01]), count)
    assert target.ledger.forward.tolist() == [3]
    expected = torch.tensor(expected)
    torch.testing.assert_close(way.flatten(), expected / expected.norm(), rtol=1e-4, atol=1e-5)


def test_the_box_counts_in_the_direction():
    """Of a probe that the box stops what it changed counts: (−1, 1, 0) went as far as (0, 1, 0)."""
    net = Halfspace(torch.tensor([0.0, -1.0, 0.0]), 0.001)
    x, y = torch.tensor([[[[0.0, 0.5, 0.5]]]]), torch.ones(1, dtype=torch.long)
    rng = Given([-1.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    asked = Decisions.of(labelled(net, 1), x, y, UNBOUND["L2"], rng)
    way = _normal(asked, torch.tensor([0]), x, torch.tensor([0.1]), 2).flatten()
    expected = torch.tensor([0.0, 0.5**0.5, -1.0]) / 1.5**0.5
    torch.testing.assert_close(way, expected, rtol=1e-4, atol=1e-5)


def test_no_worse_than_art_at_equal_queries():
    """On digits, each image with as many queries as ART's took on it."""
    evasion = pytest.importorskip("art.attacks.evasion")
    net, x, y = digits(12)
    asked = []
    model = art_classifier(net, asked)
    spent, theirs = [], []
    np.random.seed(0)
    for image, label in zip(x, y, strict=True):
        asked.clear()
        attack = evasion.HopSkipJump(model, max_iter=4, init_eval=30, verbose=False)
        theirs.append(torch.from_numpy(attack.generate(image[None].numpy(), label[None].numpy())))
        spent.append(sum(asked))
    target = labelled(net, 12, 10, budget=max(spent))
    target.ledger.forward[:] = max(spent) - np.array(spent)
    x_adv = HopSkipJump(probes=30)(target, x, y, UNBOUND["L2"], draws(12))
    ours, peer = (UNBOUND["L2"].distance(i, x).median() for i in (x_adv, torch.cat(theirs)))
    assert (net(x_adv).argmax(dim=1) != y).all()
    assert ours <= peer
