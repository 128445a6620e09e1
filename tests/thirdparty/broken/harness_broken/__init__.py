"""A plugin whose author forgot a dependency: importing it raises ImportError."""

from collections.abc import Iterator

import a_package_that_is_not_installed

from harness.plugin import AttackSpec, hookimpl


@hookimpl
def harness_attacks() -> Iterator[AttackSpec]:
    yield AttackSpec("broken", a_package_that_is_not_installed.FACTORY, norms=("Linf",))
