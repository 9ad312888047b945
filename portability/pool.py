"""A pool of spawned workers, one pipe and one thread each: a death costs exactly the stack it was working on.

joblib, loky and ProcessPoolExecutor lose the whole pool when one worker is killed. Workers hand back ids only; results
come from the store.
"""

import ctypes
import logging
import multiprocessing
import os
import platform
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from portability.data import DataSource, study_data
from portability.devices import Place
from portability.errors import UserError
from portability.spec import RunSpec
from portability.tracking import TrackingSpec

log = logging.getLogger(__name__)
ENVIRONMENT = {  # set before torch is imported: one thread a worker, and big blocks stay with the process
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "VECLIB_MAXIMUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "67108864",
}
if [int(part) for part in platform.libc_ver()[1].split(".")[:2]] < [2, 35]:
    ENVIRONMENT["MALLOC_MMAP_THRESHOLD_"] = "33554432"  # the most that older ones take; what they refuse leaves 128 kB


@dataclass(frozen=True)
class Job:
    """A stack of runs with the marks of each: the unit that is scheduled."""

    runs: Sequence[RunSpec]
    marks: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Setup:
    """What a worker needs to begin."""

    store: Path
    sources: Sequence[DataSource]
    overlap: str
    tracking: TrackingSpec
    checkpoint_seconds: float = 60.0


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    place: Place
    job: Job | None = None


def run_jobs(
    jobs: Callable[[bool], Sequence[Job]], setup: Setup, places: Sequence[Place], on_update: Callable[[int], None]
) -> Iterator[tuple[Job, str | None]]:
    """Carry out jobs as they become ready, and yield each with None, or with how its worker died.

    Args:
        jobs: gives the jobs that are ready and were not given before; asked again after each job that ends, with True
            where a worker has nothing to do otherwise.
        places: where each worker computes, one process a place.
        on_update: called with the number of module-updates that were made.

    Raises:
        UserError: a worker could not read or write a file; finished runs are in the store.
    """
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("spawn")
    queue = list(jobs(False))
    pool: list[_Worker] = []
    try:
        while True:
            busy = sum(worker.job is not None for worker in pool)
            while len(queue) < len(places) - busy and (more := jobs(True)):
                queue += more
            if not queue and not busy:
                return
            _assign(queue, pool, places, lambda place: _start(context, setup, place))
            for worker, message in _messages(pool):
                if isinstance(message, int):
                    on_update(message)
                    continue
                if isinstance(message, OSError):
                    raise UserError(f"cannot go on: {message}; finished runs are kept, repeat the command once it is put right")
                job, worker.job = worker.job, None
                assert job is not None
                yield job, message
                queue += jobs(False)
    finally:
        for worker in pool:
            worker.process.kill()
            worker.process.join()


def _assign(queue: list[Job], pool: list[_Worker], places: Sequence[Place], start: Callable[[Place], _Worker]) -> None:
    while queue:
        free = next((worker for worker in pool if worker.job is None), None)
        if free is None:
            if len(pool) >= len(places):
                return
            vacant = Counter(places) - Counter(worker.place for worker in pool)
            free = start(next(iter(vacant)))
            pool.append(free)
        try:
            free.pipe.send(queue[0])
        except OSError:  # it died while it was idle
            pool.remove(free)
            continue
        free.job = queue.pop(0)


def _messages(pool: list[_Worker]) -> Iterator[tuple[_Worker, int | str | OSError | None]]:
    """What workers report: updates made, None for a finished job, an OSError (a full disk, say) that would stop every
    run, or how a worker died (it leaves the pool)."""
    busy = {worker.pipe: worker for worker in pool if worker.job is not None}
    for pipe in wait(list(busy)):
        worker = busy[pipe]  # type: ignore[index]
        try:
            yield worker, worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            pool.remove(worker)
            yield worker, f"the worker ended with exit code {worker.process.exitcode}"


def _start(context: multiprocessing.context.SpawnContext, setup: Setup, place: Place) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, setup, place, os.getpid()), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, place)


def _work(pipe: Connection, setup: Setup, place: Place, parent: int) -> None:
    """A worker's life: jobs in, reports out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _die_with(parent)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    import torch
    import transformers

    from portability.desk import Desk
    from portability.execute import execute
    from portability.store import Store
    from portability.tracking import Tracker

    torch.set_num_threads(1)
    if place.device != "cpu":
        torch.cuda.set_device(place.device)
    transformers.logging.set_verbosity_error()
    logging.getLogger("adapters").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers, about adapters' T5 layers
    tracker = Tracker(setup.tracking)
    desk = Desk(Store(setup.store), study_data(setup.sources, setup.overlap), pipe.send, tracker.log_run, place,
                setup.checkpoint_seconds)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            execute(job.runs, job.marks, desk)
        except OSError as error:
            pipe.send(OSError(str(error)))
            return
        pipe.send(None)


def _die_with(parent: int) -> None:
    """Ask Linux to end this process when its parent ends (elsewhere a worker ends after its stack)."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os._exit(1)
