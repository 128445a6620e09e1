"""The store: a folder with one JSON file per cell, and its arrays, one row per sample, beside it.

    <key>.json                              what was run, how it ended, what it cost, where
    <key>.<sha256, 12 digits>.safetensors           arrays, if there are any
    <key>.<sha256, 12 digits>.examples.safetensors  adversarial examples, if they were kept

A record is whole or not there, whenever a writer is killed, and so is its successor when it is
written again: arrays are named by their content and written first, and the JSON, which holds their
sha256, is renamed into place after them. That rename is the one instant at which a record comes to
be or changes. Arrays that no JSON names are orphans of a killed writer; they are ignored.

Files are named by content and key alone, so there are no locks, many writers may share the folder,
and folders are merged by copying. Reading believes nothing and repairs nothing.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from harness import atomic
from harness.errors import HarnessError, RecordError
from harness.identity import KEY_LENGTH, key_of, plain

Arrays = Mapping[str, NDArray[Any]]

SCHEMA = 1
STATUSES = ("ok", "failed", "timeout", "oom")
KINDS = ("fit", "attack")
DTYPES = {"bool", "float16", "float32", "float64"}.union(
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
)

_KEY = rf"[0-9a-f]{{{KEY_LENGTH}}}"
_JSON = re.compile(rf"({_KEY})\.json")
_ARRAYS = re.compile(rf"{_KEY}\.[0-9a-f]{{12}}(\.examples)?\.safetensors")
_OURS = re.compile(rf"{_JSON.pattern}|{_ARRAYS.pattern}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS: dict[str, type] = {
    "arrays": str,
    "cost": dict,
    "examples": str,
    "facts": dict,
    "identity": dict,
    "key": str,
    "kind": str,
    "provenance": dict,
    "reason": str,
    "status": str,
    "weights": str,
}


@dataclass(frozen=True, eq=False)
class Record:
    """What a cell leaves.

    identity: all that the result depends on; its hash is the key
    reason:   why the cell did not end `ok`
    facts:    what else is known of the result; cost: seconds and queries; both plain data
    weights:  digest of the fitted weights
    arrays:   by name, one row per sample; none unless the cell ended `ok`
    """

    key: str
    kind: Literal["fit", "attack"]
    identity: Mapping[str, Any]
    status: str
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    arrays: Arrays = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RecordError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.status not in STATUSES:
            raise RecordError(f"status must be one of {', '.join(STATUSES)}, not {self.status!r}")
        if self.arrays and self.status != "ok":
            raise RecordError(f"a cell that ended {self.status!r} has no arrays")
        if self.key != (right := key_of(self.identity)):
            raise RecordError(f"key {self.key} is not its identity's, {right}: one was altered")


@dataclass(frozen=True)
class Problem:
    """A file of the store's folder that is no record, and why."""

    file: str
    reason: str

    @property
    def key(self) -> str:
        """Of the record that the file is named as; '' where it is named as none."""
        named = _JSON.fullmatch(self.file)
        return named[1] if named else ""


@contextmanager
def _uncollected() -> Iterator[None]:
    """The collector of cycles paused. Records have none, and going through ever more of them took
    a third of the time of reading ten thousand."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


class Store:
    """The records in one folder, which is made when the first is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, record: Record, examples: Arrays | None = None) -> None:
        """Store a record, in place of an older one with its key.

        When this returns the record is on the disk; until then, the older one is.
        Raises RecordError or PluginError on what cannot be stored, before anything is written.
        """
        parts = {"arrays": _pack(record.arrays), "examples": _pack(examples or {})}
        digests = {name: _digest(data) for name, data in parts.items()}
        text = _json_of(record, digests)
        self.folder.mkdir(parents=True, exist_ok=True)
        older = self._named_by(record.key)
        for name, data in parts.items():
            if data:
                atomic.write(self._file(record.key, name, digests[name]), data)
        atomic.write(self._json(record.key), text)
        # Only what the older JSON named: another writer's arrays may be waiting for theirs.
        for path in older - self._named_by(record.key):
            path.unlink(missing_ok=True)

    def read(self, key: str) -> Record | None:
        """The record, or None where there is none. RecordError: it cannot be believed."""
        path = self._json(key)
        try:
            return self._load(path)
        except FileNotFoundError:
            return None
        except RecordError as error:
            raise RecordError(f"{path}: {error}") from None

    def scan(self) -> tuple[dict[str, Record], tuple[Problem, ...]]:
        """Every record by key, and every file that is none, both in the order of names."""
        with _uncollected():
            return self._scan()

    def _scan(self) -> tuple[dict[str, Record], tuple[Problem, ...]]:
        records: dict[str, Record] = {}
        problems: list[Problem] = []
        for path in self._files():
            try:
                if match := _JSON.fullmatch(path.name):
                    records[match[1]] = self._load(path)
                elif not _ARRAYS.fullmatch(path.name):
                    raise RecordError("not a file of the store: records are named <key>.json")
            except FileNotFoundError:  # discarded by another process while we read
                continue
            except RecordError as error:
                problems.append(Problem(path.name, str(error)))
        return records, tuple(problems)

    def examples(self, key: str) -> dict[str, NDArray[Any]]:
        """The adversarial examples that the run kept. RecordError: it kept none, or see `read`."""
        path = self._json(key)
        if not (digest := self._examples_digest(path)):
            raise RecordError(f"{path}: its examples were not kept; run it with --keep-examples")
        try:
            return self._arrays(key, "examples", digest)
        except RecordError as error:
            raise RecordError(f"{path}: {error}") from None

    def keeps_examples(self, key: str) -> bool:
        """Whether the record names adversarial examples, damaged or not. RecordError: see `read`,
        or there is none."""
        return bool(self._examples_digest(self._json(key)))

    def discard(self, key: str) -> None:
        """Forget a record: the JSON first, so that no instant shows it without its arrays."""
        self._json(key).unlink(missing_ok=True)
        for path in self.folder.glob(f"{key}.*.safetensors"):
            path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what killed writers left of files that they had not finished."""
        for path, name in atomic.left_over(self.folder):
            if _OURS.fullmatch(name):
                path.unlink(missing_ok=True)

    def _json(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _file(self, key: str, part: str, digest: str) -> Path:
        suffix = "" if part == "arrays" else f".{part}"
        return self.folder / f"{key}.{digest[:12]}{suffix}.safetensors"

    def _files(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from (
                p
                for p in sorted(self.folder.iterdir(), key=attrgetter("name"))
                if p.suffix != ".tmp"
            )

    def _named_by(self, key: str) -> set[Path]:
        """The files that the stored JSON names; none, where it names none that can be read."""
        try:
            raw = _fields(_parsed(self._json(key).read_bytes()))
        except (OSError, RecordError):
            return set()
        return {self._file(key, part, raw[part]) for part in ("arrays", "examples") if raw[part]}

    @staticmethod
    def _examples_digest(path: Path) -> str:
        try:
            return str(_fields(_parsed(path.read_bytes()))["examples"])
        except FileNotFoundError:
            raise RecordError(f"{path}: no such record") from None
        except OSError as error:
            raise RecordError(f"{path}: cannot be read: {error.strerror}") from None
        except RecordError as error:
            raise RecordError(f"{path}: {error}") from None

    def _load(self, path: Path) -> Record:
        """The record at `path`, checked. RecordError, without the path: why it is none."""
        while True:
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                raise
            except OSError as error:
                raise RecordError(f"cannot be read: {error.strerror}") from None
            try:
                return self._checked(path.stem, data)
            except RecordError:
                if path.read_bytes() == data:
                    raise
                # Else it was written again while we read it, and what it named is gone.

    def _checked(self, key: str, data: bytes) -> Record:
        raw = _fields(_parsed(data))
        if raw["key"] != key:
            raise RecordError(f"holds the record {raw['key']}, not the one it is named after")
        raw.pop("examples")  # read when asked for
        digest = raw.pop("arrays")
        arrays = self._arrays(key, "arrays", digest) if digest else {}
        try:
            return Record(**raw, arrays=arrays)
        except (HarnessError, RecursionError) as error:
            raise RecordError(str(error)) from None

    def _arrays(self, key: str, part: str, digest: str) -> dict[str, NDArray[Any]]:
        path = self._file(key, part, digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise RecordError(f"its {part}, {path.name}, are missing") from None
        except OSError as error:
            raise RecordError(
                f"its {part}, {path.name}, cannot be read: {error.strerror}"
            ) from None
        if (found := _digest(data)) != digest:
            raise RecordError(f"its {part}, {path.name}, have sha256 {found}, expected {digest}")
        try:
            return load(data)
        except (SafetensorError, KeyError, ValueError) as error:
            raise RecordError(f"its {part}, {path.name}, are no safetensors: {error}") from None


def _pack(arrays: Arrays) -> bytes:
    """Safetensors bytes, the same for the same arrays; none for none."""
    for name, array in arrays.items():
        if array.dtype.name not in DTYPES:
            raise RecordError(f"array {name!r} is of {array.dtype}, which cannot be stored")
    # save() writes the memory as it lies, so an array that is not in C order would be scrambled.
    whole = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    return save(whole) if whole else b""


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if data else ""


def _json_of(record: Record, digests: Mapping[str, str]) -> bytes:
    raw = {
        "schema": SCHEMA,
        "key": record.key,
        "kind": record.kind,
        "status": record.status,
        "reason": record.reason,
        "weights": record.weights,
        **{
            name: plain(value, name)
            for name, value in (
                ("identity", record.identity),
                ("facts", record.facts),
                ("cost", record.cost),
                ("provenance", record.provenance),
            )
        },
        **digests,
    }
    text = json.dumps(raw, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    # A message may hold half a surrogate pair; its \udcxx is JSON's own escape as well.
    return text.encode("utf-8", "backslashreplace")


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"torn, or no JSON: {error}") from None
    if not isinstance(raw, dict) or "schema" not in raw:
        raise RecordError("JSON, but not a record: it has no schema number")
    if raw["schema"] != SCHEMA:
        raise RecordError(f"has schema {raw['schema']!r}; this version reads {SCHEMA}")
    return raw


def _fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without the schema, each there and of its type, and no others."""
    fields = {name: value for name, value in raw.items() if name != "schema"}
    if odd := sorted(fields.keys() ^ _FIELDS.keys()):
        raise RecordError(f"not a record: fields missing or unknown: {', '.join(odd)}")
    for name, kind in _FIELDS.items():
        if not isinstance(fields[name], kind):
            raise RecordError(f"field {name!r} is not a {kind.__name__}: {fields[name]!r}")
    for name in ("arrays", "examples"):
        if fields[name] and not _DIGEST.fullmatch(fields[name]):
            raise RecordError(f"field {name!r} is not a sha256: {fields[name]!r}")
    return fields
