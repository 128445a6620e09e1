"""A data set of many files: unpacked in a folder, or in archives, .zip or .tar.gz.

Looked for below the data set's own folder: the files, then every archive; below the data folder:
the tree's own top folder, and the archives that the spec names. Archives are read in memory: no
name inside one ever reaches the file system.
"""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.data import Files
from harness.errors import UsageError

ARCHIVES = (".zip", ".tar.gz", ".tgz")
MOST_BYTES = (
    2**28
)  # more than STL-10's largest file that is read: what is larger is none, or a bomb
BROKEN = (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, tarfile.TarError)


@dataclass(frozen=True)
class Member:
    """A file of a tree. `where` names it in messages: its path, or its archive and its name."""

    where: str
    content: Callable[[], bytes]

    def read(self) -> bytes:
        """Its bytes. Raises UsageError where it is damaged or cannot be read."""
        try:
            return self.content()
        except BROKEN as error:  # RuntimeError: a .zip that wants a password
            raise UsageError(f"{self.where}: cannot be read: {error}") from error

    def text(self) -> str:
        """Its text. Raises UsageError where it is none."""
        try:
            return self.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.where}: not a text file: {error}") from error


def gather(files: Files, pattern: str, top: str = "") -> dict[str, Member]:
    """What the first place that has any such file holds, by group 1 of the pattern; {} if none.

    pattern: searched in '/' and the path of a file inside its place
    top:     a folder that is looked for in the data folder too

    What is wrong with another place is said only where no place has any: UsageError.
    """
    problem: UsageError | None = None
    wanted = re.compile(pattern)
    for find in _places(files, top):
        try:
            if held := _held(find(wanted)):
                return held
        except UsageError as error:
            problem = problem or error
    if problem:
        raise problem
    return {}


Found = Iterator[tuple[str, Member]]


def _places(files: Files, top: str) -> Iterator[Callable[[re.Pattern[str]], Found]]:
    if not files.folders:
        return
    own, shared = files.folders
    official = {name for name, _ in files.downloads}
    yield partial(walk, own, own)
    yield from (partial(_packed, path) for path in _archives(own))
    if top:
        yield partial(walk, shared, shared / top)
    yield from (partial(_packed, path) for path in _archives(shared) if path.name in official)


def _archives(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.name.endswith(ARCHIVES) and p.is_file())


def _held(found: Found) -> dict[str, Member]:
    held: dict[str, Member] = {}
    for name, member in found:
        if name in held:
            raise UsageError(f"{held[name].where} and {member.where}: there twice; remove one")
        held[name] = member
    return held


def walk(base: Path, start: Path, wanted: re.Pattern[str]) -> Found:
    """The files below `start`, in order, whose path below `base` is wanted."""
    try:
        for folder, folders, names in os.walk(start, onerror=_raise):
            folders.sort()
            for path in sorted(Path(folder, name) for name in names):
                if match := wanted.search("/" + path.relative_to(base).as_posix()):
                    yield match[1], Member(str(path), path.read_bytes)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UsageError(f"{start}: cannot be read: {error}") from error


def _raise(error: OSError) -> None:
    raise error


def _packed(archive: Path, wanted: re.Pattern[str]) -> Found:
    unpack = _from_zip if archive.suffix == ".zip" else _from_tar
    try:
        yield from unpack(archive, wanted)
    except BROKEN as error:
        raise UsageError(f"{archive}: truncated, or no archive: {error}") from error


def _from_zip(archive: Path, wanted: re.Pattern[str]) -> Found:
    packed = zipfile.ZipFile(archive)  # open as long as its members are: they are read one by one
    for item in packed.infolist():
        if item.file_size <= MOST_BYTES and (match := wanted.search("/" + item.filename)):
            yield match[1], Member(f"{archive}: {item.filename}", partial(packed.read, item))


def _from_tar(archive: Path, wanted: re.Pattern[str]) -> Found:
    with tarfile.open(archive, "r:gz") as packed:
        for item in packed:
            match = wanted.search("/" + item.name)
            if match and item.isfile() and item.size <= MOST_BYTES:
                file = packed.extractfile(item)
                data = file.read() if file else b""
                yield match[1], Member(f"{archive}: {item.name}", partial(bytes, data))
