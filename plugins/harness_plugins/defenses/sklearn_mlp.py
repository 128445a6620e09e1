"""The 01-loss papers' MLP: scikit-learn's MLPClassifier, its weights taken over into torch.

It is not `mlp`, which is trained by the harness's own loop: here everything that decides what is
learnt, from the initial weights to when training stops, is scikit-learn's. Logistic units,
stochastic gradient descent at a constant rate with Nesterov's momentum of 0.9, batches of 200, an
L2 penalty of 1e-4, and no further epoch after 10 that have not lowered the loss by 1e-4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, MinLen
from torch import Tensor, nn
from torch.nn import functional

from harness.api import Info, Run, TrainingSet
from harness.errors import PluginError
from harness_plugins.convergence import note_stopped, watched
from harness_plugins.samples import Array, bootstrap, rows_and_labels
from harness_plugins.votes import Votes, Voting, one_by_one


class LogisticNetworks(nn.Module):
    """v networks of logistic units, of equal layers: images (n, …) to scores (n, v, k).

    tensors: weight1 (v, h, d), bias1 (v, h), weight2, …
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.layers = len(tensors) // 2

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._layer(1)
        z = functional.linear(x.flatten(1), weight.flatten(0, 1), bias.flatten())
        z = z.view(-1, *bias.shape)
        for i in range(2, self.layers + 1):
            weight, bias = self._layer(i)
            z = torch.einsum("nvi,voi->nvo", z.sigmoid(), weight) + bias
        return z

    def _layer(self, i: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"weight{i}"), self.get_buffer(f"bias{i}")


@dataclass(frozen=True)
class SklearnMLP:
    """One network, or several whose probabilities are averaged. Scores are log-probabilities.

    hidden:   units of the hidden layers, 20, or 20+20 for two
    epochs:   passes over the training images at most
    lr:       learning rate, constant
    votes:    networks
    ensemble: what makes them differ: seeds, on the same images, or also a bootstrap sample for each
    """

    hidden: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)] = (20,)
    epochs: Annotated[int, Ge(1)] = 200
    lr: Annotated[float, Gt(0)] = 0.01
    votes: Annotated[int, Ge(1)] = 1
    ensemble: Literal["seeds", "bootstrap"] = "seeds"

    voting: ClassVar[Voting] = "soft"

    def build(self, info: Info) -> nn.Module:
        c, h, w = info.shape
        tensors = {}
        sizes = pairwise((c * h * w, *self.hidden, info.classes))
        for i, (inputs, outputs) in enumerate(sizes, start=1):
            tensors[f"weight{i}"] = torch.zeros(self.votes, outputs, inputs)
            tensors[f"bias{i}"] = torch.zeros(self.votes, outputs)
        return Votes(LogisticNetworks(tensors), self.voting)

    def fit(self, data: TrainingSet, run: Run) -> nn.Module:
        x, y = rows_and_labels(data)

        def network(i: int) -> Mapping[str, Tensor]:
            rows: Any = slice(None)
            if self.ensemble == "bootstrap":
                rows = bootstrap(data.y, run.rng("bootstrap", i)).numpy()
            seed = int(run.rng("network", i).integers(2**32))
            fitted, converged = self._fitted(x[rows], y[rows], seed)
            return {**_exported(fitted), "converged": torch.tensor(converged)}

        tensors = one_by_one("networks", self.votes, run, network)
        converged = tensors.pop("converged")
        note_stopped(run, converged, f"networks with epochs={self.epochs}")
        return Votes(LogisticNetworks(tensors), self.voting).to(run.device)

    def _fitted(self, x: Array, y: Array, seed: int) -> tuple[Any, bool]:
        """The network, and whether it converged."""
        from sklearn.neural_network import MLPClassifier

        network = MLPClassifier(
            self.hidden,
            activation="logistic",
            solver="sgd",
            learning_rate_init=self.lr,
            max_iter=self.epochs,
            random_state=seed,
        )
        try:
            return watched(lambda: network.fit(x, y))
        except ValueError as error:
            raise PluginError(
                f"scikit-learn's training failed: {' '.join(str(error).split())}; its learning "
                f"rate was lr={self.lr:g}"
            ) from error


@dataclass(frozen=True)
class SklearnMajority(SklearnMLP):
    """The same networks, each with one vote. Scores are the shares of the votes."""

    voting: ClassVar[Voting] = "hard"


def _exported(network: Any) -> Mapping[str, Tensor]:
    """Weights and biases by name, float32. Two classes, which scikit-learn has as one logistic
    unit z, become the scores (0, z)."""
    tensors = {}
    layers = zip(network.coefs_, network.intercepts_, strict=True)
    for i, (weight, bias) in enumerate(layers, start=1):
        tensors[f"weight{i}"] = torch.from_numpy(weight).float().T
        tensors[f"bias{i}"] = torch.from_numpy(bias).float()
    if len(network.classes_) == 2:
        for name in (f"weight{network.n_layers_ - 1}", f"bias{network.n_layers_ - 1}"):
            tensors[name] = torch.cat([torch.zeros_like(tensors[name]), tensors[name]])
    return tensors
