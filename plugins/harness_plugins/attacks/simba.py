"""The simple black-box attack (SimBA; Guo et al., 2019, arXiv:1905.07121), in the pixel basis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from harness.api import LOSSES, Rng, Target, Threat
from harness_plugins.attacks.score_search import Search


@dataclass(frozen=True)
class SimBA:
    """One entry (a channel of a pixel) after the other, in random order: up by `step`, else down,
    whichever first makes the label less likely (algorithm 1 of the paper).

    Directions are orthogonal and none is tried twice, so ‖δ‖₂ ≤ √steps · step, and it grows with
    every step that is kept: the first image that fools is the closest on the way. That is all the
    paper claims, so L2 is the only norm here. A direction that the box bars is not asked about. A
    step costs one or two queries, the clean image one.

    steps: entries tried at most; all of them where it is none
    step:  how far an entry moves, in pixel values; the paper's ε
    loss:  what has to grow: −log p(y), as published, or max_{j≠y} z_j − z_y (margin)
    """

    steps: Annotated[int, Ge(1)] | None = None
    step: Annotated[float, Gt(0)] = 0.2
    loss: Literal["ce", "margin"] = "ce"

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        entries = x.shape[1:].numel()
        steps = entries if self.steps is None else min(self.steps, entries)
        order = rng.uniform(entries).argsort(dim=1, stable=True)
        turn = torch.zeros(len(x), dtype=torch.int64, device=x.device)  # which of the order is next
        upward = torch.ones(len(x), dtype=torch.bool, device=x.device)  # its first direction
        search = Search(target, x, y, LOSSES[self.loss], until_fooled=True)
        if len(search):
            search.ask(search.x)
        while len(search):
            rows = search.rows
            entry = order[rows, turn[rows]][:, None]
            flat = search.x_adv.flatten(1)
            clean = flat.gather(1, entry)
            up = upward[rows] & (clean[:, 0] < threat.high)
            moved = clean + torch.where(up, self.step, -self.step)[:, None]
            trial = flat.scatter(1, entry, moved.clamp(threat.low, threat.high))
            kept = search.ask(trial.view(search.x_adv.shape))
            over = kept | ~up | (clean[:, 0] <= threat.low)
            upward[rows] = over
            turn[rows] += over
            search.leave(turn[search.rows] >= steps)
        found = search.fooled.view(-1, *[1] * (x.ndim - 1))
        return torch.where(found, search.result(), x)
