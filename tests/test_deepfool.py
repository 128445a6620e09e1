"""DeepFool: linear models, a plain loop over samples as a reference, ART, and odd networks."""

from __future__ import annotations

import math

import pytest
import torch
from attack_kit import SHAPE, Patchy, corners, curved, grey, run, star
from torch import nn

from harness.api import Threat
from harness_plugins.attacks.boundaries import Boundaries
from harness_plugins.attacks.deepfool import PRESETS, DeepFool, toward

NORMS = ["L2", "Linf"]
NAMES = ["short", "A", "B", "C"]
DUAL = {"L2": 2, "Linf": 1}


def nearest(net, x, norm):
    """Distances to the nearest boundary of an affine model."""
    scores, y = net(x), net(x).argmax(dim=1)
    slope = (net.w[None] - net.w[y][:, None]).norm(p=DUAL[norm], dim=2)
    distance = (scores - scores.gather(1, y[:, None])).abs() / slope
    return distance.scatter(1, y[:, None], torch.inf).amin(dim=1)


# --- linear models -----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("preset", NAMES)
@pytest.mark.parametrize("classes", [2, 5])
def test_is_exact_on_a_linear_model_up_to_the_overshoot(preset, norm, classes):
    net, x = star(classes), grey(12)
    x_adv, _ = run(DeepFool(preset), net, x, norm=norm)
    found = Threat(norm, math.inf).distance(x_adv, x).float()
    optimum = nearest(net, x, norm)
    assert (net(x_adv).argmax(dim=1) != net(x).argmax(dim=1)).all()
    assert (found >= optimum * (1 - 1e-5)).all()
    assert (found <= 1.02 * optimum + 5e-4).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("preset", "forward"), [("short", 2), ("A", 2), ("C", 2)])
def test_one_step_is_enough_on_a_linear_model(preset, forward, norm):
    """A pass with k − 1 gradients and a pass that sees the label changed; C's second one is made
    for a next step, with gradients."""
    net, x = star(5), grey(12)
    assert (nearest(net, x, norm) < PRESETS[preset, norm].max_step).all()
    _, ledger = run(DeepFool(preset), net, x, norm=norm)
    assert ledger.forward.tolist() == [forward] * 12
    assert ledger.backward.tolist() == [8 if preset == "C" else 4] * 12


def test_the_overshoot_is_a_share_of_the_whole_way():
    net, x = star(5), grey(12)
    found = {}
    for overshoot in (0.02, 0.5):
        x_adv, _ = run(DeepFool("C", overshoot=overshoot), net, x, norm="L2")
        found[overshoot] = (x_adv - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(found[0.5] / found[0.02], torch.full((12,), 1.5 / 1.02))


@pytest.mark.parametrize(
    ("preset", "norm", "expected"),
    [
        # the other class leads by −2 along (3, 4), and by −6 along (0, 12): 0.4 and 0.5 away in L2,
        # 2/7 and 0.5 in Linf
        ("A", "L2", [0.24, 0.32]),
        ("B", "L2", [0.1001 * 0.6, 0.1001 * 0.8]),
        ("C", "L2", [0.24, 0.32]),
        ("short", "L2", [0.4001 * 0.6, 0.4001 * 0.8]),
        ("A", "Linf", [2 / 7, 2 / 7]),
        ("B", "Linf", [0.1, 0.1]),
        ("C", "Linf", [2 / 7, 2 / 7]),
        ("short", "Linf", [0.1, 0.1]),
    ],
)
def test_a_single_step_by_hand(preset, norm, expected):
    near = Boundaries(
        scores=torch.tensor([[7.0, 1.0, 5.0]]),
        classes=torch.tensor([[1, 2]]),
        gap=torch.tensor([[-6.0, -2.0]]),
        normal=torch.tensor([[[[[0.0, 12.0]]], [[[3.0, 4.0]]]]]),
    )
    step = toward(near, Threat(norm, math.inf), PRESETS[preset, norm])
    torch.testing.assert_close(step.step, torch.tensor([[[expected]]]))
    assert step.label.tolist() == [2]
    assert step.short.tolist() == [expected[0] < 0.2]


def test_given_options_replace_the_presets():
    rule = DeepFool("B", steps=3, overshoot=0.0, max_step=0.0, extra_step=0.0, box="image").rule(
        "L2"
    )
    assert (rule.steps, rule.overshoot, rule.max_step, rule.extra) == (3, 0.0, math.inf, 0.0)
    assert rule.box == "image"
    assert DeepFool("B").rule("Linf") == PRESETS["B", "Linf"]


# --- against others ----------------------------------------------------------------------------


def reference(net, x, norm, rule):
    """One image (1, c, h, w), step by step, with autograd's Jacobian."""
    y = int(net(x).argmax())
    r, here = torch.zeros_like(x), x
    for turn in range(rule.steps):
        scores = net(here)[0]
        if int(scores.argmax()) != y:
            return here
        slopes = torch.autograd.functional.jacobian(net, here)[0].flatten(1)
        others = [j for j in range(len(scores)) if j != y]
        w = {j: slopes[j] - slopes[y] for j in others}
        away = {j: float((scores[j] - scores[y]).abs() / w[j].norm(p=DUAL[norm])) for j in others}
        j = min(others, key=away.__getitem__)
        length = max(min(away[j], rule.max_step) + rule.extra, 1e-6)
        direction = w[j].sign() if norm == "Linf" else w[j] / w[j].norm()
        r = r + length * direction.view(x.shape)
        image = (x + (1 + rule.overshoot) * r).clamp(0, 1)
        if rule.box == "step":
            r = (image - x) / (1 + rule.overshoot)
        here = image if rule.box == "image" else (x + r).clamp(0, 1)
        asked = turn == rule.steps - 1 or (rule.box != "image" and away[j] <= length)
        if asked and int(net(image).argmax()) != y:
            return image
    return x


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("preset", NAMES)
@pytest.mark.parametrize("options", [{}, {"max_step": 0.2, "extra_step": 0.002, "steps": 9}])
@pytest.mark.parametrize("images", [grey, corners])
def test_is_a_plain_loop_over_the_samples(images, options, preset, norm):
    net, x = curved(), images(12).double()
    attack = DeepFool(preset, **options)
    x_adv, _ = run(attack, net, x, norm=norm)
    expected = torch.cat([reference(net, one[None], norm, attack.rule(norm)) for one in x])
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-9)
    assert (x_adv != x).flatten(1).any(dim=1).sum() >= 3


def test_comes_as_near_as_arts():
    """ART clips the image and goes on from there, without the clean one; where the box is not met
    the walks are one and the same."""
    pytest.importorskip("art", reason="adversarial-robustness-toolbox is not installed")
    from art.attacks.evasion import DeepFool as Theirs
    from art.estimators.classification import PyTorchClassifier

    net, x = star(5), grey(12)
    classifier = PyTorchClassifier(net, nn.CrossEntropyLoss(), SHAPE, 5, clip_values=(0, 1))
    attack = Theirs(classifier, max_iter=50, epsilon=0.02, nb_grads=5, batch_size=12, verbose=False)
    theirs = torch.from_numpy(attack.generate(x.numpy()))
    ours, _ = run(DeepFool("C"), net, x, norm="L2")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


# --- options -----------------------------------------------------------------------------------


def test_few_classes_cost_few_gradients_and_all_of_them_are_all():
    net, x = curved(), grey(12).double()
    full, _ = run(DeepFool(), net, x, norm="L2")
    same, _ = run(DeepFool(classes=4), net, x, norm="L2")
    assert torch.equal(full, same)
    _, ledger = run(DeepFool("C", classes=2), net, x, norm="L2")
    assert (ledger.backward == 2 * ledger.forward).all()


def test_bisections_come_nearer_along_the_same_line():
    net, x = curved(), grey(12).double()
    y = net(x).argmax(dim=1)
    far, before = run(DeepFool("C", overshoot=1.0), net, x, norm="L2")
    near, after = run(DeepFool("C", overshoot=1.0, bisections=6), net, x, norm="L2")
    assert (net(near).argmax(dim=1) != y).all()
    share = ((near - x) * (far - x)).flatten(1).sum(1) / (far - x).flatten(1).square().sum(1)
    torch.testing.assert_close(near, torch.lerp(x, far, share.view(-1, 1, 1, 1)))
    assert (share < 0.8).all()
    beyond = torch.lerp(x, far, (share - 2**-6).view(-1, 1, 1, 1))
    assert (net(beyond).argmax(dim=1) == y).all()
    assert (after.forward - before.forward == 6).all()


# --- odd images and networks -------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("preset", NAMES)
def test_gradients_of_zero_and_nan_stop_none_but_their_own(preset, norm):
    net, x = curved(), grey(12).double()
    x[4, 0, 0, 0], x[7, 0, 0, 0] = 0.0, 0.5
    y = Patchy(net)(x).argmax(dim=1)
    x_adv, ledger = run(DeepFool(preset), Patchy(net), x, norm=norm)
    clean, _ = run(DeepFool(preset), net, x, norm=norm)
    assert x_adv.isfinite().all()
    assert x_adv[7, 0, 0, 0] == 0.5
    assert (x_adv[7] != x[7]).any()
    assert torch.equal(x_adv[4], x[4])
    assert ledger.forward[4] == 1
    rest = [i for i in range(12) if i not in {4, 7}]
    assert torch.equal(x_adv[rest], clean[rest])
    assert (Patchy(net)(x_adv).argmax(dim=1) != y)[rest].all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("preset", NAMES)
def test_what_comes_back_fools_and_lies_in_the_box(preset, norm):
    net, x = curved().float(), corners(40)
    y = net(x).argmax(dim=1)
    x_adv, _ = run(DeepFool(preset), net, x, norm=norm)
    fooled = net(x_adv).argmax(dim=1) != y
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert fooled.float().mean() > 0.9
    assert torch.equal(x_adv[~fooled], x[~fooled])


@pytest.mark.parametrize("preset", NAMES)
def test_what_is_misclassified_costs_one_look_and_stays(preset):
    net, x = curved(), grey(12).double()
    y = net(x).argmax(dim=1)
    y[[2, 5]] = (y[[2, 5]] + 1) % 5
    x_adv, ledger = run(DeepFool(preset), net, x, y, norm="L2")
    assert torch.equal(x_adv[[2, 5]], x[[2, 5]])
    assert ledger.forward[[2, 5]].tolist() == [1, 1]
    assert ledger.backward[[2, 5]].tolist() == [4, 4]
    assert (x_adv != x).flatten(1).any(dim=1).sum() == 10


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [*map(DeepFool, NAMES), DeepFool(classes=2, bisections=3)])
def test_a_sample_is_the_same_alone(attack, norm):
    net, x = curved().float(), corners(12)
    whole, ledger = run(attack, net, x, norm=norm)
    for i in (0, 5, 11):
        alone, own = run(attack, net, x[i : i + 1], norm=norm)
        assert torch.equal(whole[i], alone[0])
        assert own.forward[0] == ledger.forward[i]
        assert own.backward[0] == ledger.backward[i]


def test_an_image_on_a_boundary_moves():
    """Two classes that tie exactly: the first is the label, and any step over the line will do."""
    net = star(2)
    x = torch.full((1, *SHAPE), 0.5).double()
    net.b = net.b.double() - net(x)[0]
    assert net(x)[0, 0] == net(x)[0, 1]
    y = net(x).argmax(dim=1)
    x_adv, _ = run(DeepFool("C"), net, x, norm="L2")
    assert (net(x_adv).argmax(dim=1) != y).all()
    assert (x_adv - x).norm() < 1e-4
