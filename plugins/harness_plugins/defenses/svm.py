"""Linear support vector machines, by scikit-learn's LinearSVC: squared hinge, primal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, MinLen
from torch import Tensor, nn
from torch.nn import functional

from harness.api import Info, Run, TrainingSet
from harness.errors import UsageError
from harness_plugins.convergence import note_stopped, watched
from harness_plugins.linear_models import Linear
from harness_plugins.samples import Array, bootstrap, rows_and_labels
from harness_plugins.votes import one_by_one


class LinearClassifier(nn.Module):
    """Scores W x + b (n, k). `penalty` is the C that was trained with."""

    def __init__(self, weight: Tensor, bias: Tensor, penalty: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("penalty", penalty)

    def forward(self, x: Tensor) -> Tensor:
        linear = self.part("linear")
        return functional.linear(x.flatten(1), linear.weight, linear.bias)

    def part(self, name: str) -> Linear:
        return Linear(self.get_buffer("weight"), self.get_buffer("bias"))


@dataclass(frozen=True)
class SVM:
    """One machine a class against the rest, two classes by one; scores are decision functions, and
    of two classes (0, that of class 1).

    Votes are machines fitted to bootstrap samples. Their decision functions are averaged: the same
    labels as by their sum, and one linear map again. A single machine is fitted to the images.

    C:     weight of the errors against the margin; none: by cross-validation on the training images
    grid:  what cross-validation chooses from; of equals, the smallest
    folds: parts of the cross-validation, stratified
    votes: machines
    """

    C: Annotated[float, Gt(0)] | None = None
    grid: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] = (1e-4, 1e-3, 1e-2, 1e-1)
    folds: Annotated[int, Ge(2)] = 5
    votes: Annotated[int, Ge(1)] = 1

    def build(self, info: Info) -> nn.Module:
        c, h, w = info.shape
        weight = torch.zeros(info.classes, c * h * w)
        return LinearClassifier(weight, weight[:, 0].clone(), torch.zeros(()))

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        x, y = rows_and_labels(data)
        penalty = self.C or self._validated(x, y, run)

        def machine(i: int) -> Mapping[str, Tensor]:
            rows: Any = slice(None)
            if self.votes > 1:
                rows = bootstrap(data.y, run.rng("bootstrap", i)).numpy()
            fitted, converged = _fitted(x[rows], y[rows], penalty)
            return {**_exported(fitted), "converged": torch.tensor(converged)}

        machines = one_by_one("machines", self.votes, run, machine)
        note_stopped(run, machines["converged"], f"machines with C={penalty:g}")
        weight, bias = (machines[name].mean(0).float() for name in ("weight", "bias"))
        return LinearClassifier(weight, bias, torch.tensor(penalty)).to(run.device)

    def _validated(self, x: Array, y: Array, run: Run) -> float:
        """Of the grid, the C with the highest mean accuracy over the folds."""
        from sklearn.model_selection import StratifiedKFold

        if np.bincount(y).min() < self.folds:
            raise UsageError(
                f"folds={self.folds}: class {np.bincount(y).argmin()} has {np.bincount(y).min()} "
                "training images; give C, or fewer folds"
            )
        seed = int(run.rng("folds").integers(2**32))
        folds = list(StratifiedKFold(self.folds, shuffle=True, random_state=seed).split(x, y))
        grid = sorted(self.grid)

        def accuracy(i: int) -> Mapping[str, Tensor]:
            fits = [_fitted(x[a], y[a], grid[i]) for a, _ in folds]
            scores = [fits[j][0].score(x[b], y[b]) for j, (_, b) in enumerate(folds)]
            converged = torch.tensor([converged for _, converged in fits])
            return {"accuracy": torch.tensor(np.mean(scores)), "converged": converged}

        found = one_by_one("folds", len(grid), run, accuracy)
        note_stopped(run, found["converged"], "fits of the cross-validation")
        return grid[int(found["accuracy"].argmax())]


def _fitted(x: Array, y: Array, penalty: float) -> tuple[Any, bool]:
    """The machine, and whether it converged."""
    from sklearn.svm import LinearSVC

    return watched(lambda: LinearSVC(C=penalty, dual=False).fit(x, y))


def _exported(machine: Any) -> Mapping[str, Tensor]:
    """Weight (k, d) and bias (k,), float64."""
    weight, bias = torch.from_numpy(machine.coef_), torch.from_numpy(machine.intercept_)
    if len(weight) == 1:
        weight, bias = (torch.cat([torch.zeros_like(t), t]) for t in (weight, bias))
    return {"weight": weight, "bias": bias}
