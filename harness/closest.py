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
    """

    def __init__(self, x: Tensor, y: Tensor, threat: Threat, wanted: Tensor | None = None) -> None:
        self.x, self.y, self.threat, self.wanted = x, y, threat, wanted
        self.best = x.clone()
        self.distance = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        # Between two checkpoints each, and in the last column after them all.
        self._least = np.full((len(x), len(CHECKPOINTS) + 1), np.inf)

    def note(
        self, rows: NDArray[np.int64], x: Tensor, labels: Tensor, spent: NDArray[np.int64]
    ) -> None:
        """Take in the queried images x of those samples, with the labels they were given.

        spent: what the sample of each image had spent with it, in queries
        """
        index = torch.from_numpy(rows).to(x.device)
        fooled = labels != self.y[index] if self.wanted is None else labels == self.wanted[index]
        chosen = self._nearer(fooled.nonzero()[:, 0], index, x)
        if not len(chosen):
            return
        which = chosen.cpu().numpy()
        rows, spent, x = rows[which], spent[which], x[chosen]
        distance = self.threat.distance(x, self.x[index[chosen]])
        boxed = (x >= self.threat.low) & (x <= self.threat.high)
        distance = torch.where(boxed.flatten(1).all(dim=1), distance, torch.inf)
        sizes = distance.cpu().numpy()
        # Rows may repeat: of each, its closest query alone is looked at.
        by_row = np.lexsort((sizes, rows))
        _, first = np.unique(rows[by_row], return_index=True)
        nearest = torch.from_numpy(by_row[first]).to(x.device)
        own = index[chosen][nearest]
        closer = distance[nearest] < self.distance[own]
        self.distance[own[closer]] = distance[nearest[closer]]
        self.best[own[closer]] = x[nearest[closer]]
        np.minimum.at(self._least, (rows, np.searchsorted(CHECKPOINTS, spent)), sizes)

    @property
    def curve(self) -> NDArray[np.float64]:
        """The least distance among the first q queries, for each q of `CHECKPOINTS`: (n,
        checkpoints), infinite where none fooled."""
        return np.minimum.accumulate(self._least[:, :-1], axis=1)

    def _nearer(self, chosen: Tensor, index: Tensor, x: Tensor) -> Tensor:
        """Those of the images that may be closer than what is known: the others change nothing.

        In x's type, with room for its rounding: what is left is measured in float64.
        """
        size = self.threat.geometry.size(x[chosen] - self.x[index[chosen]])
        return chosen[size.double() <= self.distance[index[chosen]] * (1 + 1e-4)]
