"""MNIST, from the four official idx files."""

from __future__ import annotations

from dataclasses import dataclass

from harness.data import Files, Splits
from harness_plugins.datasets import idx

SHA256 = (  # of IDX_FILES, in their order
    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
)


@dataclass(frozen=True)
class Mnist:
    """Images uint8 (n, 1, 28, 28), white on black; 60,000 to train, 10,000 to test."""

    def load(self, files: Files) -> Splits:
        return idx.load(files, SHA256, names=tuple("0123456789"))
