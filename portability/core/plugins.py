"""What installed packages add to a registry, by entry points
(https://packaging.python.org/specifications/entry-points)."""

import functools
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points

from portability.core.errors import UserError


@functools.cache
def plugins(group: str, ours: Collection[str]) -> dict[str, EntryPoint]:
    """Name -> entry point of a group, not loaded yet.

    Args:
        ours: names of the registry itself (hashable: a tuple or frozenset).

    Raises:
        UserError: a package takes a name of ours, or two packages take the same one.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        if entry.name in ours or entry.name in found:
            package = entry.dist.name if entry.dist else entry.value
            raise UserError(f"package {package} adds '{entry.name}' to {group}, a name that is already "
                            "taken; uninstall it or have it renamed there")
        found[entry.name] = entry
    return found
