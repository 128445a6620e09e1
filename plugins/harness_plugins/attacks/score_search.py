"""What the searches by scores share: one proposal a query, kept where the loss grows."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.api import Loss, Target


class Search:
    """The samples of a batch that are still searched, each with its best image so far.

    A sample leaves when it is fooled, if it is to, and when its query budget has no query left.

    until_fooled: whether fooled samples leave, with the image that fooled
    x, y, x_adv:  of the samples that are still here
    rows:         which of the batch these are, ascending, int64
    """

    def __init__(
        self, target: Target, x: Tensor, y: Tensor, loss: Loss, *, until_fooled: bool
    ) -> None:
        self.target, self.x, self.y, self.x_adv = target, x, y, x
        self.rows = torch.arange(len(x), device=x.device)
        self.fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)  # of the whole batch
        self._loss, self._until_fooled = loss, until_fooled
        self._value = torch.full((len(x),), -torch.inf, device=x.device)
        self._out = x.clone()
        remaining = target.remaining
        if remaining is not None:
            self.leave((remaining < 1).to(x.device))

    def __len__(self) -> int:
        return len(self.rows)

    def ask(self, proposal: Tensor) -> Tensor:
        """Query the proposals, one of each sample, and keep those whose loss is greater than that
        of the best before: bool (n,), where that was so, of the samples that were asked for."""
        before = self.target.remaining
        scores = self.target.scores(proposal)
        value = self._loss(scores, self.y)
        gone = torch.zeros_like(self.y, dtype=torch.bool)
        if self._until_fooled:
            gone = scores.argmax(dim=1) != self.y
            self.fooled[self.rows] = gone
        kept = (value > self._value) | gone
        self.x_adv = torch.where(kept.view(-1, *[1] * (proposal.ndim - 1)), proposal, self.x_adv)
        self._value = torch.where(kept, value, self._value)
        after = self.target.remaining
        if before is not None and after is not None:
            gone = gone | (after < before - after).to(gone.device)  # less than a query costs
        self.leave(gone)
        return kept

    def leave(self, gone: Tensor) -> None:
        """Let those of the samples still here go, bool (n,): no further query is theirs."""
        if not gone.any():
            return
        self._out[self.rows[gone]] = self.x_adv[gone]
        stay = (~gone).nonzero()[:, 0]
        self.target = self.target.at(stay)
        self.x, self.y, self.x_adv = self.x[stay], self.y[stay], self.x_adv[stay]
        self.rows, self._value = self.rows[stay], self._value[stay]

    def result(self) -> Tensor:
        """Every sample's best image, in the order the batch came in."""
        self._out[self.rows] = self.x_adv
        return self._out
