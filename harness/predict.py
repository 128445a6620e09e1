"""Forward passes whose results do not depend on the batch they were made in.

Matrix kernels choose their blocking by the number of rows. Padding every call to a multiple of 8
rows makes a sample's scores equal bit for bit whatever the batch size (measured on MLPs and
convolutions, forward and backward; `tests/test_predict.py` holds it). The exception measured: a
linear layer of few outputs whose number of inputs is no multiple of 4, where the last bit follows
the row's place in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from harness.errors import PluginError
from harness.rng import SampleRng, StreamRng

MULTIPLE = 8
PASSES = 11  # of a randomised classifier, whose majority is its prediction; odd, so two never tie

T = TypeVar("T")
Forward = Callable[[Tensor], Tensor]


def padded(forward: Forward, x: Tensor) -> Tensor:
    """forward(x) for x (n, …), run on a multiple of 8 rows; the rows added are dropped again.

    Raises PluginError where forward changes its input: the images it was given are the harness's.
    """
    n = len(x)
    missing = -n % MULTIPLE
    rows = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x
    version = rows._version
    scores = forward(rows)
    if rows._version != version:
        raise PluginError("the model's forward changes its input in place; let it work on a copy")
    return scores[:n] if missing else scores


def in_batches(n: int, size: int, run: Callable[[int, int], T]) -> list[T]:
    """run(start, stop) over 0 … n in batches of `size` rows, in order.

    A batch that memory cannot hold is halved and tried again, down to `MULTIPLE` rows.
    """
    done: list[T] = []
    start = 0
    while start < n:
        try:
            done.append(run(start, min(start + size, n)))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or size <= MULTIPLE:
                raise
            size = max(MULTIPLE, size // 2 // MULTIPLE * MULTIPLE)
            torch.cuda.empty_cache()
        else:
            start += size
    return done


def out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "not enough memory" in str(error) or "can't allocate memory" in str(error)
    )


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
        none = torch.zeros(0, dtype=torch.int64, device=x.device)
        parts = in_batches(len(x), self.chunk, lambda i, j: self._chunk_labels(x[i:j], ids[i:j]))
        return torch.cat([none, *parts])

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
