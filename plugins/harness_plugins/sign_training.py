"""Votes of networks of sign units, trained network by network or all together."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from harness.api import Run, TrainingSet
from harness_plugins.samples import refuse_absent
from harness_plugins.sign_descent import WEIGHTS, Best, Descent, Nets, Objective, Rule
from harness_plugins.sign_networks import SignNetwork
from harness_plugins.sign_pixels import Pixels

SAVE_EVERY = 60.0  # seconds between the checkpoints of a group that is being trained
TOGETHER = 4  # networks of a group on a CPU: they share what an operation costs beside its numbers
GPU_BYTES = 2**34  # of projections and candidates of a group on a GPU
TELL_EVERY = 50  # iterations


@dataclass(frozen=True)
class Group:
    """Networks that are trained as one computation: one against the rest for `label`."""

    label: int
    first: int
    seeds: tuple[int, ...]

    @property
    def key(self) -> str:
        """Its name in a checkpoint."""
        return f"{self.label}-{self.first}-{len(self.seeds)}."


@dataclass(frozen=True)
class Course:
    """The iterations of a training, and the objective of each: `first` for the share `balanced` of
    them, then `then`. The best network is sought anew where the objective changes."""

    iterations: int
    first: Objective
    then: Objective
    balanced: float

    def objective(self, iteration: int) -> Objective:
        return self.first if iteration < self.balanced * self.iterations else self.then


def trained(data: TrainingSet, run: Run, votes: int, rule: Rule, course: Course) -> SignNetwork:
    """`votes` networks, of each class against the others where there are more than two.

    On a CPU a few networks are one computation, and as many such groups are trained at once as
    there are threads; on a GPU all of a class are one. A checkpoint holds the groups that are done,
    and those that are not as they are: a training that was interrupted ends with the same bits.
    """
    refuse_absent(data, "the 01 loss")
    k = data.info.classes
    pixels, y = Pixels.of(data.x.to(run.device)), data.y.to(run.device)
    cpu = run.device.type == "cpu"
    together = TOGETHER if cpu else _fitting(pixels, rule)
    groups = [
        Group(label, first, tuple(_seed(run, label, v) for v in range(votes))[first:][:together])
        for label in ([1] if k == 2 else range(k))
        for first in range(0, votes, together)
    ]
    session = _Session(run, course, groups)

    def train(group: Group) -> Best:
        return session.train(group, Descent(pixels, y == group.label, rule, group.seeds))

    with ThreadPoolExecutor(torch.get_num_threads() if cpu else 1) as pool:
        try:
            best = list(pool.map(train, groups))
        except BaseException:
            session.stopped = True  # the pool waits for the groups that are in training
            raise
    tensors = {name: torch.cat([getattr(b, name) for b in best]) for name in WEIGHTS}
    return SignNetwork(
        hidden=tensors["hidden"],
        thresholds=-tensors["level"],
        output=tensors["output"],
        bias=-tensors["cut"],
        votes_for=torch.tensor([g.label for g in groups for _ in g.seeds], device=run.device),
        classes=k,
        low=rule.low,
    )


def _fitting(pixels: Pixels, rule: Rule) -> int:
    """How many networks fit a GPU's memory at once."""
    numbers = pixels.shape[1] * (2 * max(rule.units, 1) + 12 * max(rule.features, rule.units))
    return max(1, GPU_BYTES // (8 * numbers))


def _seed(run: Run, label: int, vote: int) -> int:
    return int(run.rng("network", label, vote).integers(2**62))


class _Session:
    """The checkpoint that groups in training share. Its keys are <group><what>.<tensor>."""

    def __init__(self, run: Run, course: Course, groups: list[Group]) -> None:
        self._run, self._course = run, course
        self._total = len(groups) * course.iterations
        kept = (run.load() or {}).items()
        mine = tuple(group.key for group in groups)  # another device has other groups
        self._kept = {k: v for k, v in kept if k.startswith(mine)}
        self._done: dict[Group, int] = {}
        self._lock = Lock()
        self.stopped = False

    def train(self, group: Group, descent: Descent) -> Best:
        """The best networks of a group, from where its training was left."""
        course = self._course
        done = int(self._kept.get(group.key + "iterations", 0))
        self._tell(group, done)
        if done == course.iterations:
            return Best(**self._part(group, "best."))
        if done:
            nets, best = Nets(**self._part(group, "nets.")), Best(**self._part(group, "best."))
        else:
            nets = descent.start(course.objective(0))
            best = Best.of(nets)
        saved = time.monotonic()
        for iteration in range(done, course.iterations):
            if self.stopped:
                break
            objective = course.objective(iteration)
            score = descent.iterate(nets, iteration, objective)
            if iteration and objective != course.objective(iteration - 1):
                best.score.fill_(-1)
            best.note(score, nets)
            self._tell(group, iteration + 1)
            if time.monotonic() - saved > SAVE_EVERY:
                self._save(group, {"nets.": nets.tensors(), "best.": best.tensors()}, iteration + 1)
                saved = time.monotonic()
        else:
            self._save(group, {"best.": best.tensors()}, course.iterations)
        return best

    def _part(self, group: Group, what: str) -> dict[str, Tensor]:
        prefix, device = group.key + what, self._run.device
        kept = self._kept.items()  # copied: training works in place, and others save what is kept
        return {
            k.removeprefix(prefix): v.to(device, copy=True) for k, v in kept if k.startswith(prefix)
        }

    def _tell(self, group: Group, done: int) -> None:
        self._done[group] = done
        if done % TELL_EVERY == 0 or done == self._course.iterations:
            with self._lock:
                self._run.progress(sum(self._done.values()), self._total)

    def _save(self, group: Group, parts: Mapping[str, Mapping[str, Tensor]], done: int) -> None:
        state = {
            group.key + what + name: tensor.clone()
            for what, tensors in parts.items()
            for name, tensor in tensors.items()
        }
        with self._lock:
            others = {k: v for k, v in self._kept.items() if not k.startswith(group.key)}
            self._kept = {**others, **state, group.key + "iterations": torch.tensor(done)}
            self._run.save(self._kept)
