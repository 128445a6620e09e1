"""Every attack of ART and CleverHans, run once on digits through the referee.

    python benchmarks/adapters.py [NAME ...]

A board of one small convolutional network and IMAGES images, with options that make each attack
short: the table shows that every name runs, or why it does not, and not how strong it can be. Each
cell runs in a process of its own, and is killed after TIMEOUT seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, table

from harness.installed import version_of
from harness.manifest import Entry, Manifest
from harness.outcome import Outcome
from harness.plugin import NORMS
from harness.records import Record, Store
from harness.registry import discover

IMAGES, TIMEOUT = 10, 400
LIBRARIES = ("adversarial-robustness-toolbox", "cleverhans")
EPS = {"Linf": 0.3, "L2": 2.0, "L1": 12.0, "L0": 10.0}
SHORT: dict[str, dict[str, Any]] = {
    "art:AutoConjugateGradient": {"max_iter": 20, "nb_random_init": 1},
    "art:AutoProjectedGradientDescent": {"max_iter": 20, "nb_random_init": 1},
    "art:BasicIterativeMethod": {"max_iter": 20},
    "art:BoundaryAttack": {"max_iter": 30, "num_trial": 5, "sample_size": 10},
    "art:BrendelBethgeAttack": {"steps": 20},
    "art:CarliniL0Method": {"binary_search_steps": 3, "max_iter": 10},
    "art:CarliniL2Method": {"binary_search_steps": 5, "max_iter": 10},
    "art:ElasticNet": {"binary_search_steps": 5, "max_iter": 50},
    "art:FeatureAdversariesPyTorch": {"max_iter": 20},
    "art:GeoDA": {"max_iter": 1000, "sub_dim": 8},
    "art:HopSkipJump": {"max_iter": 10, "max_eval": 200, "init_eval": 20},
    "art:MomentumIterativeMethod": {"max_iter": 20},
    "art:NewtonFool": {"max_iter": 50},
    "art:PixelAttack": {"max_iter": 10},
    "art:ProjectedGradientDescent": {"max_iter": 20},
    "art:ProjectedGradientDescentNumpy": {"max_iter": 20},
    "art:ProjectedGradientDescentPyTorch": {"max_iter": 20},
    "art:RescalingAutoConjugateGradient": {"max_iter": 20, "nb_random_init": 1},
    "art:ShadowAttack": {"nb_steps": 50, "batch_size": 32, "sigma": 0.1},
    "art:SignOPTAttack": {"max_iter": 20, "k": 40, "query_limit": 2000},
    "art:SimBA": {"max_iter": 500, "attack": "px", "epsilon": 0.2},
    "art:SpatialTransformation": {
        "max_translation": 20,
        "num_translations": 3,
        "max_rotation": 30,
        "num_rotations": 5,
    },
    "art:SquareAttack": {"max_iter": 200},
    "art:ThresholdAttack": {"max_iter": 5},
    "art:Wasserstein": {"max_iter": 30, "kernel_size": 3, "regularization": 100, "eps": 0.5},
    "art:ZooAttack": {
        "max_iter": 50,
        "binary_search_steps": 3,
        "nb_parallel": 32,
        "use_resize": False,
        "use_importance": False,
        "learning_rate": 0.1,
        "initial_const": 1.0,
        "variable_h": 0.01,
    },
    "cleverhans:carlini_wagner_l2": {"max_iterations": 100, "lr": 0.05},
    "cleverhans:hop_skip_jump_attack": {
        "num_iterations": 10,
        "initial_num_evals": 20,
        "max_num_evals": 200,
    },
    "cleverhans:projected_gradient_descent": {"nb_iter": 20},
    "cleverhans:sparse_l1_descent": {"grad_sparsity": 90},
    "cleverhans:spsa": {"nb_iter": 20, "spsa_samples": 32},
}


def board(names: list[str]) -> str:
    """The board as TOML: labels are the attacks' names."""
    lines = [
        'name = "adapters"',
        'dataset = "digits"',
        f"limit = {IMAGES}",
        'models = [{ use = "smallconv", epochs = 30, label = "CNN" }]',
        "attacks = [",
        *(f'    {{ use = "{name}"{_options(name)}, label = "{name}" }},' for name in names),
        "]",
    ]
    for norm, eps in EPS.items():
        lines += ["", "[[threat]]", f'norm = "{norm}"', f"eps = [{eps}]"]
    return "\n".join(lines) + "\n"


def _options(name: str) -> str:
    texts = {True: "true", False: "false"}
    given = SHORT.get(name, {})
    return "".join(
        f", {key} = {texts[value] if isinstance(value, bool) else repr(value)}"
        for key, value in given.items()
    ).replace("'", '"')


def results(folder: Path) -> Iterator[tuple[Entry, Record | None]]:
    """Every name and norm that it supports, with its record."""
    manifest = Manifest.from_json((folder / "cells.json").read_text(encoding="utf-8"))
    records, _ = Store(folder / "records").scan()
    for entry in manifest.entries:
        if entry.kind == "attack" and not entry.reason.startswith(f"{entry.attack} does not supp"):
            yield entry, records.get(entry.key)


def reasons(found: list[tuple[Entry, Record | None]]) -> Iterator[str]:
    """Why there is no result, a line for each name."""
    texts = {e.attack: r.reason if r else e.reason for e, r in found}
    yield from (f"* `{name}`: {text}" for name, text in texts.items() if text)


def row(entry: Entry, record: Record | None) -> list[object]:
    head = [entry.attack, entry.norm]
    if record is None or record.status != "ok":
        return [*head, record.status if record else entry.state, *"–––––"]
    outcome = record.arrays["outcome"][:, -1]
    attacked = outcome != Outcome.SKIPPED
    fooled = outcome == Outcome.ADVERSARIAL
    invalid = int((outcome > Outcome.ADVERSARIAL).sum())
    distance = record.arrays["distance"][:, -1, NORMS.index(entry.norm)][fooled]
    means = [float(np.mean(record.arrays[k][attacked, -1])) for k in ("forward", "backward")]
    return [
        *head,
        f"ok, {invalid} invalid" if invalid else "ok",
        f"{int(fooled.sum())} of {int(attacked.sum())}",
        f"{distance.mean():.3f}" if len(distance) else "–",
        *(f"{mean:.0f}" for mean in means),
        "mean" if record.facts["counts"] == "means" else "own",
    ]


def main(wanted: list[str]) -> None:
    known = [e.spec.name for e in discover().attacks.values() if ":" in e.spec.name]
    names = [n for n in known if not wanted or n in wanted]
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        (folder / "board.toml").write_text(board(names), encoding="utf-8")
        command = [sys.executable, "-m", "harness", "run", str(folder), "--jobs", "1"]
        subprocess.run(
            [*command, "--timeout", str(TIMEOUT)],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,  # a cell that fails is a row, and no error of this script's
        )
        costs = ("forward", "backward", "counts")
        header = ("attack", "norm", "status", "success", "distance", *costs)
        print(machine())
        print(", ".join(f"{name} {version_of(name) or 'not installed'}" for name in LIBRARIES))
        print()
        found = list(results(folder))
        print(table(header, (row(entry, record) for entry, record in found)))
        print()
        print("\n".join(reasons(found)))


if __name__ == "__main__":
    main(sys.argv[1:])
