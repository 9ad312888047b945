"""The questions that the benchmark answers; who is timed trains in a process of its own."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from portability.bench.contenders import Library, Ours, cells_alone, plain_loop
from portability.core.errors import UserError
from portability.execution.worker import ENVIRONMENT
from portability.hosts.devices import cores

Times = dict[str, list[float]]  # of each contender, per round
ALL_CORES = {key: value for key, value in ENVIRONMENT.items() if not key.endswith("_NUM_THREADS")}
COMPARED = 5  # updates whose losses are compared
TOLERANCES = {"fp32": 1e-3, "bf16": 0.1}  # of a loss; rounding gives 1e-6 to 1e-4 and 1e-3 to 1e-2
SQUARE = {"cpu": 1024, "cuda": 8192}  # side of the matrices of the measured product
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LEVELS = {  # how the command carries a grid out; each adds one thing to the one before it
    "runs once": ["engine.workers=1", "engine.stack=1"], "+ stacks": ["engine.workers=1"], "+ workers": []}
_mine: dict[str, Any] = {}  # the contender of a process of `process`


def process(environment: Mapping[str, str] = ENVIRONMENT) -> ProcessPoolExecutor:
    """A process of its own that starts now, with these variables and no thread settings of the caller's."""
    for name in ENVIRONMENT:
        os.environ.pop(name, None)
    os.environ.update(environment, PYTHONWARNINGS="ignore::FutureWarning")  # adapters' T5 layers give some
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # Trainer would spread over all that it sees
    executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    executor.submit(os.dup2, 2, 1).result()  # what libraries print is no answer of the benchmark
    return executor


def build(kind: type, *arguments: Any) -> int:
    """Make this process's contender; how many numbers a module of it trains."""
    _mine["contender"] = kind(*arguments)
    return _mine["contender"].size


def train() -> tuple[float, float]:
    """Train this process's contender for a segment: seconds, and real tokens of all modules."""
    return _mine["contender"].train()


def race(words: Sequence[str], members: Sequence[int], rounds: int, cuda: bool) -> Times:
    """Microseconds per real token of Trainer as it comes, well set, and well set in several processes, and of
    stacks of ours (on a CPU in as many processes). They take turns; a first round is dropped.

    Raises:
        UserError: they do not train equally many numbers.
    """
    several, workers = (4, 1) if cuda else (cores(), cores())
    everyone: dict[str, tuple[Mapping[str, str], list[tuple[Any, ...]]]] = {
        "trainer": ({}, [(Library, words, False)]), "tuned": (ALL_CORES, [(Library, words, True)]),
                f"tuned x{several}": (ENVIRONMENT, [(Library, words, True)] * several)}
    for size in members:
        everyone[f"ours K={size}"] = ENVIRONMENT, [(Ours, words, size, i * size) for i in range(workers)]
    times: Times = {name: [] for name in everyone}
    with ExitStack() as ends:
        running, sizes = {}, set()
        for name, (environment, parts) in everyone.items():
            running[name] = [ends.enter_context(process(environment)) for _ in parts]
            for child, part in zip(running[name], parts, strict=True):
                sizes.add(child.submit(build, *part).result())
        if len(sizes) > 1:
            raise UserError(f"the contenders train different numbers of parameters: {sorted(sizes)}")
        for _ in range(1 + rounds):
            for name, children in running.items():
                answers = [future.result() for future in [child.submit(train) for child in children]]
                seconds, tokens = zip(*answers, strict=True)
                times[name].append(1e6 * max(seconds) / sum(tokens))
    return {name: taken[1:] for name, taken in times.items()}


def equality(words: Sequence[str], factor: float = 1.0) -> list[tuple[str, float, float]]:
    """Largest differences between losses (nats) of our engine with one member and of others that start alike
    and see the same batches, each with the bound that it must keep.

    Args:
        factor: of the library's learning rate; anything but 1 must be found out.
    """
    ours = Ours(words, 1)
    stack, loop = ours.stack(range(4)), plain_loop(ours, factor)
    for engine in (ours.engine, stack):
        for step in range(COMPARED):
            ours.update(engine, step)
    bound, library = TOLERANCES[ours.run.precision], torch.stack([loop(step) for step in range(COMPARED)])
    others = {"in a stack of 4": (stack.losses[:COMPARED, 0], 0.0 if ours.device.type == "cpu" else bound),
              "the library's module in a plain loop": (library, bound)}
    losses = ours.engine.losses[:COMPARED, 0]
    return [(name, float((losses - other).abs().max()), bound) for name, (other, bound) in others.items()]


def floor(words: Sequence[str], members: Sequence[int], rounds: int) -> tuple[int, float, Times]:
    """FLOPs of a module's update over a batch of mean length, FLOP/s of a large matrix product, and seconds
    of a module's update; on a CPU those of the processor, which leave out what other processes took."""
    ours = Ours(words, 1)
    kind, mean = ours.device.type, ours.bench.training.lengths.mean()
    step = min(range(len(ours.schedule.turns)), key=lambda step: abs(ours.schedule.length(step) - mean))
    stacks, loop = {size: ours.stack(range(size)) for size in members}, plain_loop(ours)
    with FlopCounterMode(display=False) as counter:
        loop(step)
    parts = {f"ours K={size}": (size, lambda stack=stack: ours.update(stack, step))
             for size, stack in stacks.items()} | {"library, plain loop": (1, lambda: loop(step))}
    clock: dict[str, Any] = {"timer": time.process_time} if kind == "cpu" else {}
    square = torch.randn(SQUARE[kind], SQUARE[kind], device=kind, dtype=DTYPES[ours.run.precision])
    product = min(Timer("a @ a", globals={"a": square}, **clock).timeit(1).median for _ in range(10))
    times: Times = {name: [] for name in parts}
    for _ in range(rounds):
        for name, (size, update) in parts.items():
            times[name].append(Timer("update()", globals={"update": update}, **clock).timeit(1).median / size)
    return counter.get_total_flops(), 2 * len(square) ** 3 / product, times


def grid(words: Sequence[str], rounds: int) -> Times:
    """Seconds from an empty store to all records of a grid: every cell for itself, and by the command."""
    times: Times = {name: [] for name in ("cells alone", *LEVELS)}
    for _ in range(rounds):
        with process() as child:
            times["cells alone"].append(child.submit(cells_alone, words).result())
        for name, more in LEVELS.items():
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                command = [sys.executable, "-m", "portability.run", *words, *more, "tracking.wandb=disabled"]
                subprocess.run([*command, f"results={folder}"], check=True, stdout=sys.stderr)
                times[name].append(time.perf_counter() - began)
    return times
