"""A fitted model of a board that gives its labels of images which were made on other models."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from harness.bench import Bench
from harness.cell import failure, steady
from harness.errors import PluginError, UsageError, did_you_mean
from harness.fit import from_cache
from harness.plan import Cell, Plan, weights_of
from harness.predict import Predictor
from harness.records import Record
from harness.run import Settings, job_of


@dataclass(frozen=True)
class StandIn:
    """The board's model `label`, loaded from the cache once for each seed (`agreement.Judge`).

    fits: its fit cell for each seed
    """

    label: str
    fits: Mapping[int, Cell]
    plan: Plan
    records: Mapping[str, Record]
    settings: Settings
    _loaded: dict[int, tuple[Predictor, torch.device]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, label: str, plan: Plan, records: Mapping[str, Record], settings: Settings
    ) -> StandIn:
        """Raises UsageError where the board has no such model."""
        known = [m.label for m in plan.manifest.models]
        if label not in known:
            raise UsageError(
                f"--judge {label!r}: not a model of the board{did_you_mean(label, known)} "
                f"(models: {', '.join(known)})"
            )
        entries = [e for e in plan.manifest.entries if e.kind == "fit" and e.model == label]
        fits = {e.seed: plan.cells[e.key] for e in entries if e.key in plan.cells}
        return cls(label, fits, plan, records, settings)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.plan.data.ref.shape

    def labels(self, seed: int, x: NDArray[np.float32], ids: Sequence[int]) -> NDArray[np.int64]:
        """Labels int64 (n,) of images (n, c, h, w), of a seed whose fit has a record.

        Raises UsageError where its weights are gone, PluginError for whatever else it does.
        """
        try:
            with contextlib.redirect_stdout(sys.stderr):
                predictor, device = self._model(seed)
                told = predictor.labels(torch.from_numpy(x).to(device), ids)
        except UsageError:
            raise
        except (Exception, SystemExit) as error:  # a plugin may raise anything
            raise PluginError(f"--judge {self.label}: {failure(error).reason}") from error
        return np.asarray(told.cpu().numpy(), np.int64)

    def _model(self, seed: int) -> tuple[Predictor, torch.device]:
        if seed not in self._loaded:
            cell = self.fits[seed]
            job = job_of(cell, self.plan, self.records, self.settings)
            steady(int(job["threads"]))
            bench = Bench.of(job, lambda _done, _total: None)
            if not bench.workshop.weights_path(bench.model, seed).exists():
                raise UsageError(
                    f"--judge {self.label}: its weights of seed {seed} are not in the cache; "
                    "`harness verify` trains them again, or run the board with --force"
                )
            expected = weights_of(self.records.get(cell.key))
            module = from_cache(bench.model, seed, bench.workshop, expected)
            self._loaded[seed] = bench.predictor(module), bench.device
        return self._loaded[seed]
