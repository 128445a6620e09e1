"""A sample's scores are its own, whatever batch it comes in."""

import pytest
import torch
from torch import nn

from harness.errors import PluginError
from harness.predict import Predictor, padded
from harness.rng import SampleRng

CPU = torch.device("cpu")


def nets():
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(1, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.Tanh(), nn.Linear(300, 10))
    norm = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(5408, 10))
    return {
        "conv": conv, "mlp": mlp, "norm": norm,
        "channels_last": conv.to(memory_format=torch.channels_last),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["conv", "mlp", "norm", "channels_last"])
@pytest.mark.parametrize("size", [1, 3, 8, 50])
def test_scores_and_gradients_do_not_depend_on_the_batch(name, size):
    """Bit for bit, forward and backward: the whole batch against batches of `size`."""
    torch.set_num_threads(1)
    net = nets()[name].eval().requires_grad_(requires_grad=False)
    x = torch.rand(75, 1, 28, 28, generator=torch.Generator().manual_seed(1))

    def scores_and_gradient(part):
        part = part.clone().requires_grad_()
        scores = padded(net, part)
        (gradient,) = torch.autograd.grad(scores.logsumexp(1).sum(), part)
        return scores.detach(), gradient

    whole = scores_and_gradient(x)
    parts = [scores_and_gradient(x[i : i + size]) for i in range(0, len(x), size)]
    for k in (0, 1):
        assert torch.equal(whole[k], torch.cat([p[k] for p in parts]))


def test_padding_asks_the_model_for_multiples_of_eight_and_returns_what_was_asked():
    asked = []

    def model(x):
        asked.append(len(x))
        return x.flatten(1)

    for n in (0, 1, 7, 8, 9):
        x = torch.arange(n * 2.0).reshape(n, 2)
        assert torch.equal(padded(model, x), x)
    assert asked == [0, 8, 8, 8, 16]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda x: torch.full((len(x), 3), torch.nan), "NaN or infinite"),
        (lambda x: torch.zeros(len(x), 2), r"expected \(4, 3\)"),
    ],
)
def test_scores_that_are_no_scores_are_refused(scores, message):
    module = nn.Module()
    module.forward = scores
    with pytest.raises(PluginError, match=message):
        Predictor(module, classes=3, chunk=8).labels(torch.rand(4, 1, 2, 2), range(4))


class Coin(nn.Module):
    """Scores (0, u − 0.5) with u uniform: label 1 with probability ½ a pass."""

    def forward(self, x, rng):
        u = rng.uniform()
        return torch.stack([torch.zeros_like(u), u - 0.5], dim=1)


def test_a_randomised_prediction_is_fixed_by_seed_and_sample_not_by_batch():
    x, ids = torch.rand(40, 1, 2, 2), list(range(100, 140))
    whole = Predictor(Coin(), 2, chunk=64, randomised=True, seed=3).labels(x, ids)
    parts = Predictor(Coin(), 2, chunk=8, randomised=True, seed=3).labels(x, ids)
    turned = Predictor(Coin(), 2, chunk=8, randomised=True, seed=3).labels(x.flip(0), ids[::-1])
    other = Predictor(Coin(), 2, chunk=8, randomised=True, seed=4).labels(x, ids)
    assert torch.equal(whole, parts)
    assert torch.equal(whole, turned.flip(0))
    assert not torch.equal(whole, other)
    assert 5 < whole.sum() < 35  # a fair coin's majority: neither always 0 nor always 1


def test_sample_streams_follow_ids_and_restarts():
    def draw(ids, restart=0):
        return SampleRng.keyed(0, "attack", ids=ids, restart=restart, device=CPU).normal(3)

    both = draw([5, 9])
    assert torch.equal(both[1], draw([9])[0])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(draw([5]), draw([5], restart=1))
    rng = SampleRng.keyed(0, "attack", ids=[5, 9], restart=0, device=CPU)
    assert torch.equal(rng.at(torch.tensor([1])).normal(3)[0], both[1])
    assert torch.equal(rng.restarted(1).at(torch.tensor([0])).normal(3), draw([5], restart=1))
