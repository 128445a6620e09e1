"""What needs a CUDA device: the same board there and on the CPU."""

import numpy as np
import pytest
import torch
from support import board_text, run

from harness.outcome import Outcome
from harness.registry import discover

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_a_board_on_the_gpu_agrees_with_the_cpu(tmp_path):
    """Random numbers are drawn on the CPU, so only rounding differs: labels agree on all but a
    few samples, query counts of attacks without chance exactly."""
    text = board_text(["tiny", "noisy", "stepped"], ["ascend", "wander", "student", "borrowed"])
    cpu = run(text, tmp_path / "cpu")
    gpu = run(text, tmp_path / "gpu", device=DEVICE)
    assert cpu.records.keys() == gpu.records.keys()
    for key, record in cpu.records.items():
        other = gpu.records[key]
        assert (record.status, other.status) == ("ok", "ok"), other.reason
        if record.kind == "attack":
            differ = record.arrays["outcome"] != other.arrays["outcome"]
            assert differ.mean() <= 0.05
            assert np.array_equal(record.arrays["forward"], other.arrays["forward"])


QUICK = [  # every attack of the project that is not for one kind of model alone, cut short
    "fgsm",
    "bim",
    "pgd:restarts=2",
    "mifgsm:steps=5",
    "daa:steps=5",
    "slide:steps=5",
    "cw:steps=10,search_steps=2",
    "ead:steps=10,search_steps=2",
    "deepfool",
    "ddn:steps=10",
    "fab:steps=5",
    "pdgd:steps=20",
    "pdpgd:steps=20",
    "pdpgd:steps=20,preset=thesis",
    "high_confidence",
    "sparsefool",
    "lbfgs:steps=10",
    "hopskipjump:steps=2",
    "boundary:steps=20",
    "square:steps=20",
    "simba:steps=20",
    "substitute:rounds=2,epochs=2,seed_points=20",
    "transfer:source=(mlp:epochs=1),attack=fgsm",
    "uniform_noise",
]


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1", "L0"])
def test_built_in_attacks_run_on_the_gpu(norm, tmp_path):
    home = discover()
    attacks = [a for a in QUICK if norm in home.attack(a.partition(":")[0]).spec.norms]
    if norm == "L0":  # fgsm, which these make their images with, has none
        attacks = [a for a in attacks if not a.startswith(("substitute", "transfer"))]
    text = board_text(["mlp:epochs=60"], attacks, norm, {"L0": (2, 4)}.get(norm, (0.1, 0.5)))
    ran = run(text, tmp_path, device=DEVICE)
    assert not [record.reason for record in ran.records.values() if record.status != "ok"]
    assert all("NVIDIA" in record.provenance["device"] for record in ran.records.values())
    broken = [
        (record.arrays["outcome"] == Outcome.ADVERSARIAL).any()
        for record in ran.records.values()
        if record.kind == "attack"
    ]
    assert len(broken) == len(attacks)
    assert sum(broken) > len(broken) / 2


def test_batches_are_halved_when_the_gpu_is_full(tmp_path):
    ran = run(board_text(["tiny"], ["misbehaves:how=memory"]), tmp_path, device=DEVICE, batch=64)
    assert ran.of("tiny", "misbehaves:how=memory").status == "ok"
