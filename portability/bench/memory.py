"""Peak memory of training, as more members share one host."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from portability.bench.children import ONE_THREAD, once
from portability.bench.workload import Workload

UPDATES = 2  # the second one has AdamW's state from the first


def peak(work: Workload) -> dict[str, int]:
    """Bytes at the peak of `modules` members over batches of the longest sentences; of the loaded host alone for 0."""
    import torch  # here, because the driver, which imports this file, must stay small

    from portability.bench.ours import Stand

    stand = Stand(work, "longest")
    if work.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if work.modules:
        trainer = stand.trainer(range(work.modules))
        for step in range(UPDATES):
            stand.update(trainer, step)
    return {"bytes": torch.cuda.max_memory_reserved() if work.device == "cuda" else _resident_peak()}


def _resident_peak() -> int:
    """Most bytes this process ever had in memory.

    Linux's VmHWM and not `ru_maxrss`: that one begins with what the parent had when it started this process.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def table(work: Workload, stacks: Sequence[int]) -> dict[str, Any]:
    """Peaks above the loaded host's, each in a fresh process, and bytes per member."""
    host = once(replace(work, kind="memory", modules=0), ONE_THREAD, "memory-0")["bytes"]
    rows = []
    for size in stacks:
        extra = once(replace(work, kind="memory", modules=size), ONE_THREAD, f"memory-{size}")["bytes"] - host
        rows.append({"modules": size, "bytes": extra, "bytes_per_member": extra / size})
    return {"host_bytes": host, "rows": rows}
