"""Carry out a plan: what is ready goes to the pool, what failed blocks what needs it, and the bar shows the rest."""

import logging
import sys
from collections import Counter
from collections.abc import Sequence

from tqdm import tqdm

from portability.config import Study
from portability.devices import STACKS, places
from portability.plan import Plan, alike, stacks
from portability.pool import Job, Setup, run_jobs
from portability.spec import RunSpec
from portability.store import Store
from portability.tracking import TrackingSpec

log = logging.getLogger(__name__)
RETRIES = 2  # a run that was alone when its worker died is tried so many times again; stacks are halved until then


class Ledger:
    """What is to do, what was handed out, and what went wrong, while a plan is carried out.

    Each run is looked up in the store once at the start and once when its job ends, so the work grows with the runs.
    """

    def __init__(self, planned: Plan, store: Store, stack: int, workers: int):
        self.planned, self.store, self.stack, self.workers = planned, store, stack, workers
        self.todo = {i: r for i, r in planned.runs.items() if not store.has(i, planned.marks[i])}
        self.kind = {run_id: alike(run) for run_id, run in self.todo.items()}
        self.waiting: dict[str, list[str]] = {}  # origin -> runs that start from it
        self.mates: Counter[str] = Counter()  # kind -> how many such runs are waiting
        self.free: list[str] = []  # runs that nothing holds back
        for run_id, run in self.todo.items():
            if run.origin in self.todo:
                self.waiting.setdefault(str(run.origin), []).append(run_id)
                self.mates[self.kind[run_id]] += 1
            else:
                self.free.append(run_id)
        self.deaths: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self.done = 0

    def ready(self, idle: bool) -> list[Job]:
        """Jobs whose runs' origins are in the store, handed out once.

        A run that no other waits for stays until the runs that may train with it are ready too, because larger stacks
        cost less a run; where a worker would be `idle` otherwise, one kind of such runs goes ahead.
        """
        workers = self.workers
        later = {i for i in self.free if self.mates[self.kind[i]] and i not in self.waiting}
        if idle and later and len(later) == len(self.free):
            first = self.kind[next(i for i in self.free if i in later)]
            later = {i for i in later if self.kind[i] != first}
            workers = 1  # the idle one
        runs = {run_id: self.todo[run_id] for run_id in self.free if run_id not in later}
        self.free = [run_id for run_id in self.free if run_id in later]
        return self._jobs(runs, workers)

    def _jobs(self, runs: dict[str, RunSpec], workers: int) -> list[Job]:
        size = max(1, min(self.stack, -(-len(runs) // workers)))
        return [Job([runs[i] for i in ids], {i: sorted(self.planned.marks[i]) for i in ids}) for ids in stacks(runs, size)]

    def settle(self, job: Job, death: str | None) -> list[Job]:
        """Note how a job ended; gives back the jobs to try again after a worker's death, in smaller stacks."""
        left = []
        for run in job.runs:
            if self.store.has(run.run_id, job.marks[run.run_id]):
                self.done += 1
                self.free += self._released(run)
            else:
                left.append(run)
        again: dict[str, RunSpec] = {}
        for run in left:
            self.deaths[run.run_id] += death is not None and len(left) == 1  # in company the guilty one is not known
            if death is not None and self.deaths[run.run_id] <= RETRIES:
                again[run.run_id] = run
            else:
                self._fail(run, death)
        parts = stacks(again, max(1, len(left) // 2)) if again else []
        return [Job([again[i] for i in ids], {i: job.marks[i] for i in ids}) for ids in parts]

    def _released(self, origin: RunSpec) -> list[str]:
        """The runs that waited for this one, which do no longer."""
        released = self.waiting.pop(origin.run_id, [])
        self.mates.subtract(self.kind[run_id] for run_id in released)
        return released

    def _fail(self, run: RunSpec, death: str | None) -> None:
        if death is not None:
            self.store.fail(run.run_id, {"error": death, "kind": "WorkerDied"})
        self.failed[run.run_id] = death or "failed"
        for run_id in self._released(run):
            self.failed[run_id] = "blocked"
            self.store.fail(run_id, {"error": f"blocked: its origin run {run.run_id} failed", "kind": "Blocked",
                                     "origin": run.run_id})


def carry_out(planned: Plan, store: Store, study: Study, tracking: TrackingSpec) -> int:
    """Run what the store lacks; to resume after a crash or Ctrl-C, call it again. Gives back the number of failures."""
    where = places(study.engine.device, study.engine.workers)
    stack = study.engine.stack or STACKS[where[0].device.partition(":")[0]]
    ledger = Ledger(planned, store, stack, len(where))
    log.info("%d of %d runs to do in study %s", len(ledger.todo), len(planned.runs), study.name)
    if not ledger.todo:
        return 0
    total = sum(run.train.updates for run in ledger.todo.values())
    setup = Setup(store.root, study.sources, study.overlap, tracking, study.engine.checkpoint_seconds)
    again: list[Job] = []

    def more(idle: bool) -> list[Job]:
        jobs = [*again, *ledger.ready(idle and not again)]
        again.clear()
        return jobs

    every = 0.5 if sys.stderr.isatty() else 15.0  # seconds; a log file needs fewer lines than a terminal
    with tqdm(total=total, unit="upd", desc=study.name, smoothing=0.05, mininterval=every, maxinterval=60.0) as bar:
        for job, death in run_jobs(more, setup, where, bar.update):
            again += ledger.settle(job, death)
            bar.set_postfix_str(f"{ledger.done}/{len(ledger.todo)} runs, {len(ledger.failed)} failed", refresh=False)
    return len(ledger.failed)


def status_lines(planned: Plan, store: Store) -> list[str]:
    """How far the plan is: cells and runs done, failed and missing, and the failures by name."""
    done = {run_id for run_id in planned.runs if store.has(run_id, planned.marks[run_id])}
    failures = {i: f for i, f in store.failures(planned.marks).items() if i in planned.runs}
    cells = Counter("done" if c.run_id in done else "failed" if c.run_id in failures else "missing"
                    for c in planned.cells if c.budget > 0)
    lines = [f"cells: {sum(cells.values())}, " + _counts(cells, ("done", "failed", "missing")),
             f"runs: {len(planned.runs)}, {len(done)} done, {len(failures)} failed, "
             f"{len(planned.runs) - len(done) - len(failures)} missing"]
    for run_id, failure in sorted(failures.items()):
        run = planned.runs[run_id]
        lines.append(f"  {run_id} {run.init.name} of {run.method.name if run.method else 'no module'} on {run.host.name}, "
                     f"attempt {failure['attempt']}: {failure['error']}")
    return lines


def _counts(counts: Counter[str], names: Sequence[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in names)
