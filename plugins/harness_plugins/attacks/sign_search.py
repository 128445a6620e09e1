"""The structure of a sign network against itself: which units to switch, and an image that does.

Sign units pass no gradient, and an attack that switches one of them at a time, as `hidden_node`,
leaves most of the ball unsearched. Two searches, the second for the samples that the first leaves:

1. Ascent, near-exact: units and votes become sigmoids that grow steeper with every step, and the
   margin of the soft votes is climbed. All samples at once; two matrix products a step.
2. Branch and bound (`sign_exact`), exact: it finds an image wherever the ball has one, to within
   float32's rounding, as long as its linear programs are few and small enough: single networks of
   20 units on 3,072 pixels are, votes of 32 of them are not, and get the ascent alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from harness.api import Active, Rng, Target, Threat, margin, padded
from harness_plugins.attacks.sign_exact import TOLERANCE, Box, Sides, Structure, goals, search
from harness_plugins.sign_networks import SignNetwork

# From the first step to the last, geometrically: the sigmoids' slopes, of a unit by how far the
# ball can push it, of a vote by ‖u‖; and a step's length as a share of eps.
UNIT_SLOPES = (3.0, 200.0)
VOTE_SLOPES = (2.0, 8.0)
LENGTHS = (0.5, 0.02)


@dataclass(frozen=True)
class SignSearch:
    """An image of the ball that the network, or the vote, gets wrong; from x, in restarts from a
    random point. What the target is asked is to confirm it: two or three queries.

    An image that is misclassified already stays as it is, if the target is the model judged.

    steps: of the ascent
    nodes: linear programs at most, for a sample and each class that it may be taken for; 0 for the
           ascent alone
    size:  exact where the units that can be switched, times the pixels, are at most so many; and
           the units of more than two networks, which have to agree, at most 28
    """

    steps: Annotated[int, Ge(1)] = 100
    nodes: Annotated[int, Ge(0)] = 100
    size: Annotated[int, Ge(0)] = 200_000

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Rng) -> Tensor:
        case = Case(target.part("sign_network"), x, y, target.wanted)
        x_adv = threat.random_start(x, rng) if rng.restart else x.clone()
        holding = torch.arange(len(x), device=x.device)  # rows that nothing has fooled
        if target.judged:
            wrong = target.labels(x) != y
            x_adv[wrong] = x[wrong]
            holding = holding[~wrong]
        if len(holding):
            tried = climb(
                case.at(holding), threat, x_adv[holding], self.steps, last=not target.judged
            )
            x_adv[holding] = tried
            holding = holding[target.at(holding).labels(tried) == y[holding]]
        if len(holding) and self.nodes:
            tried, found = self._settled(case.at(holding), threat)
            holding, tried = holding[found], tried[found]
        if len(holding) and self.nodes:
            fooled = target.at(holding).labels(tried) != y[holding]
            x_adv[holding[fooled]] = tried[fooled]
        return x_adv

    def _settled(self, case: Case, threat: Threat) -> tuple[Tensor, Tensor]:
        """The images that the exact search finds, x itself elsewhere, and where it found one."""
        net, x_adv, found = Structure.of(case.network), case.x.clone(), []
        low = threat.project(torch.full_like(x_adv, threat.low), x_adv)
        high = threat.project(torch.full_like(x_adv, threat.high), x_adv)
        corners = torch.stack([low, high]).flatten(2).double().cpu().numpy()
        sides: dict[tuple[int, int | None], list[Sides]] = {}
        for i in range(len(x_adv)):
            key = (int(case.y[i]), None if case.wanted is None else int(case.wanted[i]))
            if key not in sides:
                sides[key] = [Sides.of(net, goal) for goal in goals(case.network, *key)]
            box = Box.of(net, *corners[:, i])
            images = (search(each, box, self.nodes, self.size) for each in sides[key])
            image = next((image for image in images if image is not None), None)
            found.append(image is not None)
            if image is not None:
                x_adv[i] = torch.from_numpy(image).to(x_adv).view_as(x_adv[i])
        return threat.project(x_adv, case.x), torch.tensor(found, device=x_adv.device)


@dataclass(frozen=True)
class Case:
    """Samples against a network.

    wanted: the label that each is to get, (n,), or None: any but y
    """

    network: SignNetwork
    x: Tensor
    y: Tensor
    wanted: Tensor | None

    def at(self, rows: Tensor) -> Case:
        wanted = None if self.wanted is None else self.wanted[rows]
        return Case(self.network, self.x[rows], self.y[rows], wanted)

    def fooled(self, projections: Tensor) -> Tensor:
        """Where the answer is the attacker's whatever float32 has rounded away, bool (n,)."""
        net = self.network
        slack = TOLERANCE * (net.hidden.abs().sum(dim=2) + net.thresholds.abs())
        fewest, most = net.units(projections - slack), net.units(projections + slack)
        rising = net.output > 0
        lowest = net.outputs(torch.where(rising, fewest, most)) > 0
        highest = net.outputs(torch.where(rising, most, fewest)) > 0
        if self.wanted is None:
            votes = torch.where(net.votes_for == self.y[:, None], highest, lowest)
            return net.fractions(votes.to(projections)).argmax(dim=1) != self.y
        votes = torch.where(net.votes_for == self.wanted[:, None], lowest, highest)
        return net.fractions(votes.to(projections)).argmax(dim=1) == self.wanted

    def uphill(self, projections: Tensor, unit_slopes: Tensor, vote_slope: float) -> Tensor:
        """Gradient of the soft votes' margin by the projections, (n, v, h)."""
        net = self.network
        projections = projections.detach().requires_grad_()
        scale = torch.linalg.vector_norm(net.output, dim=1).clamp_min(TOLERANCE)
        with torch.enable_grad():
            units = net.low + (1 - net.low) * (projections * unit_slopes).sigmoid()
            scores = net.fractions((net.outputs(units) * (vote_slope / scale)).sigmoid())
            gain = margin(scores, self.y) if self.wanted is None else -margin(scores, self.wanted)
            (gradient,) = torch.autograd.grad(gain.sum(), projections)
        return gradient


def climb(case: Case, threat: Threat, x_adv: Tensor, steps: int, *, last: bool) -> Tensor:
    """The first image that fools, or the last where `last`; where none does, the last of all."""
    weights = case.network.hidden.flatten(0, 1)
    reach = (threat.eps * case.network.hidden.abs().sum(dim=2)).clamp_min(TOLERANCE)
    out, found = x_adv.clone(), torch.zeros(len(x_adv), dtype=torch.bool, device=x_adv.device)
    rows = torch.arange(len(x_adv), device=x_adv.device)
    for step in range(steps + 1):
        projections = padded(case.network.projections, x_adv)
        fooled = case.fooled(projections)
        better = ~found[rows] | (fooled if last else torch.zeros_like(fooled))
        out[rows] = torch.where(better.view(-1, *[1] * (x_adv.ndim - 1)), x_adv, out[rows])
        found[rows] |= fooled
        if not last and (x_adv.device.type == "cpu" or step % Active.SYNC_EVERY == 0):
            stay = (~found[rows]).nonzero()[:, 0]
            rows, case = rows[stay], case.at(stay)
            x_adv, projections = x_adv[stay], projections[stay]
        if step == steps or not len(rows):
            break
        slope, vote, length = (
            _between(e, step / steps) for e in (UNIT_SLOPES, VOTE_SLOPES, LENGTHS)
        )
        gradient = case.uphill(projections, slope / reach, vote).flatten(1)
        uphill = padded(lambda g: g @ weights, gradient).sign_().view_as(x_adv)
        x_adv = threat.project(torch.add(x_adv, uphill, alpha=length * threat.eps), case.x)
    return out


def _between(ends: tuple[float, float], share: float) -> float:
    """From the one to the other, geometrically."""
    first, final = ends
    return float(first * (final / first) ** share)
