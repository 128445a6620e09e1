"""The built-in data sets, on files made here in the official formats, and on the official files."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data import DataOptions, Files, Splits, apply, check, materialise
from harness.errors import UsageError
from harness.plugin import DatasetSpec
from harness_plugins import datasets
from harness_plugins.datasets import IDX_FILES, cifar10, idx, mnist
from harness_plugins.datasets.cifar10 import Cifar10
from harness_plugins.datasets.digits import Digits
from harness_plugins.datasets.mnist import Mnist

SPECS = {spec.name: spec for spec in datasets.harness_datasets()}
RNG = np.random.default_rng(0)
ROOT = Path(os.environ.get("HARNESS_DATA", "/nonexistent"))


def needs_real(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not (ROOT / name).is_dir(), reason=f"HARNESS_DATA has no folder {name}"
    )


# --- specs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_spec_names_a_data_set(spec: DatasetSpec) -> None:
    module, _, name = spec.factory.partition(":")
    assert callable(getattr(importlib.import_module(module), name)().load)
    assert spec.summary
    assert spec.paper


def test_listing_data_sets_imports_nothing_heavy() -> None:
    code = (
        "import sys, harness_plugins.datasets as d; list(d.harness_datasets());"
        "print(sorted({'torch', 'numpy', 'sklearn', 'pydantic'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_what_is_missing_is_named_with_what_to_do(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    component = getattr(
        importlib.import_module(spec.factory.split(":")[0]), spec.factory.split(":")[1]
    )
    with pytest.raises(UsageError) as caught:
        component().load(Files(tmp_path, name, spec.downloads))
    message = str(caught.value)
    filename, url = spec.downloads[0]
    for part in (filename, url, str(tmp_path / name), f"harness fetch {name}", "HARNESS_DATA"):
        assert part in message
    with pytest.raises(UsageError, match="no data folder is named"):
        component().load(Files(None, name, spec.downloads))


# --- digits ----------------------------------------------------------------------------------


def test_digits_are_scikit_learns_in_a_fixed_stratified_split() -> None:
    from sklearn.datasets import load_digits

    splits = Digits().load(Files(None, "digits"))
    check(splits, "digits")
    assert splits.train_x.shape == (1257, 1, 8, 8)
    assert splits.test_x.shape == (540, 1, 8, 8)

    def rows(x: Any, y: Any) -> list[tuple[bytes, int]]:
        images = (np.asarray(x).reshape(len(x), -1) * 16).astype(np.uint8)
        return sorted((image.tobytes(), int(label)) for image, label in zip(images, y, strict=True))

    both = rows(splits.train_x, splits.train_y) + rows(splits.test_x, splits.test_y)
    raw = load_digits()
    assert sorted(both) == rows(raw.images / 16, raw.target)
    shares = np.bincount(raw.target) * 540 / 1797
    assert np.abs(np.bincount(splits.test_y) - shares).max() < 1


def test_digits_are_the_same_on_every_machine(tmp_path: Path) -> None:
    """Written down: another split would be another data set, and another version of its spec."""
    ref = materialise(Digits().load(Files(None, "digits")), tmp_path)
    assert ref.content == "24e0762d2311070eb2814108c14b41ab58b4ecbea42929dfe2e33b6ffd762dde"
    assert not ref.on_grid


# --- idx -------------------------------------------------------------------------------------


def idx_data(array: np.ndarray[Any, Any]) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def small_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """MNIST of 20 training and 10 test images, with sums to match, below tmp_path/mnist."""
    arrays = {
        name: RNG.integers(0, 256, (n, 28, 28), np.uint8)
        if "images" in name
        else (np.arange(n) % 10).astype(np.uint8)
        for name, n in zip(IDX_FILES, (20, 20, 10, 10), strict=True)
    }
    put(tmp_path, monkeypatch, {name: idx_data(array) for name, array in arrays.items()})
    return arrays


def put(root: Path, monkeypatch: pytest.MonkeyPatch, raw: dict[str, bytes]) -> None:
    """Write the four files, gzipped, and believe their sums."""
    (root / "mnist").mkdir(exist_ok=True)
    packed = {name: gzip.compress(data, mtime=0) for name, data in raw.items()}
    for name, data in packed.items():
        (root / "mnist" / name).write_bytes(data)
    sums = tuple(hashlib.sha256(packed[name]).hexdigest() for name in IDX_FILES)
    monkeypatch.setattr(mnist, "SHA256", sums)


def load_mnist(root: Path) -> Splits:
    return Mnist().load(Files(root, "mnist", SPECS["mnist"].downloads))


def test_idx_files_are_read(small_mnist: dict[str, Any], tmp_path: Path) -> None:
    splits = load_mnist(tmp_path)
    check(splits, "mnist")
    raw = [small_mnist[name] for name in IDX_FILES]
    assert np.array_equal(splits.train_x[:, 0], raw[0])
    assert np.array_equal(splits.train_y, raw[1])
    assert np.array_equal(splits.test_x[:, 0], raw[2])
    assert np.array_equal(splits.test_y, raw[3])


@pytest.mark.usefixtures("small_mnist")
@pytest.mark.parametrize("name", IDX_FILES)
@pytest.mark.parametrize("damage", ["altered", "truncated"])
def test_a_damaged_file_is_refused_with_both_sums(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / "mnist" / name
    data = path.read_bytes()
    other = data[:-1] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1])
    path.write_bytes(other)
    with pytest.raises(UsageError) as caught:
        materialise(load_mnist(tmp_path), tmp_path / "cache")
    message = str(caught.value)
    for part in (str(path), hashlib.sha256(data).hexdigest(), hashlib.sha256(other).hexdigest()):
        assert part in message
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "begins with nothing, expected 00 00 08 01"),
        (b"\0\0\x08\x03" + bytes(12), "begins with 00 00 08 03, expected 00 00 08 01"),
        (b"\0\0\x0d\x01" + bytes(8), "begins with 00 00 0d 01"),
        (b"\0\0\x08\x01\0\0", "begins with 00 00 08 01, .* and its sizes"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "holds 3 values, expected 5: its header says 5"),
        (b"\0\0\x08\x01\0\0\0\x02abc", "holds 3 values, expected 2"),
    ],
)
def test_bad_idx_data_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=f"^here: {message}"):
        idx.parse(data, 1, "here")


def test_a_header_that_promises_a_huge_image_allocates_nothing() -> None:
    with pytest.raises(UsageError, match="4294967295 x 4294967295 x 4294967295"):
        idx.parse(b"\0\0\x08\x03" + b"\xff" * 12, 3, "here")


def test_what_is_no_gz_is_refused(
    small_mnist: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = idx_data(small_mnist[IDX_FILES[0]])
    packed = gzip.compress(raw)
    for data in (raw, packed[: len(packed) // 2], b"\x1f\x8b\x08\0\0\0\0\0\0\0\xff\xff\xff"):
        (tmp_path / "mnist" / IDX_FILES[0]).write_bytes(data)
        sums = (hashlib.sha256(data).hexdigest(), *mnist.SHA256[1:])
        monkeypatch.setattr(mnist, "SHA256", sums)
        with pytest.raises(UsageError, match=r"mnist: train-images.*: not a whole \.gz file: "):
            load_mnist(tmp_path)


# --- CIFAR-10 --------------------------------------------------------------------------------

BATCHES = tuple(cifar10.PYTHON_MD5)


def python_batch(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> bytes:
    """As Python 2 and its numpy pickled it: no text but bytes, and numpy's old module."""
    batch = {b"data": x.reshape(len(x), -1), b"labels": y.tolist(), b"batch_label": b"a batch"}
    data = pickle.dumps(batch, protocol=3)
    return data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def binary_batch(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> bytes:
    records = zip(y.tolist(), x, strict=True)
    return b"".join(bytes([label]) + image.tobytes() for label, image in records)


@pytest.fixture
def small_cifar(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The twelve batch files of both forms, ten images each, by name, with sums to match."""
    files: dict[str, bytes] = {}
    for name in BATCHES:
        x = RNG.integers(0, 256, (10, 3, 32, 32), np.uint8)
        y = RNG.permutation(10)
        files |= {name: python_batch(x, y), f"{name}.bin": binary_batch(x, y)}
    for sums in (cifar10.PYTHON_MD5, cifar10.BINARY_MD5):
        for name in sums:
            monkeypatch.setitem(sums, name, hashlib.md5(files[name]).hexdigest())
    return files


def form(files: dict[str, bytes], suffix: str) -> dict[str, bytes]:
    return {f"{name}{suffix}": files[f"{name}{suffix}"] for name in BATCHES}


def load_cifar(root: Path) -> Splits:
    return Cifar10().load(Files(root, "cifar10", SPECS["cifar10"].downloads))


def unpack(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def pack(path: Path, files: dict[str, bytes], inside: str = "cifar-10-batches-py/") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, data in {"readme.html": b"hello", **files}.items():
            member = tarfile.TarInfo(inside + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def expected(files: dict[str, bytes]) -> tuple[Any, Any]:
    """Training images and labels, from the binary form by indexing bytes."""
    raw = b"".join(files[f"{name}.bin"] for name in BATCHES[:-1])
    records = [raw[i : i + 3073] for i in range(0, len(raw), 3073)]
    x = np.array([list(r[1:]) for r in records], np.uint8).reshape(-1, 3, 32, 32)
    return x, np.array([r[0] for r in records])


LAYOUTS: dict[str, Callable[[Path, dict[str, bytes]], None]] = {
    "python folder": lambda r, f: unpack(r / "cifar10/cifar-10-batches-py", form(f, "")),
    "binary folder": lambda r, f: unpack(r / "cifar10/cifar-10-batches-bin", form(f, ".bin")),
    "bare files": lambda r, f: unpack(r / "cifar10", form(f, "")),
    "folder in the root": lambda r, f: unpack(r / "cifar-10-batches-py", form(f, "")),
    "official archive": lambda r, f: pack(r / "cifar10/cifar-10-python.tar.gz", form(f, "")),
    "archive by any name": lambda r, f: pack(r / "cifar10/mine.tar.gz", form(f, ""), "a/b/"),
    "archive without a folder": lambda r, f: pack(r / "cifar10/x.tar.gz", form(f, ""), ""),
    "binary archive": lambda r, f: pack(r / "cifar10/cifar-10-binary.tar.gz", form(f, ".bin")),
    "archive in the root": lambda r, f: pack(r / "cifar-10-python.tar.gz", form(f, "")),
    "both forms in one": lambda r, f: pack(r / "cifar10/both.tar.gz", f),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_official_layout_gives_the_same_images(
    layout: str, small_cifar: dict[str, bytes], tmp_path: Path
) -> None:
    LAYOUTS[layout](tmp_path, small_cifar)
    splits = load_cifar(tmp_path)
    check(splits, "cifar10")
    x, y = expected(small_cifar)
    assert np.array_equal(splits.train_x, x)
    assert np.array_equal(splits.train_y, y)
    assert splits.test_x.shape == (10, 3, 32, 32)
    assert splits.test_x.tobytes()[:3072] == small_cifar["test_batch.bin"][1:3073]


def test_names_that_climb_out_of_an_archive_reach_no_file(
    small_cifar: dict[str, bytes], tmp_path: Path
) -> None:
    pack(tmp_path / "data/cifar10/evil.tar.gz", form(small_cifar, ""), "../../../")
    before = sorted(tmp_path.rglob("*"))
    load_cifar(tmp_path / "data")
    assert sorted(tmp_path.rglob("*")) == before


def test_links_and_giants_in_an_archive_are_passed_by(
    small_cifar: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cifar10/links.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        for name in BATCHES:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    with pytest.raises(UsageError, match="harness fetch cifar10"):
        load_cifar(tmp_path)
    pack(path, form(small_cifar, ""))
    monkeypatch.setattr(cifar10, "MOST_BYTES", 1000)
    with pytest.raises(UsageError, match="harness fetch cifar10"):
        load_cifar(tmp_path)


@pytest.mark.parametrize("suffix", ["", ".bin"])
def test_an_altered_batch_is_named_with_both_sums(
    suffix: str, small_cifar: dict[str, bytes], tmp_path: Path
) -> None:
    name = f"data_batch_3{suffix}"
    right = small_cifar[name]
    small_cifar[name] = right[:-3] + b"?" + right[-2:]
    path = tmp_path / "cifar10/x.tar.gz"
    pack(path, form(small_cifar, suffix))
    with pytest.raises(UsageError) as caught:
        materialise(load_cifar(tmp_path), tmp_path / "cache")
    message = str(caught.value)
    sums = (hashlib.md5(data).hexdigest() for data in (right, small_cifar[name]))
    for part in (str(path), name, "truncated or altered", *sums):
        assert part in message
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_archive_is_named(
    share: float, small_cifar: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "cifar10/cifar-10-python.tar.gz"
    pack(path, form(small_cifar, ""))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(
        UsageError, match=r"cifar-10-python\.tar\.gz: truncated, or not a \.tar\.gz"
    ):
        load_cifar(tmp_path)


def test_a_broken_archive_hides_no_good_one(small_cifar: dict[str, bytes], tmp_path: Path) -> None:
    pack(tmp_path / "cifar10/z.tar.gz", form(small_cifar, ""))
    (tmp_path / "cifar10/cifar-10-python.tar.gz").write_bytes(b"half a download")
    assert len(load_cifar(tmp_path).train_x) == 50


def test_an_incomplete_folder_says_what_it_has(
    small_cifar: dict[str, bytes], tmp_path: Path
) -> None:
    few = {name: small_cifar[name] for name in BATCHES[:2]}
    unpack(tmp_path / "cifar10/cifar-10-batches-py", few)
    with pytest.raises(UsageError, match=r"batches-py: .* holds only data_batch_1, data_batch_2"):
        load_cifar(tmp_path)


class Harmful:
    """Unpickled by the book, it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_asks_for_code_is_refused(
    small_cifar: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where its sum is right: the two defences do not lean on each other."""
    evil = pickle.dumps({b"data": Harmful(tmp_path / "done"), b"labels": []}, protocol=3)
    small_cifar["data_batch_2"] = evil
    monkeypatch.setitem(cifar10.PYTHON_MD5, "data_batch_2", hashlib.md5(evil).hexdigest())
    pack(tmp_path / "cifar10/evil.tar.gz", form(small_cifar, ""))
    with pytest.raises(UsageError, match=r"evil\.tar\.gz: data_batch_2: .* asks for \w+\.mkdir, "):
        load_cifar(tmp_path)
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2], protocol=2),
        pickle.dumps({b"data": [1], b"labels": [1]}, protocol=3),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, protocol=3),
        pickle.dumps({b"data": np.zeros((1, 3072)), b"labels": [1]}, protocol=3),
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [b"x"]}, protocol=3),
        pickle.dumps({b"data": np.array([None]), b"labels": [1]}, protocol=3),
    ],
)
def test_what_is_no_batch_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        cifar10.parse_python(data)


def test_a_binary_batch_of_a_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="3074 bytes, not a multiple of 3073"):
        cifar10.parse_binary(bytes(3074))


# --- the official files ----------------------------------------------------------------------


def load_real(name: str) -> Splits:
    spec = SPECS[name]
    module, _, factory = spec.factory.partition(":")
    component = getattr(importlib.import_module(module), factory)()
    splits: Splits = component.load(Files(ROOT, name, spec.downloads))
    check(splits, name)
    return splits


@needs_real("mnist")
def test_mnist(tmp_path: Path) -> None:
    start = time.perf_counter()
    splits = load_real("mnist")
    assert time.perf_counter() - start < 5  # 0.3 s where the machine is free
    assert splits.train_x.shape == (60_000, 1, 28, 28)
    assert splits.test_x.shape == (10_000, 1, 28, 28)
    assert splits.train_y[:5].tolist() == [5, 0, 4, 1, 9]
    assert splits.test_y[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(splits.test_y).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    ref = materialise(splits, tmp_path)
    assert ref.content == "e635915843f06c4c60b5f1a0ffcd817aa732f925d56283b89e155baaf0bdf76c"
    assert np.array_equal(ref.open().test_x, splits.test_x)

    pair = apply(splits, DataOptions(classes=("6+8",)))
    assert np.bincount(pair.test_y).tolist() == [958, 974]
    assert pair.names == ("6", "8")


@needs_real("fashion_mnist")
def test_fashion_mnist() -> None:
    splits = load_real("fashion_mnist")
    assert splits.train_x.shape == (60_000, 1, 28, 28)
    assert np.bincount(splits.train_y).tolist() == [6000] * 10
    assert np.bincount(splits.test_y).tolist() == [1000] * 10
    assert [splits.names[i] for i in splits.train_y[:3]] == [
        "Ankle boot",
        "T-shirt/top",
        "T-shirt/top",
    ]


@needs_real("cifar10")
def test_cifar10_and_its_binary_form(tmp_path: Path) -> None:
    """The sums of the binary form, which is not at hand, follow from the Python batches."""
    splits = load_real("cifar10")
    assert splits.train_x.shape == (50_000, 3, 32, 32)
    assert np.bincount(splits.train_y).tolist() == [5000] * 10
    assert np.bincount(splits.test_y).tolist() == [1000] * 10
    assert [splits.names[i] for i in splits.test_y[:4]] == ["cat", "ship", "ship", "airplane"]
    x = np.concatenate([splits.train_x, splits.test_x]).reshape(6, 10_000, -1)
    y = np.concatenate([splits.train_y, splits.test_y]).reshape(6, 10_000, 1)
    records = np.concatenate([y.astype(np.uint8), x], axis=2)
    sums = [hashlib.md5(batch.tobytes()).hexdigest() for batch in records]
    assert sums == list(cifar10.BINARY_MD5.values())
