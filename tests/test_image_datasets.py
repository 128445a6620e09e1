"""Data sets of image files, on files made here in the official layouts, and GTSRB's real ones."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import cli
from harness.data import Files, Splits, check, materialise
from harness.errors import UsageError
from harness_plugins import datasets
from harness_plugins.datasets import celeba, gtsrb, images, stl10
from harness_plugins.datasets.celeba import Celeba
from harness_plugins.datasets.gtsrb import Gtsrb
from harness_plugins.datasets.imagefolder import ImageFolder
from harness_plugins.datasets.stl10 import Stl10
from harness_plugins.datasets.trees import Member

Array = np.ndarray[Any, Any]
SPECS = {spec.name: spec for spec in datasets.harness_datasets()}
ROOT = Path(os.environ.get("HARNESS_DATA", "/nonexistent"))
pillow = pytest.mark.skipif(
    importlib.util.find_spec("PIL") is None, reason="pillow is not installed: [images]"
)
real = pytest.mark.skipif(
    not (ROOT / "gtsrb").is_dir(), reason="HARNESS_DATA has no folder gtsrb with its images"
)


def files(root: Path, name: str) -> Files:
    return Files(root, name, SPECS[name].downloads)


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def member(data: bytes) -> Member:
    return Member("here", lambda: data)


def ppm(image: Array) -> bytes:
    return b"P6\n%d %d\n255\n" % (image.shape[1], image.shape[0]) + image.tobytes()


def plain(h: int, w: int, value: int) -> Array:
    return np.full((h, w, 3), value, np.uint8)


def noise(h: int, w: int) -> Array:
    return np.random.default_rng(h * w).integers(0, 256, (h, w, 3), np.uint8)


def encoded(image: Array, kind: str) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, kind)
    return out.getvalue()


# --- resizing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "new", "expected"),
    [
        ([0, 100], 4, [0, 25, 75, 100]),  # middles at ¼, ¾, 1¼, 1¾; old ones at ½ and 1½
        ([0, 0, 0, 175], 2, [0, 75]),  # tents ±2 around 1 and 3: (0, ¼, ¾, ¾) of 175
        ([10, 20, 30], 1, [20]),
        ([7], 3, [7, 7, 7]),
    ],
)
def test_resizing_by_hand(row: list[int], new: int, expected: list[int]) -> None:
    image = np.array(row, np.uint8)[None, :, None].repeat(3, axis=2)
    assert images.resized(image, 1, new)[0].tolist() == [[value] * 3 for value in expected]
    down = images.resized(image.transpose(1, 0, 2), new, 1)
    assert down[:, 0, 1].tolist() == expected


@pytest.mark.parametrize("sides", [(3, 5, 96, 2), (218, 178, 117, 96), (97, 31, 31, 97)])
def test_a_plain_image_stays_plain(sides: tuple[int, int, int, int]) -> None:
    h, w, *new = sides
    for value in (0, 1, 128, 255):
        assert (images.resized(plain(h, w, value), *new) == value).all()


@pillow
@pytest.mark.parametrize("sides", [(30, 41, 32, 32), (90, 64, 48, 48), (218, 178, 117, 96)])
def test_resizing_is_pillows_but_for_a_step(sides: tuple[int, int, int, int]) -> None:
    from PIL import Image

    h, w, *new = sides
    image = noise(h, w)
    other = Image.fromarray(image).resize((new[1], new[0]), Image.Resampling.BILINEAR)
    apart = np.abs(np.array(other).astype(int) - images.resized(image, *new))
    assert apart.max() <= 1


def test_the_centre_is_kept() -> None:
    image = np.arange(4 * 9 * 3, dtype=np.uint8).reshape(4, 9, 3)
    assert np.array_equal(images.central(image, 4, 2), image[1:3, 4:6])  # 3.5 is rounded to even
    assert np.array_equal(images.central(image, 4, 4), image[:, 2:6])
    assert images.central(image, 8, 5).shape == (5, 5, 3)


# --- image files -----------------------------------------------------------------------------


def test_a_ppm_with_comments_is_read() -> None:
    image = noise(2, 3)
    data = b"P6 # made by hand\n3\t2\n# 3 wide\n255\n" + image.tobytes()
    assert np.array_equal(images.parse_ppm(data), image)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "begins with nothing, expected P6, width, height and 255"),
        (b"P5 1 1 255 abc", "begins with 50 35 20 31"),
        (b"P6 1 1 255", "not a .ppm image"),
        (b"P6 1 1 65535 abcdef", "1 × 1 pixels up to 65535, expected some, up to 255"),
        (b"P6 0 1 255 ", "0 × 1 pixels"),
        (b"P6 2 1 255 abcde", "5 bytes of pixels, expected 6: its header says 2 × 1"),
        (b"P6 2 1 255 abcdefg", "7 bytes of pixels, expected 6"),
        (b"P6 999999999 999999999 255 a", "expected 2999999994000000003"),
    ],
)
def test_a_bad_ppm_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=f"^here: .*{message}"):
        images.decode(member(data), images.parse_ppm)


@pillow
def test_png_and_jpg_are_read_by_what_they_hold() -> None:
    image = noise(5, 4)
    assert np.array_equal(images.parse_any(encoded(image, "PNG")), image)
    assert np.array_equal(images.parse_any(ppm(image)), image)
    grey = images.parse_any(encoded(image[:, :, 0], "PNG"))
    assert np.array_equal(grey, image[:, :, :1].repeat(3, axis=2))
    smooth = images.parse_any(encoded(plain(16, 16, 90), "JPEG"))
    assert np.abs(smooth.astype(int) - 90).max() <= 2


@pillow
def test_a_damaged_png_or_jpg_is_refused() -> None:
    whole = {kind: encoded(noise(40, 40), kind) for kind in ("PNG", "JPEG")}
    deep = encoded(np.zeros((4, 4), np.uint16), "PNG")
    for data in (*(d[: len(d) // 2] for d in whole.values()), whole["PNG"][:12], b"\xff\xd8\xff"):
        with pytest.raises(UsageError, match=r"^here: truncated or altered: [^\n]+$"):
            images.decode(member(data), images.parse_any)
    with pytest.raises(UsageError, match=r"^here: an image of mode I;16, expected 8 bits"):
        images.decode(member(deep), images.parse_any)
    with pytest.raises(UsageError, match=r"no \.ppm .*image: begins with 47 49 46"):
        images.decode(member(b"GIF89a"), images.parse_any)


def test_what_is_not_installed_is_said_with_the_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness.installed.version_of", lambda _name: "")
    for name in ("celeba", "imagefolder"):
        words = ["harness", "plan", "--dataset", name, "--data-dir", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as done:
            cli.main()
        assert done.value.code == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert f"{name} needs pillow>=11.0, which is not installed" in line
        assert "pip install 'robustness-harness[images]'" in line


# --- GTSRB -----------------------------------------------------------------------------------

TRACKS, FRAMES = 8, 3
TRAINING = "GTSRB/Final_Training/Images"


def table(rows: list[tuple[str, int, int, int]]) -> str:
    """An official CSV: of each image its name, width, height and sign; a border of one pixel."""
    lines = [f"{n};{w};{h};1;1;{w - 1};{h - 1};{sign}" for n, w, h, sign in rows]
    return "\r\n".join([gtsrb.HEADER, *lines, ""])


def signs_tree(tracks: int = TRACKS) -> dict[str, bytes]:
    """Signs 3 and 8 in the official layout. An image's pixels say which track it is of."""
    tree: dict[str, bytes] = {}
    for sign in (3, 8):
        rows = []
        for track in range(tracks):
            for frame in range(FRAMES):
                name, w, h = f"{track:05d}_{frame:05d}.ppm", 6 + frame, 7 + track
                rows.append((name, w, h, sign))
                tree[f"{TRAINING}/{sign:05d}/{name}"] = ppm(plain(h, w, 10 * sign + track))
        tree[f"{TRAINING}/{sign:05d}/GT-{sign:05d}.csv"] = table(rows).encode()
    return tree


def official_test() -> dict[str, bytes]:
    rows = [("00000.ppm", 5, 6, 8), ("00001.ppm", 5, 6, 40), ("00002.ppm", 5, 6, 3)]
    made = {f"GTSRB/Final_Test/Images/{n}": ppm(plain(h, w, s)) for n, w, h, s in rows}
    return made | {"GT-final_test.csv": table(rows).encode()}


def unpack(root: Path, tree: dict[str, bytes]) -> None:
    for name, data in tree.items():
        put(root / name, data)


def zipped(path: Path, tree: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in tree.items():
            archive.writestr(name, data)


def tarred(path: Path, tree: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, data in tree.items():
            item = tarfile.TarInfo(name)
            item.size = len(data)
            archive.addfile(item, io.BytesIO(data))


def marks(x: Array) -> list[int]:
    assert (x == x[:, :1, :1, :1]).all()
    return x[:, 0, 0, 0].tolist()


def test_without_a_test_part_whole_tracks_are_held_out(tmp_path: Path) -> None:
    unpack(tmp_path / "gtsrb", signs_tree())
    splits = Gtsrb(size=8).load(files(tmp_path, "gtsrb"))
    check(splits, "gtsrb")
    assert splits.names == ("60 km/h", "120 km/h")
    train, test = marks(splits.train_x), marks(splits.test_x)
    assert not set(train) & set(test)
    everything = [10 * sign + track for sign in (3, 8) for track in range(TRACKS)]
    assert sorted(train + test) == sorted(everything * FRAMES)
    assert sorted(m // 10 for m in set(test)) == [3, 3, 8, 8]  # two of eight tracks of each sign
    for x, y in ((train, splits.train_y), (test, splits.test_y)):
        assert [{3: 0, 8: 1}[mark // 10] for mark in x] == y.tolist()
    again = Gtsrb(size=8).load(files(tmp_path, "gtsrb"))
    assert np.array_equal(again.test_x, splits.test_x)


def test_the_official_archives_have_their_own_test_part(tmp_path: Path) -> None:
    test, (training, tested, labels) = official_test(), (n for n, _ in SPECS["gtsrb"].downloads)
    zipped(tmp_path / "gtsrb" / training, signs_tree())
    zipped(tmp_path / "gtsrb" / labels, {"GT-final_test.csv": test.pop("GT-final_test.csv")})
    test["GTSRB/Final_Test/Images/GT-final_test.test.csv"] = b"Filename;no ClassId"
    zipped(tmp_path / "gtsrb" / tested, test)
    put(tmp_path / "gtsrb/A.zip", b"half a download")  # hides no good one
    splits = Gtsrb(size=8, signs=(8, 3)).load(files(tmp_path, "gtsrb"))
    assert splits.names == ("120 km/h", "60 km/h")
    assert np.bincount(splits.train_y).tolist() == [TRACKS * FRAMES] * 2
    assert (marks(splits.test_x), splits.test_y.tolist()) == ([8, 3], [0, 1])
    for name in (training, tested, labels):  # where `harness fetch` verifies them
        (tmp_path / "gtsrb" / name).rename(tmp_path / name)
    assert np.array_equal(
        Gtsrb(size=8, signs=(8, 3)).load(files(tmp_path, "gtsrb")).train_x, splits.train_x
    )


def test_every_layout_gives_the_same_images(tmp_path: Path) -> None:
    tree = signs_tree()
    unpack(tmp_path / "own" / "gtsrb", tree)
    unpack(tmp_path / "shared", tree)
    tarred(tmp_path / "packed/gtsrb/mine.tar.gz", {f"a/b/{name}": d for name, d in tree.items()})
    unpack(tmp_path / "named/gtsrb", {n.replace("GTSRB/", "Copies/"): d for n, d in tree.items()})
    contents = {
        materialise(
            Gtsrb(size=9, tree=top).load(files(tmp_path / root, "gtsrb")), tmp_path / "cache"
        ).content
        for root, top in (
            ("own", "GTSRB"), ("shared", "GTSRB"), ("packed", "GTSRB"), ("named", "Copies"),
        )
    }  # fmt: skip
    assert len(contents) == 1


def test_the_region_of_interest_is_without_its_border(tmp_path: Path) -> None:
    tree = signs_tree()
    for name in [n for n in tree if n.endswith(".ppm")]:
        image = images.parse_ppm(tree[name]).copy()
        image[[0, -1]] = image[:, [0, -1]] = 255
        tree[name] = ppm(image)
    unpack(tmp_path, tree)
    splits = Gtsrb(size=8, crop="roi").load(files(tmp_path, "gtsrb"))
    assert max(marks(splits.train_x)) == 10 * 8 + TRACKS - 1


def test_images_are_squeezed_whole_in_rgb(tmp_path: Path) -> None:
    tree = signs_tree()
    first = f"{TRAINING}/00003/00000_00000.ppm"
    image = np.zeros((7, 6, 3), np.uint8)
    image[:, 3:] = (200, 100, 50)  # the right half is orange
    tree[first] = ppm(image)
    unpack(tmp_path, tree)
    (x,) = (
        x
        for part in (lambda s: s.train_x, lambda s: s.test_x)
        for x in part(Gtsrb(size=12).load(files(tmp_path, "gtsrb")))
        if x.std() > 20
    )
    assert x[:, 5, 11].tolist() == [200, 100, 50]
    assert not x[:, :, 0].any()


def damaged(name: str, data: bytes | None) -> dict[str, bytes]:
    tree = signs_tree()
    del tree[f"{TRAINING}/{name}"]
    return tree if data is None else tree | {f"{TRAINING}/{name}": data}


CSV = "00003/GT-00003.csv"


@pytest.mark.parametrize(
    ("name", "data", "options", "message"),
    [
        ("00008/00002_00001.ppm", b"P6 7 9 255\nabc", {}, "00002_00001.ppm: trunc.* expected 189:"),
        ("00008/00002_00001.ppm", None, {}, "lists 00008/00002_00001.ppm, .*: 1 of 24 .* tracks=2"),
        ("00008/00000_00001.ppm", None, {}, "1 of 24 images are missing$"),
        ("00008/00002_00001.ppm", ppm(plain(9, 9, 1)), {}, "is 9 × 9, and its .* says 7 × 9; .*=9"),
        (CSV, None, {}, r"sign 3 \(60 km/h\): 00003/GT-00003.csv is missing; there are 00003"),
        (CSV, b"\xff\xfe\0", {}, "GT-00003.csv: not a text file"),
        (CSV, b"", {}, "GT-00003.csv: begins with '', expected Filename;Width;"),
        (CSV, b"a,b", {}, "begins with 'a,b', expected Filename;Width;"),
        (CSV, table([("00000_00000.ppm", 9, 9, 8)]).encode(), {}, "has the ClassId 8, not 3"),
        (CSV, table([("00000_00000.ppm", 9, 9, 3)]).encode(), {}, "lists 1 tracks, expected 2"),
        (CSV, table([("00000_00000.ppm", 9, 9, 3)] * 2).encode(), {}, "line 3: expected an image"),
        (CSV, table([("../00000_00000.ppm", 9, 9, 3)]).encode(), {}, "line 2: expected an image"),
        (CSV, table([("00000_00000.ppm", 1, 9, 3)]).encode(), {}, "line 2: .* fit together"),
        (CSV, (gtsrb.HEADER + "\n00000_00000.ppm;9;9;1;1;10;8;3").encode(), {}, "line 2: .* fit"),
        (CSV, (gtsrb.HEADER + "\n00000_00000.ppm;1;x").encode(), {}, "line 2: .*got '00000_00"),
        (CSV, None, {"signs": (8, 7)}, r"sign 7 \(100 km/h\): 00007/GT-00007.csv is missing"),
        ("00003/00007_00000.ppm", None, {"tracks": 9}, "lists 8 tracks, expected 9"),
    ],
)  # fmt: skip
def test_bad_signs_are_named_with_what_would_be_right(
    name: str, data: bytes | None, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    unpack(tmp_path / "gtsrb", damaged(name, data))
    with pytest.raises(UsageError, match=message) as caught:
        Gtsrb(**{"size": 8, **options}).load(files(tmp_path, "gtsrb"))
    assert "\n" not in str(caught.value)


def test_tracks_reads_the_first_of_them(tmp_path: Path) -> None:
    unpack(tmp_path / "gtsrb", damaged("00008/00005_00001.ppm", None))
    splits = Gtsrb(size=8, tracks=5).load(files(tmp_path, "gtsrb"))
    assert {m % 10 for m in marks(splits.train_x) + marks(splits.test_x)} == set(range(5))


def test_a_test_part_without_its_labels_is_refused(tmp_path: Path) -> None:
    test = official_test()
    labels = test.pop("GT-final_test.csv")
    unpack(tmp_path / "gtsrb", signs_tree() | test)
    with pytest.raises(UsageError, match=r"gtsrb: GT-final_test\.csv is neither in"):
        Gtsrb(size=8).load(files(tmp_path, "gtsrb"))
    put(tmp_path / "gtsrb" / "GT-final_test.csv", labels)
    assert len(Gtsrb(size=8).load(files(tmp_path, "gtsrb")).test_y) == 2
    (tmp_path / "gtsrb/GTSRB/Final_Test/Images/00000.ppm").unlink()
    with pytest.raises(UsageError, match=r"lists 00000\.ppm, which is not there: 1 of 2 images"):
        Gtsrb(size=8).load(files(tmp_path, "gtsrb"))


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gtsrb" / SPECS["gtsrb"].downloads[0][0]
    zipped(path, signs_tree())
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], b""):
        path.write_bytes(damage)
        with pytest.raises(UsageError, match=r"Images\.zip: truncated, or no archive: "):
            Gtsrb().load(files(tmp_path, "gtsrb"))
    path.write_bytes(whole)
    broken = put(tmp_path / "gtsrb/GTSRB_Final_Test_Images.zip", b"half a download")
    with pytest.raises(UsageError, match=r"Test_Images\.zip: truncated, or no archive: "):
        Gtsrb().load(files(tmp_path, "gtsrb"))  # to split by track would be another data set
    broken.unlink()
    at = whole.index(ppm(plain(7, 6, 30))) + 20
    path.write_bytes(whole[:at] + b"?" + whole[at + 1 :])
    with pytest.raises(UsageError, match=r"00003/00000_00000\.ppm: cannot be read: .*CRC"):
        Gtsrb().load(files(tmp_path, "gtsrb"))


@real
def test_the_real_signs_60_and_120(tmp_path: Path) -> None:
    splits = Gtsrb(tracks=32).load(files(ROOT, "gtsrb"))
    check(splits, "gtsrb")
    assert splits.train_x.shape == (1440, 3, 48, 48)
    assert np.bincount(splits.test_y).tolist() == [240, 240]
    ref = materialise(splits, tmp_path)
    assert ref.content == "e140c1a8dce66c8ce358f05bef0438c79eb812f9292176e40c1de63c40da9871"
    with pytest.raises(UsageError, match="450 of 1410 images are missing; tracks=32 reads"):
        Gtsrb().load(files(ROOT, "gtsrb"))


@real
def test_resized_copies_of_the_real_signs_agree_with_the_originals() -> None:
    """Another's bilinear resizing: it equals ours where an image grows, for only there is it one.

    Their split is the official one, with the papers' 900 test images.
    """
    copies = Gtsrb(tree="GTSRB_32x32", size=32).load(files(ROOT, "gtsrb"))
    assert np.bincount(copies.train_y).tolist() == [1410, 1410]
    assert np.bincount(copies.test_y).tolist() == [450, 450]
    held = gtsrb.gather(files(ROOT, "gtsrb"), r"/GTSRB/Final_Training/Images/(00003/.*\.ppm)$")
    small = 0
    for i, name in enumerate(sorted(held)):
        image = images.decode(held[name], images.parse_ppm)
        if max(image.shape) <= 32:
            small += 1
            apart = images.resized(image, 32, 32).transpose(2, 0, 1).astype(int) - copies.train_x[i]
            assert np.abs(apart).max() <= 1, name
    assert small > 50


# --- STL-10 ----------------------------------------------------------------------------------


def small_stl(monkeypatch: pytest.MonkeyPatch, **changed: bytes) -> dict[str, bytes]:
    """20 training and 10 test images; their sums are believed."""
    raw = {
        f"{part}_{what}.bin": data
        for part, n in (("train", 20), ("test", 10))
        for what, data in (
            ("X", np.random.default_rng(n).bytes(n * 27648)),
            ("y", bytes(1 + i % 10 for i in range(n))),
        )
    } | {f"{name}.bin": data for name, data in changed.items()}
    for name, data in raw.items():
        monkeypatch.setitem(stl10.MD5, name, hashlib.md5(data).hexdigest())
    return raw


def load_stl(root: Path) -> Splits:
    return Stl10().load(files(root, "stl10"))


def test_stl10_is_stored_column_by_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = small_stl(monkeypatch)
    unpack(tmp_path / "a/stl10/stl10_binary", raw)
    splits = load_stl(tmp_path / "a")
    check(splits, "stl10")
    assert (len(splits.train_y), len(splits.test_y)) == (20, 10)
    assert splits.test_y.tolist() == list(range(10))
    for image, channel, row, column in ((0, 0, 0, 1), (3, 2, 90, 7), (9, 1, 95, 0)):
        byte = image * 27648 + channel * 9216 + column * 96 + row
        assert splits.test_x[image, channel, row, column] == raw["test_X.bin"][byte]
    unpack(tmp_path / "b/stl10", raw)
    unpack(tmp_path / "c/stl10_binary", raw)
    tarred(tmp_path / "d/stl10_binary.tar.gz", {f"stl10_binary/{n}": d for n, d in raw.items()})
    for root in "bcd":
        assert np.array_equal(load_stl(tmp_path / root).train_x, splits.train_x)


@pytest.mark.parametrize("name", stl10.MD5)
@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_a_damaged_stl10_file_is_named(
    name: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = small_stl(monkeypatch)
    unpack(tmp_path / "stl10/stl10_binary", raw)
    path, data = tmp_path / "stl10/stl10_binary" / name, raw[name]
    path.write_bytes(data[:-1] + (b"" if damage == "truncated" else bytes([data[-1] ^ 1])))
    if damage == "missing":
        path.unlink()
    expected = f"stl10: {name} is neither" if damage == "missing" else f"{name}: truncated or alt"
    with pytest.raises(UsageError, match=expected) as caught:
        load_stl(tmp_path)
    assert "harness fetch stl10" in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_X": bytes(27649)}, "test_X.bin: 27649 bytes, expected a multiple of 27648"),
        ({"test_X": b""}, "test_X.bin: 0 bytes"),
        ({"test_y": bytes([1, 2])}, "test_y.bin: 2 labels, expected 10: one an image"),
        ({"test_y": bytes([1, 0, 3])}, "test_y.bin: label 1 is 0, expected 1 … 10"),
        ({"test_y": bytes([11])}, "label 0 is 11"),
    ],
)
def test_stl10_files_that_do_not_fit_are_refused(
    changed: dict[str, bytes], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack(tmp_path / "stl10", small_stl(monkeypatch, **changed))
    with pytest.raises(UsageError, match=message):
        load_stl(tmp_path)


# --- CelebA ----------------------------------------------------------------------------------

FACES = 24


def small_celeba(root: Path) -> None:
    """Faces whose grey says which they are: 0 brown, 1 black, 2 both, 3 neither, and so on."""
    names = [f"{i:06d}.jpg" for i in range(FACES)]
    rows = [
        f"{name} {1 if i % 4 < 2 else -1:2d} {(-1, 1, 1, -1)[i % 4]:2d} {(1, -1, 1, -1)[i % 4]:2d}"
        for i, name in enumerate(names)
    ]
    header = "Smiling Black_Hair Brown_Hair "
    put(root / "celeba" / celeba.ATTRIBUTES, "\n".join([str(FACES), header, *rows, ""]))
    parts = [
        f"{name} {(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2)[i % 12]}" for i, name in enumerate(names)
    ]
    put(root / "celeba" / celeba.PARTITION, "\n".join([*parts, ""]))
    for i, name in enumerate(names):
        put(root / "celeba/img_align_celeba" / name, encoded(plain(218, 178, 10 * i), "JPEG"))


def faces(x: Array) -> list[int]:
    return np.rint(x.mean(axis=(1, 2, 3)) / 10).astype(int).tolist()


@pillow
def test_celeba_brown_against_black_hair(tmp_path: Path) -> None:
    small_celeba(tmp_path)
    splits = Celeba(images=None).load(files(tmp_path, "celeba"))
    check(splits, "celeba")
    assert splits.names == ("Brown_Hair", "Black_Hair")
    assert splits.train_x.shape[1:] == (3, 96, 96)
    assert (faces(splits.train_x), splits.train_y.tolist()) == ([0, 1, 12, 13], [0, 1, 0, 1])
    assert (faces(splits.test_x), splits.test_y.tolist()) == ([8, 9, 20, 21], [0, 1, 0, 1])


@pillow
def test_celeba_with_one_attribute_and_few_images(tmp_path: Path) -> None:
    small_celeba(tmp_path)
    (tmp_path / "celeba/img_align_celeba").rename(tmp_path / "img_align_celeba")
    splits = Celeba(attributes=("Smiling",), images=None, size=8).load(files(tmp_path, "celeba"))
    assert splits.names == ("not Smiling", "Smiling")
    assert faces(splits.train_x) == [0, 1, 2, 3, 12, 13, 14, 15]
    assert splits.train_y.tolist() == [1, 1, 0, 0, 1, 1, 0, 0]
    few = Celeba(attributes=("Smiling",), images=2, size=8).load(files(tmp_path, "celeba"))
    assert np.bincount(few.train_y).tolist() == np.bincount(few.test_y).tolist() == [1, 1]
    assert set(faces(few.train_x)) < set(faces(splits.train_x))


@pillow
def test_the_square_is_the_face_s_middle(tmp_path: Path) -> None:
    small_celeba(tmp_path)
    image = plain(218, 178, 0)
    image[:20] = image[-20:] = 255
    put(tmp_path / "celeba/img_align_celeba/000000.jpg", encoded(image, "JPEG"))
    splits = Celeba(images=None, size=178).load(files(tmp_path, "celeba"))
    assert splits.train_x[0, 0, 4:-4].max() < 20


@pillow
@pytest.mark.parametrize(
    ("name", "edit", "options", "message"),
    [
        (celeba.ATTRIBUTES, lambda d: d[: len(d) // 2], {}, "attr.*: (line|truncated or altered)"),
        (celeba.ATTRIBUTES, lambda d: d[: d.rindex(b"000023")], {}, "23 images, .* line says 24"),
        (celeba.ATTRIBUTES, lambda _: b"", {}, "attribute 'Brown_Hair' is not among its 0"),
        (celeba.ATTRIBUTES, lambda _: b"\xff\xff", {}, "attr_celeba.txt: not a text file"),
        (celeba.ATTRIBUTES, lambda d: d.replace(b" 1", b" 5", 1), {}, "line 3: .* 3 of 1, -1; got"),
        (celeba.ATTRIBUTES, None, {}, "list_attr_celeba.txt is neither in"),
        (celeba.PARTITION, None, {}, "list_eval_partition.txt is neither in"),
        (celeba.PARTITION, lambda d: d[:-2], {}, "line 24: expected an image's name and 1 of 0"),
        (celeba.PARTITION, lambda _: b"", {}, "0 train images have such a label, expected some"),
        ("img_align_celeba/000001.jpg", None, {}, "000001.jpg is listed, and is not there beside"),
        ("img_align_celeba/000001.jpg", lambda d: d[:400], {}, "000001.jpg: truncated or altered"),
        ("img_align_celeba/000001.jpg", lambda _: b"", {}, "no .ppm .P6., .png or .jpg image"),
        ("img_align_celeba/000001.jpg", lambda _: ppm(plain(9, 8, 1)), {}, "is 8 × 9, expected 1"),
        (celeba.PARTITION, lambda d: d, {"images": 5}, "4 train images .* expected 5: images=none"),
        (celeba.PARTITION, lambda d: d, {"attributes": ("Brown_Hiar",)}, "did you mean 'Brown_H"),
    ],
)  # fmt: skip
def test_bad_faces_are_named_with_what_would_be_right(
    name: str, edit: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    small_celeba(tmp_path)
    path = tmp_path / "celeba" / name
    path.unlink() if edit is None else path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(UsageError, match=message) as caught:
        Celeba(**{"images": None, **options}).load(files(tmp_path, "celeba"))
    assert "\n" not in str(caught.value)


# --- folders of classes ----------------------------------------------------------------------


def load_folder(root: Path, **options: Any) -> Splits:
    return ImageFolder(**{"size": 8, "resize": None, **options}).load(files(root, "imagefolder"))


def test_a_tree_with_two_parts(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    for part, grey in (("train", 100), ("val", 200)):
        for i, name in enumerate(("n02", "n01", "n03")):
            put(root / part / name / "deeper" / "b.PPM", ppm(plain(9, 12, grey + i)))
            put(root / part / name / "a.ppm", ppm(plain(30, 5, grey + 10 + i)))
            put(root / part / name / "notes.txt", "no image")
    splits = load_folder(tmp_path, folder="mine")
    check(splits, "imagefolder")
    assert splits.names == ("n01", "n02", "n03")
    assert marks(splits.train_x) == [111, 101, 110, 100, 112, 102]
    assert splits.test_y.tolist() == [0, 0, 1, 1, 2, 2]
    assert marks(splits.test_x) == [211, 201, 210, 200, 212, 202]


def test_one_tree_is_split_class_by_class(tmp_path: Path) -> None:
    for name, n, grey in (("cat", 8, 0), ("dog", 4, 100)):
        for i in range(n):
            put(tmp_path / "imagefolder" / name / f"{i}.ppm", ppm(plain(8, 8, grey + i)))
    splits = load_folder(tmp_path, test=0.25)
    train, test = marks(splits.train_x), marks(splits.test_x)
    assert sorted(train + test) == [*range(8), *range(100, 104)]
    assert np.bincount(splits.test_y).tolist() == [2, 1]
    assert [mark // 100 for mark in train] == splits.train_y.tolist()
    assert marks(load_folder(tmp_path, test=0.25).test_x) == test
    assert np.bincount(load_folder(tmp_path, test=0.99).train_y).tolist() == [1, 1]


@pillow
def test_png_and_jpg_keep_their_centre(tmp_path: Path) -> None:
    image = plain(64, 100, 50)
    image[:, :18] = image[:, -18:] = 250  # outside the central square
    for name in ("a", "b"):
        put(tmp_path / f"imagefolder/{name}/1.png", encoded(image, "PNG"))
        put(tmp_path / f"imagefolder/{name}/2.jpeg", encoded(image, "JPEG"))
    x = load_folder(tmp_path, size=28, resize=32).train_x
    assert x.shape == (2, 3, 28, 28)
    assert np.abs(x.astype(int) - 50).max() <= 3
    assert load_folder(tmp_path, size=28).train_x[0, 0, 14, 0] > 200


def test_the_shorter_side_cannot_be_below_the_size() -> None:
    with pytest.raises(ValueError, match="resize=100: expected size=224 or more, or none"):
        ImageFolder(resize=100)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "imagefolder: imagefolder/ is neither in"),
        ({"a.txt": ""}, "holds no class: expected folders of images"),
        ({"a.ppm": ""}, "a.ppm: belongs to no class: expected .*/CLASS/a.ppm"),
        ({"a/1.ppm": "", "b/x.txt": ""}, "/b: holds no image, .ppm or .png or .jpg or .jpeg"),
        ({"a/1.ppm": ""}, "a/1.ppm: its class's only image; 2 are needed to split it"),
        ({"a/1.ppm": "P6", "a/2.ppm": "P6"}, "[12].ppm: not a .ppm image"),
        ({"a/1.ppm": "what", "a/2.ppm": "what"}, "[12].ppm: no .ppm .P6., .png or .jpg image"),
        ({"train/a/1.ppm": ""}, "has train/, and neither test/ nor val/ beside it"),
        ({"train/a/1.ppm": "", "train/b/1.ppm": "", "test/a/1.ppm": ""},
         "class 'b' of train is missing in the test part"),
        ({"train/a/1.ppm": "", "test/a/1.ppm": "", "test/b/1.ppm": ""},
         "class 'b' of the test part is missing in train"),
    ],
)  # fmt: skip
def test_a_bad_tree_is_named_with_what_would_be_right(
    tree: dict[str, str], message: str, tmp_path: Path
) -> None:
    for name, data in tree.items():
        put(tmp_path / "imagefolder" / name, data)
    with pytest.raises(UsageError, match=message):
        load_folder(tmp_path)


def test_without_a_data_folder_it_is_asked_for() -> None:
    components = {"gtsrb": Gtsrb, "stl10": Stl10, "celeba": Celeba, "imagefolder": ImageFolder}
    for name, component in components.items():
        with pytest.raises(UsageError, match=f"{name}: .* no data folder is named"):
            component().load(Files(None, name, SPECS[name].downloads))
