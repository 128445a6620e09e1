"""What a minimum-norm attack remembers, and which restart it is told it is."""

from __future__ import annotations

import torch

from harness.api import Best, StreamRng
from harness.rng import SampleRng

CPU = torch.device("cpu")


def images(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).float()


def test_the_closest_that_fooled_is_kept():
    best = Best(images(0, 0, 0))
    best.note(images(1, 2, 3), torch.tensor([1.0, 2, 3]), torch.tensor([True, True, False]))
    closer = best.note(images(4, 5, 6), torch.tensor([4.0, 0.5, 6]), torch.tensor([True] * 3))
    assert closer.tolist() == [False, True, True]
    assert best.x_adv.flatten().tolist() == [1, 5, 6]
    assert best.distance.tolist() == [1, 0.5, 6]


def test_where_nothing_fooled_the_clean_image_stays():
    x = images(0.25, 0.5)
    best = Best(x)
    best.note(images(1, 1), torch.tensor([0.0, torch.nan]), torch.tensor([False, True]))
    assert torch.equal(best.x_adv, x)
    assert not best.found.any()


def test_rows_are_the_samples_own():
    best = Best(images(0, 0, 0))
    rows = torch.tensor([2, 0])
    best.note(images(7, 8), torch.tensor([1.0, 1], dtype=torch.float64), torch.ones(2) > 0, rows)
    best.note(images(9, 6), torch.tensor([2.0, 0.5]), torch.ones(2) > 0, rows)
    assert best.x_adv.flatten().tolist() == [6, 0, 7]
    assert best.found.tolist() == [True, False, True]


def test_the_first_run_is_restart_0_and_the_others_are_counted():
    for rng in (
        SampleRng.keyed("key", ids=range(3), restart=0, device=CPU),
        StreamRng.keyed("key", n=3),
    ):
        assert rng.restart == 0
        later = rng.restarted(4).at(torch.tensor([1, 2]))
        assert later.restart == 4
        assert not torch.equal(rng.uniform(2)[1:], later.uniform(2))
