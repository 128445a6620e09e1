"""PDGD and PDPGD: linear models with a known optimum, and what must hold on any model."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from attack_kit import Affine, Double, judged, small
from torch import nn

from harness.api import Threat
from harness.rng import SampleRng
from harness_plugins.attacks.pdpgd import PDGD, PDPGD, PRESETS, Settings
from harness_plugins.attacks.pdpgd_players import LEAST, Multipliers, slope

CPU = torch.device("cpu")
NORMS = ("Linf", "L2", "L1", "L0")
RUNS = [("L2", PDGD), *((norm, PDPGD) for norm in NORMS)]
PRESET_NAMES = ("tuned", "thesis", "2021")


def draws(n, restart=0):
    return SampleRng.keyed("pdpgd", ids=range(n), restart=restart, device=CPU)


def threat(norm):
    return Threat(norm, math.inf)


@pytest.fixture
def net():
    return small(60)


@pytest.fixture
def images():
    """5 x 7: entries are left over in every vectorised loop."""
    return torch.rand(9, 1, 5, 7, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def linear():
    """A linear model of two classes, images far from the walls, and their distances in
    each norm by Hölder: |m| / ‖w‖*. The nearest are left out: steps are not that fine."""
    rng = torch.Generator().manual_seed(2)
    w = torch.randn(2, 16, generator=rng) * torch.linspace(0.2, 2, 16)
    x = 0.5 + 0.5 * torch.randn(40, 1, 4, 4, generator=rng)
    model = Affine(w, -(w @ torch.full((16,), 0.5)))
    scores = model(x)
    y = scores.argmax(1)
    m = (scores[:, 0] - scores[:, 1]).abs()
    rows = m > m.median() / 2
    normal = w[0] - w[1]
    duals = {"Linf": normal.abs().sum(), "L2": normal.norm(), "L1": normal.abs().max()}
    return model, x[rows], y[rows], {norm: m[rows] / dual for norm, dual in duals.items()}


def reached(attack, norm, linear):
    model, x, y, optimum = linear
    wide = Threat(norm, math.inf, low=-20.0, high=20.0)
    x_adv = attack(judged(model, len(x), 2), x, y, wide, draws(len(x)))
    assert (model(x_adv).argmax(1) != y).all()
    return wide.distance(x_adv, x) / optimum[norm]


@pytest.mark.parametrize(("norm", "attack", "lr"), [("L2", PDGD, 0.01), ("Linf", PDPGD, 0.01)])
def test_a_small_learning_rate_finds_the_optimum_of_a_linear_model(norm, attack, lr, linear):
    ratio = reached(attack(preset="thesis", lr=lr, start="zero"), norm, linear)
    assert ratio.min() >= 1 - 1e-4
    assert ratio.max() <= 1.01


def test_and_so_it_does_in_l1(linear):
    ratio = reached(PDPGD(preset="thesis", lr=0.1), "L1", linear)
    assert ratio.min() >= 1 - 1e-4
    assert ratio.mean() <= 1.02
    assert ratio.max() <= 1.03


@pytest.mark.parametrize("preset", PRESET_NAMES)
@pytest.mark.parametrize(("norm", "attack"), RUNS[:-1])
def test_the_presets_come_near_it(norm, attack, preset, linear):
    """The default within 2 %. The last steps are as long as lr_end · lr, and proximal Adam's metric
    takes its time."""
    ratio = reached(attack(preset=preset), norm, linear)
    assert ratio.min() >= 1 - 1e-4
    assert ratio.max() <= (1.02 if preset == "tuned" else 1.3)


@pytest.mark.parametrize("l0_prox", ["two_thirds", "two_thirds_max", "hard", "hard_max"])
def test_l0_finds_the_fewest_pixels_of_a_linear_model(l0_prox):
    """What k pixels can do is the sum of the k greatest, each driven to its wall."""
    rng = torch.Generator().manual_seed(3)
    w = torch.randn(36, generator=rng)
    model = Affine(torch.stack([-w, w]) / 2, torch.zeros(2))
    x = torch.rand(20, 1, 6, 6, generator=rng)
    y = model(x).argmax(1)
    margins = x.flatten(1) @ w
    toward = torch.where(margins > 0, -1.0, 1.0)[:, None] * w
    gain = torch.where(toward > 0, (1 - x.flatten(1)) * toward, -x.flatten(1) * toward)
    fewest = (gain.sort(1, descending=True).values.cumsum(1) < margins.abs()[:, None]).sum(1) + 1
    preset = "thesis" if l0_prox.startswith("hard") else "tuned"
    attack = PDPGD(preset=preset, l0_prox=l0_prox, start="zero")
    x_adv = attack(judged(model, 20, 2), x, y, threat("L0"), draws(20))
    assert (model(x_adv).argmax(1) != y).all()
    pixels = threat("L0").distance(x_adv, x)
    assert (pixels >= fewest).all()
    assert (pixels - fewest).mean() <= 0.5


@pytest.mark.parametrize("preset", PRESET_NAMES)
@pytest.mark.parametrize(("norm", "attack"), RUNS)
def test_what_comes_back_fools_or_is_the_clean_image(norm, attack, preset, net, images):
    """Also images at the box's corners, and misclassified ones, which are left as they are."""
    x = torch.cat([images, images.round(), torch.zeros(1, 1, 5, 7), torch.ones(1, 1, 5, 7)])
    y = net(x).argmax(1)
    y[::4] = (y[::4] + 1) % 5
    before = x.clone()
    target = judged(net, len(x), 5)
    x_adv = attack(preset=preset, steps=60)(target, x, y, threat(norm), draws(len(x)))
    assert torch.equal(x, before)
    assert threat(norm).allows(x_adv, x).all()
    moved = (x_adv != x).flatten(1).any(1)
    assert not moved[::4].any()
    assert ((net(x_adv).argmax(1) != y) | ~moved).all()
    assert moved.sum() >= 12
    attacked = np.arange(len(x)) % 4 != 0
    assert target.ledger.forward[attacked].tolist() == [60] * attacked.sum()
    assert target.ledger.backward[attacked].tolist() == [59] * attacked.sum()
    assert set(target.ledger.forward[::4]) == {1}
    assert not target.ledger.backward[::4].any()


@pytest.mark.parametrize("preset", ["thesis", "2021"])
@pytest.mark.parametrize(("norm", "attack"), RUNS)
def test_a_sample_does_not_depend_on_its_batch(norm, attack, preset, net, images):
    """Bit for bit, whether the start is zero or drawn from its own stream, in any order."""
    y = net(images).argmax(1)
    target = judged(net, 9, 5)
    run = attack(preset=preset, steps=40, fine_tune=True)
    whole = run(target, images, y, threat(norm), draws(9))
    for rows in (torch.tensor([4]), torch.tensor([8, 2, 5])):
        few = run(target.at(rows), images[rows], y[rows], threat(norm), draws(9).at(rows))
        assert torch.equal(few, whole[rows])


@pytest.mark.parametrize(("norm", "attack"), RUNS)
def test_colour_does_not_depend_on_the_batch_either(norm, attack):
    torch.manual_seed(4)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(60, 5)
    ).requires_grad_(requires_grad=False)
    x = torch.rand(5, 3, 5, 7)
    y = net(x).argmax(1)
    target = judged(net, 5, 5)
    whole = attack(steps=150)(target, x, y, threat(norm), draws(5))
    assert (net(whole).argmax(1) != y).all()
    rows = torch.tensor([3])
    assert torch.equal(
        attack(steps=150)(target.at(rows), x[rows], y[rows], threat(norm), draws(5).at(rows)),
        whole[rows],
    )


def test_zero_start_draws_nothing_in_the_first_run_alone(net, images):
    """Restarts begin at random; with start=random the first run too."""
    y = net(images).argmax(1)
    target = judged(net, 9, 5)

    def run(attack, key, restart):
        rng = SampleRng.keyed(key, ids=range(9), restart=restart, device=CPU)
        return attack(target, images, y, threat("L2"), rng)

    still, drawn = PDGD(steps=30), PDGD(steps=30, preset="thesis")
    assert torch.equal(run(still, "a", 0), run(still, "b", 0))
    assert not torch.equal(run(still, "a", 1), run(still, "b", 1))
    assert not torch.equal(run(drawn, "a", 0), run(drawn, "b", 0))


@pytest.mark.parametrize(("norm", "attack"), RUNS)
def test_fine_tuning_never_loses_and_is_counted(norm, attack, net, images):
    y = net(images).argmax(1)
    plain = judged(net, 9, 5)
    once = attack(steps=40)(plain, images, y, threat(norm), draws(9))
    assert set(plain.ledger.forward) == {40}
    tuned = judged(net, 9, 5)
    twice = attack(steps=40, fine_tune=True)(tuned, images, y, threat(norm), draws(9))
    assert set(tuned.ledger.forward) == {79}
    before, after = (threat(norm).distance(z, images) for z in (once, twice))
    assert (after <= before).all()
    assert norm == "L0" or (after < before).any()


@pytest.mark.parametrize(("norm", "attack"), RUNS)
@pytest.mark.parametrize("preset", ["thesis", "2021"])
def test_gradients_that_are_zero_nan_or_huge_harm_nobody(norm, attack, preset, net, images):
    """Sample 0 has a gradient of 0, 1 of NaN, 2 of ∞, 3 of 1e30; the others are as without them."""

    class Broken(nn.Module):
        def forward(self, x):
            x = x.clone()
            if x.requires_grad and len(x) >= 9:
                scale = torch.ones(len(x), 1, 1, 1)
                scale[:4, 0, 0, 0] = torch.tensor([0.0, math.nan, math.inf, 1e30])
                x.register_hook(lambda g: g * scale)
            return net(x)

    y = net(images).argmax(1)
    run = attack(preset=preset, steps=40)
    healthy = run(judged(net, 9, 5), images, y, threat(norm), draws(9))
    found = run(judged(Broken(), 9, 5), images, y, threat(norm), draws(9))
    assert found.isfinite().all()
    assert threat(norm).allows(found, images).all()
    assert torch.equal(found[4:], healthy[4:])
    if preset == "2021":
        assert torch.equal(found[0], images[0])


@pytest.mark.parametrize(("norm", "attack"), RUNS)
def test_two_classes_a_constant_image_and_scores_in_float64(norm, attack):
    w = torch.randn(35, generator=torch.Generator().manual_seed(5)).double()
    model = nn.Sequential(Double(), Affine(torch.stack([-w, w]), torch.tensor([0.0, 0.1])))
    x = torch.full((1, 1, 5, 7), 0.5)
    y = model(x).argmax(1)
    x_adv = attack(steps=200)(judged(model, 1, 2), x, y, threat(norm), draws(1))
    assert x_adv.dtype == torch.float32
    assert (model(x_adv).argmax(1) != y).all()


def test_the_ratio_of_the_multipliers_rises_and_falls_with_the_margins_sign():
    multipliers = Multipliers(torch.full((3,), 0.01))
    margin = torch.tensor([-1e-9, 0.0, 5.0])
    before = multipliers.ratio
    multipliers.step(margin, 0.1)
    change = multipliers.ratio / before
    assert change[0] < 1 - 1e-3
    assert change[1] == pytest.approx(1)
    assert change[2] > 1 + 1e-3


def test_the_ratio_is_the_logarithms_step_and_projection():
    """s₂ += rate · sign(m), then log-sum-exp off both, then the moving average, step by step."""
    multipliers = Multipliers(torch.tensor([0.1], dtype=torch.float64))
    s = torch.tensor([0.1 / 1.1, 1 / 1.1]).double().log()
    smooth = s.exp()
    for turn in range(50):
        margin = 1.0 if turn % 3 else -1.0
        multipliers.step(torch.tensor([margin]), 0.1)
        s[1] -= 0.1 * margin
        s -= s.logsumexp(0)
        smooth = 0.9 * smooth + 0.1 * s.exp()
    assert multipliers.norm.item() == pytest.approx(smooth[0].item(), rel=1e-9)
    assert multipliers.constraint.item() == pytest.approx(smooth[1].item(), rel=1e-9)


def test_the_multipliers_stay_within_their_bounds():
    multipliers = Multipliers(torch.tensor([1e-9, 1.0, 1e9]))
    for sign in (-1.0, 1.0):
        for _ in range(400):
            multipliers.step(torch.full((3,), sign), 0.1)
            for each in (multipliers.norm, multipliers.constraint):
                assert (each <= 1).all()
        for each in (multipliers.norm, multipliers.constraint):
            assert (each >= LEAST * (1 - 1e-3)).all()


def test_slopes_are_the_losses_derivatives():
    m = torch.linspace(-4, 4, 18, dtype=torch.float64, requires_grad=True)
    for name, loss in (("hinge", m.relu()), ("softplus", nn.functional.softplus(m) / math.log(2))):
        (expected,) = torch.autograd.grad(loss.sum(), m)
        torch.testing.assert_close(slope(name, -m.detach()), expected)


def test_presets_are_what_was_published():
    thesis, paper = PRESETS["thesis", "L1"], PRESETS["2021", "L1"]
    assert thesis.rates(0) == (1.0, 0.1)
    assert thesis.rates(499) == pytest.approx((0.01, 0.1))
    assert paper.rates(0) == pytest.approx((paper.lr, 0.1))
    assert paper.rates(499) == pytest.approx((paper.lr / 100, 0.01))
    assert thesis.finer.rates(0) == pytest.approx((0.01, 0.01))
    assert thesis.finer.rates(499)[0] == pytest.approx(0.001)
    assert paper.finer.rates(499) == pytest.approx((paper.lr / 1e4, 0.001))
    halfway = [replace(s, steps=3).rates(1)[0] / s.lr for s in (thesis, paper)]
    assert halfway == pytest.approx([0.505, 0.1])
    assert (thesis.start, thesis.loss, thesis.optimiser, thesis.c0) == (
        "random",
        "hinge",
        "sgd",
        0.01,
    )
    assert (paper.start, paper.loss, paper.optimiser, paper.c0) == ("zero", "softplus", "adam", 0.1)


@pytest.mark.parametrize("norm", NORMS)
def test_an_option_that_is_given_is_the_one_that_is_used(norm, net, images):
    """Each option, set to its preset's value, changes nothing, and set to another does."""
    y = net(images).argmax(1)
    target = judged(net, 9, 5)

    def run(**options):
        attack = PDPGD(steps=30, start="random", **options)
        return attack(target, images, y, threat(norm), draws(9))

    plain, own = run(), PRESETS["tuned", norm]
    others = {
        "lr": own.lr * 0.6,
        "lr_end": 0.5,
        "lr_decay": "linear" if own.lr_decay == "exponential" else "exponential",
        "dual_lr": 0.5,
        "c0": 3.0,
        "radius": 0.1,
        "loss": "hinge" if own.loss == "softplus" else "softplus",
        "optimiser": "sgd" if own.optimiser == "adam" else "adam",
    }
    for name, other in others.items():
        assert torch.equal(run(**{name: getattr(own, name)}), plain), name
        assert not torch.equal(run(**{name: other}), plain), name


def test_the_best_is_never_further_after_more_of_the_same_steps(net, images):
    """One run cut off early, and the same run going on: rates that do not follow its length."""
    y = net(images).argmax(1)
    target = judged(net, 9, 5)
    for norm, attack in RUNS:
        found = [
            threat(norm).distance(
                attack(steps=steps, lr_end=1.0, dual_lr_end=1.0)(
                    target, images, y, threat(norm), draws(9)
                ),
                images,
            )
            for steps in (10, 20, 40)
        ]
        found = [torch.where(d > 0, d, math.inf) for d in found]
        assert all((later <= earlier).all() for earlier, later in pairwise(found))


def test_settings_are_complete():
    """Every option but what settings do not hold is a setting of that name."""
    settings = set(Settings.__dataclass_fields__)
    assert set(PDGD.__dataclass_fields__) - settings == {"preset"}
    assert set(PDPGD.__dataclass_fields__) - settings == {"preset", "l0_prox"}
