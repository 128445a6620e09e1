"""Fashion-MNIST, from the four official idx files."""

from __future__ import annotations

from dataclasses import dataclass

from harness.data import Files, Splits
from harness_plugins.datasets import idx

SHA256 = (  # of IDX_FILES, in their order
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
)
NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class FashionMnist:
    """Images uint8 (n, 1, 28, 28), white on black; 60,000 to train, 10,000 to test."""

    def load(self, files: Files) -> Splits:
        return idx.load(files, SHA256, NAMES)
