"""What an init may use, and what it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from portability.core.specs import HostSpec, MethodSpec
from portability.inits.extraction import ExtractReport
from portability.methods.module import ModuleState
from portability.porting.base import Port, PortReport


def _undeclared(*_: Any) -> NoReturn:
    raise ValueError("an init asked for what its kind does not declare (InitKind.needs)")


@dataclass(frozen=True)
class InitContext:
    """What an init may use. Of the last four, those that its kind declares (`core.init_kinds.InitKind.needs`)
    can be called; they load, or make, what they give when it is asked for.

    Attributes:
        stream: first names of the run's random streams (`RunSpec.stream`).
        fresh: gives a module as the library initialises it, from the run's own seed.
        change: module -> Frobenius norm of the logit change it makes against the bare host, on training
            inputs.
        calibration_examples: how many of these inputs there are.
        origin_module: gives the module that was trained on the origin host.
        port: gives that module, fitted to the receiving host.
        extraction: gives what the extraction's run left: its pairs, and the cuts behind them where the method
            takes these off.
        teacher: cuts pairs out of the origin host's weights; gives the report too.
    """

    receiving: HostSpec
    method: MethodSpec
    seed: int
    stream: tuple[object, ...]
    fresh: Callable[[], ModuleState]
    change: Callable[[ModuleState], float] = _undeclared
    calibration_examples: int = 0
    origin_module: Callable[[], ModuleState] = _undeclared
    port: Callable[[], Port] = _undeclared
    extraction: Callable[[], tuple[ModuleState, ModuleState | None]] = _undeclared
    teacher: Callable[[], tuple[ModuleState, ExtractReport]] = _undeclared


@dataclass(frozen=True)
class InitialModule:
    """The module that a run starts with, the report of the port or extraction behind it, and what is taken
    off the host all through the run."""

    module: ModuleState
    report: PortReport | ExtractReport | None = None
    frozen: ModuleState | None = None


Init = Callable[[InitContext, Mapping[str, Any]], InitialModule]  # the mapping is `InitSpec.options`
