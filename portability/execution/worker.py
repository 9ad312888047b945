"""What a worker is, whichever engine starts it: it shares a list of jobs with others, takes what is free, and
leaves records in the store. It trains with one thread, because bits depend on torch's threads; an
extraction's do not (extraction/threads.py), so that takes what is free."""

import contextlib
import logging
import os
import platform
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from portability.core.errors import GracefulStop
from portability.core.specs import RunSpec
from portability.core.stages import Stage
from portability.data.splits import DataSource, study_data
from portability.execution.leases import Leases
from portability.hosts.devices import Place
from portability.store import Store
from portability.tracking.runs import TrackingSpec

# set before torch is imported: one thread a worker; a product's bits do not depend on how many are computed
# with it (D-152); big blocks stay with the process
ENVIRONMENT = {
    "MKL_CBWR": "AUTO,STRICT", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "VECLIB_MAXIMUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false", "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "67108864",
}
if [int(part) for part in platform.libc_ver()[1].split(".")[:2]] < [2, 35]:
    # the most that older ones take; what they refuse leaves 128 kB
    ENVIRONMENT["MALLOC_MMAP_THRESHOLD_"] = "33554432"
FOR_EVER = 1e5  # minutes
TIMED_OUT = 5  # exit code of a worker whose job took too long
PATIENCE_SECONDS = 60.0  # that a worker waits for others to be done with what runs start from (our choice)
# a stopped worker has so long to keep its checkpoints (our choice: within ten seconds all is over)
DRAIN_SECONDS = 8.0


@dataclass(frozen=True)
class Job:
    """A stack of runs with the marks of each: the unit that is scheduled. `failures` is how often each had
    failed when this was planned: one that another command has seen fail since is not executed again."""

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


class TookTooLong(RuntimeError):
    """How a worker ends that cannot leave its process, after its runs took longer than they may."""


class Worker:
    """Carries out jobs one after the other; what it loads for one it keeps for the next.

    Args:
        report: called with what the runs at hand are at.
        owner: its name among those who have runs in hand; None: a new one.
        beat: seconds between its heartbeats (leases.Leases); None: as usual.
        leave: ends this worker in the midst of a job that takes too long.
        stopped: set it to ask for an end; the job at hand keeps its checkpoints after its next update.
    """

    def __init__(self, setup: Setup, place: Place, report: Callable[[Stage], None] = lambda stage: None,
                 owner: str | None = None, beat: float | None = None,
                 leave: Callable[[], None] = lambda: os._exit(TIMED_OUT),
                 stopped: threading.Event | None = None):
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        import torch
        import transformers

        from portability.execution.execute import WorkerContext
        from portability.tracking.live import Live

        torch.set_num_threads(1)
        if place.device != "cpu":
            torch.cuda.set_device(place.device)
        transformers.logging.set_verbosity_error()
        logging.getLogger("adapters").setLevel(logging.ERROR)
        # of transformers, about adapters' T5 layers
        warnings.filterwarnings("ignore", category=FutureWarning)
        self.stopped = stopped or threading.Event()
        self.claims, self.report, self.cores = Leases(setup.store, owner, beat), report, place.cores
        self.minutes, self.late, self.leave = setup.timeout_minutes, False, leave
        live = None if setup.tracking.mode == "disabled" else Live(setup.store, self.claims.owner)
        self.context: WorkerContext = WorkerContext(
            Store(setup.store), study_data(setup.sources, setup.overlap), self._tell,
            live, place, setup.checkpoint_seconds, self.stopped, self.free)

    def _tell(self, stage: Stage) -> None:
        self.claims.stage = stage
        self.report(stage)

    def run(self, job: Job) -> None:
        """Carry out those runs of a job that nobody else has in hand, has done or has seen fail. A run that
        was evaluated at other marks before is evaluated at those too, so that no evaluation is lost.

        Raises:
            OSError: a file could not be read or written.
            GracefulStop: the worker was stopped; checkpoints are kept.
        """
        from portability.execution.execute import execute

        store = self.context.store
        with self.claims.held([run.run_id for run in job.runs]) as mine:
            runs = [run for run in job.runs if run.run_id in mine and not is_settled(run.run_id, job, store)]
            marks = {i: sorted(store.evaluated(i).union(job.marks[i])) for i in (run.run_id for run in runs)}
            if not runs:
                return
            self._tell(Stage([*marks]))
            timer = threading.Timer(60 * len(runs) * (self.minutes or FOR_EVER), self._end, [runs])
            timer.daemon = True
            timer.start()
            try:
                execute(runs, marks, self.context)
            except GracefulStop:
                if self.late:
                    raise TookTooLong from None
                raise
            finally:
                timer.cancel()
            for run_id in marks.keys() - self.context.settled:
                error = "the worker ended the job and left neither record nor failure"
                store.fail(run_id, {"error": error, "kind": "WorkerDied"})

    def _end(self, runs: Sequence[RunSpec]) -> None:
        """Leave runs that take longer than they may. One that was alone has failed; which of a stack it was
        is found out by who follows this worker, in smaller ones."""
        self.late = True
        error = (f"timed out after {self.minutes:.1f} min; a run that needs longer needs a larger "
                 "engine.timeout_minutes and retry=failed")
        with contextlib.suppress(OSError):  # a full disk, say: the worker ends all the same
            if len(runs) == 1:
                self.context.store.fail(runs[0].run_id, {"error": error, "kind": "TimedOut"})
        self.leave()

    def free(self) -> int:
        """This worker's even part of its machine's cores, among the workers of the study that have something
        in hand."""
        return max(1, self.cores // (1 + self.claims.neighbours()))


# ---- a list of jobs that workers share


def is_settled(run_id: str, job: Job, store: Store) -> bool:
    """Whether a run of a job is done, or has failed since the job was planned."""
    return store.has(run_id, job.marks[run_id]) or store.attempts(run_id) > job.failures.get(run_id, 0)


def work(jobs: Sequence[Job], worker: Worker, look_seconds: float, most: int | None = None) -> None:
    """Carry out what nobody else has in hand and whose origins are done, until nothing is left for this
    worker. Runs that a dead worker had in hand are left alone: whoever follows the workers counts its death.

    Args:
        look_seconds: at least so long lies between looks while all that is left waits for others.
        most: at most so many jobs; None: no limit.

    Raises:
        OSError: a file could not be read or written.
    """
    left, done, taken = list(jobs), set[str](), 0
    until = time.monotonic() + PATIENCE_SECONDS
    while taken != most and not worker.stopped.is_set():
        began = time.monotonic()
        if job := _next(left, done, worker):
            with contextlib.suppress(GracefulStop):
                worker.run(job)
            taken, until = taken + 1, time.monotonic() + PATIENCE_SECONDS
        elif time.monotonic() > until or not any(
                worker.claims.read(run.origin) for job in left for run in job.runs if run.origin):
            return
        else:
            worker.stopped.wait(max(look_seconds, 5 * (time.monotonic() - began)))


def _next(left: list[Job], done: set[str], worker: Worker) -> Job | None:
    """The first job that can be had as a whole, or else the first part of one: larger stacks cost less a run,
    but a worker that has nothing else to do does not wait for them.

    Args:
        left: what is left of the jobs, origins first; what was settled meanwhile is removed.
        done: origins that are known to be done; added to.
    """
    store, first, before = worker.context.store, None, set[str]()
    limits = worker.claims.limits()

    def is_ready(run: RunSpec) -> bool:
        if run.origin and run.origin not in done:
            if run.origin in before or not store.has(run.origin):
                return False
            done.add(run.origin)
        return (claim := worker.claims.read(run.run_id)) is None or claim.owner == worker.claims.owner

    place = 0
    while place < len(left):
        runs = [run for run in left[place].runs if not is_settled(run.run_id, left[place], store)]
        if not runs:
            del left[place]
            continue
        left[place] = job = replace(left[place], runs=runs)
        before |= {run.run_id for run in runs}
        ready = [run for run in runs if is_ready(run)]
        most = min((limits[run.run_id] for run in ready if run.run_id in limits), default=len(ready))
        if most < len(ready):
            return replace(job, runs=ready[:most])
        if len(ready) == len(runs):
            return job
        first = first or (replace(job, runs=ready) if ready else None)
        place += 1
    return first
