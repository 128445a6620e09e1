"""The built-in data sets. Reading one waits until a board names it: this imports no numpy."""

from __future__ import annotations

from collections.abc import Iterator

from harness.plugin import DatasetSpec, hookimpl

IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_CIFAR = "https://www.cs.toronto.edu/~kriz/"


@hookimpl
def harness_datasets() -> Iterator[DatasetSpec]:
    yield DatasetSpec(
        name="digits",
        factory="harness_plugins.datasets.digits:Digits",
        summary="1797 handwritten digits, 8 × 8 grey, from scikit-learn: no file is needed",
        paper="Alpaydin and Kaynak, 1998, doi:10.24432/C50P49",
    )
    yield DatasetSpec(
        name="mnist",
        factory="harness_plugins.datasets.mnist:Mnist",
        summary="70,000 handwritten digits, 28 × 28 grey, 10,000 of them test images",
        paper="LeCun, Bottou, Bengio and Haffner, 1998, doi:10.1109/5.726791",
        downloads=tuple((name, _MNIST + name) for name in IDX_FILES),
    )
    yield DatasetSpec(
        name="fashion_mnist",
        factory="harness_plugins.datasets.fashion_mnist:FashionMnist",
        summary="70,000 pieces of clothing, 28 × 28 grey, 10,000 of them test images",
        paper="arXiv:1708.07747",
        downloads=tuple((name, _FASHION + name) for name in IDX_FILES),
    )
    yield DatasetSpec(
        name="cifar10",
        factory="harness_plugins.datasets.cifar10:Cifar10",
        summary="60,000 photographs of ten kinds of things, 32 × 32 RGB, 10,000 test images",
        paper="Krizhevsky, 2009, Learning Multiple Layers of Features from Tiny Images",
        downloads=(("cifar-10-python.tar.gz", _CIFAR + "cifar-10-python.tar.gz"),),
    )
