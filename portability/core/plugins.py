"""What installed packages add to a registry, by entry points
(https://packaging.python.org/specifications/entry-points)."""

import functools
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from portability.core.errors import UserError

GROUPS = ("portability.strategies", "portability.methods")


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
            raise UserError(f"package {_package(entry)} adds '{entry.name}' to {group}, a name that is "
                            "already taken; uninstall it or have it renamed there")
        found[entry.name] = entry
    return found


def load(entry: EntryPoint) -> Any:
    """What an entry point names.

    Raises:
        UserError: it cannot be imported, or is not there.
    """
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"'{entry.name}' of the installed package {_package(entry)} cannot be imported "
                        f"({error}); install it whole, or remove it") from error


def plugin_versions() -> dict[str, str]:
    """Package -> version, of all packages that add to a registry."""
    found = [entry.dist for group in GROUPS for entry in entry_points(group=group)]
    return {dist.name: dist.version for dist in found if dist is not None}


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value
