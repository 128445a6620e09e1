"""Validation, plain epochs, augmentation and second players: the training loop's finer points."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from checkpoints import Kept, Killed
from torch import nn
from torch.nn import functional

from harness.api import Info, Run, StreamRng, TrainingSet
from harness.errors import UsageError
from harness_plugins.architectures import MLP
from harness_plugins.augmentation import flipped_and_shifted
from harness_plugins.defenses.ensembles import Average
from harness_plugins.optimisation import SGD, Adam, Exponential, Steps
from harness_plugins.players import Player
from harness_plugins.training import Beside, Settings, cross_entropy, train
from harness_plugins.validation import HeldOut

CPU = torch.device("cpu")
FLAT = {"optimiser": SGD(0.0), "schedule": Exponential(1.0)}


@dataclass(frozen=True)
class ByHand:
    """An attack that subtracts `size` from every pixel of even samples and notes how it is used."""

    size: float
    modes: list
    draws: list

    def __call__(self, target, x, y, threat, rng):
        self.modes.append(target.source.module.training)
        self.draws.append(rng.uniform(2))
        x_adv = x.clone()
        x_adv[::2] -= self.size
        return x_adv


class Level(nn.Module):
    """Scores (level − w, w − level) of an image's mean level: one weight, the threshold."""

    def __init__(self, w=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, x):
        gap = x.flatten(1).mean(1) - self.w
        return torch.stack([-gap, gap], 1)


def levels(n=40):
    """Images of one level each, dark ones class 0, light ones 1."""
    y = torch.arange(n) % 2
    x = (0.25 + 0.5 * y).float().view(n, 1, 1, 1).expand(n, 1, 2, 2).clone()
    return TrainingSet(Info((1, 2, 2), 2, n), x, y)


def run(store=None, seed=1):
    return Run(seed, CPU, _store=store or Kept())


def marching(net, x, y, step):
    """With plain descent at rate 1 the weight grows by 0.2 a batch."""
    return -0.2 * net.w


def marched(validation, epochs=6, net=None, store=None):
    """After epoch e the threshold is at 0.2 e − 0.1; at 0.3 to 0.7 all images are right."""
    net = net or Level(-0.1)
    settings = Settings(epochs=epochs, batch=40, lr=1.0, validation=validation, **FLAT)
    train(net, levels(), run(store), settings, marching)
    return net


def test_the_best_epoch_is_kept_and_of_equals_the_first():
    assert marched(None).w.item() == pytest.approx(1.1)
    assert marched(HeldOut(share=0.2)).w.item() == pytest.approx(0.3)


def test_patience_ends_the_training_and_no_sooner():
    for patience, epochs in ((1, 3), (2, 4), (3, 5)):
        store = Kept()
        net = marched(HeldOut(share=0.2, patience=patience), epochs=9, store=store)
        assert (net.w.item(), store.saves) == (pytest.approx(0.3), epochs)
    store = Kept()
    marched(HeldOut(share=0.2), epochs=9, store=store)
    assert store.saves == 9


def test_robust_accuracy_counts_what_the_attack_did_not_fool():
    modes, draws = [], []
    model, held = HeldOut(share=0.5, attack=ByHand(0.3, modes, draws)), levels()
    even_are_dark = TrainingSet(held.info, held.x, held.y)
    net = Level(0.5)
    assert model.accuracy(net.train(), even_are_dark, run()) == 1.0  # dark ones get darker
    swapped = TrainingSet(held.info, held.x.flip(0), held.y.flip(0))
    assert model.accuracy(net, swapped, run()) == 0.5  # light ones go below
    assert HeldOut(share=0.5).accuracy(net, swapped, run()) == 1.0
    wrong = TrainingSet(held.info, held.x, 1 - held.y)
    assert model.accuracy(net, wrong, run()) == 0.0  # wrong before is wrong, whatever comes
    helped = TrainingSet(held.info, held.x.flip(0), 1 - held.y.flip(0))
    assert model.accuracy(net, helped, run()) == 0.0  # though the attack puts some of it right
    assert modes == [False] * 4
    assert net.training
    assert all(torch.equal(one, draws[0]) for one in draws)  # each epoch is asked the same


@pytest.mark.parametrize("killed_after", [1, 2, 3, 4])
def test_a_killed_training_keeps_its_best_epoch(killed_after):
    """Also one that is killed when it has had enough already."""
    validation = HeldOut(share=0.2, patience=2)
    store = Kept(kill_after=killed_after)
    with pytest.raises(Killed):
        marched(validation, store=store)
    assert marched(validation, net=Level(7.0), store=store).w.item() == pytest.approx(0.3)
    assert store.saves == 4


def test_held_out_images_are_not_trained_on_and_hold_every_class():
    y = torch.tensor([0] * 80 + [1] * 20)
    x = torch.arange(100.0).view(100, 1, 1, 1)
    data = TrainingSet(Info((1, 1, 1), 2, 100), x, y)
    rest, held = HeldOut(share=0.1).split(data)
    assert sorted([*rest.x.flatten().tolist(), *held.x.flatten().tolist()]) == list(range(100))
    assert torch.bincount(held.y).tolist() == [8, 2]
    again = HeldOut(share=0.1).split(data)
    assert torch.equal(again[1].x, held.x)
    seen = []

    def spy(net, x, y, step):
        seen.extend(x.flatten().tolist())
        return net.w * 0

    train(Level(), data, run(), Settings(epochs=1, validation=HeldOut(share=0.1)), spy)
    assert sorted(seen) == sorted(rest.x.flatten().tolist())


@pytest.mark.parametrize(
    ("share", "n", "said"),
    [(0.001, 40, "share=0.001 of 40 training images is none"), (0.9, 2, "class 0 of 2 has no")],
)
def test_too_few_images_to_hold_out_are_refused(share, n, said):
    with pytest.raises(UsageError, match=said):
        train(Level(), levels(n), run(), Settings(validation=HeldOut(share=share)), cross_entropy)


def test_a_class_without_images_is_said_before_training():
    data = levels()
    data = TrainingSet(data.info, data.x[data.y == 0], data.y[data.y == 0])

    def never(net, x, y, step):
        raise AssertionError

    with pytest.raises(UsageError, match="class 1 of 2 has no image among the training images"):
        train(Level(), data, run(), Settings(), never)


# --- plain epochs ----------------------------------------------------------------------------


def test_plain_epochs_come_first_and_have_their_own_objective():
    played = []

    def objective(name):
        def loss(net, x, y, step):
            played.append((name, int(step.epochs)))
            return net.w * 0

        return loss

    settings = Settings(epochs=3, batch=20, plain_epochs=2)
    train(Level(), levels(), run(), settings, objective("own"), Beside(plain=objective("plain")))
    assert played == [("plain", 0)] * 2 + [("plain", 1)] * 2 + [("own", 2)] * 2


def test_plain_epochs_are_the_cross_entropys():
    """All of them plain: the defense does nothing."""

    def never(net, x, y, step):
        raise AssertionError

    nets = [Level(), Level()]
    train(nets[0], levels(), run(), Settings(epochs=2, plain_epochs=2), never)
    train(nets[1], levels(), run(), Settings(epochs=2), cross_entropy)
    assert torch.equal(nets[0].w, nets[1].w)


def test_plain_epochs_of_networks_that_average_are_each_its_own():
    """Averaged scores would give another loss."""
    data = levels()
    nets = []
    for plain in (0, 2):
        torch.manual_seed(0)
        model = Average(arch=MLP(width=3), epochs=2, batch=20, votes=2, plain_epochs=plain)
        nets.append(model.fit(data, run()).state_dict())
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])


# --- a second player -------------------------------------------------------------------------


class Pair(nn.Module):
    """A weight, and a buffer that no gradient reaches."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("count", torch.tensor(0.0))


def duel(store, settings, optimiser=None):
    """Both players see w₁ w₂: the net descends it, the other ascends it, first."""
    net, other = Level(1.0), Pair()
    optimiser = optimiser or settings.optimiser
    player = Player(other, optimiser.over(other.parameters(), 0.5), 0.5)

    def objective(net, x, y, step):
        player.descend(-net.w * other.w)
        other.count += 1
        return net.w * other.w

    train(net, levels(), run(store), settings, objective, Beside(players={"other": player}))
    return net, other


def test_each_player_moves_by_its_own_loss_and_rate():
    """By hand: other 1 + ½·1 = 1.5, then net 1 − 1·1.5; the loss of one leaves the other alone."""
    settings = Settings(epochs=1, batch=40, lr=1.0, **FLAT)
    net, other = duel(None, settings)
    assert (net.w.item(), other.w.item(), other.count.item()) == (-0.5, 1.5, 1.0)


def test_the_schedule_is_for_both():
    """After epoch 1 both rates are 0: nothing moves any more."""
    schedule = {"optimiser": SGD(0.0), "schedule": Steps(at=(1,), by=1e-9)}
    net, other = duel(None, Settings(epochs=3, batch=40, lr=1.0, **schedule))
    assert (net.w.item(), other.w.item()) == pytest.approx((-0.5, 1.5))
    assert other.count.item() == 3


@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_killed_training_takes_the_other_player_up(killed_after):
    settings = Settings(epochs=3, batch=10, lr=0.1, optimiser=Adam(beta1=0.5))
    whole = duel(None, settings)
    store = Kept(kill_after=killed_after)
    with pytest.raises(Killed):
        duel(store, settings)
    resumed = duel(store, settings)
    for one, two in zip(whole, resumed, strict=True):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, two.state_dict()[name]), name
    assert resumed[1].count.item() == 12


def test_steps_fall_after_the_epochs_named():
    factor = Steps(at=(4, 2), by=0.1).factor
    assert [factor(e, 9) for e in (0, 1.9, 2, 3.9, 4, 8)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_adams_first_moment_decays_by_beta1():
    """Gradients 1, then 0: the second step is lr · m̂ / √v̂ with both moments by hand."""
    b1, b2, w = 0.5, 0.999, nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
    optimiser = Adam(beta1=b1).over([w], 1.0)
    for gradient in (1.0, 0.0):
        w.grad = torch.tensor(gradient, dtype=torch.float64)
        optimiser.step()
    mean = b1 * (1 - b1) / (1 - b1**2)
    square = b2 * (1 - b2) / (1 - b2**2)
    assert w.item() == pytest.approx(-1 - mean / square**0.5, rel=1e-6)


# --- augmentation ----------------------------------------------------------------------------


def test_images_are_mirrored_and_shifted_whole():
    """Every result is one of the 2 · 3 · 3 that a mirror and shifts of a pixel make, all occur."""
    image = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = []
    for source in (image, image.flip(2)):
        padded = functional.pad(source, (1, 1, 1, 1))
        wanted += [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    n = 400
    made = flipped_and_shifted(image.expand(n, 2, 8, 8), StreamRng.keyed("test", n=n))
    which = [[i for i, one in enumerate(wanted) if torch.equal(one, image)] for image in made]
    assert all(len(found) == 1 for found in which)
    assert {found[0] for found in which} == set(range(18))


def test_augmented_batches_reach_the_objective():
    seen = []

    def spy(net, x, y, step):
        seen.append(x)
        return net.w * 0

    y = torch.arange(20) % 2
    data = TrainingSet(Info((1, 8, 8), 2, 20), torch.rand(20, 1, 8, 8), y)
    for augment in ("none", "flip-shift"):
        train(Level(), data, run(), Settings(epochs=1, batch=20, augment=augment), spy)
    plain, changed = seen
    order = [int((data.x == image).flatten(1).all(1).nonzero()) for image in plain]
    assert sorted(order) == list(range(20))
    assert not torch.equal(plain, changed)
    assert (changed.flatten(1).amax(1) <= plain.flatten(1).amax(1)).all()
