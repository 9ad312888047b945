"""Workers on this machine: each a spawned process, so that a death costs exactly the stack it was working on,
or one in this very process.

joblib, loky and ProcessPoolExecutor lose the whole pool when one worker is killed.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from portability.execution.engines.base import Engine, cannot_go_on
from portability.execution.processes import end_with_parent
from portability.execution.worker import DRAIN_SECONDS, ENVIRONMENT, Job, Setup, TookTooLong, Worker, work
from portability.hosts.devices import Place, places
from portability.planning.study import EngineConf


class _Process(NamedTuple):
    process: BaseProcess
    place: Place
    errors: Connection  # has a text where no run can be carried out


class Local(Engine):
    """As many processes as there are places."""

    sees_all_gpus = True

    @staticmethod
    def places(conf: EngineConf) -> list[Place]:
        """The place of each worker."""
        return places(conf.device, conf.workers, conf.device_map)

    def launch(self, name: str, jobs: Sequence[Job]) -> _Process:
        """See Engine.launch."""
        os.environ.update(ENVIRONMENT)
        context = multiprocessing.get_context("spawn")
        place = next(iter(Counter(self.where) - Counter(one.place for one in self.pool.values())))
        ours, theirs = context.Pipe(duplex=False)
        given = (theirs, jobs, self.setup, place, name, self.poll_seconds)
        process = context.Process(target=_work, args=given, daemon=True)
        process.start()
        theirs.close()
        return _Process(process, place, ours)

    def over(self, worker: _Process) -> str | None:
        """See Engine.over."""
        if worker.process.is_alive():
            return None
        with contextlib.suppress(EOFError):
            if worker.errors.poll():
                raise cannot_go_on(worker.errors.recv())
        code = worker.process.exitcode
        return f"the worker ended with exit code {code}" if code else ""

    def drain(self) -> None:
        """See Engine.drain: those with a run in hand have DRAIN_SECONDS to keep checkpoints."""
        workers = [one.process for one in self.pool.values()]
        try:
            if self.jobs:
                for worker in workers:
                    worker.terminate()
                until = time.monotonic() + DRAIN_SECONDS
                for worker in workers:
                    worker.join(max(0.0, until - time.monotonic()))
        finally:  # also when somebody loses patience and interrupts a second time
            for worker in workers:
                worker.kill()
                worker.join()


def _work(
    errors: Connection, jobs: Sequence[Job], setup: Setup, place: Place, name: str, seconds: float
) -> None:
    """A worker's life."""
    end_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    worker = Worker(setup, place, owner=name, beat=seconds)
    signal.signal(signal.SIGTERM, lambda *_: worker.stopped.set())
    try:
        work(jobs, worker, seconds)
    except OSError as error:
        errors.send(str(error))


class InProcess(Engine):
    """Everything in this very process, in a thread beside the command's own: for notebooks, debuggers and
    tests. What is equal to the bit elsewhere is so here where this process has multiplied nothing before
    (D-152); but a crash ends the command, and a run that hangs cannot be killed."""

    sees_all_gpus = True

    def __init__(self, conf: EngineConf, setup: Setup):
        super().__init__(conf, setup)
        self.error: BaseException | None = None
        self.how, self.stopped = "", threading.Event()

    @staticmethod
    def places(conf: EngineConf) -> list[Place]:
        """One place, whatever `conf.workers` says."""
        return places(conf.device, 1, conf.device_map)

    def launch(self, name: str, jobs: Sequence[Job]) -> threading.Thread:
        """See Engine.launch."""
        self.how, self.stopped = "", threading.Event()
        thread = threading.Thread(target=self._work, args=(name, jobs), daemon=True)
        thread.start()
        return thread

    def over(self, worker: threading.Thread) -> str | None:
        """See Engine.over; an error that no run is to blame for is raised as it is."""
        if self.error is not None:
            raise cannot_go_on(self.error) if isinstance(self.error, OSError) else self.error
        return None if worker.is_alive() else self.how

    def drain(self) -> None:
        """See Engine.drain; what a worker left behind is free again, though this process goes on."""
        self.stopped.set()
        for thread in self.pool.values():
            thread.join(DRAIN_SECONDS)
        over = {name for name, thread in self.pool.items() if not thread.is_alive()} | self.ended.keys()
        for claim in self.claims.all().values():
            if claim.owner in over:
                self.claims.drop(claim)

    def _work(self, name: str, jobs: Sequence[Job]) -> None:
        """The worker's thread, which makes the worker because torch keeps the number of its threads by
        thread."""
        os.environ.update(ENVIRONMENT)
        try:
            worker = Worker(self.setup, self.where[0], owner=name, beat=self.poll_seconds,
                            leave=self.stopped.set, stopped=self.stopped)
            work(jobs, worker, self.poll_seconds)
        except TookTooLong:
            self.how = "the worker was stopped because its runs took too long"
        except BaseException as error:  # raised where it is looked at
            self.error = error
