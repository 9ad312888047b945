"""How a plan is spread: in this process, over this machine's cores and GPUs, a Ray cluster, or a Slurm queue;
an engine imports what it needs when it starts."""

from portability.execution.engines.base import Engine
from portability.execution.engines.local import InProcess, Local
from portability.execution.engines.ray import Ray
from portability.execution.engines.slurm import Slurm

ENGINES: dict[str, type[Engine]] = {"inprocess": InProcess, "local": Local, "ray": Ray, "slurm": Slurm}
