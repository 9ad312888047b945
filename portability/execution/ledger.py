"""What of a plan is to do, was handed out, is in other hands or went wrong, while it is carried out."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from portability.core.specs import RunSpec
from portability.execution.leases import Claims
from portability.execution.worker import Job
from portability.planning.plan import Plan, alike, stacks
from portability.store import Store

RETRIES = 2  # a run that was alone when its worker died is tried so many times again; stacks are halved until then
TRIED_AGAIN = ("WorkerDied", "Blocked")  # kinds of failure that a repeated command tries again by itself
LOOK_SECONDS = 2.0  # between looks at the runs that another command has in hand


class Ledger:
    """What is to do, what was handed out, what another command has in hand, and what went wrong, while a plan is carried out.

    Args:
        chosen: the runs to carry out; those of them that are done are left alone.
        stack: at most so many runs in a job.
        retry: which runs that failed before are tried again (choice.RETRIES).
    """

    def __init__(self, planned: Plan, store: Store, stack: int, workers: int, chosen: Iterable[str] | None = None,
                 retry: str = "died"):
        self.planned, self.store, self.stack, self.workers = planned, store, stack, workers
        self.claims = Claims(store.root)
        self.todo, self.broken = to_do(planned, store, planned.runs if chosen is None else set(chosen))
        self.kind = {run_id: alike(run) for run_id, run in self.todo.items()}
        self.waiting: dict[str, list[str]] = {}  # origin -> runs that start from it
        self.mates: Counter[str] = Counter()  # kind -> how many such runs are waiting
        self.free: dict[str, None] = {}  # runs that nothing holds back, in their order
        self.out: set[str] = set()  # runs in jobs that were handed out
        self.elsewhere: set[str] = set()  # runs that another command has in hand
        self.looked = 0.0  # when they were last looked at
        self.deaths: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self.done: set[str] = set()
        for run_id, run in self.todo.items():
            if run.origin in self.todo:
                self.waiting.setdefault(str(run.origin), []).append(run_id)
                self.mates[self.kind[run_id]] += 1
            else:
                self.free[run_id] = None
        self.known = {i: f for i, f in store.failures(planned.marks).items() if i in self.todo}  # failures so far
        for run_id, failure in self.known.items():
            if retry == "died" and failure.get("kind") not in TRIED_AGAIN and run_id not in self.failed:
                self._fail(self.todo[run_id], str(failure["error"]))
        self.earlier = len(self.failed)

    def ready(self, idle: bool) -> list[Job]:
        """Jobs whose runs' origins are in the store, handed out once.

        A run that no other waits for stays until the runs that may train with it are ready too, because larger stacks
        cost less a run; where a worker would be `idle` otherwise, one kind of such runs goes ahead.
        """
        self.look()
        workers = self.workers
        later = {i for i in self.free if self.mates[self.kind[i]] and i not in self.waiting}
        if idle and later and len(later) == len(self.free):
            first = self.kind[next(i for i in self.free if i in later)]
            later = {i for i in later if self.kind[i] != first}
            workers = 1  # the idle one
        runs = [run_id for run_id in self.free if run_id not in later]
        self.free = {run_id: None for run_id in self.free if run_id in later}
        return self._jobs(runs, workers)

    def ahead(self) -> list[Job]:
        """Jobs for an engine that keeps their order: those that can start, then those that wait for them, and so on."""
        self.look()
        found, runs = [], list(self.free)
        self.free = {}
        while runs:
            found += self._jobs(runs, self.workers)
            runs = [i for run_id in runs for i in self.waiting.get(run_id, ()) if i not in self.out and i not in self.failed]
        return found

    def _jobs(self, ids: Sequence[str], workers: int) -> list[Job]:
        runs = {run_id: self.todo[run_id] for run_id in ids}
        self.out |= set(ids)
        size = max(1, min(self.stack, -(-len(runs) // workers)))
        return [self._job(part) for part in stacks(runs, size)]

    def _job(self, ids: Iterable[str]) -> Job:
        return Job([self.todo[i] for i in ids], {i: sorted(self.planned.marks[i]) for i in ids},
                   {i: self.known.get(i, {}).get("attempt", 0) for i in ids})

    def settle(self, job: Job, death: str | None) -> list[Job]:
        """Note how a job ended; gives back the jobs to try again after a worker's death, in smaller stacks."""
        self.out -= {run.run_id for run in job.runs}
        left = [run for run in job.runs if not self._settled(run)]
        again: list[str] = []
        for run in left:
            if death is None and self._is_elsewhere(run):
                self.elsewhere.add(run.run_id)
                continue
            if self._has_failed_anew(run):
                self._fail(run, "failed")
                continue
            reason = death or "the worker ended the job and left neither record nor failure"
            self.deaths[run.run_id] += len(left) == 1 or death is None  # which one of a stack is to blame is not known
            if self.deaths[run.run_id] <= RETRIES:
                again.append(run.run_id)
            else:
                self._fail(run, reason, {"error": reason, "kind": "WorkerDied"})
        if not again:
            return []
        self.out |= set(again)
        return [self._job(ids) for ids in stacks({i: self.todo[i] for i in again}, max(1, len(left) // 2))]

    def _settled(self, run: RunSpec) -> bool:
        """Whether a run is done or has failed; what waited for one that is done does no longer."""
        if run.run_id in self.failed or run.run_id in self.done:
            return True
        if not self.store.has(run.run_id, self.planned.marks[run.run_id]):
            return False
        self.done.add(run.run_id)
        released = [run_id for run_id in self._released(run) if run_id not in self.out and run_id not in self.failed]
        self.free |= dict.fromkeys(released)
        return True

    def _released(self, origin: RunSpec) -> list[str]:
        """The runs that waited for this one, which do no longer."""
        released = self.waiting.pop(origin.run_id, [])
        self.mates.subtract(self.kind[run_id] for run_id in released)
        return released

    def _fail(self, run: RunSpec, reason: str, failure: Mapping[str, str] | None = None) -> None:
        """Give a run up, with a failure record where nobody wrote one yet; what starts from it is blocked."""
        if failure is not None:
            self.store.fail(run.run_id, failure)
        self.failed[run.run_id] = reason
        self.free.pop(run.run_id, None)
        for run_id in self._released(run):
            if run_id not in self.failed:
                said = self.known.get(run_id, {}).get("origin") == run.run_id or self._has_failed_anew(self.todo[run_id])
                blocked = {"error": f"blocked: its origin run {run.run_id} failed", "kind": "Blocked", "origin": run.run_id}
                self._fail(self.todo[run_id], "blocked", None if said else blocked)

    # ---- runs that another command has in hand

    def look(self) -> None:
        """See what became of the runs that another command has in hand."""
        if not self.elsewhere or time.monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        for run_id in sorted(self.elsewhere):
            run = self.todo[run_id]
            if self._is_elsewhere(run):
                continue
            self.elsewhere.discard(run_id)
            if self._settled(run):
                continue
            if self._has_failed_anew(run):
                self._fail(run, "failed elsewhere")
            else:
                self.free[run_id] = None  # left behind

    def _has_failed_anew(self, run: RunSpec) -> bool:
        return self.store.attempts(run.run_id) > self.known.get(run.run_id, {}).get("attempt", 0)

    def _is_elsewhere(self, run: RunSpec) -> bool:
        claim = self.claims.read(run.run_id)
        return claim is not None and self.claims.lives(claim)


def to_do(planned: Plan, store: Store, chosen: Iterable[str]) -> tuple[dict[str, RunSpec], dict[str, str]]:
    """The chosen runs that the store lacks, with those they start from whose files are missing or broken; and what is wrong
    with the ones that are there and broken.

    Raises:
        UserError: a newer version of the project wrote one of them.
    """
    marks = store.marks()
    wanted = set(chosen)
    todo = {i: run for i, run in planned.runs.items() if i in wanted and not planned.marks[i] <= marks.get(i, frozenset())}
    broken = {}
    asked: set[str] = set()
    while new := {run.origin for run in todo.values() if run.origin} - set(todo) - asked:  # what a broken one starts from, too
        asked |= new
        for origin in sorted(new):
            if fault := store.sound(origin):
                todo[origin] = planned.runs[origin]
                broken |= {origin: fault} if origin in marks else {}
    for run_id in todo:
        store.refuse_newer(run_id)
    return {i: todo[i] for i in planned.runs if i in todo}, broken  # in the plan's order: origins first
