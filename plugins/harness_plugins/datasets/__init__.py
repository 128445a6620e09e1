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
_GTSRB = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
_STL = "http://ai.stanford.edu/~acoates/stl10/"
_SIGNS = (
    "GTSRB_Final_Training_Images.zip",
    "GTSRB_Final_Test_Images.zip",
    "GTSRB_Final_Test_GT.zip",
)
_PILLOW = (("pillow>=11.0", "robustness-harness[images]"),)


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
    yield DatasetSpec(
        name="gtsrb",
        factory="harness_plugins.datasets.gtsrb:Gtsrb",
        summary="German traffic signs, RGB: 60 and 120 km/h, or any of the 43, split by track",
        paper="Stallkamp, Schlipsing, Salmen and Igel, 2011, doi:10.1109/IJCNN.2011.6033395",
        downloads=tuple((name, _GTSRB + name) for name in _SIGNS),
    )
    yield DatasetSpec(
        name="stl10",
        factory="harness_plugins.datasets.stl10:Stl10",
        summary="13,000 photographs of ten kinds of things, 96 × 96 RGB, 8000 of them test images",
        paper="Coates, Ng and Lee, 2011, An Analysis of Single-Layer Networks",
        downloads=(("stl10_binary.tar.gz", _STL + "stl10_binary.tar.gz"),),
    )
    yield DatasetSpec(
        name="celeba",
        factory="harness_plugins.datasets.celeba:Celeba",
        summary="faces, RGB, by an attribute or several: brown against black hair, or any of 40",
        paper="arXiv:1411.7766",
        requires=_PILLOW,
    )
    yield DatasetSpec(
        name="imagefolder",
        factory="harness_plugins.datasets.imagefolder:ImageFolder",
        summary="your own images in folders of classes, as Mini-ImageNet's are",
        paper="after Mini-ImageNet: arXiv:1606.04080",
        requires=_PILLOW,
    )
