"""Where workers compute: one process a CPU core, or processes spread over the GPUs."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from portability.core.errors import UserError, validate_choice

DEVICES = ("auto", "cpu", "cuda")
STACKS = {"cpu": 16, "cuda": 32}  # most modules of a stack where the configuration names no number (D-34)
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt(3)


@dataclass(frozen=True)
class Place:
    """A worker's device ("cpu" or "cuda:N"), the share of its memory that the worker may use, and the cores
    that it has together with the other workers of its machine."""

    device: str
    share: float
    cores: int = 1


def places(wanted: str, workers: int | None) -> list[Place]:
    """The place of each worker.

    Args:
        wanted: "auto" (GPUs where there are any), "cpu" or "cuda".
        workers: how many; None: one a CPU core, or one a GPU.

    Raises:
        UserError: cuda was asked for and there is none.

    Example:
        >>> [place.share for place in places("cpu", 2)]
        [0.5, 0.5]
    """
    validate_choice(wanted, DEVICES, "engine.device")
    gpus = 0 if wanted == "cpu" else count_gpus()
    if wanted == "cuda" and not gpus:
        raise UserError("engine.device is cuda, but torch finds no GPU here; use engine.device=auto or cpu")
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


def count_gpus() -> int:
    """GPUs that torch can use; torch is imported only where the machine has the driver's device files."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def available_bytes() -> int:
    """Bytes of ordinary memory that are free, within a container's limit."""
    free = psutil.virtual_memory().available
    limit, used = (control(f"memory.{name}") for name in ("max", "current"))
    return free if limit is None or used is None else min(free, limit[0] - used[0])


def without_gaps() -> bool:
    """Have the C library give each large tensor back to the system as it is freed, so that this process holds
    what is alive and little else; small hosts then train at two thirds of their speed (D-141).

    Returns:
        Whether it can: glibc does, as of nearly all Linux systems.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function, no such library, Windows
        return False
    # the first stays as glibc begins it, where it would grow up to 32 MiB; the second as it would grow
    return bool(mallopt(MMAP_THRESHOLD, 128 << 10) and mallopt(TRIM_THRESHOLD, 64 << 20))
