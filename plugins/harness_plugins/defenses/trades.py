"""TRADES (Zhang et al., 2019, arXiv:1901.08573): accuracy on clean images, and answers that an
adversary within the ball cannot change, weighed against one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional

from harness.api import Info, Run, Threat, TrainingSet
from harness_plugins.defenses.vat import divergence
from harness_plugins.players import evaluating
from harness_plugins.training import Settings, Step, train

START = 1e-3  # σ of the noise that the adversary starts from: at x itself the KL has no slope


@dataclass(frozen=True)
class Trades(Settings):
    """Cross-entropy + beta · KL(p(x) ‖ p(x′)), x′ the image of the ball that makes the KL largest.

    beta:     weight of the KL; the paper's are 1 and 6
    norm:     of the ball
    eps:      its radius, in pixel values
    steps:    of the adversary, on the network in eval mode
    rel_step: length of a step as a share of eps
    """

    beta: Annotated[float, Ge(0)] = 6.0
    norm: Literal["Linf", "L2"] = "Linf"
    eps: Annotated[float, Gt(0)] = 0.3
    steps: Annotated[int, Ge(1)] = 10
    rel_step: Annotated[float, Gt(0)] = 0.25

    def suspects(self) -> Mapping[str, float]:
        return {"beta": self.beta, "lr": self.lr}

    def build(self, info: Info) -> nn.Module:
        return self.arch.build(info)

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        threat = Threat(self.norm, self.eps)

        def objective(net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
            with evaluating(net):
                x_adv = self._worst_case(net, x, threat, step)
            scores = net(x)
            kl = divergence(scores.log_softmax(1), net(x_adv).log_softmax(1))
            return functional.cross_entropy(scores, y) + self.beta * kl

        net = self.build(data.info)
        train(net, data, run, self, objective)
        return net

    def _worst_case(self, net: nn.Module, x: Tensor, threat: Threat, step: Step) -> Tensor:
        with torch.no_grad():
            clean = net(x).log_softmax(1)
        x_adv = threat.project(x + START * step.rng.normal(*x.shape[1:]).to(x), x)
        for _ in range(self.steps):
            x_adv.requires_grad_()
            kl = divergence(clean, net(x_adv).log_softmax(1))
            (gradient,) = torch.autograd.grad(kl, x_adv)
            x_adv = threat.step(x_adv.detach(), gradient, x, self.rel_step * self.eps)
        return x_adv
