"""Random numbers that follow samples, not batches.

`SampleRng` holds one generator for each sample, keyed by (seed, component, sample id, restart), so
that what a sample is given does not depend on the batch it came in, on the order of cells, or on
which other cells ran. Draws are made on the CPU, in one block per call and sample, and moved.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Rng(Protocol):
    """Draws for n samples; every draw is (n, *shape)."""

    @property
    def restart(self) -> int:
        """Which of its independent runs an attack is making: 0 is the first, or the only one."""
        ...

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float32."""
        ...

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), float32."""
        ...

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform integers 0 … high − 1, int64."""
        ...

    def at(self, rows: Tensor) -> Rng:
        """The draws of those batch positions alone, going on where they are."""
        ...

    def restarted(self, restart: int) -> Rng:
        """Fresh draws for the same samples."""
        ...


def derive(*key: Any) -> int:
    """128 bits fixed by the key, for a generator's seed."""
    text = "\x1f".join(map(str, key))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


class SampleRng:
    """One generator per sample. Repeated rows draw one after the other from the same stream."""

    def __init__(
        self,
        generators: Sequence[np.random.Generator],
        device: torch.device,
        key: tuple[Any, ...] = (),
        ids: Sequence[int] = (),
        restart: int = 0,
    ) -> None:
        self._generators = generators
        self._device = device
        self._key, self._ids = key, ids
        self.restart = restart

    @classmethod
    def keyed(cls, *key: Any, ids: Sequence[int], restart: int, device: torch.device) -> SampleRng:
        seeds = (derive(*key, int(i), restart) for i in ids)
        return cls([_generator(seed) for seed in seeds], device, key, ids, restart)

    def restarted(self, restart: int) -> SampleRng:
        return SampleRng.keyed(*self._key, ids=self._ids, restart=restart, device=self._device)

    def normal(self, *shape: int) -> Tensor:
        return self._filled([g.standard_normal for g in self._generators], shape)

    def uniform(self, *shape: int) -> Tensor:
        return self._filled([g.random for g in self._generators], shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        draws = [g.integers(high, size=shape) for g in self._generators]
        block = np.asarray(draws, np.int64).reshape(len(draws), *shape)
        return torch.from_numpy(block).to(self._device)

    def at(self, rows: Tensor) -> SampleRng:
        positions = rows.tolist()
        ids = [self._ids[i] for i in positions]
        chosen = [self._generators[i] for i in positions]
        return SampleRng(chosen, self._device, self._key, ids, self.restart)

    def covering(self, n: int, padding: int) -> SampleRng:
        """The n samples' streams, and one of no sample for the rows that pad a batch."""
        none = _generator(derive("padding"))
        return SampleRng([*self._generators[:n], *[none] * padding], self._device)

    def _filled(self, draws: list[Callable[..., Any]], shape: tuple[int, ...]) -> Tensor:
        """One block, each row by its own generator, in place: half the time of a label query of a
        small network went into copies."""
        block = np.empty((len(draws), math.prod(shape)), np.float32)
        for draw, row in zip(draws, block, strict=True):
            draw(out=row, dtype=np.float32)
        return torch.from_numpy(block.reshape(len(draws), *shape)).to(self._device)


class StreamRng:
    """One stream for a whole batch: for trainings, where samples come and go."""

    def __init__(
        self, generator: torch.Generator, n: int, device: torch.device, restart: int = 0
    ) -> None:
        self._generator = generator
        self._n = n
        self._device = device
        self.restart = restart

    @classmethod
    def keyed(cls, *key: Any, n: int = 1, device: torch.device | None = None) -> StreamRng:
        generator = torch.Generator().manual_seed(derive(*key) % 2**63)
        return cls(generator, n, device or torch.device("cpu"))

    def sized(self, n: int) -> StreamRng:
        """The same stream for a batch of n."""
        return StreamRng(self._generator, n, self._device, self.restart)

    def covering(self, n: int, padding: int) -> StreamRng:
        """The same stream for n samples and the rows that pad their batch."""
        return self.sized(n + padding)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self._n, *shape, generator=self._generator).to(self._device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self._n, *shape, generator=self._generator).to(self._device)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, (self._n, *shape), generator=self._generator).to(self._device)

    def at(self, rows: Tensor) -> StreamRng:
        return self.sized(len(rows))

    def restarted(self, restart: int) -> StreamRng:
        """The same stream: what it draws next is fresh."""
        return StreamRng(self._generator, self._n, self._device, restart)

    @property
    def state(self) -> Tensor:
        """The stream's state, for a checkpoint."""
        return self._generator.get_state()

    @state.setter
    def state(self, state: Tensor) -> None:
        self._generator.set_state(state)
