"""Which attack fits which model, told from what their specs declare. Nothing is fitted for it."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace

from harness.data import Info
from harness.errors import BrokenPlugin, UsageError
from harness.options import AttackOptions, Resolved, ResolvedRef
from harness.plugin import CORRUPTION, LEVELS, AttackSpec, ModelSpec


def inside(attack: Resolved) -> Resolved:
    """The attack that makes the images: of one that is `like` another that other, else itself."""
    while attack.entry.spec.like and attack.component is not None:
        attack = getattr(attack.component, attack.entry.spec.like).resolved
    return attack


def applies(attack: AttackSpec, norm: str) -> bool:
    """Whether the question makes sense at all: corruptions and attacks do not mix."""
    return (norm == CORRUPTION) == (CORRUPTION in attack.norms)


def misfit(model: Resolved, attack: Resolved, norm: str, info: Info) -> str:
    """Why the attack cannot be run on the model here, in one line; '' where it can."""
    if attack.lacks:
        return attack.lacks
    model, attack = _on(info, model), _on(info, attack)
    return incompatible(model.entry.spec, attack.entry.spec, attack.given, norm, attack.refs)


def _on(info: Info, resolved: Resolved) -> Resolved:
    """The same with the parts that it, and every model that it refers to, has on such data.

    Raises BrokenPlugin where a recipe cannot tell.
    """
    entry, spec = resolved.entry, resolved.entry.spec
    if isinstance(spec, ModelSpec) and spec.parts_vary:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # a stranger's code
                there = resolved.component.parts(info)
                entry = replace(
                    entry, spec=replace(spec, parts=tuple(p for p in spec.parts if p in there))
                )
        except Exception as error:
            raise BrokenPlugin(f"{entry.full}: parts(info) raised {error!r}") from error
    refs = tuple(replace(r, resolved=_on(info, r.resolved)) for r in resolved.refs)
    return replace(resolved, entry=entry, refs=refs)


def incompatible(
    model: ModelSpec,
    attack: AttackSpec,
    given: AttackOptions,
    norm: str,
    refs: tuple[ResolvedRef, ...] = (),
) -> str:
    """Why the attack cannot be run on the model under the norm, in one line; '' where it can.

    refs: what the attack refers to; an attack among them is run on the models among them
    """
    if norm not in attack.norms:
        return f"{attack.name} does not support {norm} (only {', '.join(attack.norms)})"
    missing = _missing(model, attack)
    if missing:
        return f"{attack.name} needs the part {missing}, which {model.name} has not, as it is set"
    return (
        _out_of_reach(model, attack, given)
        or _beyond_its_source(attack, refs)
        or _beyond_a_substitute(attack, refs)
    )


def _missing(model: ModelSpec, attack: AttackSpec) -> str:
    return ", ".join(p for p in attack.parts if p not in model.parts)


def _out_of_reach(model: ModelSpec, attack: AttackSpec, given: AttackOptions) -> str:
    """Why the model does not offer what the attack needs."""
    if given.gradient != "exact":
        if not model.surrogate:
            return f"gradient={given.gradient} needs a surrogate, which {model.name} has not"
        return ""
    if LEVELS.index(attack.needs) <= LEVELS.index(model.offers):
        return ""
    reason = f"{attack.name} needs {attack.needs}, {model.name} offers {model.offers}"
    if model.surrogate:
        reason += "; gradient=bpda attacks through its surrogate"
    return reason


def _beyond_its_source(attack: AttackSpec, refs: tuple[ResolvedRef, ...]) -> str:
    """Why a transfer attack cannot be made: the attack inside needs more than its source offers."""
    for inner in (r.resolved for r in refs if r.kind == "attack"):
        for source in (r.resolved.entry.spec for r in refs if r.kind == "model"):
            spec, given = inner.entry.spec, inner.given
            whose = f"{source.name}, which {attack.name} makes its images on,"
            if missing := _missing(source, spec):
                return f"{spec.name} needs the part {missing}, and {whose} has none"
            if given.gradient != "exact":
                if not source.surrogate:
                    return f"gradient={given.gradient} needs a surrogate, and {whose} has none"
            elif LEVELS.index(spec.needs) > LEVELS.index(source.offers):
                other = f"; {spec.name}:gradient=bpda attacks through its surrogate"
                return f"{spec.name} needs {spec.needs}, and {whose} offers {source.offers}" + (
                    other if source.surrogate else ""
                )
    for nested in (r.resolved for r in refs if r.kind == "attack"):
        if reason := _beyond_its_source(nested.entry.spec, nested.refs):
            return reason
    return ""


def _beyond_a_substitute(attack: AttackSpec, refs: tuple[ResolvedRef, ...]) -> str:
    """Why an attack cannot be made on what a preparing one learns: it has gradients, no parts and
    no surrogate, and whatever learns answers alike each time."""
    if not attack.prepares:
        return ""
    for inner in (r.resolved for r in refs if r.kind == "attack"):
        spec, given = inner.entry.spec, inner.given
        if spec.parts:
            parts = ", ".join(spec.parts)
            return f"{spec.name} needs the part {parts}, and what {attack.name} learns has none"
        if given.gradient != "exact":
            return f"gradient={given.gradient}: what {attack.name} learns has gradients of its own"
    for learner in (r.resolved.entry.spec for r in refs if r.kind == "recipe"):
        if learner.randomised:
            return f"{learner.name} is randomised, and what {attack.name} learns may not be"
    return ""


def check_options(attack: Resolved, where: str) -> None:
    """Raise UsageError for options that contradict what the attack is."""
    spec, given = attack.entry.spec, attack.given
    if spec.prepares and (given.restarts > 1 or given.target != "none" or given.eot > 1):
        raise UsageError(
            f"{where}: {spec.name} prepares; restarts, target and eot do not apply to it"
        )
    if CORRUPTION in spec.norms and given.restarts > 1:
        raise UsageError(
            f"{where}: {spec.name} is a corruption, of which the threat's `draws` are averaged; "
            "restarts do not apply to it"
        )
    if spec.like and (given.gradient != "exact" or given.eot > 1):
        raise UsageError(
            f"{where}: gradient and eot belong to the attack inside {spec.name}, which asks the "
            f"source: {spec.like}=(pgd:gradient=bpda)"
        )
    if spec.like and given.restarts > 1:
        raise UsageError(
            f"{where}: restarts belong to the attack inside {spec.name}, which never asks the "
            f"judged model: {spec.like}=(pgd:restarts={given.restarts})"
        )
    for nested in attack.refs:
        if nested.kind == "attack":
            _check_inner(attack, nested.resolved, where)
            check_options(nested.resolved, where)


def _check_inner(outer: Resolved, inner: Resolved, where: str) -> None:
    """Raise UsageError where the attack cannot be inside the other."""
    name, spec, own = outer.entry.spec.name, inner.entry.spec, inner.given
    if spec.prepares:
        raise UsageError(f"{where}: {inner.label!r} prepares, so it cannot be inside {name}")
    plain = AttackOptions(restarts=own.restarts)
    if outer.entry.spec.like:
        if CORRUPTION in spec.norms:
            raise UsageError(
                f"{where}: {inner.label!r} is a corruption, which asks no model: without {name} it "
                "is the same"
            )
        plain = replace(plain, gradient=own.gradient, eot=own.eot)
        allowed = "restarts, gradient and eot apply to the attack"
    else:
        allowed = "restarts applies to the attack"
    if own != plain:
        raise UsageError(
            f"{where}: of the harness's options only {allowed} {inner.label!r} inside {name}"
        )
