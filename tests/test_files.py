"""The files of a data set: where they are looked for, and what is said when they are not right."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.files import Files

DOWNLOADS = (("a.gz", "https://example.org/a.gz"), ("b.gz", "https://example.org/b.gz"))
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_files_are_found_in_their_folder_first(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "b.gz").write_bytes(b"")
    files = Files(tmp_path, "toy")
    assert files.read("b.gz", EMPTY) == b""
    (tmp_path / "toy/b.gz").write_bytes(b"altered")
    assert files.find("b.gz") == tmp_path / "toy/b.gz"


def test_an_altered_file_is_named_with_both_sums(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(b"abc")
    with pytest.raises(UsageError) as caught:
        Files(tmp_path, "toy", DOWNLOADS).read("a.gz", EMPTY)
    message = str(caught.value)
    found = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    for part in (str(tmp_path / "a.gz"), "truncated or altered", EMPTY, found, "harness fetch toy"):
        assert part in message
    assert "\n" not in message


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Files(tmp_path, "toy", DOWNLOADS).read("b.gz", EMPTY)
    message = str(caught.value)
    for part in (
        "b.gz",
        str(tmp_path / "toy"),
        DOWNLOADS[1][1],
        "harness fetch toy",
        "HARNESS_DATA",
    ):
        assert part in message
    assert DOWNLOADS[0][1] not in message
    assert "\n" not in message


def test_without_a_data_folder_one_is_asked_for() -> None:
    with pytest.raises(
        UsageError, match=r"toy: a\.gz .*--data-dir or HARNESS_DATA.*example\.org/a"
    ):
        Files(None, "toy", DOWNLOADS).read("a.gz", EMPTY)


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gz").write_bytes(b"")

    def denied(_path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(UsageError, match=r"a\.gz: cannot be read: Permission denied"):
        Files(tmp_path, "toy").read("a.gz", EMPTY)
