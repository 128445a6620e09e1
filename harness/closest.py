"""Of the images that were queried, each sample's closest adversarial one, and when it was asked."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.outcome import CHECKPOINTS
from harness.threat import Threat


class Closest:
    """Of n samples x with labels y, or labels `wanted` to reach.

    best:     the closest image, x itself where none fooled
    distance: its distance, float64 (n,), infinite where none fooled
    curve:    the least distance among the first q queries, for each q of `CHECKPOINTS`: float64
              (n, checkpoints), infinite where none fooled
    """

    def __init__(self, x: Tensor, y: Tensor, threat: Threat, wanted: Tensor | None = None) -> None:
        self.x, self.y, self.threat, self.wanted = x, y, threat, wanted
        self.best = x.clone()
        self.distance = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.curve = np.full((len(x), len(CHECKPOINTS)), np.inf)

    def note(
        self, rows: NDArray[np.int64], x: Tensor, labels: Tensor, spent: NDArray[np.int64]
    ) -> None:
        """Take in the queried images x of those samples, with the labels they were given.

        spent: what the sample of each image had spent with it, in queries
        """
        index = torch.from_numpy(rows).to(x.device)
        fooled = labels != self.y[index] if self.wanted is None else labels == self.wanted[index]
        fooled &= (x >= self.threat.low).flatten(1).all(1) & (x <= self.threat.high).flatten(1).all(
            1
        )
        chosen = fooled.nonzero()[:, 0]
        if not len(chosen):
            return
        which = chosen.cpu().numpy()
        rows, spent, x = rows[which], spent[which], x[chosen]
        distance = self.threat.distance(x, self.x[index[chosen]])
        sizes = distance.cpu().numpy()
        # Rows may repeat: of each, its closest query alone is looked at.
        by_row = np.lexsort((sizes, rows))
        _, first = np.unique(rows[by_row], return_index=True)
        nearest = torch.from_numpy(by_row[first]).to(x.device)
        own = index[chosen][nearest]
        closer = distance[nearest] < self.distance[own]
        self.distance[own[closer]] = distance[nearest[closer]]
        self.best[own[closer]] = x[nearest[closer]]
        for column, most in enumerate(CHECKPOINTS):
            within = spent <= most
            np.minimum.at(self.curve[:, column], rows[within], sizes[within])
