"""Workers on this machine, spawned, with one pipe each: a death costs exactly the stack it was working on.

joblib, loky and ProcessPoolExecutor lose the whole pool when one worker is killed. Workers hand back ids only; results
come from the store.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from portability.core.errors import Drained, UserError
from portability.core.stages import Stage
from portability.execution.worker import DRAIN_SECONDS, ENVIRONMENT, Job, Setup, Worker, overdue
from portability.hosts.devices import Place, places
from portability.planning.study import EngineConf

log = logging.getLogger(__name__)


@dataclass
class _Slot:
    process: BaseProcess
    pipe: Connection
    place: Place
    job: Job | None = None
    since: float | None = None  # when work on the job began: a new worker needs some seconds to import torch


def check(conf: EngineConf) -> None:
    """See that this engine can work here.

    Raises:
        UserError: there is no such device.
    """
    places(conf.device, conf.workers)


def run_jobs(
    jobs: Callable[[bool], Sequence[Job]], setup: Setup, conf: EngineConf, report: Callable[[Stage], None]
) -> Iterator[tuple[Job, str | None]]:
    """Carry out jobs as they become ready, and yield each with None, or with how its worker ended instead.

    Args:
        jobs: gives the jobs that are ready and were not given before; asked again after each job that ends, with True
            where a worker has nothing to do otherwise.
        report: called with what runs are at.

    Raises:
        UserError: a worker could not read or write a file; finished runs are in the store.
    """
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("spawn")
    where = places(conf.device, conf.workers)
    queue = list(jobs(False))
    pool: list[_Slot] = []
    try:
        while True:
            busy = sum(slot.job is not None for slot in pool)
            while len(queue) < len(where) - busy and (more := jobs(True)):
                queue += more
            if not queue and not busy:
                return
            _assign(queue, pool, where, lambda place: _start(context, setup, place))
            for slot, message in _messages(pool, conf.timeout_minutes):
                if isinstance(message, Stage):
                    slot.since = slot.since or time.monotonic()
                    report(message)
                    continue
                if isinstance(message, OSError):
                    raise UserError(f"cannot go on: {message}; finished runs are kept, repeat the command once it is put right")
                job, slot.job = slot.job, None
                assert job is not None
                yield job, message
                queue += jobs(False)
    finally:
        _drain(pool)


def _drain(pool: list[_Slot]) -> None:
    """End all workers: idle ones at once, the others once they kept checkpoints, or after DRAIN_SECONDS."""
    try:
        busy = [slot for slot in pool if slot.job is not None]
        for slot in busy:
            slot.process.terminate()
        until = time.monotonic() + DRAIN_SECONDS
        for slot in busy:
            slot.process.join(max(0.0, until - time.monotonic()))
    finally:  # also when somebody loses patience and interrupts a second time
        for slot in pool:
            slot.process.kill()
            slot.process.join()


def _assign(queue: list[Job], pool: list[_Slot], where: Sequence[Place], start: Callable[[Place], _Slot]) -> None:
    while queue:
        free = next((slot for slot in pool if slot.job is None), None)
        if free is None:
            if len(pool) >= len(where):
                return
            vacant = Counter(where) - Counter(slot.place for slot in pool)
            free = start(next(iter(vacant)))
            pool.append(free)
        try:
            free.pipe.send(queue[0])
        except OSError:  # it died while it was idle
            pool.remove(free)
            continue
        free.job, free.since = queue.pop(0), None


def _messages(pool: list[_Slot], timeout_minutes: float | None) -> Iterator[tuple[_Slot, Stage | str | OSError | None]]:
    """What workers report: what their runs are at, None for a finished job, an OSError (a full disk, say) that would stop every
    run, or how a worker died or why it was killed (then it leaves the pool)."""
    busy = {slot.pipe: slot for slot in pool if slot.job is not None}
    for pipe in wait(list(busy), None if timeout_minutes is None else 1.0):
        slot = busy[pipe]  # type: ignore[index]
        try:
            yield slot, slot.pipe.recv()
        except (EOFError, OSError):
            slot.process.join()
            pool.remove(slot)
            yield slot, f"the worker ended with exit code {slot.process.exitcode}"
    for slot in [slot for slot in pool if slot.job is not None]:
        assert slot.job is not None
        seconds = 0.0 if slot.since is None else time.monotonic() - slot.since
        if late := overdue(slot.job, seconds, timeout_minutes):
            slot.process.kill()
            slot.process.join()
            pool.remove(slot)
            yield slot, late


def _start(context: multiprocessing.context.SpawnContext, setup: Setup, place: Place) -> _Slot:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, setup, place, os.getpid()), daemon=True)
    process.start()
    theirs.close()
    return _Slot(process, ours, place)


def _work(pipe: Connection, setup: Setup, place: Place, parent: int) -> None:
    """A worker's life: jobs in, reports out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _die_with(parent)
    worker, at_work = Worker(setup, place, pipe.send), False

    def stop(*_: object) -> None:
        worker.stop()
        if not at_work:
            sys.exit()

    signal.signal(signal.SIGTERM, stop)
    while True:
        at_work = False
        try:
            job = pipe.recv()
        except EOFError:
            return
        at_work = True
        pipe.send(Stage([]))  # the work begins
        try:
            worker.run(job)
        except OSError as error:
            pipe.send(OSError(str(error)))
            return
        except Drained:
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
