"""Adversary critic (Matyasko and Chau, 2018, NeurIPS, arXiv:1810.12576; Matyasko, 2020, doctoral
thesis, Nanyang Technological University, chapter 4).

A classifier is robust if what fools it would fool a person too. The critic D stands for the person:
for every class it learns to tell that class's images from adversarial images that the classifier
takes for it. The classifier, besides being right, is to fool the critic with its adversarial
images: those of the high-confidence attack, unrolled, so that they follow the weights.

With x̂ the adversarial image of x, ŷ the classifier's labels, and BCE of D's sigmoid outputs, the
critic descends, first,

    BCE(D_y(x), 1) + BCE(D_ŷ(x̂)(x̂), 0) + penalty · mean (‖∇ logit‖₂ − 1)², of both kinds of images,

and the classifier, over the images whose label changed in the terms of x̂,

    CE(x, y) + weight · BCE(D_ŷ(x̂)(x̂), 1) + cycle · mean ‖x − x_rec‖₂²,

where x_rec is the attack's way back from x̂, a constant, to ŷ(x) and the confidence there. The
thesis prints (4.3) and (4.4) with the sign of the other player and the norm of (4.5) without its
square; its code, and this, have them as above. Other than there, the confidences that adversarial
images are to reach move once a batch; there, whenever the attack is evaluated, three times. The
critic is gone after training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional

from harness.api import Info, Run, TrainingSet
from harness.plugin import OneOf
from harness_plugins.architectures import ARCHITECTURES, MLP, Architecture, he_normal
from harness_plugins.optimisation import OPTIMISERS, SCHEDULES, Adam, Optimiser, Schedule, Steps
from harness_plugins.players import Player, evaluating
from harness_plugins.training import Beside, Settings, Step, train
from harness_plugins.unrolled import nearest_class, reach

DECAY = 5e-6  # of the weights in the plain epochs, all layers' but the last
LEAK = 0.2  # slope of the critic's units where they are negative
NOISE = (0.1, 0.5)  # σ that the critic adds to its input and to its hidden units
INERTIA = 0.5  # of the confidences: what a batch leaves of them


@dataclass(frozen=True)
class AdversaryCritic(Settings):
    """The classifier's weights, whatever its architecture says, and the critic's are drawn by He et
    al. (2015, arXiv:1502.01852).

    weight:       of the critic's verdict in the classifier's loss; the thesis has 0.1 for LeNet-5
    cycle:        of the way back
    penalty:      of the critic's gradients
    steps:        of the attack, both ways
    overshoot:    of the attack
    critic_width: of the critic's two hidden layers
    critic_lr:    of the critic, by the same schedule
    """

    arch: Annotated[Architecture, OneOf(ARCHITECTURES)] = MLP(width=1200, depth=3)
    epochs: Annotated[int, Ge(1)] = 100
    lr: Annotated[float, Gt(0)] = 5e-4
    optimiser: Annotated[Optimiser, OneOf(OPTIMISERS)] = Adam(beta1=0.5)
    schedule: Annotated[Schedule, OneOf(SCHEDULES)] = Steps(at=(40, 80), by=0.5)
    plain_epochs: Annotated[int, Ge(0)] = 1
    weight: Annotated[float, Ge(0)] = 0.5
    cycle: Annotated[float, Ge(0)] = 0.01
    penalty: Annotated[float, Ge(0)] = 10.0
    steps: Annotated[int, Ge(1)] = 5
    overshoot: Annotated[float, Ge(0)] = 0.05
    critic_width: Annotated[int, Ge(1)] = 1200
    critic_lr: Annotated[float, Gt(0)] = 1e-3

    def build(self, info: Info) -> nn.Module:
        return self.arch.build(info)

    def suspects(self) -> Mapping[str, float]:
        rates = {"lr": self.lr, "critic_lr": self.critic_lr}
        return {"weight": self.weight, "cycle": self.cycle, **rates}

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        net = self.build(data.info)
        critic = Critic(data.info, self.critic_width)
        for network in (net, critic):
            draw(network)
        player = Player(
            critic, self.optimiser.over(critic.parameters(), self.critic_lr), self.critic_lr
        )
        duel = Duel(self, critic, player)
        train(net, data, run, self, duel, Beside(duel.plain, {"critic": player}))
        return net


class Critic(nn.Module):
    """k verdicts on an image, logits (n, k): is it a real image of class k?

    Two hidden layers of `width` leaky units. Noise is added to the image and to every hidden unit,
    in eval mode too: two passes over the same images differ.

    It keeps for every class the classifier's running confidence in its images, from 1 on, which
    is the confidence that adversarial images are to reach.
    """

    confidence: Tensor

    def __init__(self, info: Info, width: int) -> None:
        super().__init__()
        c, h, w = info.shape
        self.first = nn.Linear(c * h * w, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, info.classes)
        self.register_buffer("confidence", torch.ones(info.classes))

    def forward(self, x: Tensor) -> Tensor:
        hidden = _noisy(x.flatten(1), NOISE[0])
        for layer in (self.first, self.second):
            hidden = _noisy(functional.leaky_relu(layer(hidden), LEAK), NOISE[1])
        return torch.as_tensor(self.last(hidden))

    @torch.no_grad()
    def observe(self, scores: Tensor) -> None:
        """Move the confidences of the predicted classes half way to their means in this batch."""
        top, predicted = scores.softmax(dim=1).max(dim=1)
        zeros = torch.zeros_like(self.confidence)
        count = zeros.index_add(0, predicted, torch.ones_like(top))
        mean = zeros.index_add(0, predicted, top.to(zeros.dtype)) / count.clamp_min(1)
        moved = INERTIA * self.confidence + (1 - INERTIA) * mean
        self.confidence.copy_(torch.where(count > 0, moved, self.confidence))


@dataclass(frozen=True)
class Duel:
    """The classifier's objective; on the way the critic makes its own step.

    Attacks, and the labels of what they make, are those of the network in eval mode.
    """

    settings: AdversaryCritic
    critic: Critic
    player: Player

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        settings, critic = self.settings, self.critic
        with evaluating(net):
            point = x.detach().requires_grad_()
            scores = net(point)
            goal = nearest_class(scores, point)
            critic.observe(scores.detach())
            x_adv = self._reach(net, x, goal, critic.confidence[goal])
            before, after = scores.detach().argmax(dim=1), _labels(net, x_adv)
            self.player.descend(critic_loss(critic, x, y, x_adv, after, settings.penalty))
            changed = (after != before).nonzero()[:, 0]
            back = self._back(net, x_adv[changed].detach(), before[changed], scores[changed])
        loss = functional.cross_entropy(net(x), y)
        if not len(changed):
            return loss
        verdict = critic(x_adv[changed]).gather(1, after[changed][:, None])[:, 0]
        way = (x[changed] - back).flatten(1).square().sum(dim=1).mean()
        return loss + settings.weight * _bce(verdict, 1.0) + settings.cycle * way

    def plain(self, net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Cross-entropy and a little decay; the confidences are observed already."""
        scores = net(x)
        self.critic.observe(scores.detach())
        weights = [p for p in net.parameters() if p.ndim > 1][:-1]
        decay = sum((w.square().sum() for w in weights), torch.zeros((), device=x.device))
        return functional.cross_entropy(scores, y) + DECAY * decay / 2

    def _reach(self, net: nn.Module, x: Tensor, goal: Tensor, confidence: Tensor) -> Tensor:
        return reach(net, x, goal, confidence, self.settings.steps, self.settings.overshoot)

    def _back(self, net: nn.Module, x_adv: Tensor, before: Tensor, scores: Tensor) -> Tensor:
        """From x̂, a constant, to the label and the confidence at x, which has its gradient."""
        if not self.settings.cycle or not len(x_adv):
            return x_adv
        return self._reach(net, x_adv, before, scores.softmax(dim=1).amax(dim=1))


def critic_loss(
    critic: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, labels: Tensor, penalty: float
) -> Tensor:
    """What the critic descends: x is real in its classes y, x_adv is not in those it is taken for.

    The images are constants. The penalty is on both kinds, each at its own images.
    """
    n = len(x)
    images = torch.cat([x, x_adv]).detach().requires_grad_()
    verdicts = critic(images).gather(1, torch.cat([y, labels])[:, None])[:, 0]
    (gradients,) = torch.autograd.grad(verdicts.sum(), images, create_graph=True)
    uneven = (_length(gradients) - 1).square()
    real, forged = _bce(verdicts[:n], 1.0), _bce(verdicts[n:], 0.0)
    return real + forged + penalty * (uneven[:n].mean() + uneven[n:].mean())


def draw(net: nn.Module) -> None:
    """Weights by He et al.'s normal distribution (eq. 10, fan-in); biases are zero."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            he_normal(module)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _bce(logits: Tensor, label: float) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def _length(gradients: Tensor) -> Tensor:
    """L2, with a finite slope at 0."""
    return (gradients.flatten(1).square().sum(dim=1) + 1e-12).sqrt()


def _noisy(x: Tensor, sigma: float) -> Tensor:
    return x + sigma * torch.randn_like(x)


@torch.no_grad()
def _labels(net: nn.Module, x: Tensor) -> Tensor:
    return torch.as_tensor(net(x).argmax(dim=1))
