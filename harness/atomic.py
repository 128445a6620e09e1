"""Files that are whole or not there, whenever the writer is killed.

The bytes go to a temporary file in the same folder, are synced, and the file is renamed over its
final name; the folder is synced too, so that the rename survives a power failure. What a killed
writer leaves is its temporary file, which says by its name whose it was.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# NAME.HOST.PID.RANDOM.tmp; the host as a hash, because host names hold anything.
TEMPORARY = re.compile(r"(?P<name>.+)\.(?P<host>[0-9a-f]{8})\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")
HOPELESS = 3600.0  # seconds; a write takes milliseconds, on whatever machine its writer lived


def write(path: Path, data: bytes) -> None:
    """Put `data` at `path`, replacing what is there. OSError leaves `path` as it was."""
    temporary = path.with_name(f"{path.name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def left_over(folder: Path) -> Iterator[tuple[Path, str]]:
    """The temporary files of writers that are dead, each with the final name that it was for."""
    for path in sorted(folder.glob("*.tmp")):
        match = TEMPORARY.fullmatch(path.name)
        if match and _is_dead(path, match["host"], int(match["pid"])):
            yield path, match["name"]


def _is_dead(path: Path, host: str, pid: int) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:  # its writer lives: it has just renamed it
        return False
    return age > HOPELESS or (host == _host() and not _runs(pid))


def _runs(pid: int) -> bool:
    if sys.platform == "win32":  # there, signal 0 is no question
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
