"""Carry out a plan: what is ready goes to an engine, what failed blocks what needs it, and the bar shows the rest."""

import contextlib
import importlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict

from tqdm import tqdm

from portability.core.errors import UserError
from portability.core.specs import RunSpec
from portability.core.stages import Stage
from portability.core.wording import counted
from portability.execution.estimate import agree, calibrate, estimate
from portability.execution.host_comparison import compare_pairs
from portability.execution.leases import Claims
from portability.execution.preview import preview
from portability.execution.worker import Job, Setup, TimedOut
from portability.hosts.devices import STACKS, count_gpus, places
from portability.planning.plan import Plan, alike, stacks, work
from portability.planning.study import EngineConf, Study, facts
from portability.store import Store
from portability.store.manifests import load, paths
from portability.tracking.runs import TrackingSpec

log = logging.getLogger(__name__)
RETRIES = 2  # a run that was alone when its worker died is tried so many times again; stacks are halved until then
TRIED_AGAIN = ("WorkerDied", "Blocked")  # kinds of failure that a repeated command tries again by itself
STEPS = 1_000_000  # of the bar
BAR = "{desc}: {percentage:5.1f}%|{bar}| {elapsed}<{remaining}{postfix}"  # tqdm's own counts no unit that people know
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

    def waves(self) -> list[list[Job]]:
        """Everything at once, for an engine that keeps order itself: jobs that can start, those that wait for them, ..."""
        found, runs = [], list(self.free)
        self.free = {}
        while runs:
            found.append(self._jobs(runs, self.workers))
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
            if run.origin in self.todo and run.origin not in self.done:  # an engine gave up on it before its turn
                continue  # it waits for its origin as before
            if death is None and self._is_elsewhere(run):
                self.elsewhere.add(run.run_id)
                continue
            if self._has_failed_anew(run):
                self._fail(run, "failed")
                continue
            reason = death or "the worker ended the job and left neither record nor failure"
            self.deaths[run.run_id] += len(left) == 1 or death is None  # in company the guilty one is not known
            if self.deaths[run.run_id] <= (0 if isinstance(death, TimedOut) else RETRIES):
                again.append(run.run_id)
            else:
                self._fail(run, reason, {"error": reason, "kind": "TimedOut" if isinstance(death, TimedOut) else "WorkerDied"})
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


class Meter:
    """The bar of the runs that are to do: of all their work, evaluations among it, the part that is done.

    Args:
        bar: of STEPS.
    """

    def __init__(self, book: Ledger, bar: tqdm):
        self.book, self.bar = book, bar
        self.runs = {run_id: run for run_id, run in book.todo.items() if run_id not in book.failed}
        self.whole = {i: work(run, run.train.updates, len(book.planned.marks[i])) for i, run in self.runs.items()}
        self.total = sum(self.whole.values())
        self.asked = sum(run.train.updates for run in self.runs.values())
        self.done, self.all_done = dict.fromkeys(self.runs, 0.0), 0.0  # units of work
        self.updates, self.made = dict.fromkeys(self.runs, 0), 0
        self.settled: set[str] = set()

    def hear(self, stage: Stage) -> None:
        """Move the bar to where runs are: back, too, where a run begins anew after its worker's death."""
        self._move({run_id: (stage.updates, work(self.runs[run_id], stage.updates, stage.scored + stage.part))
                    for run_id in stage.runs if run_id in self.runs and run_id not in self.settled})

    def settle(self) -> None:
        """Nothing more is to come of the runs that are done or failed."""
        over = (self.book.done | self.book.failed.keys()) & self.runs.keys() - self.settled
        self._move({i: (self.updates[i] if i in self.book.failed else self.runs[i].train.updates, self.whole[i]) for i in over})
        self.settled |= over

    def _move(self, there: Mapping[str, tuple[int, float]]) -> None:
        """Set the bar by the updates that runs have made, and the units of work."""
        for run_id, (updates, done) in there.items():
            done = min(done, self.whole[run_id])  # one that was evaluated at other marks before is evaluated at those too
            self.all_done += done - self.done[run_id]
            self.made += updates - self.updates[run_id]
            self.updates[run_id], self.done[run_id] = updates, done
        book = self.book
        text = (f"{self.made:,}/{self.asked:,} updates, {len(book.done)}/{len(book.todo)} runs, {len(book.failed)} failed"
                + (f", {len(book.elsewhere)} elsewhere" if book.elsewhere else ""))
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(int(STEPS * self.all_done / self.total + 1e-3) - self.bar.n)  # whole steps, so that it ends at the end


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


def _refuse_other_contrasts(store: Store, study: Study) -> None:
    """What was declared before a study's first runs stays declared: with other contrasts a later command would undo it."""
    declared = [asdict(contrast) for contrast in study.primary]
    for manifest in map(load, paths(store.root)):
        if manifest.get("primary", declared) != declared:
            raise UserError(f"study {store.root.name} declared other primary contrasts before its runs; choose another "
                            "study=NAME, or leave the grid and its contrasts whole and carry out a part of it with only={...}")


def carry_out(planned: Plan, chosen: Collection[str], store: Store, study: Study, tracking: TrackingSpec,
              asked: Sequence[str] = ()) -> int:
    """Run what the store lacks; to resume after a crash or Ctrl-C, call it again. Gives back the number of failures.

    Nothing is written before it is clear that the work can and may begin.
    """
    conf = study.engine
    store.refuse_other_settings(planned.cells)
    _refuse_other_contrasts(store, study)
    importlib.import_module(f"portability.execution.engines.{conf.kind}").check(conf)
    gpu = conf.device == "cuda" or (conf.device == "auto" and conf.kind == "local" and count_gpus() > 0)
    stack = conf.stack or STACKS["cuda" if gpu else "cpu"]
    book = Ledger(planned, store, stack, _workers(conf), chosen, study.part.retry)
    log.info("%d of %s to do in study %s", len(book.todo) - book.earlier, counted(len(planned.runs), "run"), study.name)
    if book.earlier:
        log.warning("%s failed before and not tried again, or waiting for one that is not; retry=failed tries them",
                    counted(book.earlier, "run"))
    todo = {run_id: run for run_id, run in book.todo.items() if run_id not in book.failed}
    setup = Setup(store.root, study.sources, study.overlap, tracking, conf.checkpoint_seconds)
    preview(planned, todo, setup)
    if todo:
        _weigh(book, todo, study, setup)
    store.expect(planned.cells, facts(study, tracking.sweep) | ({"overrides": list(asked)} if asked else {}))
    store.tidy_up()
    book.claims.tidy()
    for run_id, fault in book.broken.items():
        log.warning("run %s, from which others start, is broken (%s); it is set aside in %s and trained again", run_id, fault,
                    store.set_aside(run_id))
    every = 0.5 if sys.stderr.isatty() else 15.0  # seconds; a log file needs fewer lines than a terminal
    if len(book.todo) > book.earlier:
        with tqdm(total=STEPS, desc=study.name, smoothing=0.05, mininterval=every, maxinterval=60.0, bar_format=BAR) as bar:
            meter = Meter(book, bar)
            for _ in _rounds(book, setup, study, meter):
                meter.settle()
            meter.settle()
    store.compact()
    if study.similarity:
        try:
            compare_pairs(planned, chosen, store, setup)
        except Exception as error:  # whatever it is, the runs are done
            log.warning("hosts were not compared: %s; the next command tries again (similarity=false leaves it out)", error)
    return len(book.failed)


def _workers(conf: EngineConf) -> int:
    """How many workers stacks are cut for. How many a cluster has room for is not known from here, so that without a number
    stacks are as large as they may be."""
    return len(places(conf.device, conf.workers)) if conf.kind == "local" else conf.workers or 1


def _weigh(book: Ledger, todo: Mapping[str, RunSpec], study: Study, setup: Setup) -> None:
    """Say how long the launch will take, and ask before more than an hour (engines elsewhere are not calibrated from here)."""
    found = estimate(book.planned, todo, book.store, book.workers)
    if found is None and study.part.yes:
        return
    if found is None and study.engine.kind != "local":
        raise UserError("nothing of this study has run yet, so how long it takes is not known, and it may be more than an "
                        "hour: run a part first (only=...), or repeat the command with yes=true")
    if found is None:
        place = places(study.engine.device, study.engine.workers)[0]
        found = calibrate(book.planned, todo, setup, place, book.stack, book.workers)
    if found is None:  # nothing is to be trained
        return
    log.info("%s", found)
    agree(found, study.part.yes)


def _rounds(book: Ledger, setup: Setup, study: Study, meter: Meter) -> Iterator[Job]:
    """Call the engine until nothing is left, and yield each job as it ends."""
    engine = importlib.import_module(f"portability.execution.engines.{study.engine.kind}")
    again: list[Job] = []

    def more(idle: bool) -> list[Job]:
        jobs = [*again, *book.ready(idle and not again)]
        again.clear()
        return jobs

    while True:
        if study.engine.kind == "slurm":  # a queue that keeps the order of runs itself
            book.look()
            waves = book.waves()
            if again:
                waves = [[*again, *(waves[0] if waves else [])], *waves[1:]]
                again.clear()
            ended = engine.run_waves(waves, setup, study.engine, meter.hear)
        else:
            ended = engine.run_jobs(more, setup, study.engine, meter.hear)
        with contextlib.closing(ended):  # an interrupt in here drains the workers at once
            for job, death in ended:
                again += book.settle(job, death)
                yield job
        while book.elsewhere and not (again or book.free):  # the rest is in another command's hands
            time.sleep(LOOK_SECONDS)
            for stage in book.claims.stages().values():
                meter.hear(stage)
            book.look()
        if not (again or book.free):
            return
