"""What a notebook imports: a module ported to another host, a study carried out, and its cells as a table.

    from portability import cells, compose, run_study
    cells(run_study(compose(["+sweep=smoke"])))
"""

from pathlib import Path

import pandas as pd

from portability.analysis.load import read
from portability.core.errors import UserError
from portability.core.specs import HostSpec, MethodSpec, PortSpec
from portability.hosts.host import Host, load_host
from portability.hosts.sources import HostSource, describe
from portability.methods import attach
from portability.methods.base import AttachedMethod
from portability.methods.module import ModuleState
from portability.planning.study import Study
from portability.porting.base import Port, PortContext, PortReport
from portability.porting.port import port
from portability.run import command, compose
from portability.store import Store

__all__ = [
    "AttachedMethod", "Host", "HostSource", "HostSpec", "MethodSpec", "ModuleState", "Port", "PortReport",
    "PortSpec",
    "Store", "Study", "UserError", "attach", "cells", "compose", "describe", "load", "port_module",
    "run_study",
]


def load(place: str | Path) -> Host:
    """A frozen host out of a local folder, or ``embedded:NAME`` for one that comes with the package.

    Raises:
        UserError: the folder holds no host of a known architecture.
    """
    return load_host(describe(HostSource(Path(place).name, path=str(place))))


def port_module(
    module: ModuleState, origin: HostSpec, receiving: Host, method: MethodSpec, strategy: str = "pad",
    layer_map: str = "stretch", partial: bool = False, seed: int = 0,
) -> Port:
    """A module that was trained on `origin`, fitted to another host, with a report of what was carried.

    Args:
        method: with which the module was made; the receiving host gets the same one for as long as this
            takes.
        strategy: a name in porting.strategies.STRATEGIES, or of an installed package.
        layer_map: a name in porting.layer_maps.LAYER_MAPS.
        partial: whether what has no counterpart may stay fresh.
        seed: of the fresh module, whose values stay only where the port is partial.

    Raises:
        UserError: what the strategy refuses; names both hosts, the slot and the shapes.
    """
    attached = attach(receiving, method)
    try:
        fresh = attached.init_parameters(seed)
    finally:
        attached.detach()
    spec = PortSpec(strategy, strategy, layer_map, partial)
    return port(module, PortContext(origin, receiving.spec, fresh, spec, load_host))


def run_study(study: Study) -> Store:
    """Carry out what a study lacks, as ``python -m portability.run`` does.

    Raises:
        UserError: runs failed; their reasons are in the store.
    """
    store = Store(study.results / study.name)
    if command(study):
        raise UserError(f"{len(store.failures())} runs of study {study.name} failed; see mode=status")
    return store


def cells(study: Store | str | Path, metric: str = "eval_accuracy") -> pd.DataFrame:
    """A row for each cell of a study, with its status and its numbers (columns:
    portability.analysis.load.tidy).

    Args:
        study: its store, or its folder.
    """
    return read(study if isinstance(study, Store) else Store(Path(study)), metric).cells
