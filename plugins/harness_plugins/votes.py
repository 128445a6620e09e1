"""Several networks as one classifier: their mean probability, or the majority of their labels.

The networks' own scores come as (n, v, k). A soft vote is as differentiable as its networks. A hard
vote is a count, and has no gradient; its `surrogate()` is the soft vote of the same networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.api import Run

Voting = Literal["soft", "hard"]


def soft(scores: Tensor) -> Tensor:
    """The logarithm of the mean probability of each class, (n, k), where the probabilities are the
    softmax of a network's scores (n, v, k)."""
    return scores.log_softmax(-1).logsumexp(1) - math.log(scores.shape[1])


def hard(scores: Tensor) -> Tensor:
    """The share of the networks that predict each class, (n, k).

    By argmax, a tie goes to the lower class; of two classes, as the mean label rounded half down.
    """
    votes = functional.one_hot(scores.argmax(-1), scores.shape[-1])
    return votes.sum(1).to(scores.dtype) / scores.shape[1]


VOTINGS: Mapping[Voting, Callable[[Tensor], Tensor]] = {"soft": soft, "hard": hard}


class Members(nn.ModuleList):
    """Networks of any kind side by side: images to the scores of each, (n, v, k)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([network(x) for network in self], 1)


class Votes(nn.Module):
    """The classifier. `networks` maps images to (n, v, k)."""

    def __init__(self, networks: nn.Module, voting: Voting) -> None:
        super().__init__()
        self.networks, self.voting = networks, voting

    def forward(self, x: Tensor) -> Tensor:
        return VOTINGS[self.voting](self.networks(x))

    def surrogate(self) -> nn.Module:
        return Votes(self.networks, "soft")


def together(networks: Iterable[nn.Module], x: Tensor, y: Tensor) -> Tensor:
    """The sum of the networks' cross-entropies: each descends its own, as if it were alone."""
    losses = [functional.cross_entropy(network(x), y) for network in networks]
    return torch.stack(losses).sum()


def one_by_one(
    stage: str, n: int, run: Run, fit: Callable[[int], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors of fit(0) … fit(n − 1), stacked by name.

    Each is kept as soon as it is there: a training that was killed goes on with the next. What
    other stages of the training have kept stays.
    """
    kept = dict(run.load() or {})
    own = {k.removeprefix(f"{stage}."): v for k, v in kept.items() if k.startswith(f"{stage}.")}
    done = len(next(iter(own.values()))) if own else 0
    for i in range(done, n):
        new = {name: tensor.detach().cpu()[None] for name, tensor in fit(i).items()}
        own = {name: torch.cat([own[name], t]) if own else t for name, t in new.items()}
        run.save({**kept, **{f"{stage}.{name}": tensor for name, tensor in own.items()}})
        run.progress(i + 1, n)
    return own
