"""Data sets: checked, sliced, laid out on disk, opened, and made tensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.data import (
    DataOptions,
    DataRef,
    Info,
    Splits,
    TrainingSet,
    apply,
    as_images,
    check,
    choose,
    evaluation_order,
    materialise,
    stratified,
)
from harness.errors import PluginError, UsageError
from harness.fields import options_of
from harness.splits import class_list

RNG = np.random.default_rng(0)


def toy(dtype: Any = np.uint8, classes: int = 3, n: int = 30) -> Splits:
    """A valid data set; the pixels of image i tell i and its label."""
    y = np.arange(n, dtype=np.int64) % classes
    x = np.zeros((n, 2, 4, 5), np.uint8)
    x[:, 0], x[:, 1] = np.arange(n)[:, None, None], y[:, None, None]
    images = x if dtype == np.uint8 else (x / np.float32(255)).astype(dtype)
    names = tuple(f"class {i}" for i in range(classes))
    return Splits(images, y, images[: n // 2], y[: n // 2], names)


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_valid_data_set_passes(dtype: Any) -> None:
    check(toy(dtype), "toy")


def with_value(part: str, place: Any, value: float, dtype: Any = np.float32) -> Splits:
    splits = toy(dtype)
    array = getattr(splits, part).copy()
    array[place] = value
    return replace(splits, **{part: array})


@pytest.mark.parametrize(
    ("value", "shown"), [(1.5, "1.5"), (-0.25, "-0.25"), (np.nan, "nan"), (np.inf, "inf")]
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_an_image_outside_the_box_is_refused(part: str, value: float, shown: str) -> None:
    splits = with_value(f"{part}_x", (7, 1, 2, 3), value)
    with pytest.raises(UsageError) as caught:
        check(splits, "toy")
    assert f"toy: {part}: image 7 has the value {shown} at (1, 2, 3)" in str(caught.value)


@pytest.mark.parametrize("label", [-1, 3, 2**40])
def test_a_label_out_of_range_is_refused(label: int) -> None:
    with pytest.raises(UsageError, match=rf"toy: test: image 4 has the label {label}; .* 0 … 2"):
        check(with_value("test_y", 4, label), "toy")


def test_a_class_without_images_is_refused() -> None:
    splits = toy()
    with pytest.raises(UsageError, match=r"toy: train: class 3 \(d\) has no image"):
        check(replace(splits, names=("a", "b", "c", "d")), "toy")


def test_one_class_is_nothing_to_classify() -> None:
    with pytest.raises(UsageError, match="toy: 1 class"):
        check(toy(classes=1), "toy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_x": toy().train_x.astype(np.float64)}, "train: images are float64"),
        ({"train_y": toy().train_y.astype(np.int32)}, "train: labels are int32"),
        ({"train_x": toy().train_x[0]}, r"train: images have the shape \(2, 4, 5\)"),
        ({"test_y": toy().test_y[:-1]}, r"test: labels have the shape \(14,\), expected \(15,\)"),
        ({"test_x": torch.zeros(15, 2, 4, 5)}, "test: .*numpy arrays"),
        ({"test_x": toy().test_x[..., :4]}, r"\(2, 4, 5\), test images uint8 \(2, 4, 4\)"),
        ({"test_x": toy(np.float32).test_x}, "training images are uint8 .* test images float32"),
    ],
)
def test_broken_contracts_are_the_plugins(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=f"^toy: .*{message}"):
        check(replace(toy(), **change), "toy")


def test_an_empty_data_set_is_refused() -> None:
    splits = toy()
    with pytest.raises(UsageError, match="toy: test: is empty"):
        check(replace(splits, test_x=splits.test_x[:0], test_y=splits.test_y[:0]), "toy")


# --- options ---------------------------------------------------------------------------------


DIGITS = tuple("0123456789")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("0-1", [0, 1]),
        ("3+8", [3, 8]),
        ("8+3", [8, 3]),
        ("0-4+7", [0, 1, 2, 3, 4, 7]),
        ([6, 8], [6, 8]),
        (["0-1", 9], [0, 1, 9]),
    ],
)
def test_classes_are_read_as_text_and_as_lists(written: Any, meant: list[int]) -> None:
    read, _ = options_of(DataOptions)["classes"].read(written)
    assert class_list(read, DIGITS) == meant
    assert class_list(written, DIGITS) == meant


@pytest.mark.parametrize(
    "written",
    ["3", "1-1", "4-2", "0-10", "10+1", "1+1", "0-3+2", "a-b", "-1+2", "0-", "0++1", "٣+1"],
)
def test_classes_that_mean_nothing_are_refused(written: str) -> None:
    with pytest.raises(UsageError) as caught:
        class_list(written, DIGITS)
    assert str(caught.value).startswith(f"classes={written}: ")


def test_classes_by_name_are_told_their_numbers() -> None:
    names = ("vertical", "horizontal", "T-shirt")
    for written in ("horizontal+T-shirt", ["horizontal", "T-shirt"]):
        with pytest.raises(UsageError, match=r"by number: horizontal is 1, T-shirt is 2$"):
            class_list(written, names)
    with pytest.raises(UsageError, match=r"'x' is neither the number of a class nor a range such"):
        class_list("0+x", names)
    with pytest.raises(UsageError, match=r"range such as 0-4$"):
        class_list("3+x", DIGITS)


def test_classes_are_kept_and_relabelled_in_the_order_written() -> None:
    splits = apply(toy(), DataOptions(classes=("2", "0")))
    assert splits.names == ("class 2", "class 0")
    for x, y in ((splits.train_x, splits.train_y), (splits.test_x, splits.test_y)):
        assert set(x[:, 1, 0, 0]) == {0, 2}
        assert np.array_equal(np.where(x[:, 1, 0, 0] == 2, 0, 1), y)
    assert splits.train_x[:, 0, 0, 0].tolist() == [i for i in range(30) if i % 3 != 1]
    check(splits, "toy")


def test_without_options_nothing_changes() -> None:
    splits = toy()
    assert apply(splits, DataOptions()) is splits


def test_train_keeps_a_proportional_choice_in_its_order() -> None:
    whole = toy(n=90)
    few = apply(whole, DataOptions(train=10))
    kept = few.train_x[:, 0, 0, 0].tolist()
    assert kept == sorted(set(kept))
    assert len(kept) == 10
    assert sorted(Counter(few.train_y.tolist()).values()) == [3, 3, 4]
    assert few.test_x is whole.test_x
    more = apply(whole, DataOptions(train=40)).train_x[:, 0, 0, 0].tolist()
    assert set(kept) < set(more)


@pytest.mark.parametrize(("train", "why"), [(31, "there are 30"), (2, "class . .* has no image")])
def test_a_training_set_that_cannot_be_is_refused(train: int, why: str) -> None:
    with pytest.raises(UsageError, match=f"train={train}: {why}"):
        apply(toy(), DataOptions(train=train))


# --- which images are evaluated --------------------------------------------------------------


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.randoms(), st.integers(0, 5))
def test_every_prefix_holds_the_classes_in_their_proportions(
    sizes: list[int], random: Any, seed: int
) -> None:
    """Quota: of a class of share p, a prefix of length m holds ⌊mp⌋ or ⌈mp⌉, in exact integers."""
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    random.shuffle(labels)
    y, n = np.array(labels), len(labels)
    order = stratified(y, seed)
    assert sorted(order.tolist()) == list(range(n))
    for label, size in enumerate(sizes):
        count = np.cumsum(y[order] == label)
        for m, held in enumerate(count.tolist(), start=1):
            assert m * size // n <= held <= -(-m * size // n)


def test_one_large_class_among_many_small_ones_keeps_its_share() -> None:
    """Where merging by (rank + ½)/size, the obvious way, is 4.5 images off."""
    y = np.repeat(np.arange(11), [900] + [10] * 10)
    count = np.cumsum(y[stratified(y)] == 0)
    assert np.abs(count - 0.9 * np.arange(1, 1001)).max() < 1


def test_the_order_is_fixed_and_its_seed_matters() -> None:
    y = RNG.integers(0, 10, 500)
    assert np.array_equal(stratified(y), stratified(y.copy()))
    assert not np.array_equal(stratified(y, 0), stratified(y, 1))
    assert not np.array_equal(np.sort(stratified(y)[:50]), np.arange(50))
    # Written down, so that no version of numpy moves what boards evaluate.
    assert stratified(np.arange(12) % 3).tolist() == [0, 1, 2, 4, 9, 11, 3, 8, 10, 5, 6, 7]


def test_first_is_the_data_sets_own_order() -> None:
    assert evaluation_order(np.array([2, 0, 1]), "first").tolist() == [0, 1, 2]


def test_another_order_is_refused() -> None:
    with pytest.raises(UsageError, match="'random' is neither 'stratified' nor 'first'"):
        evaluation_order(np.array([0, 1]), "random")


@pytest.mark.parametrize("how", ["stratified", "first"])
@given(limit=st.none() | st.integers(1, 60), seeds=st.integers(0, 39))
def test_evaluated_images_and_seed_points_are_disjoint(
    how: str, limit: int | None, seeds: int
) -> None:
    y = np.arange(40) % 4
    evaluated, given_away = choose(y, how, limit, seeds)
    assert len(evaluated) == min(limit or 40, 40 - seeds)
    assert len(given_away) == seeds
    assert not set(evaluated) & set(given_away)
    everything, same = choose(y, how, None, seeds)
    assert np.array_equal(everything[: len(evaluated)], evaluated)
    assert np.array_equal(same, given_away)
    assert evaluated.dtype == given_away.dtype == np.int64


@pytest.mark.parametrize(
    ("limit", "seeds", "message"),
    [
        (0, 0, "limit: .* got 0"),
        (-3, 0, "got -3"),
        (1, 6, "seed_points=6: they are taken from the test images, of which there are 6"),
        (1, -1, "seed_points=-1"),
    ],
)
def test_slices_that_cannot_be_are_refused(limit: int, seeds: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose(np.arange(6) % 2, "first", limit, seeds)


# --- on disk ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_is_opened_is_what_was_laid_out(tmp_path: Path, dtype: Any) -> None:
    splits = toy(dtype)
    ref = materialise(splits, tmp_path)
    arrays = ref.open()
    for name in ("train_x", "train_y", "test_x", "test_y"):
        opened, given_ = getattr(arrays, name), getattr(splits, name)
        assert isinstance(opened, np.memmap)
        assert opened.dtype == given_.dtype
        assert np.array_equal(opened, given_)
    assert (ref.shape, ref.classes, ref.n_train, ref.n_test) == ((2, 4, 5), 3, 30, 15)
    assert ref.info == Info((2, 4, 5), 3, 30)
    assert Path(ref.folder) == tmp_path / ref.content[:32]


def test_a_reference_travels_as_json(tmp_path: Path) -> None:
    ref = materialise(toy(), tmp_path)
    travelled = DataRef.from_dict(json.loads(json.dumps(asdict(ref))))
    assert travelled == ref
    assert hash(travelled) == hash(ref)


def test_the_content_tells_types_shapes_and_bytes_apart(tmp_path: Path) -> None:
    splits = toy()
    content = materialise(splits, tmp_path).content
    assert content == materialise(toy(), tmp_path / "elsewhere").content
    reversed_ = splits.train_x[::-1]
    others = [
        toy(np.float32),
        replace(splits, train_x=np.ascontiguousarray(reversed_)),
        replace(splits, train_x=reversed_, train_y=splits.train_y[::-1]),
        replace(splits, test_x=splits.train_x, test_y=splits.train_y),
        replace(
            splits, **{k: getattr(splits, k).reshape(-1, 2, 5, 4) for k in ("train_x", "test_x")}
        ),
        with_value("test_y", 0, 1, np.uint8),
    ]
    contents = {materialise(other, tmp_path).content for other in others}
    assert len(contents | {content}) == len(others) + 1


def test_the_layout_in_memory_does_not_matter(tmp_path: Path) -> None:
    splits = toy(np.float32)
    fortran = replace(splits, train_x=np.asfortranarray(splits.train_x))
    swapped = replace(splits, train_y=splits.train_y.astype(">i8"))
    contents = {materialise(s, tmp_path).content for s in (splits, fortran, swapped)}
    assert len(contents) == 1


def test_eight_bit_data_is_known_as_such(tmp_path: Path) -> None:
    assert materialise(toy(), tmp_path).on_grid
    assert materialise(toy(np.float32), tmp_path).on_grid
    assert not materialise(with_value("test_x", 0, 0.3), tmp_path).on_grid


def test_what_is_there_is_used_again(tmp_path: Path) -> None:
    folder = Path(materialise(toy(), tmp_path).folder)
    before = {p: p.stat().st_ino for p in folder.iterdir()}
    materialise(toy(), tmp_path)
    assert {p: p.stat().st_ino for p in folder.iterdir()} == before


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_cache_is_not_believed(tmp_path: Path, damage: str) -> None:
    splits = toy()
    ref = materialise(splits, tmp_path)
    path = Path(ref.folder) / "test_x.npy"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"flip": data[:-1] + b"\xff", "cut": data[:-9], "empty": b""}[damage])
    if damage != "flip":
        with pytest.raises(UsageError, match=r"gone or torn .*; run again"):
            ref.open()
    assert materialise(splits, tmp_path) == ref
    assert path.read_bytes() == data


def test_an_interrupted_writer_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            materialise(toy(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    old, young = tmp_path / "x.1.aa.tmp", tmp_path / "x.2.bb.tmp"
    for folder in (old, young):
        folder.mkdir()
        (folder / "train_x.npy").write_bytes(b"torn")
    os.utime(old, (0, 0))
    materialise(toy(), tmp_path)
    assert not old.exists()
    assert young.exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        UsageError, match=r"file: the data cache cannot be written: .*HARNESS_CACHE"
    ):
        materialise(toy(), tmp_path / "file")


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from harness.data import Splits, materialise
y = np.arange(600) % 3
cache, start = Path(sys.argv[1]), float(sys.argv[2])
for i in range(12):
    x = np.full((600, 1, 20, 20), i, np.uint8)
    splits = Splits(x, y, x, y, ("a", "b", "c"))
    time.sleep(max(0, start + 0.1 * i - time.time()))
    ref = materialise(splits, cache)
    assert int(ref.open().train_x.min()) == int(ref.open().train_x.max()) == i
    print(ref.content)
"""


def test_many_processes_may_lay_out_the_same_data_at_once(tmp_path: Path) -> None:
    start = time.time() + 1.5
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(start)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    outputs = [p.communicate(timeout=60)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0, 0]
    assert len(set(outputs)) == 1
    assert {p.name for p in tmp_path.iterdir()} == {c[:32] for c in outputs[0].split()}


# --- as tensors ------------------------------------------------------------------------------


def test_pixels_are_the_floats_nearest_to_k_over_255() -> None:
    x = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    images = as_images(x, np.array([0]))
    assert images.dtype == torch.float32
    assert np.array_equal(images.numpy().ravel(), (np.arange(256) / 255).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_are_copies_of_the_rows_asked_for(tmp_path: Path, dtype: Any) -> None:
    arrays = materialise(toy(dtype), tmp_path).open()
    images = as_images(arrays.train_x, np.array([4, 2, 4]))
    assert (images[:, 0, 0, 0] * 255).round().tolist() == [4, 2, 4]
    images.zero_()
    assert arrays.train_x[4, 0, 0, 0] != 0


def test_a_training_set_is_the_training_part(tmp_path: Path) -> None:
    splits = toy()
    data = TrainingSet.of(materialise(splits, tmp_path))
    assert data.info == Info((2, 4, 5), 3, 30)
    assert torch.equal(data.x, as_images(splits.train_x, slice(None)))
    assert torch.equal(data.y, torch.from_numpy(splits.train_y))
    assert data.y.dtype == torch.int64


def test_noise_adds_one_clipped_noisy_copy() -> None:
    x = torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    data = TrainingSet(Info((1, 8, 8), 2, 400), x, torch.arange(400) % 2)
    noisy = data.noisy(0.05, seed=3)
    assert torch.equal(noisy.x[:400], x)
    assert torch.equal(noisy.y, torch.cat([data.y, data.y]))
    assert noisy.info == data.info
    noise = (noisy.x[400:] - x) / 0.05  # the box is 8 σ away: nothing is clipped
    n = noise.numel()
    assert abs(noise.mean().item()) < 4 / n**0.5
    assert abs(noise.var().item() - 1) < 4 * (2 / n) ** 0.5
    wide = data.noisy(2.0, seed=3).x[400:]
    assert wide.min() == 0
    assert wide.max() == 1
    inside = (wide > 0) & (wide < 1)
    torch.testing.assert_close(wide[inside], (x + 2.0 * noise)[inside], atol=1e-4, rtol=0)
    assert torch.equal(data.noisy(0.05, seed=3).x, noisy.x)
    assert not torch.equal(data.noisy(0.05, seed=4).x, noisy.x)
    assert torch.equal(data.x, x)


# --- imports ---------------------------------------------------------------------------------


def test_data_is_imported_without_torch() -> None:
    code = "import sys, harness.data; print(sorted({'torch', 'pydantic'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
