"""Virtual adversarial training (Miyato et al., 2016, arXiv:1507.00677): the network's answers are
kept from changing in the direction in which they change most, whatever the labels are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional

from harness.api import Info, Run, TrainingSet
from harness_plugins.players import evaluating
from harness_plugins.training import Settings, Step, train


@dataclass(frozen=True)
class VirtualAdversarialTraining(Settings):
    """Cross-entropy + weight · KL(p(x) ‖ p(x + r)), r of length eps.

    r points where power iterations take a random direction, each the gradient of the KL a step
    of length xi away.

    eps:        length of r, L2
    weight:     of the KL
    iterations: of the power method, each a forward and a backward pass of the net in eval mode
    xi:         the step of its finite difference
    """

    eps: Annotated[float, Gt(0)] = 2.0
    weight: Annotated[float, Ge(0)] = 1.0
    iterations: Annotated[int, Ge(1)] = 1
    xi: Annotated[float, Gt(0)] = 1e-6
    epochs: Annotated[int, Ge(1)] = 100

    def suspects(self) -> Mapping[str, float]:
        return {"weight": self.weight, "lr": self.lr}

    def build(self, info: Info) -> nn.Module:
        return self.arch.build(info)

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        def objective(net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
            with evaluating(net):  # dropped units would drown a difference of xi
                with torch.no_grad():
                    clean = net(x).log_softmax(1)
                r = unit(step.rng.normal(*x.shape[1:]).to(x))
                for _ in range(self.iterations):
                    r = unit(self._steepest(net, x, clean, r))
            scores = net(x)
            far = net(x + self.eps * r).log_softmax(1)
            kl = divergence(scores.detach().log_softmax(1), far)
            return functional.cross_entropy(scores, y) + self.weight * kl

        net = self.build(data.info)
        train(net, data, run, self, objective)
        return net

    def _steepest(self, net: nn.Module, x: Tensor, clean: Tensor, r: Tensor) -> Tensor:
        """The gradient of the KL at xi · r: to first order the Hessian, at r = 0, times r."""
        near = (self.xi * r).requires_grad_()
        moved = net(x + near).log_softmax(1)
        (gradient,) = torch.autograd.grad(divergence(clean, moved), near)
        return gradient


def divergence(clean: Tensor, moved: Tensor) -> Tensor:
    """Mean KL of distributions given as log-probabilities (n, k)."""
    return functional.kl_div(moved, clean, reduction="batchmean", log_target=True)


def unit(r: Tensor) -> Tensor:
    """Each sample's r scaled to length 1; 0 stays 0."""
    length = torch.linalg.vector_norm(r.flatten(1), dim=1).clamp_min(torch.finfo(r.dtype).tiny)
    return r / length.view(-1, *[1] * (r.ndim - 1))
