"""Linearised boundaries: against autograd's own Jacobian, and what a network may do wrong."""

from __future__ import annotations

import pytest
import torch
from attack_kit import judged
from torch import nn

from harness.target import Target
from harness_plugins.attacks.boundaries import boundaries

SHAPE = (2, 4, 4)


class Broken(nn.Module):
    """The gradient of the images whose first pixel is 0 is not finite."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        first = x[:, 0, 0, 0]
        return self.net(x) + 0 * first.sqrt()[:, None]  # 0 · ∞ at 0


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5)).double()


@pytest.fixture
def x():
    return torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("most", [None, 1, 3, 4, 9])
def test_gaps_and_normals_are_the_jacobians(net, x, most):
    y = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    target = judged(net, 7, 5)
    near = boundaries(target, x, y, most)

    m = min(most or 4, 4)
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(net, one[None])[0, :, 0] for one in x]
    )
    for i in range(7):
        assert near.classes[i].shape == (m,)
        assert y[i] not in near.classes[i]
        for place, j in enumerate(near.classes[i]):
            torch.testing.assert_close(near.normal[i, place], jacobian[i, j] - jacobian[i, y[i]])
            torch.testing.assert_close(
                near.gap[i, place], (net(x)[i, j] - net(x)[i, y[i]]).detach()
            )
    assert target.ledger.forward.tolist() == [1] * 7
    assert target.ledger.backward.tolist() == [m] * 7


def test_the_most_are_those_that_score_highest(net, x):
    y = net(x).argmax(dim=1)
    near = boundaries(Target.around(net, 5), x, y, 2)
    assert torch.equal(near.classes, near.scores.topk(3, dim=1).indices[:, 1:])


def test_all_classes_come_in_their_order(net, x):
    near = boundaries(Target.around(net, 5), x, torch.full((7,), 2))
    assert near.classes.tolist() == [[0, 1, 3, 4]] * 7


def test_gradients_that_are_not_finite_are_zero_and_harm_no_neighbour(net, x):
    y = net(x).argmax(dim=1)
    x[3, 0, 0, 0] = 0.0
    near, whole = (boundaries(Target.around(m, 5), x, y) for m in (Broken(net), net))
    assert near.normal.isfinite().all()
    assert (near.normal[3, :, 0, 0, 0] == 0).all()
    others = [0, 1, 2, 4, 5, 6]
    torch.testing.assert_close(near.normal[others], whole.normal[others])


def test_nothing_is_left_on_the_images(net, x):
    boundaries(Target.around(net, 5), x, torch.zeros(7).long())
    assert not x.requires_grad
