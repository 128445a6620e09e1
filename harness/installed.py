"""Whether what a plugin requires of others is installed. Nothing is imported to learn it."""

from __future__ import annotations

import importlib.metadata

from packaging.requirements import InvalidRequirement, Requirement

from harness.errors import BrokenPlugin
from harness.plugin import Spec


def lacking(spec: Spec) -> str:
    """What the spec requires and is not there, in one line with the pip command; '' if all is.

    Raises BrokenPlugin where what it requires cannot be read.
    """
    for text, package in spec.requires:
        requirement = _requirement(spec, text)
        found = version_of(requirement.name)
        if not found or not requirement.specifier.contains(found, prereleases=True):
            instead = f" ({found} is)" if found else ""
            remedy = f": pip install {package!r}" if package else "; no such release is known"
            return f"{spec.name} needs {requirement}, which is not installed{instead}{remedy}"
    return ""


def versions(spec: Spec) -> dict[str, str]:
    """The versions of the distributions that the spec requires, by their names."""
    names = [_requirement(spec, text).name for text, _ in spec.requires]
    return {name: found for name in names if (found := version_of(name))}


def _requirement(spec: Spec, text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        raise BrokenPlugin(f"{spec.name}: it requires {text!r}, which is no requirement") from error


def version_of(distribution: str) -> str:
    """Its version, or '' where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
