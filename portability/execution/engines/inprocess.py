"""Everything in this very process, in a thread beside the command's own: for notebooks, debuggers and tests. What is equal to
the bit elsewhere is so here; but a crash ends the command, and a job that hangs cannot be killed."""

import os
import threading
from collections.abc import Iterator, Sequence
from queue import SimpleQueue

from portability.core.errors import Drained
from portability.core.stages import Stage
from portability.execution.engines.base import Ended, Engine, cannot_go_on
from portability.execution.worker import DRAIN_SECONDS, ENVIRONMENT, Job, Setup, Worker
from portability.hosts.devices import Place, places
from portability.planning.study import EngineConf


class InProcess(Engine):
    """One worker, here."""

    def __init__(self, conf: EngineConf, setup: Setup):
        super().__init__(conf, setup)
        self.jobs: SimpleQueue[Job] = SimpleQueue()
        self.said: SimpleQueue[Stage | Ended | Exception] = SimpleQueue()
        self.out = 0  # jobs that have not ended
        self.ending = threading.Event()
        self.worker: Worker | None = None
        self.thread = threading.Thread(target=self._work, daemon=True)

    @staticmethod
    def check(conf: EngineConf) -> None:
        """See that there is such a device.

        Raises:
            UserError: there is none.
        """
        places(conf.device, 1)

    @staticmethod
    def places(conf: EngineConf) -> list[Place]:
        """One place, whatever `conf.workers` says."""
        return places(conf.device, 1)

    def submit(self, jobs: Sequence[Job]) -> None:
        """See Engine.submit."""
        self.out += len(jobs)
        for job in jobs:
            self.jobs.put(job)

    @property
    def idle(self) -> bool:
        """Whether no job is left."""
        return self.out == 0

    def events(self) -> Iterator[Stage | Ended]:
        """See Engine.events; an error that no run is to blame for is raised as it is."""
        if self.out and self.thread.ident is None:
            self.thread.start()
        while self.out:
            event = self.said.get()
            if isinstance(event, Exception):
                raise cannot_go_on(event) if isinstance(event, OSError) else event
            self.out -= isinstance(event, Ended)
            yield event

    def drain(self) -> None:
        """See Engine.drain."""
        self.ending.set()
        if self.worker is not None:
            self.worker.stop()
            self.thread.join(DRAIN_SECONDS)

    def _work(self) -> None:
        """The worker's thread: torch keeps the number of threads to compute on by thread."""
        os.environ.update(ENVIRONMENT)
        try:
            self.worker = worker = Worker(self.setup, self.places(self.conf)[0], self.said.put, leave=lambda: worker.stop())
            while not self.ending.is_set():
                job = self.jobs.get()
                try:
                    worker.run(job)
                    self.said.put(Ended(job))
                except Drained:  # told to stop, or the job took too long
                    worker.stopped.clear()
                    self.said.put(Ended(job, "the worker was stopped"))
        except Exception as error:  # raised where events are read
            self.said.put(error)
