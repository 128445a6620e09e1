"""The built-in defenses: what they train, what they refuse, and the accuracies they must reach."""

from __future__ import annotations

import gzip
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import harness_plugins.attacks
import harness_plugins.defenses
from harness.api import Info, Run, Target, Threat, TrainingSet
from harness.bind import bind
from harness.errors import UsageError
from harness.options import ModelOptions, describe, resolve
from harness.registry import catalogue
from harness.rng import SampleRng
from harness.selection import parse_selection
from harness_plugins.architectures import MLP, LeNet5, Linear, SmallConv
from harness_plugins.attacks.pgd import PGD
from harness_plugins.defenses.at import AdversarialTraining
from harness_plugins.defenses.checkpoint import Checkpoint
from harness_plugins.defenses.dropout import Dropout
from harness_plugins.defenses.standard import Standard
from harness_plugins.optimisation import SGD, OneCycle

CPU = torch.device("cpu")
DIGITS = Info(shape=(1, 8, 8), classes=10, train=1297)
CATALOGUE = catalogue(
    ("robustness-harness", "attacks", harness_plugins.attacks),
    ("robustness-harness", "defenses", harness_plugins.defenses),
)


def recipe(written):
    """The defense that a user gets who writes this."""
    selection = parse_selection(written, "test")
    entry = CATALOGUE.model(selection.name)
    return bind(resolve(selection, entry, ModelOptions, CATALOGUE, "test"), lambda _: None)


def fitted(defense, data, seed=0):
    torch.manual_seed(seed)
    return defense.fit(data, Run(seed, CPU))


@pytest.fixture(scope="module")
def digits():
    """Training set, and the images and labels left for testing."""
    sklearn = pytest.importorskip("sklearn.datasets")
    raw = sklearn.load_digits()
    x = torch.from_numpy(raw.images).float()[:, None] / 16
    y = torch.from_numpy(raw.target).long()
    return TrainingSet(DIGITS, x[:1297], y[:1297]), x[1297:], y[1297:]


def accuracy(net, x, y):
    with torch.no_grad():
        hits = [net(a).argmax(dim=1) == b for a, b in zip(x.split(500), y.split(500), strict=True)]
    return torch.cat(hits).double().mean().item()


def attacked(net, x, y, attack, threat):
    rng = SampleRng.keyed("test", ids=range(len(x)), restart=0, device=CPU)
    target = Target.around(net, 10)
    return attack(target, x, y, threat, rng)


# --- what is trained ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "reached"),
    [("linear:lr=0.02", 0.85), ("mlp", 0.88), ("smallconv", 0.87), ("dropout", 0.86)],
)
def test_learns_digits(digits, written, reached):
    train, x, y = digits
    net = fitted(recipe(written), train)
    assert not net.training
    assert accuracy(net, x, y) > reached


def test_a_fit_has_the_state_that_build_takes(digits):
    train, x, _ = digits
    for defense in (
        Standard(epochs=1),
        Dropout(epochs=1),
        AdversarialTraining(inner=PGD(1), epochs=1),
    ):
        net = fitted(defense, train)
        again = defense.build(DIGITS)
        again.load_state_dict(net.state_dict())
        assert torch.equal(again.eval()(x), net(x))


def test_the_seed_fixes_the_weights(digits):
    train, x, _ = digits
    defense = AdversarialTraining(inner=PGD(steps=2), epochs=1)
    first, second, other = (fitted(defense, train, seed)(x) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_dropout_drops_in_training_alone():
    defense = recipe("dropout:p=0.25,arch=(mlp:depth=2)")
    net = defense.build(DIGITS)
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.25, 0.25]
    x = torch.rand(8, 1, 8, 8)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


# --- adversarial training ----------------------------------------------------------------------


class Spy:
    """An inner attack that notes what it is given, and returns grey images."""

    def __init__(self):
        self.eps, self.norms, self.modes = [], set(), set()

    def __call__(self, target, x, y, threat, rng):
        self.eps.append(threat.eps)
        self.norms.add(threat.norm)
        self.modes.add(target.source.module.training)
        assert rng.uniform(3).shape == (len(x), 3)
        assert not target.judged
        return torch.full_like(x, 0.5)


def test_eps_rises_over_the_first_epoch_and_stays(digits):
    train, _, _ = digits
    small = TrainingSet(DIGITS, train.x[:100], train.y[:100])
    spy = Spy()
    fitted(AdversarialTraining(inner=spy, norm="L2", eps=2.0, epochs=3, batch=25), small)
    assert spy.eps == pytest.approx([0, 0.5, 1, 1.5] + [2] * 8)
    assert spy.norms == {"L2"}
    assert spy.modes == {False}


@pytest.mark.parametrize(("ramp", "expected"), [(0.0, [2, 2, 2, 2]), (4.0, [0, 0.5, 1, 1.5])])
def test_the_ramp_is_an_option(digits, ramp, expected):
    train, _, _ = digits
    small = TrainingSet(DIGITS, train.x[:50], train.y[:50])
    spy = Spy()
    fitted(AdversarialTraining(inner=spy, eps=2.0, ramp=ramp, epochs=2, batch=25), small)
    assert spy.eps == pytest.approx([2 * min(1, i / 2 / ramp) if ramp else 2 for i in range(4)])


def test_trains_on_the_adversarial_images_alone(digits):
    """From grey images nothing can be learnt: every class is as likely as its share."""
    train, x, y = digits
    net = fitted(AdversarialTraining(inner=Spy(), epochs=2), train)
    assert accuracy(net, x, y) < 0.5


def test_trains_robust_digits(digits):
    """The point of it: under PGD-20 twice as many images hold as of an undefended network."""
    train, x, y = digits
    threat, attack = Threat("Linf", 0.15), PGD(steps=20)
    held = {}
    for name in ("mlp:epochs=20", "at:eps=0.15,epochs=20,ramp=5,inner=(pgd:steps=5)"):
        net = fitted(recipe(name), train)
        held[name] = accuracy(net, attacked(net, x, y, attack, threat), y)
        assert accuracy(net, x, y) > 0.87
    undefended, defended = held.values()
    assert undefended < 0.25
    assert defended > 0.5


# --- options -----------------------------------------------------------------------------------


def test_short_names_stand_for_architectures():
    assert recipe("linear") == Standard(arch=Linear())
    assert recipe("mlp") == Standard(arch=MLP()) == recipe("standard")
    assert recipe("lenet5") == Standard(arch=LeNet5())
    assert recipe("smallconv:epochs=3,lr=0.01") == Standard(arch=SmallConv(), epochs=3, lr=0.01)


def test_options_read_as_users_write_them():
    at = recipe("at:arch=lenet5,eps=8/255,inner=(pgd:steps=3,rel_step=0.5),norm=L2")
    assert at.eps == 8 / 255
    assert at.inner == PGD(steps=3, rel_step=0.5)
    assert (at.arch, at.norm, at.schedule) == (LeNet5(), "L2", OneCycle())
    tuned = recipe("standard:optimiser=(sgd:momentum=0.5),schedule=one-cycle,arch=(mlp:width=9)")
    assert (tuned.optimiser, tuned.schedule, tuned.arch) == (SGD(0.5), OneCycle(), MLP(width=9))


@pytest.mark.parametrize(
    ("written", "wrong"),
    [
        ("at:norm=L0", "norm"),
        ("at:eps=-1", "eps"),
        ("dropout:p=1", "p"),
        ("standard:lr=0", "lr"),
        ("standard:arch=(mlp:activation=elu)", "activation"),
        ("checkpoint", "path"),
    ],
)
def test_wrong_options_are_refused(written, wrong):
    with pytest.raises(UsageError, match=rf"'{wrong}'"):
        recipe(written)


@pytest.mark.parametrize("name", CATALOGUE.models)
def test_every_option_is_documented(name):
    own = [o for o in describe(CATALOGUE.model(name), None) if "=(" not in o.name]
    assert [option.name for option in own if not option.doc] == []


def test_specs_are_found_without_torch():
    code = (
        "import sys; from harness_plugins.defenses import harness_models; "
        "print(*[s.name for s in harness_models()], 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = (
        "standard dropout at at-fgsm trades vat margin critic checkpoint average majority "
        "sklearn-mlp sklearn-mlp-majority svm scd01 mlp01 bnn linear mlp lenet5 smallconv lenet "
        "simplenet"
    )
    assert out.stdout.strip() == f"{names} False"


# --- checkpoints -------------------------------------------------------------------------------


@pytest.fixture
def net():
    torch.manual_seed(0)
    return MLP(width=7).build(DIGITS)


def loaded(path):
    data = TrainingSet(DIGITS, torch.zeros(0, 1, 8, 8), torch.zeros(0).long())
    return Checkpoint(path, MLP(width=7)).fit(data, Run(0, CPU))


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("net.safetensors", save_file),
        ("net.pt", torch.save),
        ("net.pth", lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path)),
    ],
)
def test_a_checkpoint_is_loaded_as_it_is(net, tmp_path, name, save):
    save(net.state_dict(), tmp_path / name)
    again = loaded(tmp_path / name)
    x = torch.rand(8, 1, 8, 8)
    assert torch.equal(again(x), net(x))
    assert not again.training


class Bomb:
    """What a pickle may do when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_checkpoint_that_needs_unpickling_is_refused_unread(net, tmp_path):
    exploded = tmp_path / "exploded"
    torch.save({**net.state_dict(), "fc1.weight": Bomb(exploded)}, tmp_path / "bomb.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb(exploded), protocol=2))
    torch.save(net, tmp_path / "module.pt")
    for name in ("bomb.pt", "raw.pt", "module.pt"):
        with pytest.raises(UsageError, match=rf"{name} is refused.*run code") as refusal:
            loaded(tmp_path / name)
        assert "\n" not in str(refusal.value)
        assert "weights_only" not in str(refusal.value)
    assert not exploded.exists()


def test_every_tensor_that_does_not_fit_is_named_in_one_line(net, tmp_path):
    state = net.state_dict()
    state["conv1.weight"] = state.pop("fc1.weight")
    state["fc2.bias"] = torch.zeros(8)
    state["fc3.bias"] = torch.full((10,), torch.nan)
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(UsageError) as refusal:
        loaded(tmp_path / "net.safetensors")
    assert str(refusal.value).endswith(
        "net.safetensors does not fit the architecture: missing: fc1.weight; "
        "unknown: conv1.weight; wrong shape: fc2.bias is (8,), not (7,); not finite: fc3.bias"
    )


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt"])
@pytest.mark.parametrize("keep", [0, 5, 700])
def test_a_torn_checkpoint_is_refused(net, tmp_path, name, keep):
    (save_file if name.endswith("safetensors") else torch.save)(net.state_dict(), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:keep])
    with pytest.raises(UsageError, match=rf"{name} (cannot be read|is refused)"):
        loaded(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "told"),
    [({"fc1.weight": 3}, "'fc1.weight' is a int"), ([1, 2], "got list"), ({}, "got dict")],
)
def test_a_checkpoint_without_tensors_is_refused(tmp_path, content, told):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(UsageError, match=told):
        loaded(tmp_path / "net.pt")


def test_what_a_defense_saved_is_a_checkpoint(digits, tmp_path):
    train, x, _ = digits
    net = fitted(recipe("dropout:arch=(mlp:width=7),epochs=1"), train)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    assert load_file(tmp_path / "net.safetensors").keys() == net.state_dict().keys()
    assert torch.equal(loaded(tmp_path / "net.safetensors")(x), net(x))


# --- MNIST -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist():
    """Training set, and the 10,000 test images; HARNESS_DATA names the folder that holds mnist/."""
    folder = Path(os.environ.get("HARNESS_DATA", ""), "mnist")
    if not (folder / "train-images-idx3-ubyte.gz").exists():
        pytest.skip("MNIST is not in HARNESS_DATA/mnist")

    def read(name, header):
        raw = gzip.decompress((folder / f"{name}-ubyte.gz").read_bytes())
        return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).copy())

    def split(part):
        images = read(f"{part}-images-idx3", 16).view(-1, 1, 28, 28).float() / 255
        return images, read(f"{part}-labels-idx1", 8).long()

    return TrainingSet(Info((1, 28, 28), 10, 60000), *split("train")), *split("t10k")


@pytest.mark.slow
def test_lenet5_reaches_its_accuracy_on_mnist(mnist):
    train, x, y = mnist
    assert accuracy(fitted(recipe("lenet5"), train), x, y) >= 0.988


@pytest.mark.slow
def test_adversarial_training_reaches_its_robust_accuracy_on_mnist(mnist):
    """Linf, 0.3, PGD of 40 steps of 0.01 from a random start, the first 1,000 test images."""
    train, x, y = mnist
    net = fitted(recipe("at:arch=lenet5,eps=0.3"), train)
    x_adv = attacked(net, x[:1000], y[:1000], PGD(40, 1 / 30), Threat("Linf", 0.3))
    assert accuracy(net, x_adv, y[:1000]) >= 0.88
    assert accuracy(net, x, y) >= 0.98
