"""Binarized networks: the estimators by hand, what eval mode computes, and votes as one batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from checkpoints import Kept, Killed
from torch.nn import functional

from harness.api import Info, Run, Target, Threat, TrainingSet
from harness.rng import SampleRng
from harness.target import Ledger, Source
from harness_plugins.attacks.pgd import PGD
from harness_plugins.binarized import QUANTISERS, Binarized, BinarizedVotes, Latent, sign
from harness_plugins.defenses.bnn import BNN
from harness_plugins.votes import hard

CPU = torch.device("cpu")
DIGITS = Info(shape=(1, 8, 8), classes=10, train=1297)


def digits(classes=10):
    sklearn = pytest.importorskip("sklearn.datasets")
    raw = sklearn.load_digits(n_class=classes)
    x = torch.from_numpy(raw.images).float()[:, None] / 16
    y = torch.from_numpy(raw.target).long()
    n = 3 * len(y) // 4
    info = replace(DIGITS, classes=classes, train=n)
    return TrainingSet(info, x[:n], y[:n]), x[n:], y[n:]


def fitted(model, data, seed=0, store=None):
    return model.fit(data, Run(seed, CPU, _store=store or Kept()))


def accuracy(net, x, y):
    return (net(x).argmax(1) == y).double().mean().item()


def latent(v=3, h=4, d=6, k=2, quantiser="approx"):
    rng = torch.Generator().manual_seed(0)
    hidden, output = (
        torch.rand(v, *shape, generator=rng, dtype=torch.double) * 2 - 1
        for shape in ((h, d), (k, h))
    )
    return Latent(hidden, output, quantiser).double()


def batch(n=12, d=6, k=2):
    rng = torch.Generator().manual_seed(1)
    return torch.rand(n, d, generator=rng, dtype=torch.double), torch.arange(n) % k


# --- quantisers --------------------------------------------------------------------------------

POINTS = [-2.0, -1.0, -0.75, -0.0, 0.0, 0.25, 1.0, 1.5]


@pytest.mark.parametrize(
    ("quantiser", "slopes"),
    [("approx", [0, 0, 0.5, 2, 2, 1.5, 0, 0]), ("ste", [0, 1, 1, 1, 1, 1, 1, 0])],
)
def test_quantisers_give_signs_and_their_estimators_slopes(quantiser, slopes):
    u = torch.tensor(POINTS, requires_grad=True)
    before = torch.arange(1.0, 9)
    signs = QUANTISERS[quantiser](u)
    assert signs.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    (gradient,) = torch.autograd.grad(signs, u, before)
    assert gradient.tolist() == [s * b for s, b in zip(slopes, before.tolist(), strict=True)]
    assert u.tolist() == POINTS


# --- training ----------------------------------------------------------------------------------


def test_the_forward_pass_in_training_is_what_larq_would_compute():
    """One network, by the definitions: binary kernels, batch statistics, shift, sign."""
    net, (x, _) = latent(v=1), batch()
    with torch.no_grad():
        net.shift.copy_(torch.tensor([[0.5, -0.5, 0, 0.1]]))
    z = x @ sign(net.hidden[0]).T
    u = (z - z.mean(0)) / (z.var(0, correction=0) + 1e-3).sqrt() + net.shift[0]
    expected = sign(u) @ sign(net.output[0]).T
    assert torch.equal(net(x)[:, 0], expected)
    torch.testing.assert_close(net.mean[0], 0.1 * z.mean(0))
    torch.testing.assert_close(net.variance[0], 0.9 + 0.1 * z.var(0, correction=0))


def test_latent_weights_beyond_one_come_back():
    net = latent()
    with torch.no_grad():
        net.hidden.mul_(3)
        net.output.mul_(3)
    before = net.hidden.clone()
    net.clip()
    assert torch.equal(net.hidden, before.clamp(-1, 1))
    assert net.output.abs().max() == 1
    data, _, _ = digits()
    seen = []

    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: seen.append(module.hidden.abs().max()) if type(module) is Latent else None
    )
    try:
        fitted(BNN(epochs=2, lr=0.5), data)
    finally:
        handle.remove()
    assert len(seen) == 28
    assert max(seen) == 1


def test_the_loss_is_the_sum_of_the_networks_own():
    net, (x, y) = latent(), batch()
    scores = net(x)
    own = [functional.cross_entropy(scores[:, i], y) for i in range(3)]
    torch.testing.assert_close(net.loss(x, y), sum(own))


@pytest.mark.parametrize("images", [1, 3])
def test_a_last_batch_of_few_images_is_trained_on(images):
    data, _, _ = digits()
    data = replace(data, x=data.x[: 100 + images], y=data.y[: 100 + images])
    net = fitted(BNN(epochs=1), data)
    assert net(data.x).isfinite().all()


@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_eval_mode_is_kept_in_signs_and_offsets(quantiser):
    """The normalisation folded into a threshold is the same network; in single precision, but for
    sums that lie on one."""
    net, (x, y) = latent(quantiser=quantiser), batch(200)
    for _ in range(5):
        net.loss(x, y)
    with torch.no_grad():
        net.shift.normal_(generator=torch.Generator().manual_seed(2))
    net.eval()
    assert torch.equal(net.binarized()(x), net(x))
    assert set(net.binarized().hidden.unique().tolist()) == {-1, 1}


@pytest.mark.parametrize("votes", [2, 5])
def test_votes_trained_together_are_those_trained_alone(votes):
    """Bit for bit on a CPU, and the first of many are those of few."""
    data, _, _ = digits()

    class Alone(BNN):
        def _drawn(self, shape, run):
            return super()._drawn((votes, *shape[1:]), run)[-1:]

    many = fitted(BNN(votes=votes, epochs=2), data).networks.tensors
    few = fitted(BNN(votes=1, epochs=2), data).networks.tensors
    last = fitted(Alone(epochs=2), data).networks.tensors
    for name, tensor in many.items():
        assert torch.equal(tensor[:1], few[name])
        assert torch.equal(tensor[-1:], last[name])
    assert not torch.equal(many["hidden"][0], many["hidden"][1])


@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_killed_training_ends_with_the_bits_of_one_that_was_not(killed_after):
    data, _, _ = digits()
    model, store = BNN(votes=2, epochs=3), Kept(kill_after=killed_after)
    whole = fitted(model, data)
    with pytest.raises(Killed):
        fitted(model, data, store=store)
    resumed = fitted(model, data, store=store)
    assert store.saves == 3
    assert all(torch.equal(a, resumed.state_dict()[k]) for k, a in whole.state_dict().items())


def test_initial_weights_fill_glorots_interval():
    model = BNN(votes=2)
    drawn = model._drawn((2, 20, 300), Run(0, CPU))
    bound = (6 / 320) ** 0.5
    assert 0.99 * bound < drawn.abs().max() <= bound
    assert drawn.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_learns_digits(quantiser):
    data, x, y = digits()
    net = fitted(BNN(hidden=40, quantiser=quantiser, votes=5), data)
    assert accuracy(net, x, y) > 0.85


# --- the classifier ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    """Two classes: a single network, and five."""
    data, x, y = digits(classes=2)
    return [fitted(BNN(votes=v, epochs=10), data) for v in (1, 5)], x, y


def test_build_takes_what_fit_gives(pair):
    nets, x, _ = pair
    for votes, net in zip((1, 5), nets, strict=True):
        again = BNN(votes=votes).build(Info((1, 8, 8), 2, 1))
        again.load_state_dict(net.state_dict())
        assert torch.equal(again(x), net(x))


def test_one_network_scores_with_log_probabilities_and_more_with_shares(pair):
    (one, five), x, _ = pair
    torch.testing.assert_close(one(x), one.networks(x)[:, 0].log_softmax(1))
    assert torch.equal(five(x), hard(five.networks(x)))


def test_a_tie_of_the_units_is_class_zero():
    hidden, output = torch.ones(1, 2, 4), torch.tensor([[[1.0, 1], [-1, -1]]])
    units = torch.tensor([[0.0, -4.5]])  # of a grey image one unit is on, one off
    net = BinarizedVotes(Binarized(hidden, units, units * 0 + 1, output))
    grey = torch.full((3, 1, 2, 2), 0.5)
    assert net.networks(grey).tolist() == [[[0, 0]]] * 3
    assert net(grey).argmax(1).tolist() == [0, 0, 0]


def test_the_classifier_has_no_gradient_and_its_surrogate_is_the_soft_vote(pair):
    nets, x, _ = pair
    for net in nets:
        x = x.clone().requires_grad_()
        assert not net(x).requires_grad
        smooth = net.surrogate()(x)
        mean = net.networks(x).softmax(2).mean(1)
        torch.testing.assert_close(smooth.exp(), mean)
        (gradient,) = torch.autograd.grad(smooth[:, 1].sum(), x)
        assert (gradient.flatten(1).abs().sum(1) > 0).double().mean() > 0.5


def test_rows_do_not_depend_on_the_batch(pair):
    nets, x, _ = pair
    for net in nets:
        assert torch.equal(net(x[:40])[16:24], net(x[16:24]))


def test_gradient_attacks_go_through_the_surrogate(pair):
    (_, net), x, y = pair
    right = (net(x).argmax(1) == y).nonzero()[:, 0]
    x, y = x[right], y[right]
    rng = SampleRng.keyed("test", ids=range(len(x)), restart=0, device=CPU)
    target = Target(Source(net, 2, 512, backward=net.surrogate()), "gradients", Ledger(1))
    x_adv = PGD(steps=20)(target, x, y, Threat("Linf", 0.25), rng)
    noise = (x + 0.25 * torch.randn(x.shape).sign()).clamp(0, 1)
    assert accuracy(net, x_adv, y) < 0.3
    assert accuracy(net, noise, y) > 0.6
