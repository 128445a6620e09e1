"""The substitute-model black-box attack (Papernot et al., 2017, arXiv:1602.02697).

The target gives labels and nothing else. A substitute learns to give the same ones, round by round:
the points that it has learnt from are moved to where its own score for the target's label changes
most (Jacobian augmentation, section 4.2), and the target labels those. What fools the substitute
is then tried on the target.

As Xue, Xie and Roshan ran it (2020), whose code is the preset `code`; `paper` is what their text
says, `cleverhans` the tutorial of CleverHans 3.1. Gradients are those of the substitute in eval
mode; the papers' code takes them with batch normalisation in train mode, one image at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal, Protocol

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional

from harness.api import Attack, Info, Model, Rng, Round, Run, Target, TrainingSet
from harness.errors import PluginError
from harness.plugin import AttackRef, OneOf, RecipeRef, ref
from harness_plugins.architectures import Architecture
from harness_plugins.substitutes import NETS, Dual

TUTORIAL_TURNS = 3  # rounds before CleverHans's tutorial turns round
CHUNK = 1000  # points a pass for gradients takes


@dataclass(frozen=True)
class Plan:
    """What an attack is run with. signs: how a round's direction is chosen; relabel: all points
    are asked anew in every round, not the new ones alone. CleverHans's tutorial goes down in its
    first three rounds and then up (`lmbda_coef`)."""

    rounds: int = 20
    epochs: int = 20
    batch: int = 128
    optimiser: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-4
    step: float = 0.1
    cap: int = 3200
    signs: Literal["coin", "tutorial"] = "coin"
    relabel: bool = True
    net: Architecture = Dual()


PRESETS = {
    "code": Plan(),
    "paper": Plan(batch=200, optimiser="sgd", lr=0.01, net=Dual(activation="sigmoid")),
    "cleverhans": Plan(rounds=6, epochs=10, lr=1e-3, cap=10**9, signs="tutorial", relabel=False),
}


class Learner(Protocol):
    """What learns the target's labels."""

    def learn(self, x: Tensor, labels: Tensor) -> nn.Module:
        """Of all points so far; the module in eval mode, differentiable."""
        ...


@dataclass(frozen=True)
class Substitute:
    """Rounds of learning the target's labels, augmenting, and attacking the substitute.

    A round's points are those of the last and as many new ones, x ± step · sign ∂z_label/∂x of the
    substitute, not clipped. Where there are more than `cap`, the new ones take the others' place.

    preset:    code, paper or cleverhans, which begins with seed_points=150: what is none below
    net:       the network that learns, its weights kept from round to round; the preset's has two
               layers of 200
    model:     a model of the project that learns instead, by its own settings, anew in every round
               and of points clipped to [0, 1]; where it has no gradients its surrogate's are
               followed. It keeps the last round's where the target gives no point some label.
               Its points move by the round's coin, too, where the papers' code has none for SCD01
    attack:    what makes the adversarial images, on the substitute
    rounds:    of learning
    epochs:    of a network's learning in a round, with a fresh optimiser
    lr:        learning rate; the papers' code has 1e-3 for MNIST
    step:      λ, by which a point is moved; 0.01 for ImageNet in the papers
    optimiser: adam, or sgd with momentum 0.9
    """

    preset: Literal["code", "paper", "cleverhans"] = "code"
    net: Annotated[Architecture | None, OneOf(NETS)] = None
    model: Annotated[Model | None, RecipeRef()] = None
    attack: Annotated[Attack, AttackRef()] = ref("fgsm")
    rounds: Annotated[int, Ge(1)] | None = None
    epochs: Annotated[int, Ge(1)] | None = None
    lr: Annotated[float, Gt(0)] | None = None
    step: Annotated[float, Gt(0)] | None = None
    optimiser: Literal["adam", "sgd"] | None = None

    def __post_init__(self) -> None:
        for name in ("net", "epochs", "lr", "optimiser"):
            if self.model is not None and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is of a network that learns; the model has its own settings"
                )

    def plan(self) -> Plan:
        """The preset's, with what was given in its place."""
        own = {name.name for name in fields(Plan)}
        given = {k: v for k, v in vars(self).items() if k in own and v is not None}
        return replace(PRESETS[self.preset], **given)

    def prepare(self, target: Target, seeds: Tensor, rng: Rng) -> Iterator[Round]:
        """Raises PluginError where the target gives all seed points one label."""
        plan, x, k = self.plan(), seeds, target.classes
        learner = self._learner(plan, Info(_shape(seeds), k, len(seeds)), rng, seeds.device)
        labels = target.labels(x)
        _refuse_unlearnable(labels)
        for turn in range(plan.rounds):
            if turn and plan.relabel:
                labels = target.labels(x)
            elif turn:
                labels = torch.cat([labels, target.labels(x[len(labels) :])])
            substitute = learner.learn(x, labels)
            fit = (_labels(substitute, x) == labels).float().mean().item()
            yield Round(self.attack, substitute, {"points": len(x), "agreement": fit})
            if turn + 1 < plan.rounds:
                moved = x + _sign(plan, turn, rng) * plan.step * _slopes(substitute, x, labels)
                moved = moved.clamp(0, 1) if self.model is not None else moved
                x = torch.cat([x, moved]) if len(x) <= plan.cap else moved

    def _learner(self, plan: Plan, info: Info, rng: Rng, device: torch.device) -> Learner:
        if self.model is not None:
            return Retrained(self.model, info, rng, device)
        return Network(plan.net.build(info).to(device), plan)


@dataclass(frozen=True)
class Network:
    """A network that learns on."""

    net: nn.Module
    plan: Plan

    def learn(self, x: Tensor, labels: Tensor) -> nn.Module:
        plan, net = self.plan, self.net.train().requires_grad_()
        if plan.optimiser == "adam":
            optimiser: torch.optim.Optimizer = torch.optim.Adam(
                net.parameters(), lr=plan.lr, fused=True
            )
        else:
            optimiser = torch.optim.SGD(net.parameters(), lr=plan.lr, momentum=0.9, fused=True)
        for _ in range(plan.epochs):
            for rows in torch.randperm(len(x)).to(x.device).split(plan.batch):
                optimiser.zero_grad()
                functional.cross_entropy(net(x[rows]), labels[rows]).backward()
                optimiser.step()
        return net.eval().requires_grad_(requires_grad=False)


@dataclass
class Retrained:
    """A model of the project, trained from the start every time that there are all labels."""

    model: Model
    info: Info
    rng: Rng
    device: torch.device
    last: nn.Module | None = None

    def learn(self, x: Tensor, labels: Tensor) -> nn.Module:
        absent = set(range(self.info.classes)) - set(labels.tolist())
        if not absent:
            self.last = self._fitted(x, labels)
        elif self.last is None:
            raise PluginError(
                f"the target gives none of the {len(x)} seed points the label {min(absent)} of "
                f"{self.info.classes}, and the model that learns needs them all; give more "
                "seed_points, or a net"
            )
        return self.last

    def _fitted(self, x: Tensor, labels: Tensor) -> nn.Module:
        seed = int(self.rng.integers(2**62)[0])
        data = TrainingSet(replace(self.info, train=len(x)), x.cpu(), labels.cpu())
        fitted = self.model.fit(data, Run(seed, self.device)).to(self.device).eval()
        return differentiable(fitted.requires_grad_(requires_grad=False), x[:1])


class Smoothed(nn.Module):
    """The scores of one module, the slopes of another (BPDA)."""

    def __init__(self, exact: nn.Module, smooth: nn.Module) -> None:
        super().__init__()
        self.exact, self.smooth = exact, smooth

    def forward(self, x: Tensor) -> Tensor:
        smooth = self.smooth(x)
        return torch.as_tensor(self.exact(x).detach() + (smooth - smooth.detach()))


def differentiable(module: nn.Module, x: Tensor) -> nn.Module:
    """The module, through its surrogate if its scores have no gradient. Raises PluginError."""
    with torch.enable_grad():
        if module(x.detach().requires_grad_()).requires_grad:
            return module
    surrogate = getattr(module, "surrogate", None)
    if surrogate is None:
        raise PluginError("the substitute has neither gradients nor a surrogate: choose another")
    return Smoothed(module, surrogate().to(x.device).eval().requires_grad_(requires_grad=False))


def _shape(x: Tensor) -> tuple[int, int, int]:
    _, c, h, w = x.shape
    return c, h, w


def _refuse_unlearnable(labels: Tensor) -> None:
    """Raise PluginError where the target gives all seed points the same label."""
    if len(labels.unique()) == 1:
        raise PluginError(
            f"the target gives all {len(labels)} seed points the label {int(labels[0])}: there is "
            "nothing to learn"
        )


def _sign(plan: Plan, turn: int, rng: Rng) -> float:
    """+1 or −1, the same for all points of a round."""
    if plan.signs == "tutorial":
        return -1.0 if turn < TUTORIAL_TURNS else 1.0
    return 1.0 - 2.0 * int(rng.integers(2)[0])


def _slopes(substitute: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """sign ∂z_label/∂x of each point."""
    parts = []
    for part, own in zip(x.split(CHUNK), labels.split(CHUNK), strict=True):
        points = part.detach().requires_grad_()
        with torch.enable_grad():
            score = substitute(points).gather(1, own[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, points)
        parts.append(gradient.sign())
    return torch.cat(parts)


@torch.no_grad()
def _labels(substitute: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([substitute(points).argmax(dim=1) for points in x.split(CHUNK)])
