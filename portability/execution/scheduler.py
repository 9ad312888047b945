"""Carry out a plan: what is to do goes to an engine, what it tells goes to the ledger, and the terminal
and W&B show the rest."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict

from portability.core.errors import UserError
from portability.core.specs import RunSpec
from portability.core.stages import Stage
from portability.core.versions import major_of, packages
from portability.core.wording import counted
from portability.execution.engines import ENGINES
from portability.execution.engines.base import Engine
from portability.execution.estimate import weigh
from portability.execution.fetch import fetch_hosts
from portability.execution.host_comparison import compare_pairs
from portability.execution.leases import Leases
from portability.execution.needs import check_memory
from portability.execution.preview import example_lines, preview
from portability.execution.progress import Meter, shown
from portability.execution.worker import Job, Setup
from portability.hosts.devices import STACKS
from portability.planning.cost import stack_key, stacks
from portability.planning.plan import Plan
from portability.planning.study import Study, facts
from portability.store import Store
from portability.store.manifests import load, paths
from portability.tracking.beside import filing
from portability.tracking.runs import TrackingSpec

log = logging.getLogger(__name__)
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


def _refuse_other_contrasts(store: Store, study: Study) -> None:
    """What was declared before a study's first runs stays declared: with other contrasts a later command
    would undo it."""
    declared = [asdict(contrast) for contrast in study.primary]
    for manifest in map(load, paths(store.root)):
        lacks = "primary" not in manifest  # from before there were contrasts
        same = {"contrasts": lacks or manifest["primary"] == declared,
                "metrics": lacks or manifest.get("primary_metric") == study.primary_metric}
        if other := [name for name, alike in same.items() if not alike]:
            raise UserError(f"study {store.root.name} declared other primary {other[0]} before its runs; "
                            "choose another study=NAME, or carry out a part of the same grid with only={...}")


def _refuse_other_major(store: Store) -> None:
    """Runs start from one another's modules, so a study goes on with the major version of transformers that
    it began with."""
    ours = packages()["transformers"].partition(".")[0]
    majors = (major_of(record) for _, record, fault in store.entries() if record and not fault)
    if (major := next(majors, ours)) not in (ours, "unknown"):
        raise UserError(f"study {store.root.name} holds runs made with transformers {major}, this is "
                        f"transformers {ours}, and results of the two are never pooled; choose another "
                        f"study=NAME, or install transformers {major}")


def run_plan(planned: Plan, chosen: Collection[str], store: Store, study: Study, tracking: TrackingSpec,
              asked: Sequence[str] = ()) -> int:
    """Run what the store lacks; to resume after a crash or Ctrl-C, call it again. Gives back the number of
    failures.

    Nothing is written before it is clear that the work can and may begin.
    """
    store.expect(planned.cells, None)
    _refuse_other_contrasts(store, study)
    _refuse_other_major(store)
    conf, engine = study.engine, ENGINES[study.engine.kind]
    engine.check(conf)
    if conf.device_map is not None and not engine.sees_all_gpus:
        raise UserError("engine.device_map spreads hosts over this machine's GPUs, and a worker of "
                        f"engine={conf.kind} has one; use engine=local where the GPUs are")
    here = engine.places(conf)  # without a number, stacks for workers elsewhere are as large as they may be
    on_cpu = (here[0].device if here else conf.device) in ("cpu", "auto")
    stack = conf.stack or STACKS["cpu" if on_cpu else "cuda"]
    book = Ledger(planned, store, stack, len(here) or conf.workers or 1, chosen, study.part.retry)
    todo = {run_id: run for run_id, run in book.todo.items() if run_id not in book.failed}
    log.info("%d of %s to do in study %s", len(todo), counted(len(planned.runs), "run"), study.name)
    if book.failed:
        log.warning("%s failed before, or waiting for one that did; retry=failed tries them",
                    counted(len(book.failed), "run"))
    setup = Setup(store.root, study.sources, study.overlap, tracking, conf.checkpoint_seconds,
                  conf.timeout_minutes)
    found = preview(planned, todo, setup, here[0] if here else None)
    for line in example_lines(planned, found):
        log.info("%s", line)
    check_memory(found, todo, here)
    fetch_hosts(planned, todo)
    if todo:
        weigh(planned, todo, store, setup, book.workers, here[0] if here else None, stack, study.part.yes)
    store.expect(planned.cells, facts(study, tracking.sweep) | ({"overrides": list(asked)} if asked else {}))
    store.tidy_up()
    Leases(store.root).tidy()
    for run_id, fault in book.broken.items():
        log.warning("run %s, from which others start, is broken (%s); set aside in %s and trained again",
                    run_id, fault, store.set_aside(run_id))
    if todo:
        meter = Meter(book)
        with filing(tracking), shown(meter, study.name):
            run_jobs(book, engine(conf, setup), meter)
    store.compact()
    if study.similarity:
        try:
            compare_pairs(planned, chosen, store, setup)
        except Exception as error:  # whatever it is, the runs are done
            log.warning("hosts were not compared: %s; the next command tries again", error)
    return len(book.failed)


def run_jobs(book: Ledger, engine: Engine, meter: Meter) -> None:
    """Hand everything over, and note what becomes of it, until nothing is left here or in other commands'
    hands."""
    try:
        engine.submit(book.jobs())
        for event in engine.events():
            if isinstance(event, Stage):
                meter.hear(event)
            else:
                engine.submit(book.settle(event.runs, event.death))
                engine.forget(book.failed)  # what starts from a run that failed is blocked
                meter.settle()
    finally:
        engine.drain()
