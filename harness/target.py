"""The attacker's handle on a classifier: what an attack may ask, and what its asking cost.

A target offers only the level that the attack declared (labels < scores < gradients, and named
parts), counts forward and backward queries sample by sample, and can enforce a query budget.
`target.at(rows)` is the handle for those batch positions, so that counts, budgets, targets and
random streams follow samples whatever subset, or n x 100 batch, is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.closest import Closest
from harness.errors import BudgetSpent, PluginError
from harness.losses import Loss
from harness.plugin import LEVELS, Level
from harness.predict import PASSES, Predictor, padded, random_forward
from harness.rng import SampleRng, StreamRng

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """What scores are computed with.

    module:    the classifier, eval mode, parameters frozen
    backward:  a differentiable stand-in that gradients flow through, the forward staying the
               classifier's own (BPDA: Athalye et al., 2018, arXiv:1802.00420, section 4.1)
    eot:       how many passes of a randomised classifier are averaged (Athalye et al., 2018,
               arXiv:1707.07397)
    stand_in:  gives the classifier's surrogate, where it has one
    """

    module: nn.Module
    classes: int
    chunk: int
    randomised: bool = False
    backward: nn.Module | None = None
    eot: int = 1
    stand_in: Callable[[], nn.Module] | None = None

    def seen(self, gradient: str, eot: int) -> Source:
        """The classifier asked by the harness's options `gradient` and `eot`."""
        if gradient == "exact":
            return replace(self, eot=eot)
        if self.stand_in is None:
            raise PluginError(f"gradient={gradient} needs a surrogate, which the model has not")
        if gradient == "bpda":
            return replace(self, backward=self.stand_in(), eot=eot)
        return replace(self, module=self.stand_in(), randomised=False, eot=eot)

    def scores(self, x: Tensor, rng: SampleRng | StreamRng | None) -> Tensor:
        """(n, k), with graph where gradients are on."""
        passes = [self._one_pass(x, rng) for _ in range(self.eot)]
        return passes[0] if self.eot == 1 else torch.stack(passes).mean(dim=0)

    def _one_pass(self, x: Tensor, rng: SampleRng | StreamRng | None) -> Tensor:
        if self.backward is None:
            return self._exact(x, rng)
        with torch.no_grad():
            exact = self._exact(x, rng)
        smooth = padded(self.backward, x)
        return exact + (smooth - smooth.detach())

    def _exact(self, x: Tensor, rng: SampleRng | StreamRng | None) -> Tensor:
        if self.randomised and rng is not None:
            scores = random_forward(self.module, x, rng)
        else:
            scores = padded(self.module, x)
        if scores.shape != (len(x), self.classes):
            raise PluginError(
                f"the model returned scores of shape {tuple(scores.shape)} for {len(x)} images; "
                f"expected ({len(x)}, {self.classes})"
            )
        return scores


class Ledger:
    """What the queries of n samples cost.

    forward, backward: counts, (n,); a ledger for a free target has one row for all
    curve:             `Closest.curve` of the whole attack, where it was kept
    """

    def __init__(self, n: int, budget: int | None = None) -> None:
        self.forward: Rows = np.zeros(n, np.int64)
        self.backward: Rows = np.zeros(n, np.int64)
        self.budget = budget
        self.curve: NDArray[np.float64] | None = None

    def charge(self, weight: Rows) -> None:
        """Count forward queries; refuse them all where one would exceed its sample's budget."""
        self.check(weight)
        self.forward += weight

    def check(self, weight: Rows) -> None:
        """Raise BudgetSpent where these would exceed a sample's budget."""
        if self.budget is not None and (over := self.forward + weight > self.budget).any():
            raise BudgetSpent(
                f"{int((over & (weight > 0)).sum())} samples have spent their query budget "
                f"of {self.budget}"
            )


class Pool:
    """Spreads what images of unknown samples cost evenly over the samples at `rows`: means.

    Whole counts, whose sum is exact: the first samples bear what does not divide.
    """

    def __init__(self, ledger: Ledger, rows: Rows) -> None:
        self.rows, self.n = rows, len(ledger.forward)
        self._spent = {"forward": 0, "backward": 0}

    def share(self, kind: str, queries: int) -> Rows:
        """What each sample of the ledger bears of these queries, int64 (n,)."""
        before = self._spent[kind]
        self._spent[kind] = after = before + queries
        last = np.arange(len(self.rows)) + 1
        own = (after - last) // len(last) - (before - last) // len(last)
        return np.bincount(self.rows, own, minlength=self.n).astype(np.int64)


@dataclass(frozen=True)
class Target:
    """See the module. `n` images go into every call, the samples' own; a free target takes any.

    level:   the most that may be asked
    classes: k of the scores; 2 where the attack is targeted: 't against the rest'
    judged:  the model crafted on is the model judged and answers alike each time, so a sample
             that is fooled may leave the batch (`Active`)
    referee: the judged model as the referee reads it, and the samples' ids, where that is another
             than the one crafted on: restarts ask it who is fooled
    pool:    of a handle that takes images without knowing whose they are (`pooled`)
    """

    source: Source
    level: Level
    ledger: Ledger
    rows: Rows | None = None
    weight: Rows | None = None
    parts: tuple[str, ...] = ()
    rng: SampleRng | StreamRng | None = None
    wanted: Tensor | None = None
    closest: Closest | None = None
    judged: bool = False
    referee: tuple[Predictor, Sequence[int]] | None = None
    pool: Pool | None = None

    @classmethod
    def around(cls, module: nn.Module, classes: int, chunk: int = 512) -> Target:
        """A free target with every level: for trainings and substitutes of one's own."""
        return cls(Source(module, classes, chunk), "gradients", Ledger(1))

    @property
    def classes(self) -> int:
        return 2 if self.wanted is not None else self.source.classes

    @property
    def remaining(self) -> Tensor | None:
        """How many images each of the n samples may still be asked about, int64 (n,), or None
        without a budget."""
        if self.ledger.budget is None:
            return None
        left = (self.ledger.budget - self.ledger.forward) // self.source.eot
        return torch.from_numpy(left if self.rows is None else left[self.rows])

    def __call__(self, x: Tensor) -> Tensor:
        """Scores (n, k) with graph: each backward through them is a backward query."""
        scores = self._query(x, "gradients")
        if scores.requires_grad:
            scores.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return scores

    def gradient(self, loss: Loss, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(∇ₓ Σᵢ loss(scores(xᵢ), yᵢ), scores): one forward and one backward pass, detached."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            scores = self(x)
            (gradient,) = torch.autograd.grad(loss(scores, y).sum(), x)
        return gradient, scores.detach()

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        """Scores (n, k) without graph."""
        return self._chunked(x, "scores")

    @torch.no_grad()
    def labels(self, x: Tensor) -> Tensor:
        """Predicted labels, int64 (n,)."""
        if self.wanted is not None:  # not by the two scores: logsumexp hides the rest's maximum
            return (
                replace(self, wanted=None)._chunked(x, "labels").argmax(1) == self.wanted
            ).long()
        return self._chunked(x, "labels").argmax(dim=1)

    def verdict(self, x: Tensor) -> Tensor:
        """Labels as the referee will predict them, int64 (n,), counted as queries: of the judged
        model, and of a randomised one by the majority of its passes."""
        if self.referee is None or self.rows is None:
            return self.labels(x)
        predictor, ids = self.referee
        self.ledger.charge(self._weight(x) * (PASSES if predictor.randomised else 1))
        labels = predictor.labels(x, [ids[row] for row in self.rows])
        return labels if self.wanted is None else (labels == self.wanted).long()

    def seen(self, gradient: str, eot: int) -> Target:
        """The handle that asks by these of the harness's options, as an attack inside another may
        have them. Raises PluginError where the model has no surrogate to go through."""
        source = self.source.seen(gradient, eot)
        if gradient == "exact":
            return replace(self, source=source)
        return replace(self, source=source, level="gradients", judged=False)

    def part(self, name: str) -> Any:
        """A named part of the classifier, if the attack declared it."""
        if name not in self.parts:
            raise PluginError(f"the attack asked for the part {name!r} without declaring it")
        part: Any = self.source.module.part(name)  # type: ignore[operator]
        return part

    def at(self, rows: Tensor) -> Target:
        """The handle for those of the n samples, repeats allowed, in that order."""
        if self.rows is None:  # free: it takes any images and counts them together
            return replace(self, wanted=self._wanted_at(rows))
        index = rows.cpu().numpy()
        own = self.rows[index]
        return replace(
            self,
            rows=own,
            weight=np.bincount(own, minlength=len(self.ledger.forward)),
            rng=self.rng.at(rows) if self.rng is not None else None,
            wanted=self._wanted_at(rows),
        )

    def pooled(self) -> Target:
        """The handle for another library's attack on these samples: it takes any number of their
        images, in any order, and spreads what they cost evenly over the samples.

        Raises PluginError where an answer depends on which sample is asked about.
        """
        if self.rows is None:
            return self
        if self.wanted is not None or self.rng is not None:
            raise PluginError(
                "a targeted or randomised target has to know whose images it is asked"
            )
        pool = Pool(self.ledger, self.rows)
        return replace(self, pool=pool, rows=None, weight=None, closest=None)

    def _wanted_at(self, rows: Tensor) -> Tensor | None:
        return None if self.wanted is None else self.wanted[rows.to(self.wanted.device)]

    def _chunked(self, x: Tensor, level: Level) -> Tensor:
        size = self.source.chunk
        if len(x) <= size:
            return self._query(x, level)
        if self.rows is None:
            if self.pool is None:  # all or nothing, whatever the chunks of a device are
                self.ledger.check(self._cost("forward", x))
            return torch.cat([self._query(x[i : i + size], level) for i in range(0, len(x), size)])
        self._admit(x)
        pieces = [torch.arange(i, min(i + size, len(x))) for i in range(0, len(x), size)]
        return torch.cat([self.at(p)._query(x[p.to(x.device)], level) for p in pieces])

    def _query(self, x: Tensor, level: Level) -> Tensor:
        if LEVELS.index(level) > LEVELS.index(self.level):
            raise PluginError(
                f"the attack declared that it needs {self.level} and asked for {level}"
            )
        self._admit(x)
        self.ledger.charge(self._cost("forward", x))
        scores = self.source.scores(x, self.rng)
        if self.closest is not None and self.rows is not None:
            labels = scores.detach().argmax(dim=1)
            self.closest.note(self.rows, x.detach(), labels, self._turns(self.rows))
        return scores if self.wanted is None else rest(scores, self.wanted)

    def _turns(self, rows: Rows) -> Rows:
        """Of each image of the call just counted, how much its sample had spent by then."""
        order = np.argsort(rows, kind="stable")
        after = np.searchsorted(rows[order], rows[order], side="right") - np.arange(len(rows)) - 1
        spent: Rows = self.ledger.forward[rows]
        spent[order] -= after * self.source.eot
        return spent

    def _admit(self, x: Tensor) -> None:
        if self.rows is not None and len(x) != len(self.rows):
            raise PluginError(
                f"the target holds {len(self.rows)} samples and was asked for {len(x)} images; "
                "target.at(rows) is the handle for others"
            )

    def _weight(self, x: Tensor) -> Rows:
        return np.array([len(x)]) if self.weight is None else self.weight

    def _count_backward(self, gradient: Tensor) -> None:
        self.ledger.backward += self._cost("backward", gradient)

    def _cost(self, kind: str, x: Tensor) -> Rows:
        """What a pass over these images costs each sample of the ledger."""
        if self.pool is not None:
            return self.pool.share(kind, len(x) * self.source.eot)
        return self._weight(x) * self.source.eot


def rest(scores: Tensor, wanted: Tensor) -> Tensor:
    """Two columns, 'the rest against t': logsumexp over j ≠ t of z_j, and z_t."""
    column = wanted[:, None]
    others = scores.scatter(1, column, -torch.inf).logsumexp(dim=1)
    return torch.stack([others, scores.gather(1, column)[:, 0]], dim=1)


class Active:
    """The samples of a batch that are still attacked, and where each of them stands.

    A sample whose current image is misclassified leaves, if the target is the model judged: that
    image is what the batch returns for it. Leaving changes no result, only who is computed.
    """

    SYNC_EVERY = 10  # on a GPU the batch is cut every so often: each cut waits for the device

    def __init__(self, target: Target, x: Tensor, y: Tensor, x_adv: Tensor) -> None:
        self.target, self.x, self.y, self.x_adv = target, x, y, x_adv
        self._out = x_adv.clone()
        self._rows = torch.arange(len(x), device=x.device)
        self._done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._turn = 0

    def __len__(self) -> int:
        return len(self._rows)

    def move(self, proposal: Tensor, scores: Tensor) -> None:
        """Go on to the proposal, but for samples that `scores`, of the current images, show
        fooled: they stay where they are and leave."""
        if not self.target.judged:
            self.x_adv = proposal
            return
        self._done |= scores.argmax(dim=1) != self.y
        keep = self._done.view(-1, *[1] * (self.x.ndim - 1))
        self.x_adv = torch.where(keep, self.x_adv, proposal)
        self._turn += 1
        if self.x.device.type == "cpu" or self._turn % self.SYNC_EVERY == 0:
            self._cut()

    def _cut(self) -> None:
        if not self._done.any():
            return
        self._out[self._rows[self._done]] = self.x_adv[self._done]
        stay = (~self._done).nonzero()[:, 0]
        self.target = self.target.at(stay)
        self.x, self.y, self.x_adv = self.x[stay], self.y[stay], self.x_adv[stay]
        self._rows, self._done = self._rows[stay], self._done[stay]

    def result(self) -> Tensor:
        """Every sample's image, in the order the batch came in."""
        self._out[self._rows] = self.x_adv
        return self._out
