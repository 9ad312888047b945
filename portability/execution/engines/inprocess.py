"""Everything in this very process, in a thread beside the command's own: for notebooks, debuggers and tests.
What is equal to the bit elsewhere is so here; but a crash ends the command, and a run that hangs cannot be
killed."""

import os
import threading
from collections.abc import Sequence

from portability.execution.engines.base import Engine, cannot_go_on
from portability.execution.worker import DRAIN_SECONDS, ENVIRONMENT, Job, Setup, TookTooLong, Worker, work
from portability.hosts.devices import Place, places
from portability.planning.study import EngineConf


class InProcess(Engine):
    """One worker, here."""

    def __init__(self, conf: EngineConf, setup: Setup):
        super().__init__(conf, setup)
        self.worker: Worker | None = None
        self.error: BaseException | None = None
        self.how, self.stopping = "", threading.Event()

    @staticmethod
    def places(conf: EngineConf) -> list[Place]:
        """One place, whatever `conf.workers` says."""
        return places(conf.device, 1)

    def launch(self, name: str, jobs: Sequence[Job]) -> threading.Thread:
        """See Engine.launch."""
        self.how = ""
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
        self.stopping.set()
        self._stop()
        for thread in self.pool.values():
            thread.join(DRAIN_SECONDS)
        over = {name for name, thread in self.pool.items() if not thread.is_alive()} | self.ended.keys()
        for claim in self.claims.all().values():
            if claim.owner in over:
                self.claims.drop(claim)

    def _stop(self) -> None:
        if self.worker is not None:
            self.worker.stop()

    def _work(self, name: str, jobs: Sequence[Job]) -> None:
        """The worker's thread, which makes the worker because torch keeps the number of its threads by
        thread."""
        os.environ.update(ENVIRONMENT)
        try:
            self.worker = Worker(self.setup, self.where[0], owner=name, beat=self.poll_seconds,
                                 leave=self._stop)
            if not self.stopping.is_set():
                work(jobs, self.worker, self.poll_seconds)
        except TookTooLong:
            self.how = "the worker was stopped because its runs took too long"
        except BaseException as error:  # raised where it is looked at
            self.error = error
