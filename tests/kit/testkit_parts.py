"""The tensor side of the test plugins."""

import sys
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import nn

from harness.api import Attack, Model, Round, Target, cross_entropy
from harness.data import Splits
from harness.plugin import AttackRef, ModelRef, RecipeRef, ref


@dataclass(frozen=True)
class Blobs:
    """Images (1, 4, 4) whose class is their mean grey level; on the 8-bit grid."""

    n: int = 60
    kind: Literal["ok", "outside", "labels"] = "ok"

    def load(self, files: Any) -> Splits:
        rng = np.random.default_rng(0)

        def split(n):
            y = np.arange(n) % 3
            x = (60 + 60 * y)[:, None, None, None] + rng.integers(-40, 41, (n, 1, 4, 4))
            return x.astype(np.uint8), y.astype(np.int64)

        train_x, train_y = split(self.n)
        test_x, test_y = split(self.n)
        if self.kind == "outside":
            test_x = test_x.astype(np.float32)
        if self.kind == "labels":
            test_y = test_y + 1
        return Splits(train_x, train_y, test_x, test_y, ("dark", "grey", "light"))


def centres(info: Any) -> nn.Linear:
    """Scores −(mean − centre)²/2 + mean²/2: linear in x, right on blobs but for the noisiest."""
    d = int(np.prod(info.shape))
    layer = nn.Linear(d, info.classes)
    levels = torch.tensor([60.0, 120.0, 180.0][: info.classes]) / 255
    with torch.no_grad():
        layer.weight.copy_(20 * levels[:, None].expand(-1, d) / d)
        layer.bias.copy_(-10 * levels**2)
    return layer


@dataclass(frozen=True)
class Tiny:
    """The best linear classifier of blobs, known without training."""

    shift: float = 0.0

    def build(self, info):
        return nn.Sequential(nn.Flatten(), centres(info))

    def fit(self, data, run):
        net = self.build(data.info)
        net[1].bias.data += self.shift * torch.arange(data.info.classes)
        return net


class Steps(nn.Module):
    """Scores that are whole numbers: no gradient anywhere."""

    def __init__(self, info):
        super().__init__()
        self.linear = nn.Sequential(nn.Flatten(), centres(info))

    def forward(self, x):
        return (100 * self.linear(x)).round()

    def surrogate(self):
        return self.linear

    def part(self, name):
        return {"threshold": 0.35}[name]


@dataclass(frozen=True)
class Stepped:
    def build(self, info):
        return Steps(info)

    def fit(self, data, run):
        return self.build(data.info)


class NoisyNet(nn.Module):
    def __init__(self, info, sigma):
        super().__init__()
        self.linear = nn.Sequential(nn.Flatten(), centres(info))
        self.sigma = sigma

    def forward(self, x, rng):
        return self.linear(x + self.sigma * rng.normal(*x.shape[1:]))


@dataclass(frozen=True)
class Noisy:
    sigma: float = 0.05

    def build(self, info):
        return NoisyNet(info, self.sigma)

    def fit(self, data, run):
        return self.build(data.info)


class NoisyStepsNet(Steps):
    def forward(self, x, rng):
        return super().forward(x + 0.01 * rng.normal(*x.shape[1:]))


@dataclass(frozen=True)
class NoisySteps:
    def build(self, info):
        return NoisyStepsNet(info)

    def fit(self, data, run):
        return self.build(data.info)


@dataclass(frozen=True)
class Talkative(Tiny):
    def fit(self, data, run):
        print("step 1: loss 0.3")
        return super().fit(data, run)


class Dimming(nn.Module):
    def __init__(self, info):
        super().__init__()
        self.linear = nn.Sequential(nn.Flatten(), centres(info))

    def forward(self, x):
        with torch.no_grad():
            x.sub_(0.25)
        return self.linear(x)


@dataclass(frozen=True)
class InPlace:
    def build(self, info):
        return Dimming(info)

    def fit(self, data, run):
        return self.build(data.info)


class Flipping(nn.Module):
    def __init__(self, info, flip):
        super().__init__()
        self.linear = nn.Sequential(nn.Flatten(), centres(info))
        self.flip = flip

    def forward(self, x):
        scores = self.linear(x)
        return scores.flip(1) if self.flip else scores


@dataclass(frozen=True)
class Forgetful:
    """What fit() returns is more than its state: an attribute, or another shape."""

    kind: Literal["attribute", "shape"] = "attribute"

    def build(self, info):
        return Flipping(info, flip=False)

    def fit(self, data, run):
        if self.kind == "shape":
            return nn.Sequential(nn.Flatten(), nn.Linear(16, data.info.classes))
        return Flipping(data.info, flip=True)


@dataclass(frozen=True)
class Distilled:
    """Copies a fitted teacher's labels onto shifted centres: needs a reference to be fitted."""

    teacher: Annotated[Target, ModelRef()] = ref("tiny")

    def build(self, info):
        return nn.Sequential(nn.Flatten(), centres(info))

    def fit(self, data, run):
        net = self.build(data.info)
        agree = (self.teacher.labels(data.x) == data.y).float().mean()
        net[1].bias.data *= agree
        return net


class Wrapped(nn.Module):
    def __init__(self, info, kind):
        super().__init__()
        self.linear = nn.Sequential(nn.Flatten(), centres(info))
        self.kind = kind
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        scores = self.linear(x)
        if self.kind == "nan":
            return scores * torch.nan
        if self.kind == "shape":
            return scores[:, :-1]
        if self.kind == "raises":
            raise RuntimeError("forward is broken")
        if self.kind == "fickle":
            return scores.roll(self.calls % 2, dims=1)
        return scores.roll(int(x.mean() > 0.47), dims=1)  # batchy: depends on its neighbours


@dataclass(frozen=True)
class BrokenModel:
    kind: Literal["nan", "shape", "raises"] = "nan"

    def build(self, info):
        return Wrapped(info, self.kind)

    def fit(self, data, run):
        return self.build(data.info)


@dataclass(frozen=True)
class Fickle:
    def build(self, info):
        return Wrapped(info, "fickle")

    def fit(self, data, run):
        return self.build(data.info)


@dataclass(frozen=True)
class Batchy:
    def build(self, info):
        return Wrapped(info, "batchy")

    def fit(self, data, run):
        return self.build(data.info)


class Jittery(nn.Module):
    """Draws from where nobody else can see it, whether it is given a generator or not."""

    def __init__(self, info):
        super().__init__()
        self.linear = nn.Sequential(nn.Flatten(), centres(info))

    def forward(self, x, rng=None):
        return self.linear(x + 0.1 * torch.randn_like(x))


@dataclass(frozen=True)
class Undeclared:
    def build(self, info):
        return Jittery(info)

    def fit(self, data, run):
        return self.build(data.info)


@dataclass(frozen=True)
class TooFewClasses:
    """Trips in torch, which is where the innermost frame is."""

    def build(self, info):
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 1))

    def fit(self, data, run):
        net = self.build(data.info)
        nn.functional.cross_entropy(net(data.x), data.y)
        return net


@dataclass(frozen=True)
class RaisesInFit:
    def build(self, info):
        return nn.Flatten()

    def fit(self, data, run):
        raise ValueError("no luck in training")


@dataclass(frozen=True)
class Ascend:
    """Three projected gradient steps from a random start."""

    def __call__(self, target, x, y, threat, rng):
        x_adv = threat.random_start(x, rng)
        for _ in range(3):
            gradient, _ = target.gradient(cross_entropy, x_adv, y)
            x_adv = threat.step(x_adv, gradient, x, threat.eps / 2)
        return x_adv


@dataclass(frozen=True)
class Wander:
    """One random point; asks for the label it does not use."""

    def __call__(self, target, x, y, threat, rng):
        target.labels(x)
        return threat.random_start(x, rng)


@dataclass(frozen=True)
class Thirsty:
    """Walks to black in ten steps, asking at each, and gives nothing back at the end."""

    def __call__(self, target, x, y, threat, rng):
        for k in range(11):
            target.labels(threat.project(x * (1 - k / 10), x))
        return x


@dataclass(frozen=True)
class Greedy:
    """Asks for more than it declared."""

    def __call__(self, target, x, y, threat, rng):
        return x - target.scores(x).mean()


@dataclass(frozen=True)
class Shortest:
    """The closest adversarial point of a linear two-score model, by bisection to black."""

    def __call__(self, target, x, y, threat, rng):
        low, high = torch.zeros(len(x), 1, 1, 1), torch.ones(len(x), 1, 1, 1)
        for _ in range(20):
            middle = (low + high) / 2
            fooled = (target(x * (1 - middle)).argmax(1) != y).view(-1, 1, 1, 1)
            high, low = torch.where(fooled, middle, high), torch.where(fooled, low, middle)
        return torch.where(high < 1, x * (1 - high), x)


@dataclass(frozen=True)
class Substitute:
    """Two rounds: a substitute that is wrong, then a fitted recipe of the project."""

    recipe: Annotated[Model, RecipeRef()] = ref("tiny")
    attack: Annotated[Attack, AttackRef()] = ref("ascend")
    tell_nan: bool = False
    chance: bool = False
    direct: bool = False

    def prepare(self, target, seeds, rng):
        from harness.data import Info

        info = Info(tuple(seeds.shape[1:]), target.classes, len(seeds))
        labels = target.labels(seeds)
        for shift in (5.0, 0.0):
            net = self.recipe.build(info)
            net[1].bias.data += shift * torch.arange(target.classes)
            if self.chance:
                net[1].reset_parameters()
            match = (net(seeds).argmax(1) == labels).float().mean().item()
            target.labels(torch.cat([seeds, seeds]))
            if self.direct:
                yield Round(Wander(), None, {"match": match})
                continue
            yield Round(self.attack, net, {"match": float("nan") if self.tell_nan else match})


@dataclass(frozen=True)
class Borrowed:
    """Transfer: made on another model of the board, never asking the target."""

    source: Annotated[Target, ModelRef()] = ref("tiny")
    attack: Annotated[Attack, AttackRef()] = ref("ascend")

    def __call__(self, target, x, y, threat, rng):
        return self.attack(self.source, x, y, threat, rng)


@dataclass(frozen=True)
class ReadsThreshold:
    def __call__(self, target, x, y, threat, rng):
        return threat.project(torch.full_like(x, target.part("threshold")), x)


@dataclass(frozen=True)
class Alone:
    """Another library's attack: global generators, one image at a time."""

    def __call__(self, target, x, y, threat, rng):
        if len(x) != 1:
            raise RuntimeError("one image at a time")
        target.labels(x)
        return threat.project(x + torch.rand(x.shape) - 0.5, x)


@dataclass(frozen=True)
class Still:
    def __call__(self, target, x, y, threat, rng):
        return x


@dataclass(frozen=True)
class Fog:
    def __call__(self, target, x, y, threat, rng):
        return (x + threat.eps * rng.normal(*x.shape[1:])).clamp(0, 1)


@dataclass(frozen=True)
class Misbehaves:
    """Breaks one rule of the referee, on every sample."""

    how: Literal[
        "ball", "box", "nan", "shape", "dtype", "none", "raises", "exits", "hangs", "dies", "memory"
    ] = "ball"

    def __call__(self, target, x, y, threat, rng):
        black = torch.zeros_like(x)
        if self.how == "hangs":
            time.sleep(600)
        if self.how == "exits":
            sys.exit("bye")
        if self.how == "raises":
            raise ValueError("attack\nis broken")
        if self.how == "memory" and len(x) > 8:
            raise torch.OutOfMemoryError("not enough memory")
        if self.how == "dies":
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)
        return {
            "ball": black,
            "box": x - 10,
            "nan": black * torch.nan,
            "shape": x[:, :, :-1],
            "dtype": x.double(),
            "none": None,
        }.get(self.how, x)


@dataclass(frozen=True)
class Vandal:
    """Spoils what it is given and returns the clean images."""

    how: Literal["zeroes", "trains", "edits_x"] = "zeroes"

    def __call__(self, target, x, y, threat, rng):
        kept = x.clone()
        if self.how == "zeroes":
            for parameter in target.source.module.parameters():
                parameter.zero_()
        if self.how == "trains":
            target.source.module.train()
        if self.how == "edits_x":
            x.zero_()
            y.add_(1)
        return kept


@dataclass(frozen=True)
class Uneven:
    """Six questions about every sample, then nine more about the lighter ones, to black."""

    def __call__(self, target, x, y, threat, rng):
        for _ in range(6):
            target.labels(x)
        light = (x.flatten(1).mean(1) > 0.4).nonzero()[:, 0]
        for k in range(1, 10):
            target.at(light).labels(threat.project(x[light] * (1 - k / 9), x[light]))
        return x


@dataclass(frozen=True)
class Stumbles:
    def __call__(self, target, x, y, threat, rng):
        target.labels(x)
        step = rng.uniform(1, 1, 1)
        return x if float(step[0]) < 0.4 else (x + (step - 0.5)).clamp(0, 1)


@dataclass(frozen=True)
class Unjudged:
    """Refuses to work where fooled samples may leave."""

    def __call__(self, target, x, y, threat, rng):
        if target.judged:
            raise RuntimeError("this target is judged")
        return threat.random_start(x, rng)
