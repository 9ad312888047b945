"""Port PEFT modules between host models, and measure when that helps.

What a notebook needs stands in `portability.api` and can be imported from here; it is loaded when it is first
asked for, because a plan needs no torch.
"""

from typing import Any

__version__ = "0.1.0"
NAMES = (
    "AttachedMethod", "Host", "HostSource", "HostSpec", "MethodSpec", "ModuleState", "Port", "PortReport",
    "PortSpec",
    "Store", "Study", "UserError", "attach", "cells", "compose", "describe", "load", "port_module",
    "run_study",
)


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module 'portability' has no attribute {name!r}")
    from portability import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*globals(), *NAMES]
