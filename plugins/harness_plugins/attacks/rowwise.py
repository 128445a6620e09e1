"""Matrix products of an attack's own whose rows do not depend on the batch they were made in.

Matrix kernels choose their blocking by the number of rows. The harness pads what a target is asked;
an attack that computes with a part of the model has to do so itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MULTIPLE = 8


def rowwise(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """product(x) for x (n, …), made on a multiple of 8 rows."""
    missing = -len(x) % MULTIPLE
    rows = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x
    return product(rows)[: len(x)]
