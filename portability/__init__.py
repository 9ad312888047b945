"""Port PEFT modules between host models, and measure when that helps.

What a notebook needs can be imported from here, and is loaded when it is first asked for: `STUDIES` from
`portability.studies`, without torch, because a plan needs none; `MODULES` from `portability.api`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers
    from portability.api import *  # noqa: F403
    from portability.studies import *  # noqa: F403

__version__ = "0.1.0"
STUDIES = (
    "Cell", "HostSource", "HostSpec", "LoadedStudy", "MethodSpec", "Plan", "PortSpec", "RunSpec", "Store",
    "Study", "UserError", "cells", "compose", "describe", "load_study", "plan_study", "run_study",
)
MODULES = (
    "AdapterFolder", "AttachedMethod", "Host", "ModuleState", "Port", "PortReport", "PortedAdapter", "attach",
    "load", "load_adapter", "port_adapter", "port_module",
)


def __getattr__(name: str) -> Any:
    if name in STUDIES:
        from portability import studies

        return getattr(studies, name)
    if name in MODULES:
        from portability import api

        return getattr(api, name)
    raise AttributeError(f"module 'portability' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *STUDIES, *MODULES]
