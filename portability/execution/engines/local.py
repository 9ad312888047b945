"""Workers on this machine, spawned, with one pipe each: a death costs exactly the stack it was working on.

joblib, loky and ProcessPoolExecutor lose the whole pool when one worker is killed. Workers hand back ids only; results
come from the store.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from portability.core.errors import Drained
from portability.core.stages import Stage
from portability.execution.engines.base import Ended, Engine, cannot_go_on
from portability.execution.processes import end_with_parent
from portability.execution.worker import DRAIN_SECONDS, ENVIRONMENT, Job, Setup, Worker
from portability.hosts.devices import Place, places
from portability.planning.study import EngineConf


@dataclass(eq=False)
class _Slot:
    process: BaseProcess
    pipe: Connection
    place: Place
    job: Job | None = None


class Local(Engine):
    """As many processes as there are places, started as jobs come."""

    def __init__(self, conf: EngineConf, setup: Setup):
        super().__init__(conf, setup)
        os.environ.update(ENVIRONMENT)
        self.where = places(conf.device, conf.workers)
        self.queue: list[Job] = []
        self.pool: list[_Slot] = []

    @staticmethod
    def check(conf: EngineConf) -> None:
        """See that there is such a device.

        Raises:
            UserError: there is none.
        """
        places(conf.device, conf.workers)

    @staticmethod
    def places(conf: EngineConf) -> list[Place]:
        """The place of each worker."""
        return places(conf.device, conf.workers)

    def submit(self, jobs: Sequence[Job]) -> None:
        """See Engine.submit."""
        self.queue += jobs

    @property
    def busy(self) -> list[_Slot]:
        """Workers that have a job."""
        return [slot for slot in self.pool if slot.job is not None]

    @property
    def idle(self) -> bool:
        """Whether a worker is or could be without a job."""
        return len(self.queue) + len(self.busy) < len(self.where)

    def events(self) -> Iterator[Stage | Ended]:
        """See Engine.events."""
        while self.queue or self.busy:
            self._assign()
            slots = {slot.pipe: slot for slot in self.busy}
            for pipe in wait(list(slots)):
                slot = slots[pipe]  # type: ignore[index]
                try:
                    message = slot.pipe.recv()
                except (EOFError, OSError):
                    slot.process.join()
                    self.pool.remove(slot)
                    message = f"the worker ended with exit code {slot.process.exitcode}"
                if isinstance(message, OSError):
                    raise cannot_go_on(message)
                if isinstance(message, Stage):
                    yield message
                    continue
                job, slot.job = slot.job, None
                assert job is not None
                yield Ended(job, message)

    def drain(self) -> None:
        """See Engine.drain: idle ones end at once, the others once they kept checkpoints, or after DRAIN_SECONDS."""
        try:
            for slot in self.busy:
                slot.process.terminate()
            until = time.monotonic() + DRAIN_SECONDS
            for slot in self.busy:
                slot.process.join(max(0.0, until - time.monotonic()))
        finally:  # also when somebody loses patience and interrupts a second time
            for slot in self.pool:
                slot.process.kill()
                slot.process.join()

    def _assign(self) -> None:
        while self.queue:
            free = next((slot for slot in self.pool if slot.job is None), None)
            if free is None and len(self.pool) >= len(self.where):
                return
            free = free or self._start()
            try:
                free.pipe.send(self.queue[0])
            except OSError:  # it died while it was idle
                self.pool.remove(free)
                continue
            free.job = self.queue.pop(0)

    def _start(self) -> _Slot:
        place = next(iter(Counter(self.where) - Counter(slot.place for slot in self.pool)))
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.setup, place), daemon=True)
        process.start()
        theirs.close()
        self.pool.append(_Slot(process, ours, place))
        return self.pool[-1]


def _work(pipe: Connection, setup: Setup, place: Place) -> None:
    """A worker's life: jobs in, stages and None for each job that ended out, or an OSError (a full disk, say), which would
    stop every run."""
    end_with_parent()
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
        try:
            worker.run(job)
        except OSError as error:
            pipe.send(OSError(str(error)))
            return
        except Drained:
            return
        pipe.send(None)
