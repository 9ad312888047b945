"""Where workers compute: one process a CPU core, or processes spread over the GPUs."""

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from portability.core.errors import UserError, validate_choice

# how a host is spread over several devices: "auto", or module -> number of a GPU, or a device by name
DeviceMap = Literal["auto"] | Mapping[str, int | str]
DEVICES = ("auto", "cpu", "cuda")
STACKS = {"cpu": 16, "cuda": 32}  # most modules of a stack where the configuration names no number (D-34)
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt(3)


@dataclass(frozen=True)
class Place:
    """A worker's device ("cpu" or "cuda:N"), the share of its memory that the worker may use, the cores that
    it has together with the other workers of its machine, and how its hosts are spread over further devices
    (hosts/spread.py; None: not at all)."""

    device: str
    share: float
    cores: int = 1
    device_map: DeviceMap | None = field(default=None, hash=False)


def places(wanted: str, workers: int | None, device_map: DeviceMap | None = None) -> list[Place]:
    """The place of each worker; where hosts are spread over all devices there is one worker.

    Args:
        wanted: "auto" (GPUs where there are any), "cpu" or "cuda".
        workers: how many; None: one a CPU core, or one a GPU.

    Raises:
        UserError: cuda was asked for and there is none, or several workers of spread hosts.

    Example:
        >>> [place.share for place in places("cpu", 2)]
        [0.5, 0.5]
    """
    validate_choice(wanted, DEVICES, "engine.device")
    gpus = 0 if wanted == "cpu" else count_gpus()
    if wanted == "cuda" and not gpus:
        raise UserError("engine.device is cuda, but torch finds no GPU here; use engine.device=auto or cpu")
    if device_map is not None:
        if (workers or 1) > 1:
            raise UserError(f"engine.workers is {workers}, but engine.device_map spreads each host over all "
                            "devices, which one worker computes on; leave one of the two out")
        return [Place("cuda:0" if gpus else "cpu", 1.0, cores(), device_map)]
    devices = [f"cuda:{i % gpus}" if gpus else "cpu" for i in range(workers or gpus or cores())]
    return [Place(device, 1 / devices.count(device), cores()) for device in devices]


def cores() -> int:
    """Cores that this process may use, a container's quota included."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = control("cpu.max")
    return found if quota is None else max(1, min(found, quota[0] // quota[1]))


def control(name: str) -> list[int] | None:
    """Numbers in a file of the control group that this process is in, or None where it sets no limit."""
    try:
        return [int(part) for part in (Path("/sys/fs/cgroup") / name).read_text().split()]
    except (OSError, ValueError):  # no such file, or "max"
        return None


def free_memory() -> int:
    """Bytes of this machine's memory that are free, a container's limit included."""
    free = psutil.virtual_memory().available
    limit, used = (control(f"memory.{name}") for name in ("max", "current"))  # of a container
    return free if limit is None or used is None else min(free, limit[0] - used[0])


def count_gpus() -> int:
    """GPUs that torch can use; torch is imported only where the machine has the driver's device files."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def without_gaps() -> bool:
    """Have the C library give each large tensor back to the system as it is freed, so that this process holds
    what is alive and little else; small hosts then train at two thirds of their speed (D-143).

    Returns:
        Whether it can: glibc does, as of nearly all Linux systems.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function, no such library, Windows
        return False
    # the first stays as glibc begins it, where it would grow up to 32 MiB; the second as it would grow
    return bool(mallopt(MMAP_THRESHOLD, 128 << 10) and mallopt(TRIM_THRESHOLD, 64 << 20))
