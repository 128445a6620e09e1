"""The files of a data set: where they are looked for, and whether they are the official ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError


@dataclass(frozen=True)
class Files:
    """The handle that a data set reads its files through.

    root:      the data folder (`--data-dir`, `HARNESS_DATA`); None where none was named
    name:      the data set's, and its own folder's below `root`
    downloads: (file name, URL) of the official files, for messages
    """

    root: Path | None
    name: str
    downloads: tuple[tuple[str, str], ...] = ()

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where a file may be: the data set's own folder, and the data folder itself."""
        return (self.root / self.name, self.root) if self.root else ()

    def read(self, filename: str, sha256: str) -> bytes:
        """The file's bytes. Raises UsageError if it is missing, unreadable or another's."""
        path = self.find(filename)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
        self.confirm(path, data, sha256, "sha256")
        return data

    def find(self, filename: str) -> Path:
        """The first of the folders' files of that name. Raises UsageError if there is none."""
        places = (folder / filename for folder in self.folders)
        path = next((p for p in places if p.is_file()), None)
        if path is None:
            raise self.missing(filename)
        return path

    def confirm(self, where: object, data: bytes, expected: str, algorithm: str) -> None:
        """Raises UsageError unless the bytes found at `where` have that sum (sha256 or md5)."""
        found = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
        if found != expected:
            raise UsageError(
                f"{where}: truncated or altered: expected {algorithm} {expected}, found {found}"
                f"; delete it, and {self._remedy()}"
            )

    def missing(self, filename: str) -> UsageError:
        """The error to raise where `filename` is in none of the folders: what to do about it."""
        if self.root is None:
            return UsageError(
                f"{self.name}: {filename} is needed, and no data folder is named: name one with "
                f"--data-dir or HARNESS_DATA, and {self._remedy(filename)}"
            )
        return UsageError(
            f"{self.name}: {filename} is neither in {self.folders[0]} nor in {self.folders[1]}: "
            f"{self._remedy(filename)} (the data folder is what --data-dir or HARNESS_DATA names)"
        )

    def _remedy(self, filename: str = "") -> str:
        urls = [url for name, url in self.downloads if name == filename]
        urls = urls or [url for _, url in self.downloads]
        if not urls:
            return "put the right one there"
        there = self.folders[0] if self.folders else f"its subfolder {self.name}"
        return f"download {' '.join(urls)} to {there}, or: harness fetch {self.name}"
