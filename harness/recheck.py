"""`harness verify`: a stored record against a fresh verdict on the images it kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from harness.bench import Bench
from harness.errors import HarnessError, PluginError
from harness.fit import fitted
from harness.outcome import Outcome
from harness.predict import Predictor
from harness.threat import Threat
from harness.verify import Samples, judge

Arrays = Mapping[str, np.ndarray[Any, Any]]


def difference(task: Mapping[str, Any], kept: Arrays, recorded: Arrays) -> str:
    """In what the record differs from the verdict on its kept images, in one line, or ''."""
    torch.set_num_threads(int(task["threads"]))
    try:
        bench = Bench.of(task, lambda _done, _total: None)
        module, weights = fitted(bench.model, bench.seed, bench.workshop, bench.progress)
        if weights != task["weights"]:
            raise PluginError(
                "the model fits to other weights here than the record's (another CPU or build)"
            )
        predictor = bench.predictor(module)
        samples = bench.samples(predictor)
        if "target" in recorded:
            wanted = torch.from_numpy(recorded["target"]).to(bench.device)
            samples = replace(samples, wanted=wanted)
        return _compare(bench, predictor, samples, kept["x_adv"], recorded)
    except HarnessError as error:
        return str(error)


def _compare(
    bench: Bench,
    predictor: Predictor,
    samples: Samples,
    x_adv: np.ndarray[Any, Any],
    recorded: Arrays,
) -> str:
    if x_adv.shape[:2] != recorded["outcome"].shape or x_adv.shape[2:] != samples.x.shape[1:]:
        return f"the kept images have the shape {x_adv.shape}"
    if not np.array_equal(recorded["ids"], samples.ids):
        return "the record is of other samples"
    for column in range(x_adv.shape[1]):
        images = torch.from_numpy(np.ascontiguousarray(x_adv[:, column])).to(bench.device)
        verdict = judge(predictor, samples, images, _threat(bench, column), eight_bit=False)
        told = recorded["outcome"][:, column]
        attacked = (told != Outcome.SKIPPED) & (told != Outcome.UNSTABLE)
        fresh = verdict.outcome.cpu().numpy()
        distance = verdict.distance.cpu().numpy()
        same = (fresh == told) & np.isclose(
            distance, recorded["distance"][:, column], rtol=1e-6, atol=1e-9, equal_nan=True
        ).all(axis=1)
        if wrong := int((attacked & ~same).sum()):
            return f"column {column}: {wrong} of {int(attacked.sum())} samples have another verdict"
    return ""


def _threat(bench: Bench, column: int) -> Threat:
    row, attack = bench.threat, bench.attack
    if row is None or attack is None:
        raise PluginError("not an attack cell")
    minimum = attack.entry.spec.kind == "minimum-norm"
    return Threat(row.norm, math.inf if minimum else row.eps[column].value)
