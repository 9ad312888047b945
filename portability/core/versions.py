"""Versions of the packages that can change a number, and what brings a package that is not there."""

import functools
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from portability.core.errors import UserError
from portability.core.hashing import file_digest
from portability.core.paths import PACKAGE
from portability.core.plugins import plugin_versions
from portability.core.specs import digest

PACKAGES = ("portability", "torch", "transformers", "adapters", "peft", "datasets", "evaluate", "numpy",
            "safetensors")
LIBRARIES = ("torch", "transformers", "adapters", "peft", "tokenizers", "numpy", "scipy")
EXTRAS = ("adapters",)  # packages that an extra of the same name brings
MISSING = "not installed"
DISTRIBUTIONS = {"portability": "peft-portability"}  # those of another name than their package


@functools.cache
def packages() -> dict[str, str]:
    """Package -> version, MISSING where it is not; those of plug-ins among them."""
    return {name: version_of(name) for name in PACKAGES} | plugin_versions()


@functools.cache
def own_code() -> str:
    """Digest of what decides how something follows from its content: versions of `LIBRARIES` and of plug-ins,
    and this package's own code."""
    versions = [version_of(name) for name in LIBRARIES]
    code = [file_digest(path) for path in sorted(PACKAGE.rglob("*.py"))]
    return digest([code, versions, plugin_versions()])


def version_of(name: str) -> str:
    """A package's version, MISSING where it is not installed."""
    try:
        return version(DISTRIBUTIONS.get(name, name))
    except PackageNotFoundError:
        return MISSING


def installed(package: str) -> bool:
    """Whether a package of PACKAGES is there, without importing it."""
    return packages()[package] != MISSING


def look_for(package: str, who: str) -> None:
    """See, without importing it, that a package of an extra is installed; any other is taken to be.

    Args:
        who: needs it, such as "method 'prefix'".

    Raises:
        UserError: it is not; says how to install it.
    """
    if package in EXTRAS and not installed(package):
        raise UserError(f"{who} needs the library {package}, which is not installed: "
                        f"pip install '{DISTRIBUTIONS['portability']}[{package}]'")


def major_of(record: Mapping[str, Any]) -> str:
    """Major version of transformers that a record was made with, "unknown" where it does not say.

    Example:
        >>> major_of({"meta_info": {"package_info": {"transformers": "5.24.0"}}}), major_of({})
        ('5', 'unknown')
    """
    said = ((record.get("meta_info") or {}).get("package_info") or {}).get("transformers")
    major = str(said).partition(".")[0]
    return major if major.isdigit() else "unknown"
