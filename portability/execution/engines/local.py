"""Workers on this machine, each a spawned process: a death costs exactly the stack it was working on.

joblib, loky and ProcessPoolExecutor lose the whole pool when one worker is killed.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from portability.execution.engines.base import Engine, cannot_go_on
from portability.execution.processes import end_with_parent
from portability.execution.worker import DRAIN_SECONDS, ENVIRONMENT, Job, Setup, Worker, work
from portability.hosts.devices import Place, places
from portability.planning.study import EngineConf


class _Process(NamedTuple):
    process: BaseProcess
    place: Place
    errors: Connection  # has a text where no run can be carried out


class Local(Engine):
    """As many processes as there are places."""

    @staticmethod
    def places(conf: EngineConf) -> list[Place]:
        """The place of each worker."""
        return places(conf.device, conf.workers)

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
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    try:
        work(jobs, worker, seconds)
    except OSError as error:
        errors.send(str(error))
