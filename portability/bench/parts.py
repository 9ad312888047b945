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
from itertools import product
from typing import Any

import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from portability.bench.contenders import Library, Ours, Paired, cells_alone, plain_loop, study_of
from portability.core.errors import UserError
from portability.data.splits import rows
from portability.data.tokenization import encode
from portability.execution.processes import end_with_parent
from portability.execution.worker import ENVIRONMENT
from portability.hosts.host import load_tokenizer

Times = dict[str, list[float]]  # of each contender, per round
# a rival's processes: as ours, but for what only our promise of equal bits needs (D-152)
ONE_CORE = {key: value for key, value in ENVIRONMENT.items() if key != "MKL_CBWR"}
ALL_CORES = {key: value for key, value in ONE_CORE.items() if not key.endswith("_NUM_THREADS")}
COMPARED = 5  # updates whose losses are compared
SEVERAL = 4  # processes that share a GPU
GRAPHED = {"cpu": 10, "cuda": 60}  # updates after which many lengths of batches were met twice
SCORED = 0.5  # of an update's time a token is what scoring takes: no backward pass (our choice)
LARGE = 24 * 1024**2 / (12 * 768**2)  # arithmetic of a T5-large per token, in that of a T5-base
TEST = 1821  # sentences of SST-2's test set
STUDY = ("+sweep=full", "host_set.budgets=[100,500,2000]")  # on the embedded hosts: planned as on the T5s
TOLERANCES = {"fp32": 1e-3, "bf16": 0.1}  # of a loss; rounding gives 1e-6 to 1e-4 and 1e-3 to 1e-2
SQUARE = {"cpu": 1024, "cuda": 8192}  # side of the matrices of the measured product
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LEVELS = {  # how the command carries a grid out; each adds one thing to the one before it
    "runs once": ["engine.workers=1", "engine.stack=1"], "+ stacks": ["engine.workers=1"], "+ workers": []}
_mine: dict[str, Any] = {}  # the contender of a process of `process`


def process(environment: Mapping[str, str] = ENVIRONMENT) -> ProcessPoolExecutor:
    """A process of its own that starts now, with these variables and no thread settings of the caller's, and
    ends with the command, also a killed one."""
    for name in ENVIRONMENT:
        os.environ.pop(name, None)
    os.environ.update(environment, PYTHONWARNINGS="ignore::FutureWarning")  # adapters' T5 layers give some
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # Trainer would spread over all that it sees
    executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=end_with_parent)
    executor.submit(os.dup2, 2, 1).result()  # what libraries print is no answer of the benchmark
    return executor


def build(kind: type, *arguments: Any) -> int:
    """Make this process's contender; how many numbers a module of it trains."""
    _mine["contender"] = kind(*arguments)
    return _mine["contender"].size


def train() -> tuple[float, float]:
    """Train this process's contender for a segment: seconds, and real tokens of all modules."""
    return _mine["contender"].train()


def race(words: Sequence[str], members: Sequence[int], rounds: int, cuda: bool, workers: int) -> Times:
    """Microseconds per real token of Trainer as it comes, well set, and well set in several processes, and of
    stacks of ours in as many processes as there are workers. They take turns; a first round is dropped.

    Raises:
        UserError: they do not train equally many numbers.
    """
    several = SEVERAL if cuda else workers
    everyone: dict[str, tuple[Mapping[str, str], list[tuple[Any, ...]]]] = {
        "trainer": ({}, [(Library, words, False)]), "tuned": (ALL_CORES, [(Library, words, True)]),
                f"tuned x{several}": (ONE_CORE, [(Library, words, True)] * several)}
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


def turns(words: Sequence[str], members: Sequence[int], rounds: int, workers: int) -> Times:
    """Microseconds per real token of a module: a plain loop around the library's own module, and stacks of
    ours, each in as many processes at once as there are workers. They take turns; a first round is dropped.

    Args:
        words: in fp32 and in bf16 all take their turns.
    """
    names = ["loop", *(f"ours K={size}" for size in members)]
    times: Times = {}
    with ExitStack() as ends:
        running = {}
        for precision in DTYPES:
            running[precision] = [ends.enter_context(process()) for _ in range(workers)]
            own = [*words, f"precision={precision}"]
            for i, child in enumerate(running[precision]):
                child.submit(build, Paired, own, members, i * max(members)).result()
        for _ in range(1 + rounds):
            for name, (precision, children) in product(names, running.items()):
                answers = [future.result() for future in [child.submit(turn, name) for child in children]]
                seconds, tokens = zip(*answers, strict=True)
                times.setdefault(f"{name} {precision}", []).append(1e6 * max(seconds) / sum(tokens))
    return {name: taken[1:] for name, taken in times.items()}


def turn(name: str) -> tuple[float, float]:
    """A segment of one of this process's contenders: seconds, and real tokens of all modules."""
    found: tuple[float, float] = _mine["contender"].turn(name)
    return found


def graphs(words: Sequence[str]) -> tuple[int, float, float]:
    """How many CUDA graphs a stack of two captured, and the largest difference of its losses (nats) from
    those of the same steps that were called one by one, with the bound that it must keep."""
    ours = Ours(words, 2)
    called = ours.stack(range(2))
    called._replayer.capturing = False
    updates = GRAPHED[ours.device.type]
    for engine in (ours.engine, called):
        for step in range(updates):
            ours.update(engine, step)
    difference = (ours.engine.losses[:updates] - called.losses[:updates]).abs().max()
    return len(ours.engine._replayer.graphs), float(difference), TOLERANCES[ours.run.precision]


def hours(measured: Sequence[str],
          per_token: Mapping[str, float]) -> tuple[int, int, dict[str, float]]:
    """Cells of the study's whole grid (zero-shot not counted), its distinct runs, and the hours that these
    would take one device at microseconds per real token of a module.

    Sentences and batches are as measured; so are hosts, or where they are large ones T5-large's arithmetic
    counts. Reading hosts, ports and records is left out.

    Args:
        measured: words of the study that was measured.
        per_token: by contender.
    """
    _, run, task, context = study_of(measured)
    examples = rows(context.data, run.data.name, "train", 0)
    mean = encode(examples, load_tokenizer(run.host), task, True).lengths.mean()
    planned, _, _, _ = study_of([*STUDY, f"train.batch_size={run.train.batch_size}"])
    tokens = 0.0
    for run_id, one in planned.runs.items():
        trained = one.train.updates * one.train.batch_size if one.method else 0
        scored = SCORED * TEST * len(planned.marks[run_id])
        tokens += mean * (trained + scored) * (LARGE if "large" in one.host.name else 1.0)
    cells = sum(cell.budget > 0 for cell in planned.cells)
    return cells, len(planned.runs), {name: tokens * cost / 3.6e9 for name, cost in per_token.items()}


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
