"""What runs inside a task of the Slurm engine: one worker, some jobs, and notes for the command that follows the queue."""

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from portability.core.errors import Drained
from portability.execution.leases import STALE_SECONDS, Claims
from portability.execution.worker import Job, Setup, Worker, overdue
from portability.hosts.devices import Place, places
from portability.store import Store

log = logging.getLogger(__name__)
STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # scancel and preemption; submitit's sign that time is nearly over
LOOK_SECONDS = 2.0  # between looks at runs that another process has in hand


@dataclass(frozen=True)
class Notes:
    """What a task says of itself: the runs it began, and how it ended where that was not a death.

    `end` is "stopped" (by a signal; checkpoints are kept), "left" (other processes have some of its runs, or their
    origins, in hand), "late" (engine.timeout_minutes was over, which `text` says) or empty.
    """

    begun: Sequence[str] = ()
    end: str = ""
    text: str = ""

    @staticmethod
    def read(path: Path) -> "Notes":
        """A task's notes; empty where it wrote none."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return Notes(**json.loads(path.read_text()))
        return Notes()


@dataclass
class _Log:
    """The notes of this task, written anew with every change."""

    path: Path
    begun: list[str] = field(default_factory=list)

    def write(self, end: str = "", text: str = "") -> None:
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        draft.write_text(json.dumps(asdict(Notes(self.begun, end, text))))
        draft.rename(self.path)


def run_task(jobs: Sequence[Job], setup: Setup, device: str, timeout_minutes: float | None, late: float, notes: Path) -> None:
    """Carry out jobs in order, in a process of their own that Slurm started.

    Args:
        late: seconds after which a file that another machine wrote must be seen.
        notes: where the task says what it does (see Notes).

    Raises:
        SystemExit: not all runs are recorded or failed, so that Slurm cancels the tasks that wait for this one.
        OSError: a file could not be read or written.
    """
    diary, workers, asked = _Log(notes), [], threading.Event()

    def stop(*_: object) -> None:
        asked.set()
        for worker in workers:
            worker.stop()

    for number in STOPS:
        signal.signal(number, stop)
    diary.write()
    workers.append(Worker(setup, _place(device), lambda stage: None))
    if asked.is_set():
        workers[0].stop()
    try:
        left = _carry_out(jobs, Store(setup.store), workers[0], timeout_minutes, late, diary)
    except Drained:
        diary.write("stopped")
        raise SystemExit(3) from None
    if left:
        diary.write("left")
        log.warning("other processes have %d of the runs, or what they start from, in hand", left)
        raise SystemExit(4)


def _carry_out(jobs: Sequence[Job], store: Store, worker: Worker, timeout: float | None, late: float, diary: _Log) -> int:
    """Run the jobs; those with runs that cannot be had yet come again at the end. Gives back how many runs were left."""
    attempts = {run.run_id: store.attempts(run.run_id) for job in jobs for run in job.runs}
    claims = Claims(store.root)
    until: float | None = None
    while jobs:
        for job in jobs:
            ready = [run for run in job.runs if run.origin is None or store.has(run.origin)]
            if not ready:
                continue
            diary.begun += [run.run_id for run in job.runs if run.run_id not in diary.begun]
            diary.write()
            with _limit(job, timeout, diary):
                worker.run(replace(job, runs=ready))
        parts = (replace(job, runs=[run for run in job.runs if not store.has(run.run_id, job.marks[run.run_id])
                                    and store.attempts(run.run_id) == attempts[run.run_id]]) for job in jobs)
        jobs = [part for part in parts if part.runs]
        held = any((claim := claims.read(i)) is not None and claims.lives(claim)
                   for job in jobs for run in job.runs for i in (run.run_id, run.origin or run.run_id))
        now = time.monotonic()
        until = until or now + (STALE_SECONDS + late if held else late)
        if jobs and now > until:
            break
        time.sleep(LOOK_SECONDS if jobs else 0.0)
    return sum(len(job.runs) for job in jobs)


@contextlib.contextmanager
def _limit(job: Job, timeout_minutes: float | None, diary: _Log) -> Iterator[None]:
    """End the process when a job takes longer than it may."""
    if timeout_minutes is None:
        yield
        return
    seconds = timeout_minutes * 60 * len(job.runs)

    def end() -> None:
        diary.write("late", str(overdue(job, seconds + 1e-3, timeout_minutes)))
        os._exit(5)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _place(device: str) -> Place:
    """This task's device; of a node's memory it may use what Slurm gave it, or else as large a part as of its cores."""
    (place,) = places(device, 1)
    if place.device != "cpu":
        return place
    cpus = int(os.environ.get("SLURM_CPUS_ON_NODE", "1"))
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
    given = int(os.environ.get("SLURM_MEM_PER_NODE", "0")) or cpus * int(os.environ.get("SLURM_MEM_PER_CPU", "0"))
    share = min(1.0, given / whole if given else cpus / (os.cpu_count() or cpus))
    return Place("cpu", share, min(cpus, place.cores))
