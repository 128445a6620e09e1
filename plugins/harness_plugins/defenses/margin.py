"""Deep margin maximization (Matyasko and Chau, 2017, IJCNN; Matyasko, 2020, doctoral thesis,
Nanyang Technological University, chapter 3).

To first order a sample's distance to the boundary between its class y and class j is
(z_y − z_j) / ‖D_y − D_j‖*, with D = ∂z/∂x and the dual norm. The hinge keeps the numerator at 1 at
least, and the sensitivity, the largest ‖D_y − D_j‖* over j, keeps the denominator small:

    mean max(0, 1 + max_{j≠y} z_j − z_y) + C · mean max_{j≠y} ‖D_y − D_j‖

with the squared Euclidean norm (robustness in L2) or the L1 norm (in Linf). The class of largest
sensitivity is chosen without graph and is a constant of the one double backward pass. The thesis
prints the Euclidean norm without its square, and the hinge with 1 + z_y − z_j; its code, and this,
have them as above.

What it bounds is first-order: the distance it promises is that of the linearised network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional

from harness.api import Info, Run, TrainingSet
from harness_plugins.class_gradients import gap_gradients
from harness_plugins.training import Settings, Step, train

Sensitivity = Literal["L2", "L2-unsquared", "L1"]
TINY = 1e-12  # below the root of the unsquared norm: its slope at 0 is finite


@dataclass(frozen=True)
class MarginMaximization(Settings):
    """Every sample counts, whether it is classified correctly or not.

    sensitivity: ‖D_y − D_j‖: L2 squared, as in the published code, unsquared as in print, or L1
    C:           its weight; none: 0.1 for L2, 0.01 for L1
    loss:        hinge, with a margin of 1 to the closest class; or cross-entropy
    """

    sensitivity: Sensitivity = "L2"
    C: Annotated[float, Ge(0)] | None = None
    loss: Literal["hinge", "cross-entropy"] = "hinge"
    epochs: Annotated[int, Ge(1)] = 100
    batch: Annotated[int, Ge(1)] = 100
    lr: Annotated[float, Gt(0)] = 1e-3

    def weight(self) -> float:
        """The C that is used."""
        if self.C is not None:
            return self.C
        return 0.01 if self.sensitivity == "L1" else 0.1

    def suspects(self) -> Mapping[str, float]:
        return {"C": self.weight(), "lr": self.lr}

    def build(self, info: Info) -> nn.Module:
        return self.arch.build(info)

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        net = self.build(data.info)
        train(net, data, run, self, self.objective)
        return net

    def objective(self, net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        x = x.detach().requires_grad_()
        scores = net(x)
        classify = hinge if self.loss == "hinge" else functional.cross_entropy
        sensitivity = steepest(scores, x, y, self.sensitivity).mean()
        return classify(scores, y) + self.weight() * sensitivity


def hinge(scores: Tensor, y: Tensor) -> Tensor:
    """Mean max(0, 1 + max_{j≠y} z_j − z_y) (Crammer and Singer, 2001)."""
    own = scores.gather(1, y[:, None])
    others = scores.scatter(1, y[:, None], -torch.inf)
    return (1 + others.amax(1) - own[:, 0]).relu().mean()


def steepest(scores: Tensor, x: Tensor, y: Tensor, norm: Sensitivity) -> Tensor:
    """max_{j≠y} ‖D_y − D_j‖ of each sample, (n,), with graph; scores (n, k) of x with graph.

    One batched backward pass for all k − 1 differences without a graph of its own, one with.
    """
    classes, gradients = gap_gradients(scores, x, y)
    farthest = classes.gather(1, size(gradients, norm).argmax(0)[:, None])
    gap = (scores.gather(1, y[:, None]) - scores.gather(1, farthest)).sum()
    (difference,) = torch.autograd.grad(gap, x, create_graph=True)
    return size(difference[None], norm)[0]


def size(differences: Tensor, norm: Sensitivity) -> Tensor:
    """Of gradients (k, n, …): (k, n)."""
    flat = differences.flatten(2)
    if norm == "L1":
        return flat.abs().sum(2)
    squared = flat.square().sum(2)
    return squared if norm == "L2" else (squared + TINY).sqrt()
