"""Random numbers that follow samples."""

import numpy as np
import torch

from harness.rng import SampleRng, derive


def test_draws_are_numpys_own_one_stream_a_sample():
    """Records are kept by what was drawn: however it is drawn, it has to stay the same numbers."""
    rng = SampleRng.keyed("key", ids=[5, 2], restart=1, device=torch.device("cpu"))
    own = [np.random.Generator(np.random.Philox(key=derive("key", i, 1))) for i in (5, 2)]
    for shape in ((2, 3), (), (7,), (1, 4, 4)):
        for name, drawn in (("standard_normal", rng.normal), ("random", rng.uniform)):
            expected = np.stack([getattr(g, name)(shape, np.float32) for g in own])
            assert np.array_equal(drawn(*shape).numpy(), expected)
