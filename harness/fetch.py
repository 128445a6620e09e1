"""Download a data set's official files: `harness fetch NAME`.

What comes is put into a folder of its own, read there as the data set reads it, which checks it,
and only then moved to its place. An error leaves what was there before.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from urllib.error import URLError
from urllib.request import Request, urlopen

from harness.errors import UsageError

CHUNK = 1 << 18  # bytes
PATIENCE = 60.0  # seconds without a byte

Progress = Callable[[str, int, int], None]
Verify = Callable[[Path], object]


def fetch(
    name: str,
    downloads: tuple[tuple[str, str], ...],
    root: Path,
    verify: Verify,
    progress: Progress = lambda _filename, _done, _total: None,
) -> list[Path]:
    """Where the official files of the data set now are. Nothing is downloaded if it is there.

    downloads: (file name, URL), http or https
    root:      the data folder; the files go to `root/name`
    verify:    reads the data set from a data folder; raises UsageError unless it is the right one
    progress:  `progress(filename, bytes so far, bytes in all)`, 0 where the server does not say

    Raises UsageError where a file cannot be had, is not the official one, or cannot be written.
    """
    folder = root / name
    places = [folder / filename for filename, _ in downloads]
    if _passes(verify, root):
        return [p for p in places if p.is_file()] or [folder]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as staging:
            for path in _staged(downloads, folder, Path(staging), verify, progress):
                os.replace(path, folder / path.name)
    except OSError as error:
        raise UsageError(f"fetch {name}: {folder} cannot be written: {error}") from error
    except UsageError as error:
        raise UsageError(f"fetch {name}: {error}") from error
    return places


def _staged(
    downloads: tuple[tuple[str, str], ...],
    folder: Path,
    staging: Path,
    verify: Verify,
    progress: Progress,
) -> list[Path]:
    """The files that the folder needs, in `staging`, verified together with those that it has."""
    have = [d for d in downloads if (folder / d[0]).is_file()]
    need = [d for d in downloads if d not in have]
    for filename, _ in have:
        shutil.copyfile(folder / filename, staging / filename)
    _download(need, staging, progress)
    if have and not _passes(verify, staging):  # one of those that were there is altered
        _download(have, staging, progress)
        need = [*have, *need]
    try:
        verify(staging)
    except UsageError as error:
        # Its file by its name alone, and without the remedy, which is this very command.
        reason = str(error).replace(f"{staging}{os.sep}", "").partition(";")[0]
        raise UsageError(f"what was downloaded is not kept: {reason}") from error
    return [staging / filename for filename, _ in need]


def _passes(verify: Verify, root: Path) -> bool:
    try:
        verify(root)
    except UsageError:
        return False
    return True


def _download(files: list[tuple[str, str]], folder: Path, progress: Progress) -> None:
    for filename, url in files:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{url}: only http and https are downloaded from")
        try:
            _download_one(url, folder / filename, progress)
        except (URLError, HTTPException, ConnectionError, TimeoutError, SSLError) as error:
            reason = error.reason if type(error) is URLError else error
            raise UsageError(f"{url}: {reason or type(error).__name__}") from error


def _download_one(url: str, path: Path, progress: Progress) -> None:
    request = Request(url, headers={"User-Agent": "robustness-harness"})
    with urlopen(request, timeout=PATIENCE) as response, path.open("wb") as file:
        total, done = response.length or 0, 0
        while chunk := response.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            progress(path.name, done, total)
        file.flush()
        os.fsync(file.fileno())
    if total and done != total:
        raise UsageError(f"{url}: the connection ended after {done} of {total} bytes")
