"""How a plan is spread: in this process, over this machine's cores and GPUs, a Ray cluster, or a Slurm queue;
one file an engine, and no more than the chosen one is imported."""

from collections.abc import Callable

from portability.execution.engines.base import Engine


def inprocess() -> type[Engine]:
    """This process."""
    from portability.execution.engines.inprocess import InProcess

    return InProcess


def local() -> type[Engine]:
    """Processes of this machine."""
    from portability.execution.engines.local import Local

    return Local


def ray() -> type[Engine]:
    """Actors of a Ray cluster."""
    from portability.execution.engines.ray import Ray

    return Ray


def slurm() -> type[Engine]:
    """Tasks of a Slurm queue."""
    from portability.execution.engines.slurm import Slurm

    return Slurm


ENGINES: dict[str, Callable[[], type[Engine]]] = {
    "inprocess": inprocess, "local": local, "ray": ray, "slurm": slurm}
