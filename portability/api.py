"""Modules from Python: hosts and adapters loaded, and ported to another host.

    from portability import port_adapter
    ported = port_adapter("my-lora", "../larger-model")
    print(ported.report.carried_entries_fraction)
    ported.save("my-lora-on-larger")
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portability.core.specs import HostSpec, MethodSpec, PortSpec
from portability.hosts.host import Host, load_host
from portability.hosts.sources import HostSource, describe
from portability.methods import attach
from portability.methods.base import AttachedMethod as AttachedMethod
from portability.methods.folder import AdapterFolder as AdapterFolder
from portability.methods.module import ModuleState
from portability.porting.adapter import PortedAdapter as PortedAdapter
from portability.porting.adapter import load_adapter as load_adapter
from portability.porting.adapter import port_adapter as port_adapter
from portability.porting.base import Port, PortContext
from portability.porting.base import PortReport as PortReport
from portability.porting.calibration import Calibration as Calibration
from portability.porting.calibration import calibration as calibration
from portability.porting.port import port


def load(place: str | Path) -> Host:
    """A frozen host out of a local folder, or ``embedded:NAME`` for one that comes with the package.

    Raises:
        UserError: the folder holds no host of a known architecture.
    """
    return load_host(describe(HostSource(Path(place).name, path=str(place))))


def port_module(
    module: ModuleState, origin: HostSpec, receiving: Host, method: MethodSpec, strategy: str = "pad",
    layer_map: str = "stretch", partial: bool = False, seed: int = 0,
    options: Mapping[str, Any] | None = None, texts: Calibration | None = None,
) -> Port:
    """A module of a study that was trained on `origin`, fitted to another host, with a report of what was
    carried.

    Args:
        method: with which the module was made; the receiving host gets the same one for as long as this
            takes.
        strategy: a name in porting.strategies.STRATEGIES, or of an installed package.
        layer_map: a name in porting.layer_maps.LAYER_MAPS, "cka", or a list of origin layers ("0,2,4+5").
        partial: whether what has no counterpart may stay fresh.
        seed: of the fresh module, whose values stay only where the port is partial, and of what a strategy
            draws.
        options: of the strategy.
        texts: without labels, for strategies that compare what both hosts make of them.

    Raises:
        UserError: what the strategy refuses; names both hosts, the slot and the shapes.
    """
    attached = attach(receiving, method)
    try:
        fresh = attached.init_parameters(seed)
    finally:
        attached.detach()
    spec = PortSpec(strategy, strategy, layer_map, partial, options or {})
    return port(module, PortContext(origin, receiving.spec, fresh, spec, load_host,
                                    None if texts is None else lambda: texts, seed))
