"""The models that the 01-loss papers compare theirs with, on the papers' pairs of classes.

Real data and minutes: run with -m slow and HARNESS_DATA.
"""

from __future__ import annotations

import pytest
import torch
from pairs import pair

from harness.api import Run
from harness_plugins.architectures import SimpleNet
from harness_plugins.datasets.cifar10 import Cifar10
from harness_plugins.datasets.mnist import Mnist
from harness_plugins.defenses.bnn import BNN
from harness_plugins.defenses.ensembles import Average
from harness_plugins.defenses.sklearn_mlp import SklearnMLP
from harness_plugins.defenses.svm import SVM

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cifar10():
    return pair(Cifar10(), "cifar10")


@pytest.fixture(scope="module")
def mnist():
    return pair(Mnist(), "mnist")


def accuracy(model, data):
    train, x, y = data
    torch.manual_seed(0)
    net = model.fit(train, Run(0, torch.device("cpu"))).eval()
    with torch.no_grad():
        hits = [net(a).argmax(1) == b for a, b in zip(x.split(500), y.split(500), strict=True)]
    return torch.cat(hits).double().mean().item()


@pytest.mark.parametrize(
    ("model", "least", "most"),
    [
        # Xue, Xie and Roshan, 'On the transferability …' (2020), Table III: SVM 82.2, MLP 88.7
        (SVM(C=0.01), 0.815, 0.83),
        (SklearnMLP(), 0.87, 0.90),
        (BNN(votes=16), 0.80, 0.85),
        (Average(epochs=3), 0.88, 0.95),
        (Average(arch=SimpleNet(), epochs=3), 0.88, 0.95),
    ],
)
def test_cifar10_classes_0_and_1(cifar10, model, least, most):
    assert least <= accuracy(model, cifar10) <= most


@pytest.mark.parametrize(
    ("model", "least"), [(SVM(C=0.01), 0.999), (SklearnMLP(), 0.999), (BNN(votes=5), 0.998)]
)
def test_mnist_classes_0_and_1(mnist, model, least):
    assert accuracy(model, mnist) >= least
