"""Does the cost grow with the runs, and with nothing else? Seconds per run, the share of planner and store, large plans."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from portability.bench.children import ONE_THREAD, once
from portability.bench.grid import command, start_up
from portability.bench.line import Line
from portability.bench.tables import grid as columns
from portability.bench.workload import Workload

SIZES = (16, 64, 256)  # runs
ROUNDS = 3
BASE = ("method=lora", "grid.pairs=[[nano-raw-base,nano-raw-base]]", "grid.inits=[scratch]", "grid.budgets=[50]",
        "eval.limit=64")
PLANS = {1_440: 5, 100_000: 348}  # cells of the full sweep -> seeds


def _seeds(count: int) -> str:
    return f"grid.seeds=[{','.join(map(str, range(count)))}]"


def measure(work: Workload) -> dict[str, Any]:
    """Seconds per run at each size, medians of rounds in turn; share of planner and store; seconds of `mode=plan`."""
    taken: dict[int, list[float]] = {size: [] for size in SIZES}
    starts = []
    for _ in range(ROUNDS):
        starts.append(start_up(BASE, work.device))
        for size in SIZES:
            with tempfile.TemporaryDirectory() as folder:
                taken[size].append(command([*BASE, _seeds(size)], Path(folder), work.device))
    start = statistics.median(starts)
    rows = [{"runs": size, "seconds": times, "per_run": (statistics.median(times) - start) / size}
            for size, times in taken.items()]
    some = _seeds(sorted(SIZES)[len(SIZES) // 2])
    shares = once(replace(work, kind="bookkeeping", overrides=(*BASE, some)), ONE_THREAD, "bookkeeping")
    plans = {cells: _plan_seconds(seeds) for cells, seeds in PLANS.items()}
    return {"start_s": start, "rows": rows, "bookkeeping": shares, "plans": plans}


def _plan_seconds(seeds: int) -> float:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "portability.run", "+sweep=full", "mode=plan", _seeds(seeds),
                        f"results={folder}"], capture_output=True, check=True)
    return time.perf_counter() - began


def bookkeeping(work: Workload, line: Line) -> None:
    """Carry out a grid in this process, with a clock on everything that the planner and the store do."""
    from portability.execution.execute import execute
    from portability.execution.scheduler import Ledger
    from portability.execution.worker_context import Desk
    from portability.hosts.devices import places
    from portability.planning.plan import plan
    from portability.run import compose
    from portability.store import Store

    clock = {"planner": 0.0, "store": 0.0}

    def timed(kind: str, work: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*given, **named)
            finally:
                clock[kind] += time.perf_counter() - began
        return call

    study, (place,) = compose(work.overrides), places(work.device, 1)
    for name in ("commit", "read", "tensors", "fail", "checkpoint", "save_checkpoint", "drop_checkpoint"):
        setattr(Store, name, timed("store", getattr(Store, name)))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        desk, planned = Desk(store, study.data, place=place), timed("planner", plan)(study.grid)
        ledger = timed("planner", lambda: Ledger(planned, store, 16, 1))()
        while jobs := timed("planner", ledger.ready)(True):
            for job in jobs:
                execute(job.runs, job.marks, desk)
                timed("planner", ledger.settle)(job, None)
    line.answer(seconds=time.perf_counter() - began, runs=len(planned.runs), **clock)


def show(found: Mapping[str, Any]) -> str:
    """The lines of growth."""
    first = found["rows"][0]["per_run"]
    lines = []
    for row in found["rows"]:
        times, each = row["seconds"], row["per_run"]
        lines.append([str(row["runs"]), f"{statistics.median(times):.1f} [{min(times):.1f}-{max(times):.1f}]",
                      f"{1e3 * each:.0f}", f"{each / first:.2f}"])
    shares = found["bookkeeping"]
    kept = ", ".join(f"{name} {shares[name] / shares['seconds']:.2%}" for name in ("planner", "store"))
    plans = ", ".join(f"{cells:,} cells {seconds:.1f} s" for cells, seconds in found["plans"].items())
    return "\n".join([
        columns(["runs", "seconds", "ms per run without start-up", "against the fewest"], lines),
        f"start-up: {found['start_s']:.1f} s; of {shares['runs']} runs in one process ({shares['seconds']:.1f} s): {kept}",
        f"mode=plan: {plans}",
    ])
