"""`harness list`, `harness show` and `harness plugins`: what is installed, and what it takes."""

from __future__ import annotations

import json
from typing import Any

import click
from tabulate import tabulate

from harness.data import DataOptions
from harness.errors import BrokenPlugin, UnknownName
from harness.fields import OptionInfo, describe_fields
from harness.installed import lacking
from harness.options import AttackOptions, ModelOptions, describe
from harness.plugin import AttackSpec, ModelSpec
from harness.registry import Catalogue, Entry

GIVEN: dict[str, type] = {"model": ModelOptions, "attack": AttackOptions, "dataset": DataOptions}


def list_kind(kind: str, catalogue: Catalogue, *, as_json: bool) -> None:
    """Names with what a choice needs; for plugins, their status and reason."""
    rows = _plugins(catalogue) if kind == "plugins" else _specs(kind, catalogue)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    if not rows:
        click.echo(f"no {kind}")
        return
    shown = [{name: _text(value) for name, value in row.items()} for row in rows]
    click.echo(tabulate(shown, headers="keys", tablefmt="simple", disable_numparse=True))


def _plugins(catalogue: Catalogue) -> list[dict[str, Any]]:
    return [
        {
            "plugin": p.id,
            "version": p.version,
            "status": p.status,
            "module": p.module,
            "import_ms": round(p.import_ms),
            "reason": p.reason,
        }
        for p in catalogue.plugins
    ]


def _specs(kind: str, catalogue: Catalogue) -> list[dict[str, Any]]:
    entries: dict[str, Entry[Any]] = dict(getattr(catalogue, kind))
    rows = []
    for full, entry in sorted(entries.items(), key=lambda item: item[1].spec.name):
        spec = entry.spec
        row: dict[str, Any] = {"name": catalogue.short(full)}
        if isinstance(spec, ModelSpec):
            row["offers"] = spec.offers
        if isinstance(spec, AttackSpec):
            row |= {"norms": list(spec.norms), "needs": spec.needs, "kind": _budget(spec)}
        rows.append({**row, "summary": spec.summary, "from": f"{entry.dist} {entry.version}"})
    return rows


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def show(name: str, catalogue: Catalogue, *, as_json: bool) -> None:
    """Everything that is declared of one name, and its options."""
    found = [(kind, e) for kind in GIVEN if (e := _find(kind, name, catalogue)) is not None]
    if not found:
        raise catalogue.unknown(name)
    for kind, entry in found:
        facts = _facts(kind, entry)
        options = [vars(o) for o in _options(kind, entry)]
        if as_json:
            click.echo(json.dumps({**facts, "options": options}))
            continue
        for key, value in facts.items():
            click.echo(f"{key + ':':<12} {_text(value)}")
        click.echo("options:")
        for o in options:
            constraint = f"  {o['constraint']}" if o["constraint"] else ""
            doc = f"  {o['doc']}" if o["doc"] else ""
            click.echo(f"  {o['name']}: {o['type']} = {o['default']}{constraint}{doc}")


def _budget(spec: AttackSpec) -> str:
    return f"as its {spec.like}" if spec.like else spec.kind


def _options(kind: str, entry: Entry[Any]) -> list[OptionInfo]:
    """Its options; of what cannot be asked, because it lacks something, the harness's alone."""
    try:
        return describe(entry, GIVEN[kind])
    except BrokenPlugin:
        if not lacking(entry.spec):
            raise
        return list(describe_fields(GIVEN[kind]))


def _find(kind: str, name: str, catalogue: Catalogue) -> Entry[Any] | None:
    try:
        entry: Entry[Any] = getattr(catalogue, kind)(name)
    except UnknownName:
        return None
    return entry


def _facts(kind: str, entry: Entry[Any]) -> dict[str, Any]:
    spec = entry.spec
    facts: dict[str, Any] = {"name": spec.name, "kind": kind, "summary": spec.summary}
    facts |= {
        "paper": spec.paper or "–",
        "version": spec.version,
        "from": f"{entry.dist} {entry.version}",
    }
    if isinstance(spec, ModelSpec):
        facts |= {"offers": spec.offers, "surrogate": "yes" if spec.surrogate else "no"}
        facts |= {"randomised": "yes" if spec.randomised else "no"}
        if spec.short_for:
            facts["short for"] = spec.short_for
    if isinstance(spec, AttackSpec):
        facts |= {"norms": list(spec.norms), "needs": spec.needs, "budget": _budget(spec)}
    if isinstance(spec, ModelSpec | AttackSpec) and spec.parts:
        facts["parts"] = list(spec.parts)
    if missing := lacking(spec):
        facts["missing"] = f"{missing} (its own options are known then)"
    return facts
