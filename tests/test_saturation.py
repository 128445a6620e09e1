"""x^(p): on a data set, and before a classifier."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import board_text, run, session_of
from torch import nn

from harness.api import Info
from harness.compatibility import misfit
from harness.errors import UsageError
from harness.identity import key_of
from harness.options import AttackOptions, ModelOptions, resolve
from harness.registry import discover
from harness.saturation import LEAST, Saturated, saturate
from harness.selection import parse_selection
from harness.session import cache_folder
from harness.splits import DataOptions, Splits, apply, saturated


def by_hand(x, p):
    """METHODS' formula, one number at a time, in exact arithmetic where it can be."""
    if x == 0.5:
        return 0.5
    sign, size = (1 if x > 0.5 else -1), abs(2 * x - 1)
    return 0.5 * sign * (1.0 if p == math.inf else size ** (2 / p)) + 0.5


@given(st.floats(0, 1), st.sampled_from([2, 2.5, 4, 10, math.inf]))
def test_both_are_the_formula(x, p):
    x = float(np.float32(x))
    expected = by_hand(x, p)
    # At ½ the curve is steep: 2x − 1 of a float32 is exact, and so is what is compared.
    here = saturated(np.array([x], np.float32), p)
    there = saturate(torch.tensor([x]), p)
    assert (here.dtype, there.dtype) == (np.float32, torch.float32)
    assert here[0] == pytest.approx(expected, abs=1e-6)
    assert there.item() == pytest.approx(expected, abs=1e-6)


def test_eight_bit_images():
    """2 changes nothing; inf leaves 0 and 255, for none is ½; between them they are float32."""
    x = np.arange(256, dtype=np.uint8)
    assert saturated(x, 2) is x
    binary = saturated(x, "inf")
    assert binary.dtype == np.uint8
    assert binary.tolist() == [0] * 128 + [255] * 128
    four = saturated(x, 4)
    assert four.dtype == np.float32
    assert four == pytest.approx([by_hand(k / 255, 4) for k in range(256)], abs=1e-6)
    assert (np.diff(four) > 0).all()
    assert (four[0], four[255]) == (0, 1)


def small():
    x = np.linspace(0, 255, 4 * 4).astype(np.uint8).reshape(4, 1, 2, 2)
    y = np.array([0, 1, 0, 1])
    return Splits(x, y, x[::-1].copy(), y[::-1].copy(), ("a", "b"))


@pytest.mark.parametrize("p", [4.0, "inf"])
def test_training_and_test_images_are_saturated_after_the_choice_of_images(p):
    splits = small()
    got = apply(splits, DataOptions(train=2, saturate=p))
    kept = apply(splits, DataOptions(train=2))
    assert np.array_equal(got.train_x, saturated(kept.train_x, p))
    assert np.array_equal(got.test_x, saturated(splits.test_x, p))
    assert np.array_equal(got.train_y, kept.train_y)


@pytest.mark.parametrize(("p", "grid"), [("2", True), ("inf", True), ("4", False)])
def test_as_an_option_of_any_data_set(tmp_path, p, grid):
    text = board_text(["tiny"], ["ascend"]).replace('"blobs"', f'"blobs:saturate={p}"')
    ran = run(text, tmp_path)
    assert ran.plan.data.ref.on_grid == grid
    assert ("label8" in ran.of("tiny", "ascend").arrays) == grid
    pixels = ran.plan.data.ref.open().test_x
    assert (len(np.unique(pixels)) == 2) == (p == "inf")


def test_images_are_perturbed_after_binarising_and_not_binarised_again(tmp_path):
    text = board_text(["tiny"], ["ascend"]).replace('"blobs"', '"blobs:saturate=inf"')
    ran = run(text, tmp_path, keep_examples=True)
    images = ran.store.examples(ran.of("tiny", "ascend").key)["x_adv"]
    assert len(np.unique(images)) > 2


@pytest.mark.parametrize("bad", ["1.5", "nan", "-inf", "many", "true"])
@pytest.mark.parametrize("where", ["dataset", "model"])
def test_bad_values_are_said_in_one_line(tmp_path, bad, where):
    text = board_text(["tiny"], ["ascend"])
    if where == "dataset":
        text = text.replace('"blobs"', f'"blobs:saturate={bad}"')
    else:
        text = text.replace("'tiny'", f"'tiny:saturate={bad}'")
    said = r"option 'saturate': expected float \| inf \| none, ≥ 2; got"
    with pytest.raises(UsageError, match=said) as error:
        session_of(text, tmp_path)
    assert "\n" not in str(error.value)


def test_toml_may_write_infinity_as_a_number(tmp_path):
    text = board_text(["tiny"], ["ascend"])
    keys = []
    for i, written in enumerate(('"inf"', "inf")):
        model = f'{{ use = "tiny", saturate = {written} }}'
        plan = session_of(text.replace("'tiny'", model), tmp_path / str(i)).plan
        keys.append(set(plan.cells))
    assert keys[0] == keys[1]


def resolved(text):
    catalogue, selection = discover(), parse_selection(text, "t")
    entry = catalogue.model(selection.name)
    return resolve(selection, entry, ModelOptions, catalogue, "t")


def test_where_it_is_not_asked_for_nobody_has_another_name_than_before(tmp_path):
    """Keys of records that were made before there was the option."""
    assert resolved("tiny").identity["harness"] == {"noise": 0.0}
    assert resolved("tiny:saturate=none").identity == resolved("tiny").identity
    assert resolved("tiny:saturate=2").identity["harness"] == {"noise": 0.0, "saturate": 2.0}
    assert resolved("tiny:saturate=inf").identity["harness"]["saturate"] == "inf"
    key_of(resolved("tiny:saturate=inf").identity)
    data = session_of(board_text(["tiny"], ["ascend"]), tmp_path).plan.data
    assert data.identity["harness"] == {"classes": [], "train": None}


class Scores(nn.Module):
    """Randomised, with a surrogate, and both know the input that they were given."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.weight = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x, *rng):
        self.seen.append((x, rng))
        total = (self.weight * x).flatten(1).sum(1)
        return torch.stack([total, -total], 1)

    def surrogate(self):
        return Scores()


def test_the_classifier_sees_saturated_images_and_its_own_randomness():
    inner = Scores()
    x = torch.rand(3, 1, 2, 2)
    model = Saturated(inner, math.inf)
    model(x, "rng")
    seen, rng = inner.seen[0]
    assert torch.equal(seen, (x > 0.5).float())
    assert rng == ("rng",)
    stand_in = model.surrogate()
    stand_in(x)
    assert torch.equal(stand_in.inner.seen[0][0], seen)


@pytest.mark.parametrize("p", [2, 2.5, 4, 20])
def test_the_gradient_is_exact_for_finite_p(p):
    x = torch.tensor([0.0, 0.1, 0.47, 0.6, 1.0], dtype=torch.float64)
    x = (x * 0.98 + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: saturate(v, p), (x,))


def test_the_gradient_is_finite_at_a_half_and_for_inf_it_is_passed_on():
    """At ½ the slope is infinite for p > 2; it is that of the nearest 8-bit pixels."""
    for p in (2.5, 4, 1000):
        x = torch.tensor([0.5, 128 / 255, 127 / 255], requires_grad=True)
        (slope,) = torch.autograd.grad(saturate(x, p).sum(), x)
        assert slope == pytest.approx([2 / p * LEAST ** (2 / p - 1)] * 3, rel=1e-3)
        assert torch.isfinite(slope).all()
    x = torch.rand(5, requires_grad=True)
    given = torch.randn(5)
    (passed,) = torch.autograd.grad(saturate(x, math.inf), x, given)
    assert torch.equal(passed, given)


@pytest.mark.parametrize("p", [2.5, 4, math.inf])
def test_a_pixels_value_does_not_depend_on_its_neighbours(p):
    x = torch.rand(1000)
    alone = torch.cat([saturate(x[i : i + 1], p) for i in range(100)])
    assert torch.equal(saturate(x, p)[:100], alone)


def test_a_model_is_trained_on_saturated_images_and_saturates_its_input(tmp_path):
    """It learns what the same model learns of saturated data, and sees 0.6 as it sees 1."""
    plain = board_text(["mlp:epochs=2"], ["ascend"])
    strict = plain.replace("mlp:epochs=2", "mlp:epochs=2,saturate=inf")
    on_data = plain.replace('"blobs"', '"blobs:saturate=inf"')
    weights = []
    for i, text in enumerate((on_data, strict)):
        before = set((cache_folder() / "weights").glob("*.safetensors"))
        ran = run(text, tmp_path / str(i))
        (path,) = set((cache_folder() / "weights").glob("*.safetensors")) - before
        weights.append({k.removeprefix("inner."): v for k, v in load_file(path).items()})
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())
    label = "mlp:epochs=2,saturate=inf"
    fit, attack = ran.of(label), ran.of(label, "ascend")
    assert (fit.status, attack.status) == ("ok", "ok")
    assert attack.facts["access"] == "bpda"
    assert attack.arrays["backward"].sum() > 0


def test_noise_comes_before_saturation(tmp_path):
    """A noisy copy is saturated as a noisy image is at inference: no pixel but 0 and 1."""
    seen = []

    def fit(self, data, run):
        seen.append(data)
        return self.build(data.info)

    import testkit_parts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testkit_parts.Tiny, "fit", fit)
        ran = run(board_text(["tiny:noise=0.1,saturate=inf"], ["wander"]), tmp_path)
    assert ran.of("tiny:noise=0.1,saturate=inf").status == "ok"
    (data,) = seen
    assert len(data.x) == 2 * data.info.train == 2 * len(data.y) // 2
    assert data.x.unique().tolist() == [0, 1]
    assert not torch.equal(data.x[: data.info.train], data.x[data.info.train :])


@pytest.mark.parametrize("model", ["noisy", "stepped", "noisy_steps"])
@pytest.mark.parametrize("p", ["4", "inf"])
def test_randomised_models_and_surrogates_work_behind_it(tmp_path, model, p):
    text = board_text([f"{model}:saturate={p}"], ["wander", "ascend:gradient=bpda", "ascend"])
    ran = run(text, tmp_path)
    ok = [r.status for r in ran.records.values()]
    assert set(ok) == {"ok"}
    assert len(ok) == {"noisy": 3, "stepped": 3, "noisy_steps": 4}[model]


def test_parts_speak_of_the_saturated_input_so_there_are_none():
    catalogue = discover()
    selection = parse_selection("reads_threshold", "t")
    attack = resolve(selection, catalogue.attack("reads_threshold"), AttackOptions, catalogue, "t")
    info = Info((1, 4, 4), 3, 60)
    assert misfit(resolved("stepped"), attack, "Linf", info) == ""
    why = misfit(resolved("stepped:saturate=4"), attack, "Linf", info)
    assert why == "reads_threshold needs the part threshold, which stepped has not, as it is set"


def test_of_a_model_inside_another_it_is_the_outer_ones():
    """The inner recipe is trained by the outer model: nothing would heed the option."""
    catalogue = discover()
    for option in ("noise=0.1", "saturate=4"):
        selection = parse_selection(f"student:recipe=(tiny:{option})", "t")
        entry = catalogue.attack("student")
        with pytest.raises(UsageError, match="noise and saturate belong to the model that it is"):
            resolve(selection, entry, AttackOptions, catalogue, "t")


def test_gradients_get_through_a_saturated_input(tmp_path):
    """PGD is not blind on a binarised input: it breaks what it breaks on binarised data."""
    attack = "pgd:steps=10,loss=margin"
    text = board_text(["mlp:epochs=20,saturate=inf"], [attack, "uniform_noise"], eps=(0.6,))
    ran = run(text.replace("blobs", "digits:classes=0-4"), tmp_path)
    label = "mlp:epochs=20,saturate=inf"
    left = [
        (ran.of(label, a).arrays["label"][:, 0] == ran.of(label).arrays["y"]).mean()
        for a in (attack, "uniform_noise")
    ]
    assert left[0] < left[1] - 0.3
