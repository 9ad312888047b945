"""How a plan is spread: in this process, over this machine's cores and GPUs, a Ray cluster, or a Slurm queue;
one file an engine, and no more than the chosen one is imported."""

from collections.abc import Callable

from portability.execution.engines.base import Engine


def _inprocess() -> type[Engine]:
    from portability.execution.engines.inprocess import InProcess

    return InProcess


def _local() -> type[Engine]:
    from portability.execution.engines.local import Local

    return Local


def _ray() -> type[Engine]:
    from portability.execution.engines.ray import Ray

    return Ray


def _slurm() -> type[Engine]:
    from portability.execution.engines.slurm import Slurm

    return Slurm


ENGINES: dict[str, Callable[[], type[Engine]]] = {
    "inprocess": _inprocess, "local": _local, "ray": _ray, "slurm": _slurm}
