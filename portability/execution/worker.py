"""What a worker is, whichever engine starts it: one process that takes jobs and leaves records in the store. It trains with
one thread, because bits depend on torch's threads; an extraction's do not (extraction/threads.py), so it takes what is free."""

import contextlib
import logging
import multiprocessing
import os
import platform
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from portability.core.specs import RunSpec
from portability.core.stages import Stage
from portability.data.splits import DataSource, study_data
from portability.execution.leases import Claims
from portability.hosts.devices import Place
from portability.tracking.runs import TrackingSpec

ENVIRONMENT = {  # set before torch is imported: one thread a worker, and big blocks stay with the process
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "VECLIB_MAXIMUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "67108864",
}
if [int(part) for part in platform.libc_ver()[1].split(".")[:2]] < [2, 35]:
    ENVIRONMENT["MALLOC_MMAP_THRESHOLD_"] = "33554432"  # the most that older ones take; what they refuse leaves 128 kB
TIMED_OUT = 5  # exit code of a worker whose job took too long
DRAIN_SECONDS = 8.0  # a stopped worker has so long to keep its checkpoints (our choice: within ten seconds all is over)


@dataclass(frozen=True)
class Job:
    """A stack of runs with the marks of each: the unit that is scheduled. `failures` is how often each had failed when this
    was planned: one that another command has seen fail since is not executed again."""

    runs: Sequence[RunSpec]
    marks: Mapping[str, Sequence[int]]
    failures: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """What a worker needs to begin."""

    store: Path
    sources: Sequence[DataSource]
    overlap: str
    tracking: TrackingSpec
    checkpoint_seconds: float = 60.0
    timeout_minutes: float | None = None  # of one run; a stack may take as many times that


class Worker:
    """Carries out jobs one after the other; what it loads for one it keeps for the next.

    Args:
        report: called with what the runs at hand are at.
        owner: its name among those who have runs in hand; None: one of its own.
        leave: ends this worker in the midst of a job that takes too long.
    """

    def __init__(self, setup: Setup, place: Place, report: Callable[[Stage], None] = lambda stage: None,
                 owner: str | None = None, leave: Callable[[], None] = lambda: os._exit(TIMED_OUT)):
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        import torch
        import transformers

        from portability.execution.worker_context import Desk
        from portability.store import Store
        from portability.tracking.runs import Tracker

        torch.set_num_threads(1)
        if place.device != "cpu":
            torch.cuda.set_device(place.device)
        transformers.logging.set_verbosity_error()
        logging.getLogger("adapters").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers, about adapters' T5 layers
        self.stopped = threading.Event()
        self.desk: Desk = Desk(
            Store(setup.store), study_data(setup.sources, setup.overlap), self._tell, Tracker(setup.tracking).log_run, place,
            setup.checkpoint_seconds, stopped=self.stopped, free=self.free)
        self.claims, self.report, self.cores = Claims(setup.store, owner), report, place.cores
        self.minutes, self.leave = setup.timeout_minutes, leave

    def _tell(self, stage: Stage) -> None:
        self.claims.say(stage)
        self.report(stage)

    def run(self, job: Job) -> None:
        """Carry out those runs of a job that nobody else has in hand, has done or has seen fail. A run that was evaluated at
        other marks before is evaluated at those too, so that no evaluation is lost.

        Raises:
            OSError: a file could not be read or written.
            Drained: the worker was stopped; checkpoints are kept.
        """
        from portability.execution.execute import execute

        ids = [run.run_id for run in job.runs]
        with self.claims.held(ids) as mine:
            runs, marks = [], {}
            for run in job.runs:
                done = self.desk.store.evaluated(run.run_id)
                failed = self.desk.store.attempts(run.run_id) > job.failures.get(run.run_id, float("inf"))
                if run.run_id in mine and not failed and not done.issuperset(job.marks[run.run_id]):
                    runs.append(run)
                    marks[run.run_id] = sorted(done.union(job.marks[run.run_id]))
            if runs:
                self._tell(Stage([run.run_id for run in runs]))
                with self._limited(runs):
                    execute(runs, marks, self.desk)

    @contextlib.contextmanager
    def _limited(self, runs: Sequence[RunSpec]) -> Iterator[None]:
        """Leave runs that take longer than they may. One that was alone has failed; which of a stack it was is found out by
        who follows this worker, in smaller ones."""
        if self.minutes is None:
            yield
            return

        def end() -> None:
            if len(runs) == 1:
                self.desk.store.fail(runs[0].run_id, {"kind": "TimedOut", "error": (
                    f"timed out after {self.minutes:.1f} min with 1 run (engine.timeout_minutes is {self.minutes:g} a run; a "
                    "run that needs longer needs a larger one and retry=failed)")})
            self.leave()

        timer = threading.Timer(self.minutes * 60 * len(runs), end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def free(self) -> int:
        """This worker's even part of its machine's cores, among the workers of the study that have something in hand."""
        return max(1, self.cores // (1 + self.claims.neighbours()))

    def stop(self) -> None:
        """Ask for an end: the job at hand keeps its checkpoints after its next update, and ends with Drained."""
        self.stopped.set()


# ---- processes that answer a command's questions


def end_with_parent() -> None:
    """Called in a process of a command: Ctrl-C is left to the command, with whose end this process ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_of(child: BaseProcess, error: Exception) -> str:
    """How such a process ended before it had answered."""
    if child.pid is None:
        return f"no process could be started ({error})"
    child.join()
    why = ", perhaps for want of memory" if child.exitcode == -signal.SIGKILL else ""
    return f"the process ended with exit code {child.exitcode}{why}"
