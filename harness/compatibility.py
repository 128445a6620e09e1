"""Which attack fits which model, told from what their specs declare. Nothing is fitted for it."""

from __future__ import annotations

from harness.errors import UsageError
from harness.options import AttackOptions, Resolved, ResolvedRef
from harness.plugin import CORRUPTION, LEVELS, AttackSpec, ModelSpec


def applies(attack: AttackSpec, norm: str) -> bool:
    """Whether the question makes sense at all: corruptions and attacks do not mix."""
    return (norm == CORRUPTION) == (CORRUPTION in attack.norms)


def misfit(model: Resolved, attack: Resolved, norm: str) -> str:
    """Why the attack cannot be run on the model here, in one line; '' where it can."""
    specs = model.entry.spec, attack.entry.spec
    return attack.lacks or incompatible(*specs, attack.given, norm, attack.refs)


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
    missing = [p for p in attack.parts if p not in model.parts]
    if missing:
        return f"{attack.name} needs the part {', '.join(missing)}, which {model.name} has not"
    return _out_of_reach(model, attack, given) or _beyond_its_source(attack, refs)


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
    for inner in (r.resolved.entry.spec for r in refs if r.kind == "attack"):
        for source in (r.resolved.entry.spec for r in refs if r.kind == "model"):
            if LEVELS.index(inner.needs) > LEVELS.index(source.offers):
                return (
                    f"{inner.name} needs {inner.needs}, and {source.name}, which {attack.name} "
                    f"makes its images on, offers {source.offers}"
                )
    for nested in (r.resolved for r in refs if r.kind == "attack"):
        if reason := _beyond_its_source(nested.entry.spec, nested.refs):
            return reason
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
    for nested in attack.refs:
        if nested.kind == "attack":
            own = nested.resolved.given
            plain = AttackOptions(restarts=own.restarts)
            if own != plain:
                raise UsageError(
                    f"{where}: of the harness's options only restarts applies to the attack "
                    f"{nested.resolved.label!r} inside {spec.name}"
                )
            check_options(nested.resolved, where)
