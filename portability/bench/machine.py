"""Facts of the machine that a timing depends on; no names of machines, people or folders."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from portability.hosts.devices import cores

PACKAGES = ("torch", "transformers", "peft", "adapters", "accelerate")


def facts(device: str) -> dict[str, Any]:
    """Processor, cores, versions, torch's default threads, and the GPU where one is used."""
    import torch

    found = {"cpu": _cpu(), "cores": cores(), "python": platform.python_version(), "torch_threads": torch.get_num_threads(),
             "versions": {name: importlib.metadata.version(name) for name in PACKAGES}, "gpu": None}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found["gpu"] = {"name": card.name, "memory_bytes": card.total_memory, "cuda": torch.version.cuda}
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def load() -> float | None:
    """Runnable processes over the last minute: a number above the cores means that timings disturb each other."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def busy_seconds() -> float | None:
    """Processor seconds that all processes together have used since the machine started (Linux alone tells)."""
    try:
        user, nice, system, _, _, irq, soft = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def pick_device(asked: str) -> str:
    """"auto" becomes cuda where there is one."""
    import torch

    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
