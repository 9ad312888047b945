"""Versions of the packages that can change a number, and what brings a package that is not there."""

import functools
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from portability.core.errors import UserError
from portability.core.plugins import plugin_versions

PACKAGES = ("portability", "torch", "transformers", "adapters", "peft", "datasets", "evaluate", "numpy",
            "safetensors")
EXTRAS = ("adapters",)  # packages that an extra of the same name brings
DISTRIBUTIONS = {"portability": "peft-portability"}  # those of another name than their package


@functools.cache
def packages() -> dict[str, str]:
    """Package -> version, "not installed" where it is not; those of plug-ins among them."""
    return {name: version_of(name) for name in PACKAGES} | plugin_versions()


def version_of(name: str) -> str:
    """A package's version, "not installed" where it is not."""
    try:
        return version(DISTRIBUTIONS.get(name, name))
    except PackageNotFoundError:
        return "not installed"


def look_for(package: str, who: str) -> None:
    """See, without importing it, that a package of an extra is installed; any other is taken to be.

    Args:
        who: needs it, such as "method 'prefix'".

    Raises:
        UserError: it is not; says how to install it.
    """
    if package in EXTRAS and find_spec(package) is None:
        raise UserError(f"{who} is of the library {package}, which is not installed: "
                        f"pip install '{DISTRIBUTIONS['portability']}[{package}]'")


def major_of(record: Mapping[str, Any]) -> str:
    """Major version of transformers that a record was made with, "unknown" where it does not say.

    Example:
        >>> major_of({"meta_info": {"package_info": {"transformers": "5.24.0"}}}), major_of({})
        ('5', 'unknown')
    """
    said = ((record.get("meta_info") or {}).get("package_info") or {}).get("transformers")
    return str(said).partition(".")[0] if said else "unknown"
