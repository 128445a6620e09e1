"""The substitute-model attack: what it asks, where it moves its points, what it learns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.api import Info, StreamRng, Target
from harness.errors import PluginError
from harness.target import Ledger, Source
from harness_plugins.attacks.pgd import FGSM
from harness_plugins.attacks.substitute import Plan, Smoothed, Substitute, differentiable
from harness_plugins.defenses.svm import SVM
from harness_plugins.defenses.zero_one import SCD01
from harness_plugins.substitutes import Blocks, Dual

INFO = Info((1, 2, 2), 2, 0)
TINY = Dual(width=4)


class Halves(nn.Module):
    """Class 1 where the upper pixels are brighter than the lower ones."""

    def forward(self, x):
        gap = 5 * (x[:, 0, 0] - x[:, 0, 1]).sum(1)
        return torch.stack([-gap, gap], 1)


class Asked:
    """A target of labels alone that keeps what it was asked."""

    def __init__(self, module, classes=2):
        self.ledger = Ledger(1)
        self.target = Target(Source(module, classes, 512), "labels", self.ledger)
        self.classes = classes
        self.points = []

    def labels(self, x):
        self.points.append(x.clone())
        return self.target.labels(x)


def seeds(n=40, seed=0):
    return torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def rounds(attack, target, x):
    torch.manual_seed(0)
    return list(attack.prepare(target, x, StreamRng.keyed("test", n=len(x))))


def of(plan, **options):
    """The attack with FGSM inside, and no more than a glance at its points in each round."""
    return Substitute(net=TINY, attack=FGSM(), **{"epochs": 1, **plan, **options})


def test_the_papers_twenty_rounds_ask_for_102200_labels():
    target = Asked(Halves())
    made = rounds(of({}), target, seeds(200))
    sizes = [200, 400, 800, 1600, 3200] + [6400] * 15
    assert [int(r.info["points"]) for r in made] == sizes
    assert [len(x) for x in target.points] == sizes
    assert int(target.ledger.forward.sum()) == 102_200


def test_cleverhans_asks_for_new_points_alone():
    target = Asked(Halves())
    made = rounds(of({"preset": "cleverhans"}), target, seeds(150))
    assert [int(r.info["points"]) for r in made] == [150 * 2**i for i in range(6)]
    assert int(target.ledger.forward.sum()) == 150 * 2**5


def moves(target):
    """Of each round after the first, what was added to the last round's points."""
    pairs = zip(target.points, target.points[1:], strict=False)
    return [after[-len(before) :] - before for before, after in pairs if len(after) > len(before)]


def test_points_move_by_the_step_in_every_pixel_and_are_not_clipped():
    target = Asked(Halves())
    rounds(of({}, rounds=4, step=0.3), target, seeds())
    for move in moves(target):
        sizes = move.abs()
        assert ((sizes - 0.3).abs() < 1e-5).logical_or(sizes == 0).all()
    everything = torch.cat(target.points)
    assert everything.min() < 0 or everything.max() > 1
    assert torch.equal(target.points[1][: len(seeds())], seeds())  # the old ones stay


def test_beyond_the_cap_the_new_points_take_the_place_of_the_old():
    attack = Substitute(net=TINY, attack=FGSM(), epochs=1, rounds=7)
    target = Asked(Halves())
    rounds(attack, target, seeds(200))
    last, before = target.points[6], target.points[5]
    assert len(last) == len(before) == 6400
    assert ((last - before).abs() < 0.1 + 1e-5).all()
    assert not torch.equal(last, before)


def slope_signs(target, module):
    """Of each round the one sign s with x' = x + s · step · sign ∂z_label, for a fixed module."""
    found = []
    for before, move in zip(target.points, moves(target), strict=False):
        x = before.clone().requires_grad_()
        scores = module(x)
        own = Halves()(before).argmax(1)
        (gradient,) = torch.autograd.grad(scores.gather(1, own[:, None]).sum(), x)
        signs = (move.sign() * gradient.sign()).unique()
        assert len(signs) == 1
        found.append(int(signs))
    return found


class Known(nn.Module):
    """What is learnt does not matter: a linear map without an entry of slope 0."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.map = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        self.map.requires_grad_(requires_grad=False)
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.map(x) + 0 * self.nothing


class Fixed:
    def build(self, info, dropout=0.0):
        return Known()


def test_one_coin_a_round_decides_the_direction_and_falls_both_ways():
    target = Asked(Halves())
    plan = {"net": Fixed(), "attack": FGSM(), "epochs": 1}
    rounds(Substitute(**plan, rounds=6), target, seeds(8))
    assert set(slope_signs(target, Known())) == {-1, 1}


def test_cleverhans_goes_down_for_three_rounds_and_then_up():
    target = Asked(Halves())
    rounds(Substitute(preset="cleverhans", net=Fixed(), attack=FGSM(), epochs=1), target, seeds(8))
    whole = [target.points[0]]
    for new in target.points[1:]:
        whole.append(torch.cat([whole[-1], new]))
    target.points = whole
    assert slope_signs(target, Known()) == [-1, -1, -1, 1, 1]


class Constant(nn.Module):
    def forward(self, x):
        return torch.tensor([0.0, 1.0, 0.0]).expand(len(x), 3)


class TwoOfThree(nn.Module):
    def forward(self, x):
        return torch.cat([Halves()(x), torch.full((len(x), 1), -9.0)], 1)


def test_a_constant_target_cannot_be_learnt():
    said = "gives all 40 seed points the label 1: there is nothing to learn"
    with pytest.raises(PluginError, match=said):
        rounds(of({}), Asked(Constant(), classes=3), seeds())


def test_a_target_that_never_gives_a_label_is_learnt_all_the_same():
    made = rounds(of({}, rounds=3, lr=0.05), Asked(TwoOfThree(), classes=3), seeds())
    assert len(made) == 3
    learner = Substitute(model=SVM(), attack=FGSM(), rounds=3)
    with pytest.raises(PluginError, match="none of the 40 seed points the label 2 of 3, and the"):
        rounds(learner, Asked(TwoOfThree(), classes=3), seeds())


class Fading(nn.Module):
    """Halves, until it has been asked about more than 40 points: then all is class 0."""

    def forward(self, x):
        return Halves()(x) if len(x) <= 40 else torch.tensor([1.0, 0.0]).expand(len(x), 2)


def test_a_model_keeps_what_it_learnt_where_a_round_has_one_label():
    made = rounds(Substitute(model=SVM(), attack=FGSM(), rounds=3), Asked(Fading()), seeds())
    assert [int(r.info["points"]) for r in made] == [40, 80, 160]
    assert made[0].substitute is made[1].substitute is made[2].substitute


@pytest.mark.parametrize("given", [{"net": Dual()}, {"epochs": 3}, {"lr": 0.1}])
def test_options_of_a_network_are_refused_beside_a_model(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))} is of a network"):
        Substitute(model=SVM(), attack=FGSM(), **given)


def test_a_target_of_the_substitutes_own_kind_is_learnt_and_fooled():
    """With enough rounds FGSM on the substitute leaves no more than a little above FGSM itself."""
    torch.manual_seed(5)
    net = Dual(width=8).build(INFO)
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.weight *= 3
        net[5].bias[1] += net(seeds(500)).diff().median() * -1
    net.requires_grad_(requires_grad=False)
    x, target = seeds(300, seed=1), Asked(net)
    y = net(x).argmax(1)
    made = rounds(
        Substitute(net=Dual(width=16), attack=FGSM(), rounds=10, step=0.05, lr=1e-2),
        target,
        seeds(),
    )

    def left(module):
        x_adv = (x + 0.1 * slope(module, x, y)).clamp(0, 1)
        return (net(x_adv).argmax(1) == y).float().mean().item()

    white, first, last = left(net), left(made[0].substitute), left(made[-1].substitute)
    assert last <= white + 0.03
    assert made[-1].info["agreement"] > 0.95
    assert last <= first + 0.01


def slope(module, x, y):
    x = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(module(x), y)
    (gradient,) = torch.autograd.grad(loss, x)
    return gradient.sign()


def test_a_model_of_the_project_learns_anew_from_points_in_the_box():
    target = Asked(Halves())
    attack = Substitute(model=SCD01(iterations=60, features=4), attack=FGSM(), rounds=3, step=0.5)
    made = rounds(attack, target, seeds(200))
    everything = torch.cat(target.points)
    assert (everything.min() >= 0) & (everything.max() <= 1)
    x = seeds(200, seed=2)
    for turn in made:
        assert isinstance(turn.substitute, Smoothed)
        exact = turn.substitute.exact(x)
        assert torch.equal(turn.substitute(x), exact)
        y = exact.argmax(1)
        wanted = turn.substitute.exact.part("linear").weight[1].sign().view(1, 1, 2, 2)
        # up its loss is against w for class 1, along it for class 0
        assert torch.equal(slope(turn.substitute, x, y), wanted * (1 - 2 * y).view(-1, 1, 1, 1))
    assert len({id(turn.substitute) for turn in made}) == 3
    first = made[0].substitute(x).argmax(1)  # later points are in the corners of the box
    assert (first == Halves()(x).argmax(1)).float().mean() > 0.9


def test_a_model_with_gradients_is_followed_itself():
    target = Asked(Halves())
    made = rounds(Substitute(model=SVM(C=1.0), attack=FGSM(), rounds=2), target, seeds())
    assert not isinstance(made[-1].substitute, Smoothed)
    assert torch.equal(
        slope(made[-1].substitute, seeds(), torch.ones(40, dtype=torch.int64)).unique(),
        torch.tensor([-1.0, 1.0]),
    )


def test_a_substitute_without_any_slope_is_refused():
    with pytest.raises(PluginError, match="neither gradients nor a surrogate"):
        differentiable(Constant(), seeds())


def test_presets_are_starting_points():
    assert Substitute().plan() == Plan()
    paper = Substitute(preset="paper", lr=0.5).plan()
    assert (paper.optimiser, paper.batch, paper.lr, paper.rounds) == ("sgd", 200, 0.5, 20)
    assert Substitute(preset="cleverhans", rounds=2).plan().rounds == 2
    assert Substitute(preset="paper").plan().net == Dual(activation="sigmoid")
    assert Substitute(preset="paper", net=Blocks()).plan().net == Blocks()


def count(net, kind):
    return sum(isinstance(module, kind) for module in net.modules())


def test_the_networks_are_those_of_the_papers():
    info = Info((3, 32, 32), 10, 0)
    x = torch.rand(2, 3, 32, 32)
    dual = Dual().build(info)
    assert sum(p.numel() for p in dual.parameters()) == 3072 * 200 + 200 + 200 * 200 + 200 + 2010
    assert count(Dual(activation="sigmoid").build(info), nn.Sigmoid) == 2
    convolutions = 3 * 9 * 32 + 9 * 32 * 64 + 9 * 64 * 128 + 9 * 128 * 256 + 32 + 64 + 128 + 256
    for variant, norms, pool in (
        ("code", 3, nn.AvgPool2d),
        ("earlier", 0, nn.MaxPool2d),
        ("text", 4, nn.MaxPool2d),
    ):
        net = Blocks(variant).build(info)
        assert (count(net, nn.BatchNorm2d), count(net, pool)) == (norms, 4 if norms == 4 else 3)
        affine = 2 * sum((32, 64, 128, 256)[:norms])
        assert sum(p.numel() for p in net.parameters()) == convolutions + affine + 2570
        assert net.eval()(x).shape == (2, 10)
    grey = Blocks("earlier").build(info)
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert grey.standard(mean).abs().max() == 0


@pytest.mark.parametrize(
    ("net", "shape", "said"),
    [
        (Blocks(), (3, 4, 4), "8x8 or larger, not 4x4"),
        (Blocks("text"), (3, 8, 8), "16x16 or larger, not 8x8"),
        (Blocks("earlier"), (1, 28, 28), "standardises three channels, the images have 1"),
    ],
)
def test_images_that_a_network_cannot_take_are_named(net, shape, said):
    with pytest.raises(PluginError, match=said):
        net.build(Info(shape, 2, 0))
