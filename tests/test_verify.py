"""The referee believes nothing: every broken rule is found, and none of them is a success."""

import pytest
import torch
from torch import nn

from harness.errors import PluginError
from harness.outcome import Outcome, smallest_distance, within
from harness.predict import Predictor
from harness.threat import Threat
from harness.verify import Samples, judge, unstable


class Bright(nn.Module):
    """Label 1 where the mean is above ½."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([torch.full_like(mean, 0.5), mean], dim=1)


PREDICTOR = Predictor(Bright(), classes=2, chunk=64)


def grey(*levels):
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


def dark(n):
    x = grey(*[0.4] * n)
    zero = torch.zeros(n, dtype=torch.int64)
    return Samples(x, zero, zero, list(range(n)))


def test_each_rule_by_hand():
    """Clean 0.4, true label 0, Linf 0.2: what breaks a rule is named, and is no success even
    where its label is wrong."""
    x_adv = grey(0.45, 0.55, 0.65, 0.4, 0.4)
    x_adv[3, 0, 0, 0] = -0.01
    x_adv[4, 0, 0, 0] = torch.nan
    verdict = judge(PREDICTOR, dark(5), x_adv, Threat("Linf", 0.2), eight_bit=False)
    assert [Outcome(o) for o in verdict.outcome.tolist()] == [
        Outcome.ROBUST, Outcome.ADVERSARIAL, Outcome.OUT_OF_BALL, Outcome.OUT_OF_BOX,
        Outcome.NOT_FINITE,
    ]  # fmt: skip
    assert verdict.label.tolist() == [0, 1, 0, 0, 0]
    torch.testing.assert_close(
        verdict.distance[1],
        torch.tensor([0.15, 0.3, 0.6, 4.0], dtype=torch.float64),
        rtol=1e-6,
        atol=0,
    )
    assert verdict.distance[4, 0] == torch.inf


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "returned NoneType, not a tensor"),
        (torch.zeros(2, 1, 2, 3), r"of shape \(2, 1, 2, 3\), not \(2, 1, 2, 2\)"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.float64), "of type torch.float64"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(wrong, message):
    with pytest.raises(PluginError, match=message):
        judge(PREDICTOR, dark(2), wrong, Threat("Linf", 0.2), eight_bit=False)


def test_rounding_of_the_budget_is_forgiven_and_no_more():
    for excess, outcome in ((5e-5, Outcome.ADVERSARIAL), (5e-4, Outcome.OUT_OF_BALL)):
        x_adv = grey(0.4 + 0.2 * (1 + excess))
        verdict = judge(PREDICTOR, dark(1), x_adv, Threat("Linf", 0.2), eight_bit=False)
        assert verdict.outcome.item() == outcome


def test_nothing_but_the_image_itself_is_within_zero():
    verdict = judge(PREDICTOR, dark(2), grey(0.4, 0.4000001), Threat("Linf", 0.0), eight_bit=False)
    assert verdict.outcome.tolist() == [Outcome.ROBUST, Outcome.OUT_OF_BALL]


def test_targeted_success_is_the_wanted_label_alone():
    samples = Samples(**{**vars(dark(2)), "wanted": torch.tensor([1, 0])})
    verdict = judge(PREDICTOR, samples, grey(0.55, 0.55), Threat("Linf", 0.2), eight_bit=False)
    assert verdict.outcome.tolist() == [Outcome.ADVERSARIAL, Outcome.ROBUST]


def test_eight_bit_stands_beside_the_float_result():
    """0.4 = 102/255 moved to 0.502 fools as a float; the nearest level 128/255 does too, but within
    a ball of 0.1 the farthest level is 127/255 = 0.498, which does not."""
    verdict = judge(PREDICTOR, dark(1), grey(0.5 + 1e-5), Threat("Linf", 0.1001), eight_bit=True)
    assert (verdict.label.item(), verdict.label8.item()) == (1, 0)
    assert verdict.distance8[0, 0] == pytest.approx(25 / 255, abs=1e-7)


def test_a_label_that_depends_on_the_batch_is_found():
    class Batchy(nn.Module):
        def forward(self, x):
            shift = (x.flatten(1).mean() > 0.45).float()
            return torch.stack([x.flatten(1).mean(1), shift.expand(len(x))], dim=1)

    predictor = Predictor(Batchy(), 2, 64)
    samples, x_adv = dark(16), grey(*[0.41] * 8, *[0.59] * 8)
    label = predictor.labels(x_adv, samples.ids)
    assert unstable(predictor, samples, x_adv, label).tolist() == list(range(8))
    assert unstable(PREDICTOR, samples, x_adv, PREDICTOR.labels(x_adv, samples.ids)).tolist() == []


def test_smallest_distance_by_hand():
    """Three samples: wrong when clean; broken at the second column only; unstable, which is no
    merit of the model."""
    import numpy as np

    outcome = np.array(
        [
            [Outcome.SKIPPED, Outcome.SKIPPED],
            [Outcome.ROBUST, Outcome.ADVERSARIAL],
            [Outcome.OUT_OF_BALL, Outcome.UNSTABLE],
            [Outcome.OUT_OF_BALL, Outcome.NOT_FINITE],
        ]
    )
    distance = np.tile(np.array([[[0.1] * 4, [0.3] * 4]]), (4, 1, 1))
    wrong = np.array([True, False, False, False])
    got = smallest_distance("L2", outcome, distance, wrong)
    assert got.tolist() == [0.0, 0.3, 0.0, np.inf]
    assert within(got, 0.0).tolist() == [True, False, True, False]
