"""What of a plan is to do, and what became of it, while it is carried out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from portability.core.specs import RunSpec
from portability.execution.worker import Job
from portability.planning.cost import stack_key, stacks
from portability.planning.plan import Plan
from portability.store import Store

# a run that was alone when its worker died is tried so many times again; stacks are halved until then
RETRIES = 2
TRIED_AGAIN = ("WorkerDied", "Blocked")  # kinds of failure that a repeated command tries again by itself


class Ledger:
    """What is to do, what is done and what went wrong.

    Args:
        chosen: the runs to carry out; those of them that are done are left alone.
        stack: at most so many runs in a job.
        retry: which runs that failed before are tried again (config.schema.Config.retry).
    """

    def __init__(self, planned: Plan, store: Store, stack: int, workers: int,
                 chosen: Iterable[str] | None = None, retry: str = "died"):
        self.planned, self.store, self.stack, self.workers = planned, store, stack, workers
        self.todo, self.broken = to_do(planned, store, planned.runs if chosen is None else set(chosen))
        self.starts: dict[str, list[str]] = {}  # origin -> runs that start from it
        for run_id, run in self.todo.items():
            if run.origin in self.todo:
                self.starts.setdefault(run.origin, []).append(run_id)
        self.deaths: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self.done: set[str] = set()
        # failures so far
        self.known = {i: f for i, f in store.failures(planned.marks).items() if i in self.todo}
        for run_id, failure in self.known.items():
            if retry == "died" and failure.get("kind") not in TRIED_AGAIN and run_id not in self.failed:
                self._fail(run_id, str(failure["error"]))
        self.earlier = len(self.failed)

    def jobs(self) -> list[Job]:
        """All that is to do, origins before what starts from them; the longest stacks of each generation come
        first.

        A run that no other starts from is put with the last of those that may train with it, because larger
        stacks cost less a run; an idle worker takes it earlier.
        """
        left = {run_id: run for run_id, run in self.todo.items() if run_id not in self.failed}
        depth: dict[str, int] = {}
        last: Counter[str] = Counter()
        kinds = {run_id: stack_key(run) for run_id, run in left.items()}
        for run_id, run in left.items():  # origins come first in a plan
            depth[run_id] = 1 + depth[run.origin] if run.origin in left else 0
            last[kinds[run_id]] = max(last[kinds[run_id]], depth[run_id])
        generations: dict[int, dict[str, RunSpec]] = {}
        for run_id, run in left.items():
            place = depth[run_id] if run_id in self.starts else last[kinds[run_id]]
            generations.setdefault(place, {})[run_id] = run
        return [self._job(ids) for _, runs in sorted(generations.items())
                for ids in stacks(runs, max(1, min(self.stack, -(-len(runs) // self.workers))))]

    def _job(self, ids: Sequence[str]) -> Job:
        return Job([self.todo[i] for i in ids], {i: sorted(self.planned.marks[i]) for i in ids},
                   {i: self.known.get(i, {}).get("attempt", 0) for i in ids})

    def settle(self, run_ids: Sequence[str], death: str | None) -> list[Job]:
        """Note how runs ended; gives back what to try again after a worker's death, in smaller stacks."""
        left = [run_id for run_id in run_ids if not self._is_settled(run_id)]
        if len(left) == 1:  # which one of a stack is to blame is not known
            self.deaths[left[0]] += 1
        for run_id in left:
            if self.deaths[run_id] > RETRIES:
                self._fail(run_id, str(death), {"error": str(death), "kind": "WorkerDied"})
        again = {run_id: self.todo[run_id] for run_id in left if run_id not in self.failed}
        return [self._job(ids) for ids in stacks(again, max(1, len(left) // 2))]

    def _is_settled(self, run_id: str) -> bool:
        if run_id not in self.failed and run_id not in self.done:
            if self.store.has(run_id, self.planned.marks[run_id]):
                self.done.add(run_id)
            elif self._has_failed_anew(run_id):
                self._fail(run_id, "failed")
        return run_id in self.failed or run_id in self.done

    def _fail(self, run_id: str, reason: str, failure: Mapping[str, str] | None = None) -> None:
        """Give a run up, with a failure record where nobody wrote one yet; what starts from it is blocked."""
        if failure is not None:
            self.store.fail(run_id, failure)
        self.failed[run_id] = reason
        for other in self.starts.get(run_id, ()):
            if other not in self.failed:
                said = self.known.get(other, {}).get("origin") == run_id or self._has_failed_anew(other)
                error = f"blocked: its origin run {run_id} failed"
                self._fail(other, "blocked",
                           None if said else {"error": error, "kind": "Blocked", "origin": run_id})

    def _has_failed_anew(self, run_id: str) -> bool:
        return self.store.attempts(run_id) > self.known.get(run_id, {}).get("attempt", 0)


def to_do(planned: Plan, store: Store, chosen: Iterable[str]) -> tuple[dict[str, RunSpec], dict[str, str]]:
    """The chosen runs that the store lacks, with those they start from whose files are missing or broken; and
    what is wrong with the ones that are there and broken.

    Raises:
        UserError: a newer version of the project wrote one of them.
    """
    marks = store.marks()
    wanted = set(chosen)
    todo = {i: run for i, run in planned.runs.items()
            if i in wanted and not planned.marks[i] <= marks.get(i, frozenset())}
    broken: dict[str, str] = {}
    asked: set[str] = set()
    while new := {run.origin for run in todo.values() if run.origin} - set(todo) - asked:
        asked |= new  # and what a broken one starts from, too
        for origin in sorted(new):
            if fault := store.sound(origin):
                todo[origin] = planned.runs[origin]
                broken |= {origin: fault} if origin in marks else {}
    for run_id in todo:
        store.refuse_newer(run_id)
    return {i: todo[i] for i in planned.runs if i in todo}, broken  # in the plan's order: origins first
