"""What is installed: plugins found, probed one by one, and what they bring looked up by name.

    entry points ──▶ version gate ──▶ import ──▶ probe manager ──▶ staged specs ──▶ Catalogue

Each arrow is guarded, and what fails becomes a `PluginStatus` with a reason; nothing of a plugin
that failed is kept. pluggy's `load_setuptools_entrypoints` does none of this: one bad import there
kills the host, and of two plugins with one name it drops one silently.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, Literal, TypeVar

import pluggy
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from harness import __version__, hookspecs
from harness.errors import (
    AmbiguousName,
    BrokenPlugin,
    HarnessError,
    PluginError,
    UnknownName,
    did_you_mean,
)
from harness.plugin import PROJECT, AttackSpec, DatasetSpec, ModelSpec, Spec

DISTRIBUTION = "robustness-harness"
HOOKS: dict[str, tuple[str, type[Spec]]] = {
    "models": ("harness_models", ModelSpec),
    "attacks": ("harness_attacks", AttackSpec),
    "datasets": ("harness_datasets", DatasetSpec),
}
_PREFIXES = (f"{DISTRIBUTION}-", "harness-")

Status = Literal["ok", "import-error", "incompatible", "hook-error"]
S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class PluginStatus:
    """One plugin: what became of it, and what it brings.

    id:        'distribution:entry point'
    reason:    one line, empty where the status is ok
    names:     by kind (models, attacks, datasets), the short names it brings
    import_ms: how long its import took; 0 where it was not imported
    """

    id: str
    dist: str
    version: str
    module: str
    status: Status
    reason: str = ""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    import_ms: float = 0.0


@dataclass(frozen=True)
class Entry(Generic[S]):
    """A spec and the distribution that brings it; `version` is the distribution's."""

    spec: S
    dist: str
    version: str

    @property
    def full(self) -> str:
        return f"{self.dist}/{self.spec.name}"


@dataclass(frozen=True)
class Catalogue:
    """Everything installed. The mappings are keyed by full name, `dist/name`."""

    plugins: tuple[PluginStatus, ...]
    models: Mapping[str, Entry[ModelSpec]]
    attacks: Mapping[str, Entry[AttackSpec]]
    datasets: Mapping[str, Entry[DatasetSpec]]

    def model(self, name: str) -> Entry[ModelSpec]:
        """The model of that short or full name.

        Raises UnknownName, BrokenPlugin where the name is a plugin's that did not load, and
        AmbiguousName where several distributions bring the short name.
        """
        return self._find(self.models, name, "model")

    def attack(self, name: str) -> Entry[AttackSpec]:
        """See `model`."""
        return self._find(self.attacks, name, "attack")

    def dataset(self, name: str) -> Entry[DatasetSpec]:
        """See `model`."""
        return self._find(self.datasets, name, "data set")

    def unknown(self, name: str) -> UnknownName | BrokenPlugin:
        """Why nothing has the name, for who asks without saying of which kind."""
        entries: dict[str, Entry[Any]] = {**self.models, **self.attacks, **self.datasets}
        return self._missing(entries, name, "model, attack or data set")

    def short(self, full: str) -> str:
        """The shortest name that looks up what `full` does."""
        name = full.rpartition("/")[2]
        kinds: tuple[Mapping[str, Entry[Any]], ...] = (self.models, self.attacks, self.datasets)
        unique = all(len(_called(name, kind)) == 1 for kind in kinds if full in kind)
        return name if unique else full

    def _find(self, entries: Mapping[str, Entry[S]], name: str, kind: str) -> Entry[S]:
        if name in entries:
            return entries[name]
        found = _called(name, entries)
        if len(found) == 1:
            return found[0]
        if found:
            names = " or ".join(sorted(e.full for e in found))
            raise AmbiguousName(f"{kind} {name!r} is brought by several plugins: write {names}")
        raise self._missing(entries, name, kind)

    def _missing(
        self, entries: Mapping[str, Entry[Any]], name: str, kind: str
    ) -> UnknownName | BrokenPlugin:
        broken = [p for p in self.plugins if p.status != "ok"]
        for plugin in broken:
            if _is_of(name, plugin):
                return BrokenPlugin(
                    f"{kind} {name!r}: plugin {plugin.id} failed to load: {plugin.reason}"
                )
        known = {self.short(full) for full in entries}
        meant = _meant(name, known | set(entries))
        message = f"no {kind} is called {name!r}{meant or _listed(known)}"
        for plugin in broken:
            message += (
                f"; or it is provided by plugin {plugin.id}, which failed to load: {plugin.reason}"
            )
        return UnknownName(message)


def _called(name: str, entries: Mapping[str, Entry[S]]) -> list[Entry[S]]:
    return [entry for entry in entries.values() if entry.spec.name == name]


def _meant(name: str, known: Iterable[str]) -> str:
    """What may have been meant, in whatever case it was typed: a name, an option of one, or a
    member of a family."""
    known = set(known)
    bare = name.partition("=")[0].rpartition(":")[0]
    if bare in known:
        with_option = "" if name.endswith(":") else f" or '{name}=…'"
        return f", did you mean {bare!r}" + (
            ", without options?" if "=" in name else f"{with_option}?"
        )
    plain, _, word = name.partition(":")
    members = {k.partition(":")[2]: k for k in sorted(known) if k.startswith(f"{plain}:")}
    cases = {m.lower(): k for m, k in members.items()} or {k.lower(): k for k in known}
    close = did_you_mean(word.lower() if members else name.lower(), cases)
    if members and not close:
        return f", did you mean one of {plain}'s: {', '.join(members)}?"
    return close and re.sub(r"'([^']+)'", lambda found: repr(cases[found[1]]), close)


def _listed(names: Iterable[str]) -> str:
    """The names, of a family's members the family alone."""
    own = {
        name if name == family else f"{family}:…" for name in names for family in [_family(name)]
    }
    return f" (known: {', '.join(sorted(own)) or 'none'})"


def _family(name: str) -> str:
    return name.partition(":")[0]


def _is_of(name: str, plugin: PluginStatus) -> bool:
    """Whether the name is one that this plugin would bring, as far as its metadata tells.

    What it brings is not known, since it did not load; its own names are.
    """
    dist, slash, _ = name.rpartition("/")
    if slash:
        return canonicalize_name(dist) == plugin.dist
    bare = (plugin.dist.removeprefix(prefix) for prefix in _PREFIXES)
    return name in {plugin.id.partition(":")[2], plugin.dist, *bare}


@dataclass(frozen=True)
class _Candidate:
    """A plugin that was found and not yet touched."""

    dist: str
    version: str
    name: str
    module: str
    requires: Callable[[], Iterable[str]]
    load: Callable[[], Any]


def discover() -> Catalogue:
    """The plugins of the installed entry points, in the order of their names."""
    candidates = {(c.dist, c.name, c.module): c for c in _installed()}
    return _catalogue(candidates[key] for key in sorted(candidates))


def catalogue(*plugins: tuple[str, str, Any]) -> Catalogue:
    """The plugins given as (distribution, version, module), and no others: for tests."""
    return _catalogue(
        _Candidate(canonicalize_name(dist), version, name, name, tuple, partial(_itself, module))
        for dist, version, module in plugins
        for name in [getattr(module, "__name__", type(module).__name__)]
    )


def _itself(module: Any) -> Any:
    return module


def _installed() -> Iterator[_Candidate]:
    """Candidates of every distribution; of one that is seen twice, those on sys.path's first.

    Distributions are read one by one, since `entry_points()` raises for all of them where one
    file is malformed.
    """
    first: dict[str, Any] = {}
    for dist in importlib.metadata.distributions():
        try:
            found = list(_of(dist))
        except Exception as error:
            if _names_us(dist):
                yield _unreadable(dist, error)
            continue
        yield from (c for c in found if first.setdefault(c.dist, dist) is dist)


def _names_us(dist: importlib.metadata.Distribution) -> bool:
    """Whether a distribution that cannot be read has a plugin, as far as its file tells."""
    try:
        return PROJECT in (dist.read_text("entry_points.txt") or "")
    except UnicodeDecodeError as error:
        return PROJECT.encode() in error.object
    except Exception:
        return False


def _of(dist: importlib.metadata.Distribution) -> Iterator[_Candidate]:
    points = dist.entry_points.select(group=PROJECT)
    for point in points:
        if not dist.metadata["Name"]:
            raise PluginError(f"the distribution of {point.value} has no name in its METADATA")
        yield _Candidate(
            dist=canonicalize_name(dist.metadata["Name"]),
            version=dist.version or "unknown",
            name=point.name,
            module=point.value,
            requires=partial(_requires, dist),
            load=point.load,
        )


def _requires(dist: importlib.metadata.Distribution) -> Iterable[str]:
    return dist.requires or ()


def _unreadable(dist: importlib.metadata.Distribution, error: Exception) -> _Candidate:
    name = "unknown"
    with contextlib.suppress(Exception):
        name = canonicalize_name(dist.metadata["Name"])
    load = partial(_raise, error)
    return _Candidate(name, "unknown", "entry_points.txt", "unknown", tuple, load)


def _raise(error: Exception) -> None:
    raise PluginError(f"its metadata cannot be read: {error}")


def _catalogue(candidates: Iterable[_Candidate]) -> Catalogue:
    plugins: list[PluginStatus] = []
    kept: dict[str, dict[str, Entry[Any]]] = {kind: {} for kind in HOOKS}
    for candidate in candidates:
        status, brought = _probe(candidate)
        taken = [full for kind in HOOKS for full in brought[kind] if full in kept[kind]]
        if taken:
            reason = f"another plugin of its distribution already brings {taken[0]}"
            status = replace(status, status="hook-error", reason=reason, names={})
        else:
            for kind in HOOKS:
                kept[kind] |= brought[kind]
        plugins.append(status)
    return Catalogue(tuple(plugins), **kept)


def _probe(candidate: _Candidate) -> tuple[PluginStatus, dict[str, dict[str, Entry[Any]]]]:
    """Import a plugin and ask it what it brings. Whatever it raises, but Ctrl-C, is its status."""
    stage: Status = "incompatible"
    reason, import_ms = "", 0.0
    brought: dict[str, dict[str, Entry[Any]]] = {kind: {} for kind in HOOKS}
    try:
        _check_version(candidate.requires())
        stage, started = "import-error", time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):
            plugin = candidate.load()
            import_ms = (time.perf_counter() - started) * 1000
            stage = "hook-error"
            brought = _staged(plugin, candidate)
        stage = "ok"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may well call sys.exit
        reason = _one_line(error)
    status = PluginStatus(
        id=f"{candidate.dist}:{candidate.name}",
        dist=candidate.dist,
        version=candidate.version,
        module=candidate.module,
        status=stage,
        reason=reason,
        names={kind: tuple(e.spec.name for e in brought[kind].values()) for kind in HOOKS},
        import_ms=import_ms,
    )
    return status, brought


def _check_version(requirements: Iterable[str]) -> None:
    """Raise PluginError if the plugin asks for another version of the harness than this one."""
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        marker = requirement.marker
        ours = canonicalize_name(requirement.name) == DISTRIBUTION and (
            marker is None or marker.evaluate({"extra": ""})
        )
        if ours and not requirement.specifier.contains(__version__, prereleases=True):
            raise PluginError(
                f"it requires {requirement}, and this is {DISTRIBUTION} {__version__}"
            )


def _staged(plugin: Any, candidate: _Candidate) -> dict[str, dict[str, Entry[Any]]]:
    """What the plugin's hooks yield, by kind and full name. Raises whatever is wrong with them."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.check_pending()
    if not manager.get_hookcallers(plugin):
        hooks = ", ".join(hook for hook, _ in HOOKS.values())
        raise PluginError(f"it has no hook: one of {hooks}, marked with @hookimpl")
    return {
        kind: _specs(getattr(manager.hook, hook), wanted, candidate)
        for kind, (hook, wanted) in HOOKS.items()
    }


def _specs(
    caller: pluggy.HookCaller, wanted: type[Spec], candidate: _Candidate
) -> dict[str, Entry[Any]]:
    staged: dict[str, Entry[Any]] = {}
    for implementation in caller.get_hookimpls():
        yields = implementation.function()
        if not isinstance(yields, Iterable):
            raise PluginError(f"{caller.name} gave {yields!r}; expected {wanted.__name__}s")
        for spec in yields:
            if not isinstance(spec, wanted):
                raise PluginError(f"{caller.name} gave {spec!r}; expected a {wanted.__name__}")
            entry = Entry(spec, candidate.dist, candidate.version)
            if entry.full in staged:
                raise PluginError(f"{caller.name} gave {spec.name!r} twice")
            staged[entry.full] = entry
    return staged


def _one_line(error: BaseException) -> str:
    if isinstance(error, HarnessError):
        return str(error)
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    return text.removeprefix(f"{type(error).__module__}.")
