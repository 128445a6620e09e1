"""Manifests and records written by hand, for tests of what is made from them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from harness.budget import Epsilon
from harness.identity import key_of
from harness.manifest import Entry, Manifest, Published, Row, ThreatRow
from harness.outcome import Outcome
from harness.records import Record

LETTERS = {
    "-": Outcome.SKIPPED,
    "r": Outcome.ROBUST,
    "A": Outcome.ADVERSARIAL,
    "b": Outcome.OUT_OF_BALL,
    "x": Outcome.OUT_OF_BOX,
    "n": Outcome.NOT_FINITE,
    "u": Outcome.UNSTABLE,
}


def threat(norm="Linf", eps=("0.1", "0.2"), reference=None, core=(), **other):
    grid = tuple(Epsilon(e, float(e)) for e in eps)
    last = Epsilon(reference or eps[-1], float(reference or eps[-1]))
    return ThreatRow(norm, grid, last, core=core, **other)


def identity(model, seed=0, attack="", norm=""):
    return {"model": model, "seed": seed, "attack": attack, "norm": norm}


@dataclass
class Handmade:
    """A board whose records are added one by one. `y`: the true labels, (n,)."""

    y: list[int]
    threats: tuple[ThreatRow, ...]
    models: tuple[str, ...] = ("A", "B")
    attacks: tuple[str, ...] = ("pgd", "square")
    seeds: tuple[int, ...] = (0,)
    incompatible: dict[tuple[str, str, str], str] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    title: str = ""
    published: tuple[Published, ...] = ()

    def manifest(self) -> Manifest:
        entries = []
        for model in self.models:
            for seed in self.seeds:
                entries.append(self._entry(model, seed, "", ""))
                entries += [
                    self._entry(model, seed, attack, t.norm)
                    for attack in self.attacks
                    for t in self.threats
                    if (t.norm == "corruption") == (attack == "fog")
                ]
        return Manifest(
            name="board",
            version=1,
            title=self.title,
            dataset="digits",
            samples=len(self.y),
            all_samples=False,
            seeds=self.seeds,
            threats=self.threats,
            models=tuple(Row(m, m, "gradients") for m in self.models),
            attacks=tuple(Row(a, a, "gradients") for a in self.attacks),
            entries=tuple(entries),
            published=self.published,
        )

    def _entry(self, model, seed, attack, norm):
        reason = self.incompatible.get((model, attack, norm), "")
        return Entry(
            kind="attack" if attack else "fit",
            key=key_of(identity(model, seed, attack, norm)),
            model=model,
            seed=seed,
            attack=attack,
            norm=norm,
            state="incompatible" if reason else "planned",
            reason=reason,
        )

    def add(self, model, seed=0, attack="", norm="", *, arrays=None, status="ok", **fields):
        """Any record; returns its key."""
        own = identity(model, seed, attack, norm)
        record = Record(
            key=key_of(own),
            kind="attack" if attack else "fit",
            identity=own,
            status=status,
            arrays=arrays or {},
            **{"weights": f"{model}{seed}" if status == "ok" else "", **fields},
        )
        self.records[record.key] = record
        return record.key

    def fit(self, model, clean, seed=0, **fields):
        y = np.array(self.y)
        arrays = {"ids": np.arange(len(y)), "y": y, "clean": np.array(clean)}
        return self.add(model, seed, arrays=arrays, **fields)

    def attack(
        self, model, attack, clean, columns, label, distance, *, norm="Linf", seed=0, **more
    ):
        """An attack record.

        columns:  a string of LETTERS for each column, one letter for each sample
        label:    (columns, n); distance: (columns, n), in the threat's norm, L2 twice that
        more:     kind, access, flags, cost, weights; other arrays, (columns, n) as well
        """
        y, outcome = np.array(self.y), np.array([[LETTERS[c] for c in s] for s in columns])
        size = np.array(distance, float).T
        every = np.repeat(size[:, :, None], 4, axis=2)
        every[:, :, 1] = 2 * size
        forward = np.array(more.pop("forward", np.full(outcome.shape, 10))).T
        arrays = {
            "ids": np.arange(len(y)),
            "y": y,
            "clean": np.array(clean),
            "norm2": np.full(len(y), 4.0),
            "outcome": outcome.T.astype(np.uint8),
            "label": np.array(label).T,
            "distance": every,
            "forward": forward,
            "backward": forward // 10,
        }
        facts = {"flags": more.pop("flags", []), "access": more.pop("access", "gradients")}
        facts["kind"] = more.pop("kind", "fixed-budget")
        if "distance8" in more:
            size8 = np.array(more.pop("distance8"), float).T
            arrays["distance8"] = np.repeat(size8[:, :, None], 4, axis=2)
            arrays["label8"] = np.array(more.pop("label8")).T
        if "target" in more:
            arrays["target"] = np.array(more.pop("target"))
        if "round_label" in more:
            arrays["round_label"] = np.array(more.pop("round_label"))
        if "curve" in more:
            arrays["curve"] = np.array(more.pop("curve"), float)[:, None]
        return self.add(model, seed, attack, norm, arrays=arrays, facts=facts, **more)
