"""A step of margin maximization and of the adversary critic, against the passes it cannot avoid.

    HARNESS_DATA=<folder with mnist/> python benchmarks/training.py [--device cuda]

A step is the objective and its backward pass, without the optimiser's. The passes are made beside
it, bare and one after the other, on the same batch and network; for the critic, whose images leave
the unrolled attack when they have arrived, as many images as its own step sent through each. With
`--device cuda` wall-clock time is measured, and an epoch of the thesis's settings.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import interleaved, machine, ratio, table
from torch import Tensor, nn
from torch.nn import functional

from harness.allocator import keep_memory
from harness.api import Info, Run, StreamRng, TrainingSet
from harness.data import Files, as_images
from harness_plugins.architectures import MLP, Architecture, LeNet5
from harness_plugins.datasets.mnist import Mnist
from harness_plugins.defenses.critic import AdversaryCritic, Critic, Duel, draw
from harness_plugins.defenses.margin import MarginMaximization
from harness_plugins.players import Player
from harness_plugins.training import Step

BATCH, WARM, REPETITIONS = 100, 1000, 9
MOST_MARGIN, MOST_CRITIC = 1.25, 1.5
INFO = Info((1, 28, 28), 10, 60_000)
MARGIN_NETS: dict[str, Architecture] = {"MLP 1000x3": MLP(1000, 3), "LeNet-5": LeNet5()}
CRITIC_NETS: dict[str, Architecture] = {"MLP 1200x3": MLP(1200, 3), "LeNet-5": LeNet5()}


def images(device: torch.device) -> tuple[Tensor, Tensor]:
    """MNIST's first, or noise where it is not there."""
    root, n = os.environ.get("HARNESS_DATA"), WARM + BATCH
    if not root:
        x = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        return x.to(device), (torch.arange(n) % 10).to(device)
    splits = Mnist().load(Files(Path(root), "mnist"))
    y = torch.from_numpy(splits.train_y[:n].astype(np.int64))
    return as_images(splits.train_x, slice(n)).to(device), y.to(device)


# --- margin ---------------------------------------------------------------------------------------


def margin_passes(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """A forward pass, a backward pass to the input for each class, one with graph, and theirs."""
    x = x.detach().requires_grad_()
    scores = net(x)
    for j in range(scores.shape[1]):
        torch.autograd.grad(scores[:, j].sum(), x, retain_graph=True)
    gap = (scores[:, 0] - scores.gather(1, y[:, None])[:, 0]).sum()
    (difference,) = torch.autograd.grad(gap, x, create_graph=True)
    (functional.cross_entropy(scores, y) + difference.square().sum()).backward()


def margin_step(model: MarginMaximization, net: nn.Module, x: Tensor, y: Tensor) -> None:
    model.objective(net, x, y, Step(0.0, StreamRng.keyed("x", n=len(x)))).backward()


# --- critic ---------------------------------------------------------------------------------------


class Bare:
    """The kinds of passes of a critic's step, each with its share of the last backward pass."""

    def __init__(self, net: nn.Module, critic: Critic, x: Tensor, y: Tensor) -> None:
        self.net, self.critic, self.x, self.y = net, critic, x, y

    def classify(self) -> None:
        functional.cross_entropy(self.net(self.x), self.y).backward()

    def choose(self) -> None:
        """Input gradients of all classes, and the first unrolled step from the same scores."""
        x = self.x.detach().requires_grad_()
        scores = self.net(x)
        for j in range(scores.shape[1]):
            torch.autograd.grad(scores[:, j].sum(), x, retain_graph=True)
        self._ascend(scores, x)

    def unroll(self, n: int) -> None:
        """A step of the unrolled attack for n images: forward, gradient with graph, and theirs."""
        x = self.x[:n].detach().requires_grad_()
        self._ascend(self.net(x), x)

    def _ascend(self, scores: Tensor, x: Tensor) -> None:
        log_p = scores.log_softmax(1)[:, 0]
        (gradient,) = torch.autograd.grad(log_p.sum(), x, create_graph=True)
        (gradient.square().sum() + log_p.sum()).backward()

    @torch.no_grad()
    def label(self) -> None:
        self.net(self.x)

    def criticise(self) -> None:
        x = torch.cat([self.x, self.x]).requires_grad_()
        verdicts = self.critic(x)[:, 0]
        (gradient,) = torch.autograd.grad(verdicts.sum(), x, create_graph=True)
        (verdicts.sum() + gradient.square().sum()).backward()

    def persuade(self, n: int) -> None:
        x = self.x[:n].detach().requires_grad_()
        torch.autograd.grad(self.critic(x)[:, 0].sum(), x)


def unrolled_rows(step: Callable[[], Any], net: nn.Module, n: int) -> list[int]:
    """How many images each of the step's forward passes with graph took through the net."""
    rows: list[int] = []

    def note(_module: nn.Module, inputs: tuple[Tensor, ...], _out: Tensor) -> None:
        if torch.is_grad_enabled():
            rows.append(len(inputs[0]))

    hook = net.register_forward_hook(note)
    try:
        step()
    finally:
        hook.remove()
    return rows[1:-1]  # without the target's choice and the cross-entropy


@contextmanager
def counted_bytes(held: dict[int, int]) -> Any:
    """Bytes that graphs keep for their backward passes, by storage."""

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def duel(arch: Architecture, x: Tensor, y: Tensor) -> tuple[nn.Module, Critic, Duel]:
    """A network and a critic after ten steps: untrained, nothing changes its label."""
    torch.manual_seed(0)
    settings = AdversaryCritic(arch=arch)
    net, critic = arch.build(INFO).to(x.device), Critic(INFO, settings.critic_width).to(x.device)
    for network in (net, critic):
        draw(network)
    player = Player(critic, settings.optimiser.over(critic.parameters(), 1e-3), 1e-3)
    game = Duel(settings, critic, player)
    own = Player(net, settings.optimiser.over(net.parameters(), settings.lr), settings.lr)
    own.set_rate(1.0)
    player.set_rate(1.0)
    for i in range(0, WARM, BATCH):
        rows = slice(BATCH + i, BATCH + i + BATCH)
        own.descend(game.plain(net, x[rows], y[rows], Step(0.0, StreamRng.keyed(i))))
        own.descend(game(net, x[rows], y[rows], Step(1.0, StreamRng.keyed(i))))
    player.set_rate(0.0)  # every timed step is the same
    return net, critic, game


def critic_row(name: str, arch: Architecture, data: tuple[Tensor, Tensor]) -> list[object]:
    (x, y), clock = data, _clock(data[0].device)
    net, critic, game = duel(arch, x, y)
    x, y = x[:BATCH], y[:BATCH]

    def step() -> Tensor:
        return game(net, x, y, Step(1.0, StreamRng.keyed("x", n=BATCH)))

    rows, held = unrolled_rows(step, net, BATCH), {}
    with counted_bytes(held):
        loss = step()
    loss.backward()
    forth = rows[: game.settings.steps]
    changed = max(rows[len(forth) :], default=0)
    bare = Bare(net, critic, x, y)

    def passes() -> None:
        for each in (bare.classify, bare.choose, bare.label, bare.criticise):
            each()
        for n in rows[1:]:
            bare.unroll(n)
        bare.persuade(changed)

    seconds = interleaved({"ours": lambda: step().backward(), "bare": passes}, REPETITIONS, clock)
    return [
        f"critic, {name}",
        float(np.median(seconds["ours"])) * 1e3,
        float(np.median(seconds["bare"])) * 1e3,
        ratio(seconds["ours"], seconds["bare"]),
        f"{len(rows)} unrolled ({sum(rows)} images), {changed} changed",
        f"{sum(held.values()) / 2**20:.0f}",
    ]


def margin_row(
    name: str, arch: Architecture, sensitivity: Any, data: tuple[Tensor, Tensor]
) -> list[object]:
    (x, y), clock = data, _clock(data[0].device)
    torch.manual_seed(0)
    net, x, y = arch.build(INFO).to(x.device), x[:BATCH], y[:BATCH]
    model, held = MarginMaximization(arch=arch, sensitivity=sensitivity), {}
    with counted_bytes(held):
        model.objective(net, x, y, Step(0.0, StreamRng.keyed("x", n=BATCH)))
    cases = {
        "ours": partial(margin_step, model, net, x, y),
        "bare": partial(margin_passes, net, x, y),
    }
    seconds = interleaved(cases, REPETITIONS, clock)
    return [
        f"margin {sensitivity}, {name}",
        float(np.median(seconds["ours"])) * 1e3,
        float(np.median(seconds["bare"])) * 1e3,
        ratio(seconds["ours"], seconds["bare"]),
        "1 forward, 10 + 1 backward, 1 double",
        f"{sum(held.values()) / 2**20:.0f}",
    ]


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type == "cpu":
        return time.process_time

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised


def epochs(data: tuple[Tensor, Tensor]) -> None:
    """An epoch of 60,000 images, in seconds, as the thesis trains."""
    x, y = data
    x, y = x.repeat(60, 1, 1, 1)[:60_000].cpu(), y.repeat(60)[:60_000].cpu()
    rows = []
    for model in (
        MarginMaximization(arch=LeNet5(), epochs=1),
        AdversaryCritic(arch=LeNet5(), epochs=1, plain_epochs=0),
    ):
        begun = time.perf_counter()
        model.fit(TrainingSet(INFO, x, y), Run(0, data[0].device))
        rows.append([type(model).__name__, time.perf_counter() - begun])
    print(table(["LeNet-5, an epoch of 60,000 images", "seconds"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description="Training steps against their passes.")
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    torch.set_num_threads(1)
    keep_memory()
    data = images(device)
    rows = [
        margin_row(name, arch, sensitivity, data)
        for name, arch in MARGIN_NETS.items()
        for sensitivity in ("L2", "L1")
    ]
    rows += [critic_row(name, arch, data) for name, arch in CRITIC_NETS.items()]
    where = "" if device.type == "cpu" else f", {torch.cuda.get_device_name(device)}"
    kind = "CPU" if device.type == "cpu" else "wall-clock"
    print(f"Steps of {BATCH} MNIST images, one thread, {kind} milliseconds\n")
    print(f"{machine()}{where}\n")
    print(table(["step", "ours", "its passes", "ratio", "passes", "MiB kept"], rows))
    print(f"\nAsked: margin at most {MOST_MARGIN}, critic at most {MOST_CRITIC}. Medians of")
    print(f"{REPETITIONS} interleaved runs. MiB kept: what the graphs hold, weights included.")
    if device.type == "cuda":
        epochs(data)


if __name__ == "__main__":
    main()
