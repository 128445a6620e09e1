"""What needs a CUDA device: the same board there and on the CPU."""

import numpy as np
import pytest
import torch
from support import board_text, run

from harness.outcome import Outcome

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_a_board_on_the_gpu_agrees_with_the_cpu(tmp_path):
    """Random numbers are drawn on the CPU, so only rounding differs: labels agree on all but a
    few samples, query counts of attacks without chance exactly."""
    text = board_text(["tiny", "noisy", "stepped"], ["ascend", "wander", "student", "borrowed"])
    cpu = run(text, tmp_path / "cpu")
    gpu = run(text, tmp_path / "gpu", device="cuda")
    assert cpu.records.keys() == gpu.records.keys()
    for key, record in cpu.records.items():
        other = gpu.records[key]
        assert (record.status, other.status) == ("ok", "ok"), other.reason
        if record.kind == "attack":
            differ = record.arrays["outcome"] != other.arrays["outcome"]
            assert differ.mean() <= 0.05
            assert np.array_equal(record.arrays["forward"], other.arrays["forward"])


def test_built_in_attacks_run_on_the_gpu(tmp_path):
    text = board_text(["mlp:epochs=1"], ["fgsm", "bim", "pgd:restarts=2", "uniform_noise"])
    ran = run(text, tmp_path, device="cuda")
    for record in ran.records.values():
        assert record.status == "ok", record.reason
    assert "NVIDIA" in ran.of("mlp:epochs=1", "pgd:restarts=2").provenance["device"]
    found = ran.of("mlp:epochs=1", "bim").arrays["outcome"] == Outcome.ADVERSARIAL
    assert found.any()


def test_batches_are_halved_when_the_gpu_is_full(tmp_path):
    ran = run(board_text(["tiny"], ["misbehaves:how=memory"]), tmp_path, device="cuda", batch=64)
    assert ran.of("tiny", "misbehaves:how=memory").status == "ok"
