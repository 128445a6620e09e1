"""scikit-learn's handwritten digits: the one data set that every installation has.

1797 images, 8 × 8, with the values 0 … 16 (the test part of the UCI set), which has no official
split. The one here is fixed: in the class-proportional order `stratified(labels, seed=1797)` the
first 1257 images are the training set, the last 540 the test set, both kept in their own order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.data import Files, Splits, stratified

TRAIN = 1257
SEED = 1797


@dataclass(frozen=True)
class Digits:
    """Images float32 (n, 1, 8, 8), value / 16, which is not on the 8-bit grid."""

    def load(self, files: Files) -> Splits:
        from sklearn.datasets import load_digits

        raw = load_digits()
        x = (raw.images[:, None] / 16).astype(np.float32)
        y = raw.target.astype(np.int64)
        order = stratified(y, SEED)
        train, test = np.sort(order[:TRAIN]), np.sort(order[TRAIN:])
        return Splits(x[train], y[train], x[test], y[test], names=tuple("0123456789"))
