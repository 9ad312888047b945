"""Versions of the packages that can change a number."""

import functools
from importlib.metadata import PackageNotFoundError, version

from portability.core.plugins import plugin_versions

PACKAGES = ("portability", "torch", "transformers", "adapters", "peft", "datasets", "evaluate", "numpy",
            "safetensors")
DISTRIBUTIONS = {"portability": "peft-portability"}  # those of another name than their package


@functools.cache
def packages() -> dict[str, str]:
    """Package -> version, "not installed" where it is not; those of plug-ins among them."""
    return {name: _version(name) for name in PACKAGES} | plugin_versions()


def _version(name: str) -> str:
    try:
        return version(DISTRIBUTIONS.get(name, name))
    except PackageNotFoundError:
        return "not installed"
