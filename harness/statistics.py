"""The statistics that a table of paired accuracies needs: intervals, paired tests, ranks.

Every row of a table is evaluated on the same samples, so rows are compared sample by sample: a
paired test tells apart models that unpaired intervals cannot. All functions are deterministic.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point
EXACT_BELOW = 25  # discordant samples from which McNemar's test uses chi-square
RESOLVED = 10  # draws beyond zero that a p value is counted from
BLOCK = 4_000_000  # indices that the bootstrap holds at a time


def wilson(successes: float, n: int, z: float = Z95) -> tuple[float, float]:
    """The score interval of a share (Wilson, 1927), in [0, 1]; without samples, all of it."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mcnemar(b: int, c: int) -> float:
    """Two-sided p that b and c, the samples on which only one of two rows is right, differ.

    Exact (binomial) below 25 such samples, else chi-square (b - c)²/(b + c), without continuity
    correction (McNemar, 1947).
    """
    n = b + c
    if n < EXACT_BELOW:
        tail = sum(math.comb(n, i) for i in range(min(b, c) + 1))
        return min(1.0, 2 * tail / float(2**n))
    return math.erfc(abs(b - c) / math.sqrt(2 * n))


def holm(pvalues: ArrayLike) -> Floats:
    """Adjusted p values, in the order given: family-wise error by Holm's step-down (1979)."""
    p = np.asarray(pvalues, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def paired_bootstrap(a: ArrayLike, b: ArrayLike, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p that the seeds' means of two rows differ, over resampled samples.

    a, b: (n, seeds), what each row does on each sample with each seed. Samples are resampled, not
    seeds: a sample keeps its seeds together.
    """
    totals = np.stack([np.asarray(v, dtype=np.float64).sum(axis=1) for v in (a, b)])
    return float(_bootstrap_pairs(totals, draws, seed)[0])


def ranks(robust: NDArray[np.bool_], alpha: float = 0.05) -> NDArray[np.int64]:
    """Ranks (rows,) of robust (rows, n, seeds): 1 + how many rows are significantly better.

    Better means a higher mean and p < alpha, two-sided, after Holm's correction over all pairs;
    p by McNemar's test where there is one seed, else by the paired bootstrap.
    """
    rows, _, seeds = robust.shape
    first, second = np.triu_indices(rows, k=1)
    p = _mcnemar_pairs(robust[:, :, 0]) if seeds == 1 else _bootstrap_pairs(robust.sum(axis=2))
    ahead = robust.sum(axis=(1, 2))
    lead = np.where(holm(p) < alpha, ahead[first] - ahead[second], 0)
    beaten = np.concatenate([second[lead > 0], first[lead < 0]])
    return 1 + np.bincount(beaten, minlength=rows)


def _mcnemar_pairs(robust: NDArray[np.bool_]) -> Floats:
    """p of each pair of rows of robust (rows, n), in the order of `triu_indices`."""
    right = robust.astype(np.float64)
    only = (right @ (1 - right).T).astype(np.int64)  # [i, j]: samples that i has right and j wrong
    first, second = np.triu_indices(len(robust), k=1)
    discordant = np.stack([only[first, second], only[second, first]])
    distinct, where = np.unique(discordant, axis=1, return_inverse=True)
    p = np.array([mcnemar(int(b), int(c)) for b, c in distinct.T], dtype=np.float64)
    return p[where.reshape(-1)]


def _bootstrap_pairs(totals: NDArray[np.number], draws: int = 10_000, seed: int = 0) -> Floats:
    """p of each pair of rows of totals (rows, n), in the order of `triu_indices`."""
    values = totals.astype(np.float64)
    sums = _resampled_sums(values, draws, seed)
    pairs = []
    for i in range(len(values) - 1):
        differing = (values[i] != values[i + 1 :]).sum(axis=1)
        pairs.append(_two_sided(sums[:, i : i + 1] - sums[:, i + 1 :], differing))
    return np.concatenate(pairs) if pairs else np.empty(0)


def _resampled_sums(values: Floats, draws: int, seed: int) -> Floats:
    """Sums of values (rows, n) over n samples drawn with replacement, (draws, rows)."""
    n = values.shape[1]
    # The raw stream of a bit generator is the same in every version of numpy; `integers` is not
    # promised to be.
    stream = np.random.PCG64(seed)
    sums, step = [], max(1, BLOCK // max(n, 1))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        index = (stream.random_raw(size * n) % max(n, 1)).astype(np.int64).reshape(size, n)
        index += np.arange(size)[:, None] * n
        counts = np.bincount(index.reshape(-1), minlength=size * n).reshape(size, n)
        sums.append(counts @ values.T)
    return np.concatenate(sums)


def _two_sided(draws: Floats, differing: NDArray[np.int64]) -> Floats:
    """p of no difference from resampled differences (draws, pairs).

    Counted draws resolve nothing below 2/draws, which Holm's correction over many pairs needs:
    where fewer than `RESOLVED` lie beyond zero, p is the tail of a normal with their mean and
    spread. No p falls below 2^(1-d), where `differing` (pairs,) says that the two rows differ on
    d samples: no test of paired samples can be surer, and a bootstrap of a handful would be.
    """
    beyond = np.minimum((draws <= 0).sum(axis=0), (draws >= 0).sum(axis=0))
    p = 2 * (beyond + 1) / (len(draws) + 1)
    for i in np.flatnonzero(beyond < RESOLVED):
        mean, spread = abs(draws[:, i].mean()), draws[:, i].std()
        p[i] = math.erfc(mean / (spread * math.sqrt(2))) if spread > 0 else 0.0
    floor = np.ldexp(1.0, np.clip(1 - differing, -1000, 0))
    clipped: Floats = np.clip(p, floor, 1.0)
    return clipped
