"""Workers on this machine, each a spawned process: a death costs exactly the stack it was working on.

joblib, loky and ProcessPoolExecutor lose the whole pool when one worker is killed.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from portability.core.errors import GracefulStop
from portability.execution.engines.base import Engine, cannot_go_on
from portability.execution.processes import end_with_parent
from portability.execution.worker import DRAIN_SECONDS, ENVIRONMENT, Job, Setup, Worker, work
from portability.hosts.devices import Place, places
from portability.planning.study import EngineConf


@dataclass
class _Process:
    process: BaseProcess
    place: Place
    errors: Connection  # has a text where no run can be carried out


class Local(Engine):
    """As many processes as there are places."""

    def __init__(self, conf: EngineConf, setup: Setup):
        super().__init__(conf, setup)
        os.environ.update(ENVIRONMENT)
        self.pool: dict[str, _Process] = {}

    @staticmethod
    def places(conf: EngineConf) -> list[Place]:
        """The place of each worker."""
        return places(conf.device, conf.workers)

    def start(self, jobs: Sequence[Job], count: int) -> list[str]:
        """See Engine.start."""
        context, names = multiprocessing.get_context("spawn"), [uuid.uuid4().hex for _ in range(count)]
        for name in names:
            place = next(iter(Counter(self.where) - Counter(one.place for one in self.pool.values())))
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(theirs, jobs, self.setup, place, name, self.poll_seconds), daemon=True)
            process.start()
            theirs.close()
            self.pool[name] = _Process(process, place, ours)
        return names

    def look(self) -> tuple[list[str], dict[str, str]]:
        """See Engine.look."""
        over = {}
        for name, one in list(self.pool.items()):
            if one.process.is_alive():
                continue
            with contextlib.suppress(EOFError):
                if one.errors.poll():
                    raise cannot_go_on(one.errors.recv())
            code = self.pool.pop(name).process.exitcode
            over[name] = f"the worker ended with exit code {code}" if code else ""
        return list(self.pool), over

    def drain(self) -> None:
        """See Engine.drain: those with a run in hand have DRAIN_SECONDS to keep checkpoints."""
        try:
            if self.jobs:
                for one in self.pool.values():
                    one.process.terminate()
                until = time.monotonic() + DRAIN_SECONDS
                for one in self.pool.values():
                    one.process.join(max(0.0, until - time.monotonic()))
        finally:  # also when somebody loses patience and interrupts a second time
            for one in self.pool.values():
                one.process.kill()
                one.process.join()


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
    except GracefulStop:
        pass
