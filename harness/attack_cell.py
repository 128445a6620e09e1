"""What an attack cell does with its attack: at each eps, once, over draws, or round by round."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.api import Round
from harness.bench import Bench, Result
from harness.compatibility import inside
from harness.craft import Assault, Victim, wanted_labels
from harness.eightbit import on_grid
from harness.errors import BudgetSpent, PluginError
from harness.options import Resolved
from harness.outcome import CHECKPOINTS, Outcome
from harness.plan import own_seed_points
from harness.plugin import CORRUPTION
from harness.predict import Predictor
from harness.target import Ledger
from harness.threat import Threat
from harness.verify import ALONE, Samples, Verdict, judge, unstable

Arrays = dict[str, np.ndarray[Any, Any]]

# What a record is kept as: distances were judged in float64, and their sixth digit says enough.
KEPT = {
    "label": np.int16,
    "label8": np.int16,
    "distance": np.float32,
    "distance8": np.float32,
    "curve": np.float32,
    "forward": np.int32,
    "backward": np.int32,
}


@dataclass
class Columns:
    """One column for each eps, filled over all samples as verdicts come in."""

    samples: Samples
    eight_bit: bool
    keep: bool
    verdicts: list[Arrays] = field(default_factory=list)
    images: list[np.ndarray[Any, Any]] = field(default_factory=list)

    def add(self, rows: Tensor, verdict: Verdict, ledger: Ledger, x_adv: Tensor) -> None:
        """A column: the verdict on the samples at `rows`; the others were not attacked."""
        n, at = len(self.samples.x), rows.cpu().numpy()
        column: Arrays = {
            "outcome": np.full(n, Outcome.SKIPPED, np.uint8),
            "label": self.samples.clean.cpu().numpy().copy(),
            "distance": np.zeros((n, 4)),
            "forward": np.zeros(n, np.int64),
            "backward": np.zeros(n, np.int64),
        }
        if self.eight_bit:
            column |= {"label8": column["label"].copy(), "distance8": np.zeros((n, 4))}
        given = {
            "outcome": verdict.outcome,
            "label": verdict.label,
            "distance": verdict.distance,
            "label8": verdict.label8,
            "distance8": verdict.distance8,
        }
        for name, values in given.items():
            if values is not None:
                column[name][at] = values.cpu().numpy()
        column["forward"][at], column["backward"][at] = ledger.forward, ledger.backward
        if ledger.curve is not None:
            column["curve"] = np.zeros((n, len(CHECKPOINTS)))
            column["curve"][at] = ledger.curve
        self.verdicts.append(column)
        if not self.keep:
            return
        image = self.samples.x.cpu().numpy().copy()
        image[at] = x_adv.detach().cpu().numpy()
        self.images.append(image)

    def examples(self) -> Arrays | None:
        """The images of every column, float32 (n, columns, c, h, w), where they are kept."""
        return {"x_adv": np.stack(self.images, axis=1)} if self.keep else None

    def arrays(self) -> Arrays:
        """(n, columns, …) of everything."""
        asked = max(v["forward"].max(initial=0) for v in self.verdicts)
        # Of a single point a curve says what the distances say already.
        left_out = {"curve"} if asked <= CHECKPOINTS[0] else set()
        names = [name for name in self.verdicts[0] if name not in left_out]
        stacked = {name: np.stack([v[name] for v in self.verdicts], axis=1) for name in names}
        return {name: a.astype(KEPT.get(name, a.dtype)) for name, a in stacked.items()}


def run(bench: Bench) -> Result:
    """Run the attack cell of the bench."""
    attack, row = bench.attack, bench.threat
    if attack is None or row is None:
        raise PluginError("an attack cell without an attack")
    victim = bench.victim()
    samples = bench.samples(victim.predictor)
    if row.target != "none":
        wanted = wanted_labels(row.target, samples, victim, bench.seed)
        samples = replace(samples, wanted=wanted)
    assault = Assault(attack, victim, bench.seed, bench.batch, bench.other)
    if row.norm == CORRUPTION:
        arrays, facts, examples = _corrupt(bench, assault, samples)
    elif attack.entry.spec.prepares:
        arrays, facts, examples = _rounds(bench, assault, samples)
    else:
        arrays, facts, examples = _crossed(bench, assault, samples)
    bench.unchanged(victim)
    common: Arrays = {
        "ids": np.asarray(samples.ids, np.int64),
        "y": samples.y.cpu().numpy(),
        "clean": samples.clean.cpu().numpy(),
        "norm2": samples.x.double().flatten(1).norm(dim=1).cpu().numpy(),
    }
    if samples.wanted is not None:
        common["target"] = samples.wanted.cpu().numpy()
    cost = {k: int(arrays[k].sum()) for k in ("forward", "backward")}
    cost["forward"] += facts.get("preparation_queries", 0)
    return Result(
        "ok",
        facts={
            "access": access(attack, bench.model),
            "kind": kind(attack, row.norm),
            "counts": _counts(assault, samples),
            "eps": [asdict(e) for e in row.eps],
            **_asked(assault),
            **facts,
        },
        cost=cost,
        weights=bench.task["weights"],
        arrays={**common, **arrays},
        examples=examples,
        distributions=bench.distributions,
        device=bench.device_name,
    )


def access(attack: Resolved, model: Resolved) -> str:
    """Which kind of attack this was: what of the judged model the images were made with."""
    if attack.entry.spec.prepares:
        return "substitute"
    sources = [r.resolved.identity for r in attack.refs if r.kind == "model"]
    if sources and not (attack.entry.spec.like and sources == [model.identity]):
        return "transfer"
    attack = inside(attack)
    if attack.given.gradient != "exact":
        return str(attack.given.gradient)
    spec = attack.entry.spec
    if spec.needs == "gradients" and model.given.saturate == "inf":
        return "bpda"  # see `harness.saturation`
    return "parts" if spec.parts else spec.needs


def _asked(assault: Assault) -> dict[str, Any]:
    """Queries to other models than the judged one, all samples and budgets together."""
    if not assault.asked:
        return {}
    forward, backward = (
        sum(int(getattr(ledger, kind).sum()) for ledger in assault.asked)
        for kind in ("forward", "backward")
    )
    return {"source_queries": {"forward": forward, "backward": backward}}


def kind(attack: Resolved, norm: str) -> str:
    """`corruption`, or the kind that the attack's spec says."""
    return CORRUPTION if norm == CORRUPTION else attack.entry.spec.kind


def _counts(assault: Assault, samples: Samples) -> str:
    """Whether a sample's queries are its own, or the mean of its batch's (`AttackSpec.pooled`)."""
    pooled = assault.attack.entry.spec.pooled and not assault.image_by_image(samples)
    return "means" if pooled else "own"


def _grid(bench: Bench) -> list[Threat]:
    row, attack = bench.threat, bench.attack
    if row is None or attack is None:
        raise PluginError("an attack cell without a threat model")
    if attack.entry.spec.kind == "minimum-norm":
        return [Threat(row.norm, math.inf)]
    return [Threat(row.norm, e.value) for e in row.eps]


def _attacked(bench: Bench, samples: Samples) -> Tensor:
    """Positions of the samples that are attacked: the correct ones, or all."""
    if bench.task["all_samples"]:
        return torch.arange(len(samples.x), device=samples.x.device)
    return (samples.clean == samples.y).nonzero()[:, 0]


def _columns(bench: Bench, samples: Samples) -> Columns:
    return Columns(samples, on_grid(samples.x), bool(bench.task["keep_examples"]))


def _crossed(bench: Bench, assault: Assault, samples: Samples) -> tuple[Arrays, Any, Any]:
    """Every eps of the grid, or the one run of a minimum-norm attack."""
    grid, rows = _grid(bench), _attacked(bench, samples)
    part, columns = samples.at(rows), _columns(bench, samples)
    doubtful = 0
    for done, threat in enumerate(grid):
        x_adv, ledger = assault.craft(part, threat)
        verdict, odd = _judged(assault.victim, part, x_adv, threat, eight_bit=columns.eight_bit)
        doubtful = max(doubtful, odd)
        columns.add(rows, verdict, ledger, x_adv)
        bench.progress(done + 1, len(grid))
    return columns.arrays(), stability(doubtful), columns.examples()


def _judged(
    victim: Victim, part: Samples, x_adv: Tensor, threat: Threat, *, eight_bit: bool
) -> tuple[Verdict, int]:
    """The verdict, in which images whose label depends on the batch are UNSTABLE, and how many."""
    verdict = judge(victim.predictor, part, x_adv, threat, eight_bit=eight_bit)
    odd = unstable(victim.predictor, part, _shown(verdict, part, x_adv), verdict.label)
    verdict.outcome[odd] = Outcome.UNSTABLE
    return verdict, len(odd)


def _shown(verdict: Verdict, part: Samples, x_adv: Tensor) -> Tensor:
    """The images that were given labels: clean ones in the place of those that broke a rule."""
    legal = (verdict.outcome == Outcome.ROBUST) | (verdict.outcome == Outcome.ADVERSARIAL)
    return torch.where(legal.view(-1, 1, 1, 1), x_adv.detach(), part.x)


@dataclass
class Likeness:
    """How much a round's substitute is like the judged model, on the attacked samples.

    substitute: None where the round was made on the model itself: nothing is told then
    same:       share of each eps's images that both give one label
    """

    substitute: Predictor | None
    part: Samples
    same: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, turn: Round, victim: Victim, part: Samples) -> Likeness:
        if turn.substitute is None:
            return cls(None, part)
        judged = victim.predictor
        return cls(Predictor(turn.substitute.eval(), judged.classes, judged.chunk), part)

    def add(self, images: Tensor, labels: Tensor) -> None:
        """The next eps's images, and the judged model's labels of them."""
        if self.substitute is not None:
            self.same.append(_share(self.substitute.labels(images, self.part.ids), labels))

    def facts(self) -> dict[str, Any]:
        if self.substitute is None:
            return {}
        own = self.substitute.labels(self.part.x, self.part.ids)
        return {
            "substitute_accuracy": _share(own, self.part.y),
            "match_clean": _share(own, self.part.clean),
            "match_adversarial": self.same,
        }


def _share(labels: Tensor, others: Tensor) -> float:
    return (labels == others).double().mean().item() if len(labels) else math.nan


def stability(doubtful: int) -> dict[str, Any]:
    """The facts of a cell that gave so many images, at one eps, other labels alone."""
    flags = [f"labels of {doubtful} of {ALONE} images depend on the batch"] if doubtful else []
    return {"flags": flags, "batch_dependent": doubtful}


def _corrupt(bench: Bench, assault: Assault, samples: Samples) -> tuple[Arrays, Any, Any]:
    """Every sample at every severity, `draws` times; only the box is checked."""
    row = bench.threat
    if row is None:
        raise PluginError("an attack cell without a threat model")
    n, severities = len(samples.x), [e.value for e in row.eps]
    correct = np.zeros((n, len(severities), row.draws), np.uint8)
    forward = np.zeros((n, len(severities)), np.int64)
    invalid = 0
    for s, severity in enumerate(severities):
        threat = Threat(CORRUPTION, severity)
        for draw in range(row.draws):
            x_adv, ledger = assault.craft(samples, threat, restart=draw)
            verdict = judge(assault.victim.predictor, samples, x_adv, threat, eight_bit=False)
            correct[:, s, draw] = (verdict.label == samples.y).cpu().numpy()
            invalid += int((verdict.outcome > Outcome.ADVERSARIAL).sum())
            forward[:, s] += ledger.forward
        bench.progress(s + 1, len(severities))
    flags = [f"{invalid} corrupted images were invalid"] if invalid else []
    arrays: Arrays = {
        "draw_correct": correct,
        "forward": forward,
        "backward": np.zeros_like(forward),
    }
    return arrays, {"flags": flags}, None


def _rounds(bench: Bench, assault: Assault, samples: Samples) -> tuple[Arrays, Any, Any]:
    """Every round of a preparing attack, judged at every eps; the last is the row."""
    grid, rows = _grid(bench), _attacked(bench, samples)
    part = samples.at(rows)
    _, reserved = bench.ids()
    own = own_seed_points(assault.attack)
    seeds = bench.images(reserved[len(reserved) - own :])
    rounds, ledger = assault.prepare(seeds)
    columns, labels, infos, doubtful = None, [], [], 0
    flags: list[str] = []
    try:
        for turn in rounds:
            made, likeness = _columns(bench, samples), Likeness.of(turn, assault.victim, part)
            for threat in grid:
                x_adv, spent = assault.craft_on(turn, part, threat)
                verdict, odd = _judged(
                    assault.victim, part, x_adv, threat, eight_bit=made.eight_bit
                )
                doubtful = max(doubtful, odd)
                made.add(rows, verdict, spent, x_adv)
                likeness.add(_shown(verdict, part, x_adv), verdict.label)
            columns = made
            labels.append(made.arrays()["label"])
            info = {name: float(value) for name, value in turn.info.items()}
            queries = int(ledger.forward.sum())
            infos.append({**info, **likeness.facts(), "queries": queries})
    except BudgetSpent:
        flags.append(f"its queries were spent after {len(labels)} rounds")
        if columns is None:
            columns, doubtful = _untouched(bench, assault, samples)
    if columns is None:
        raise PluginError("prepare() gave no round")
    small = np.int8 if assault.victim.predictor.classes <= np.iinfo(np.int8).max else np.int16
    by_round = {"round_label": np.stack(labels).astype(small)} if labels else {}
    arrays = {**columns.arrays(), **by_round}
    queries = int(ledger.forward.sum())
    facts = {"rounds": infos, "preparation_queries": queries, **stability(doubtful)}
    return arrays, {**facts, "flags": [*facts["flags"], *flags]}, columns.examples()


def _untouched(bench: Bench, assault: Assault, samples: Samples) -> tuple[Columns, int]:
    """What an attack that found nothing returns, the clean images, and at most how many of them
    get another label alone."""
    rows, columns, doubtful = _attacked(bench, samples), _columns(bench, samples), 0
    part = samples.at(rows)
    for threat in _grid(bench):
        verdict, odd = _judged(assault.victim, part, part.x, threat, eight_bit=columns.eight_bit)
        doubtful = max(doubtful, odd)
        columns.add(rows, verdict, Ledger(len(part.x)), part.x)
    return columns, doubtful
