"""Forward passes whose results do not depend on the batch they were made in.

Matrix kernels choose their blocking by the number of rows. Padding every call to a multiple of 8
rows makes a sample's scores equal bit for bit whatever the batch size (measured on MLPs and
convolutions, forward and backward; `tests/test_predict.py` holds it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.errors import PluginError
from harness.rng import SampleRng, StreamRng

MULTIPLE = 8
PASSES = 11  # of a randomised classifier, whose majority is its prediction; odd, so two never tie

Forward = Callable[[Tensor], Tensor]


def padded(forward: Forward, x: Tensor) -> Tensor:
    """forward(x) for x (n, …), run on a multiple of 8 rows; the rows added are dropped again."""
    n = len(x)
    missing = -n % MULTIPLE
    if not missing:
        return forward(x)
    return forward(torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]))[:n]


@dataclass(frozen=True)
class Predictor:
    """A fitted classifier as the harness reads it: labels for samples by their ids.

    module:     eval mode, parameters frozen
    classes:    k, that scores (n, k) must have
    chunk:      rows a forward pass takes at most
    randomised: forward is forward(x, rng); a prediction is the majority of `PASSES` passes whose
                seeds are fixed by `seed`, the sample's id and the pass
    """

    module: nn.Module
    classes: int
    chunk: int
    randomised: bool = False
    seed: int = 0

    @torch.no_grad()
    def labels(self, x: Tensor, ids: Sequence[int]) -> Tensor:
        """Predicted labels, int64 (n,), of images x whose sample ids are given.

        Raises PluginError where the scores have another shape than (n, k) or are not finite.
        """
        parts = [
            self._chunk_labels(x[i : i + self.chunk], ids[i : i + self.chunk])
            for i in range(0, len(x), self.chunk)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)

    def _chunk_labels(self, x: Tensor, ids: Sequence[int]) -> Tensor:
        if not self.randomised:
            return checked(padded(self.module, x), len(x), self.classes).argmax(dim=1)
        votes = torch.zeros(len(x), self.classes, dtype=torch.int64, device=x.device)
        for turn in range(PASSES):
            rng = SampleRng.keyed(self.seed, "predict", ids=ids, restart=turn, device=x.device)
            scores = checked(random_forward(self.module, x, rng), len(x), self.classes)
            votes += nn.functional.one_hot(scores.argmax(dim=1), self.classes)
        return votes.argmax(dim=1)


def random_forward(module: nn.Module, x: Tensor, rng: SampleRng | StreamRng) -> Tensor:
    """`module(x, rng)` on padded rows; rows that are padding draw from a stream of their own."""

    def forward(rows: Tensor) -> Tensor:
        scores: Tensor = module(rows, rng.covering(len(x), len(rows) - len(x)))
        return scores

    return padded(forward, x)


def checked(scores: Tensor, n: int, classes: int) -> Tensor:
    """The scores, if they are finite and (n, k). Raises PluginError."""
    if tuple(scores.shape) != (n, classes):
        raise PluginError(
            f"the model returned scores of shape {tuple(scores.shape)} for {n} images of "
            f"{classes} classes; expected ({n}, {classes})"
        )
    if not torch.isfinite(scores).all():
        raise PluginError("the model returned NaN or infinite scores")
    return scores
