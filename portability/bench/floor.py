"""How near to the machine's own rate of arithmetic an update comes: FLOPs counted, GEMM rate measured, time taken."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from portability.bench.equality import peft_loop
from portability.bench.meter import Meter, settle
from portability.bench.ours import Stand
from portability.bench.plain import PlainLoop
from portability.bench.workload import Workload

ROUNDS = 5  # after one that is dropped
SQUARE = {"cpu": 1024, "cuda": 8192}  # side of the matrices of the measured product
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure(work: Workload) -> dict[str, Any]:
    """Rate of the machine, FLOPs of one update of one module over a batch of mean length, and who reaches what share.

    One process, contenders in turn, one thread on a CPU (where processor time is what counts, because it leaves
    out what others took).
    """
    stand = Stand(work, "mean")
    batch = stand.batch(0, 0)
    trainers = {size: stand.trainer(range(size)) for size in work.stacks}  # first: each start mounts the module anew
    loops = {"peft": peft_loop(stand, stand.method.learning_rate)} if work.method == "lora" else {}
    loops["adapters"] = PlainLoop(stand.scorer, stand.start(0), stand.spec, stand.method.learning_rate)
    flops = _flops(lambda: loops["adapters"].loss(*batch))
    rivals: dict[str, tuple[int, Callable[[], Any]]] = {}
    for name, loop in loops.items():
        rivals[f"{name}, plain loop"] = (1, lambda loop=loop: loop.update(*batch))
    for size, trainer in trainers.items():
        rivals[f"ours K={size}"] = (size, lambda trainer=trainer: stand.update(trainer, 0))
    taken = _alternate(work, rivals)
    rate = gemm_rate(work.device, work.precision)
    floor = 1e3 * flops / rate
    products = {name: _products(update) if work.device == "cpu" else None for name, (_, update) in rivals.items()}
    rows = [{"name": name, "ms": ms, "of_floor": floor / ms, "products": products[name]} for name, ms in taken.items()]
    return {"flops": flops, "tokens": int(batch[1].sum()), "gemm_flops_per_s": rate, "floor_ms": floor, "rows": rows}


def _products(update: Callable[[], Any]) -> float:
    """Share of an update's time that its matrix products take: more of the floor than by making all else free cannot be won."""
    with profile() as seen:
        update()
    times = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    return sum(times.get(f"aten::{name}", 0) for name in PRODUCTS) / sum(times.values())


def gemm_rate(device: str, dtype: str) -> float:
    """FLOP/s of a large square matrix product, the best of ten."""
    side = SQUARE[device]
    left, right = (torch.randn(side, side, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    best = float("inf")
    for _ in range(11):
        settle(device)
        began = time.perf_counter()
        left @ right
        settle(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def _flops(update: Callable[[], Any]) -> int:
    """FLOPs of matrix products in one forward and backward pass; the optimiser has none."""
    with FlopCounterMode(display=False) as counter:
        update()
    return counter.get_total_flops()


def _alternate(work: Workload, rivals: dict[str, tuple[int, Callable[[], Any]]]) -> dict[str, float]:
    """Median milliseconds per module and update of each."""
    meter, taken = Meter(work.device), {name: [] for name in rivals}
    clock = "cpu_s" if work.device == "cpu" else "seconds"
    for _ in range(ROUNDS + 1):
        for name, (modules, update) in rivals.items():
            meter.start()
            update()
            taken[name].append(1e3 * meter.stop()[clock] / modules)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}
