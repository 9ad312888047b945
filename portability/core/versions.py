"""Versions of the packages that can change a number."""

import functools
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("portability", "torch", "transformers", "adapters", "peft", "datasets", "evaluate", "numpy",
            "safetensors")
DISTRIBUTIONS = {"portability": "peft-portability"}  # those of another name than their package


@functools.cache
def packages() -> dict[str, str]:
    """Package -> version, "not installed" where it is not."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return version(DISTRIBUTIONS.get(name, name))
    except PackageNotFoundError:
        return "not installed"
