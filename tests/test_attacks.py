"""The built-in attacks: linear models with known answers, other libraries, and controls."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from attack_kit import CPU, Halfspace, draws, grey, judged, small
from torch import nn
from torch.nn import functional

from harness.api import Target, Threat
from harness.errors import PluginError
from harness.rng import SampleRng
from harness_plugins.attacks import harness_attacks
from harness_plugins.attacks.noise import GaussianNoise, UniformNoise
from harness_plugins.attacks.pgd import BIM, FGSM, PGD

NORMS = ["Linf", "L2", "L1"]
BUDGETS = {"Linf": 0.1, "L2": 0.4, "L1": 0.9, "L0": 3.0, "corruption": 0.2}
GRADIENT_ATTACKS = [FGSM(), BIM(), PGD(), PGD(steps=7, rel_step=0.25, loss="margin")]


class Brightness(nn.Module):
    """Class 1 where the mean pixel is above `level`."""

    def __init__(self, level):
        super().__init__()
        self.level = level

    def forward(self, x):
        z = x.flatten(1).mean(dim=1) - self.level
        return torch.stack([-z, z], dim=1)


net = pytest.fixture(small)


@pytest.fixture
def images():
    """Inside the box by more than any budget here, so that it is never met: (16, 1, 8, 8)."""
    return grey(16, (1, 8, 8))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("attack", [FGSM, BIM, PGD])
def test_reaches_the_worst_case_of_a_linear_model(attack, loss, norm):
    """Hölder: over ‖δ‖ ≤ ε the most that w·δ can fall is ε‖w‖*. Nothing can beat that, and on a
    linear model none of these has an excuse for missing it. The box stays out of reach."""
    rng = torch.Generator().manual_seed(0)
    w = torch.randn(12, generator=rng)
    x = 0.5 + 0.01 * torch.randn(8, 1, 3, 4, generator=rng)
    y = torch.ones(8, dtype=torch.long)
    threat = Threat(norm, 0.1)
    options = {} if attack is FGSM else {"steps": 100, "rel_step": 0.05}

    target = Target.around(Halfspace(w, centre=0.0), classes=2)
    x_adv = attack(loss=loss, **options)(target, x, y, threat, draws(8))

    fall = (x - x_adv).flatten(1) @ w
    most = threat.eps * threat.geometry.dual.size(w[None])
    assert threat.allows(x_adv, x).all()
    torch.testing.assert_close(fall, most.expand(8), rtol=0.01, atol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", GRADIENT_ATTACKS)
def test_stays_in_ball_and_box_and_gains(attack, norm, net):
    """Images at the corners of the box: half of all directions are barred."""
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(2)).round()
    y = net(x).argmax(dim=1)
    threat = Threat(norm, BUDGETS[norm])
    x_adv = attack(Target.around(net, 5), x, y, threat, draws(16))
    assert threat.allows(x_adv, x).all()
    before = functional.cross_entropy(net(x), y, reduction="none")
    after = functional.cross_entropy(net(x_adv), y, reduction="none")
    assert (after > before).all()


@pytest.mark.parametrize("norm", [*NORMS, "L0", "corruption"])
@pytest.mark.parametrize("attack", [*GRADIENT_ATTACKS, GaussianNoise(), UniformNoise()])
def test_a_budget_of_zero_changes_nothing(attack, norm, net, images):
    supported = next(s for s in harness_attacks() if load_factory_of(s) is type(attack)).norms
    if norm in supported:
        y = net(images).argmax(dim=1)
        target = judged(net, 16, 5)
        x_adv = attack(target, images, y, Threat(norm, 0.0), draws(16))
        assert torch.equal(x_adv, images)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", GRADIENT_ATTACKS)
def test_the_input_is_left_as_it_was(attack, norm, net, images):
    x, y = images.clone(), torch.zeros(16, dtype=torch.long)
    attack(Target.around(net, 5), x, y, Threat(norm, 0.1), draws(16))
    assert torch.equal(x, images)
    assert not x.requires_grad


# --- the same as another library's, image by image ---------------------------------------------


@pytest.fixture
def cleverhans():
    reason = "CleverHans is not installed (pip install --no-deps cleverhans==4.0.0)"
    return pytest.importorskip("cleverhans.torch.attacks", reason=reason)


ORDERS = [("Linf", np.inf), ("L2", 2), ("L1", 1)]


@pytest.mark.parametrize(("norm", "order"), ORDERS)
@pytest.mark.usefixtures("cleverhans")
def test_fgsm_is_cleverhanss(norm, order, net, images):
    from cleverhans.torch.attacks.fast_gradient_method import fast_gradient_method

    y = net(images).argmax(dim=1)
    eps = BUDGETS[norm] / 2
    ours = FGSM()(Target.around(net, 5), images, y, Threat(norm, eps), draws(16))
    theirs = fast_gradient_method(net, images, eps, order, clip_min=0, clip_max=1, y=y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("norm", "order"), ORDERS[:2])  # its L1 is not implemented
@pytest.mark.usefixtures("cleverhans")
def test_bim_is_cleverhanss(norm, order, net, images):
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    y = net(images).argmax(dim=1)
    threat = Threat(norm, BUDGETS[norm])
    ours = BIM(steps=10, rel_step=0.2)(Target.around(net, 5), images, y, threat, draws(16))
    theirs = projected_gradient_descent(
        net,
        images,
        eps=threat.eps,
        eps_iter=0.2 * threat.eps,
        nb_iter=10,
        norm=order,
        clip_min=0,
        clip_max=1,
        y=y,
        rand_init=False,
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("norm", "order"), ORDERS)
def test_fgsm_is_arts(norm, order, net, images):
    pytest.importorskip("art", reason="adversarial-robustness-toolbox is not installed")
    from art.attacks.evasion import FastGradientMethod

    x = images.numpy()
    y = net(images).argmax(dim=1)
    eps = BUDGETS[norm] / 2
    ours = FGSM()(Target.around(net, 5), images, y, Threat(norm, eps), draws(16))
    theirs = FastGradientMethod(art_of(net), norm=order, eps=eps).generate(x, y.numpy())
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("norm", "order"), ORDERS[:2])
def test_bim_is_arts(norm, order, net, images):
    pytest.importorskip("art", reason="adversarial-robustness-toolbox is not installed")
    from art.attacks.evasion import ProjectedGradientDescent

    y = net(images).argmax(dim=1)
    threat = Threat(norm, BUDGETS[norm])
    ours = BIM(steps=10, rel_step=0.2)(Target.around(net, 5), images, y, threat, draws(16))
    attack = ProjectedGradientDescent(
        art_of(net),
        norm=order,
        eps=threat.eps,
        eps_step=0.2 * threat.eps,
        max_iter=10,
        num_random_init=0,
        verbose=False,
    )
    theirs = torch.from_numpy(attack.generate(images.numpy(), y.numpy()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def art_of(net):
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(net, nn.CrossEntropyLoss(), (1, 8, 8), 5, clip_values=(0, 1))


# --- PGD ---------------------------------------------------------------------------------------


def test_pgd_starts_at_random_and_bim_does_not(net, images):
    y = net(images).argmax(dim=1)
    target, threat = Target.around(net, 5), Threat("Linf", 0.1)
    one, again, other = (PGD(1, 1e-6)(target, images, y, threat, draws(16, key)) for key in "aab")
    assert torch.equal(one, again)
    assert ((one - other).abs() > 1e-3).float().mean() > 0.9
    still = BIM(1, 1e-6)(target, images, y, threat, draws(16))
    assert (still - images).abs().max() < 1e-6


@pytest.mark.parametrize("attack", [PGD(steps=5), UniformNoise()])
def test_a_sample_does_not_depend_on_its_batch(attack, net, images):
    y = net(images).argmax(dim=1)
    threat = Threat("L2", 0.8)
    target = judged(net, 16, 5)
    whole = attack(target, images, y, threat, draws(16))
    rows = torch.tensor([3, 8, 15])
    few = attack(target.at(rows), images[rows], y[rows], threat, draws(16).at(rows))
    assert torch.equal(whole[rows], few)


def test_the_default_step_is_two_and_a_half_eps_over_the_steps(net, images):
    y = net(images).argmax(dim=1)
    target, threat = Target.around(net, 5), Threat("Linf", 0.1)
    for attack in (PGD, BIM):
        default = attack(steps=10)(target, images, y, threat, draws(16))
        assert torch.equal(default, attack(10, 0.25)(target, images, y, threat, draws(16)))
        assert not torch.equal(default, attack(10, 0.24)(target, images, y, threat, draws(16)))


def test_samples_that_are_fooled_leave(images):
    """Fooled ones cost no more, come back fooled, and change nothing for the others."""
    w = torch.randn(64, generator=torch.Generator().manual_seed(3))
    z = images.flatten(1) @ w
    net = nn.Sequential(Halfspace(w, centre=0.0))
    y = (z > 0).long()
    threat = Threat("Linf", float(z.abs().median() / w.abs().sum()))  # half of them can be fooled
    target = judged(net, 16, 2)

    left = BIM(steps=20)(target, images, y, threat, draws(16))
    stayed = BIM(steps=20)(Target.around(net, 2), images, y, threat, draws(16))

    fooled = net(stayed).argmax(dim=1) != y
    assert 4 < fooled.sum() < 12
    assert torch.equal(net(left).argmax(dim=1) != y, fooled)
    assert torch.equal(left[~fooled], stayed[~fooled])
    assert (target.ledger.forward[~fooled.numpy()] == 20).all()
    assert (target.ledger.forward[fooled.numpy()] < 20).any()


def test_dlr_needs_three_classes(images):
    target = Target.around(Halfspace(torch.ones(64), centre=0.0), 2)
    with pytest.raises(PluginError, match="3 classes"):
        PGD(loss="dlr")(target, images, torch.ones(16).long(), Threat("Linf", 0.1), draws(16))


@pytest.mark.parametrize("attack", [FGSM, BIM, PGD])
def test_each_loss_is_the_one_that_is_climbed(attack, net, images):
    """Where cross-entropy has saturated to 0 its gradient vanishes, and the margin's does not."""
    saturated = nn.Sequential(net, Scaled(1e5))
    y = net(images).argmax(dim=1)
    threat = Threat("Linf", 0.1)
    found = {
        loss: attack(loss=loss)(Target.around(saturated, 5), images, y, threat, draws(16))
        for loss in ("ce", "margin", "dlr")
    }
    broken = {k: int((net(v).argmax(dim=1) != y).sum()) for k, v in found.items()}
    assert broken["margin"] == broken["dlr"] == 16 > broken["ce"]


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, scores):
        return self.factor * scores


# --- controls ----------------------------------------------------------------------------------


def test_gaussian_noise_has_the_severity_asked_for():
    x = torch.full((50, 1, 20, 20), 0.5)
    target = judged(Brightness(0.5), 50, 2, "labels")
    noisy = GaussianNoise()(target, x, torch.zeros(50).long(), Threat("corruption", 0.1), draws(50))
    noise = noisy - x
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert abs(noise.mean().item()) < 0.003
    assert len(noise.flatten(1).sum(dim=1).unique()) == 50
    assert not target.ledger.forward.any()


def test_gaussian_noise_is_clipped_to_the_box():
    x = torch.rand(20, 1, 8, 8)
    target = Target.around(Brightness(0.5), 2)
    noisy = GaussianNoise()(target, x, torch.zeros(20).long(), Threat("corruption", 5.0), draws(20))
    assert noisy.min() == 0
    assert noisy.max() == 1
    assert noisy.isfinite().all()


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1", "L0"])
def test_uniform_noise_keeps_the_first_draw_that_fools(norm):
    """Brute force, sample by sample: draw, ask, stop. Labels are all it asks for."""
    x = torch.full((40, 1, 4, 4), 0.5)
    y = torch.zeros(40, dtype=torch.long)
    threat = Threat(norm, BUDGETS[norm])
    net = Brightness(0.5 + {"Linf": 0.015, "L2": 0.02, "L1": 0.01, "L0": 0.02}[norm])
    target = judged(net, 40, 2, "labels")
    x_adv = UniformNoise(draws=4)(target, x, y, threat, draws(40))

    asked = []
    for i in range(40):
        rng = SampleRng.keyed("test", ids=[i], restart=0, device=CPU)
        queries, fooled = 0, False
        while queries < 4 and not fooled:
            tried = threat.random_start(x[i : i + 1], rng)
            fooled = bool(net(tried).argmax(dim=1) != y[i])
            queries += 1
        asked.append(queries)
        assert torch.equal(tried[0], x_adv[i])
    assert asked == target.ledger.forward.tolist()
    assert set(asked) == {1, 2, 3, 4}
    assert threat.allows(x_adv, x).all()


# --- specs -------------------------------------------------------------------------------------


def load_factory_of(spec):
    module, _, name = spec.factory.partition(":")
    return getattr(__import__(module, fromlist=[name]), name)


def test_specs_are_found_without_torch():
    code = (
        "import sys; from harness_plugins.attacks import harness_attacks; "
        "names = {s.name for s in harness_attacks()}; "
        "print({'fgsm', 'cw', 'pdpgd'} <= names, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "True False"


@pytest.mark.parametrize("spec", list(harness_attacks()), ids=lambda spec: spec.name)
def test_every_spec_leads_to_a_frozen_dataclass(spec):
    required = {"source": "another model"} if spec.name == "transfer" else {}
    attack = load_factory_of(spec)(**required)
    assert attack == load_factory_of(spec)(**required)
    with pytest.raises(AttributeError):
        attack.steps = 3
