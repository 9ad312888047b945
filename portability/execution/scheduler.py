"""Carry out a plan: what is ready goes to an engine, what it tells goes to the ledger, and the bar shows the
rest."""

import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict

from tqdm import tqdm

from portability.core.errors import UserError
from portability.core.specs import RunSpec
from portability.core.stages import Stage
from portability.core.wording import counted
from portability.execution.engines import ENGINES
from portability.execution.engines.base import Engine
from portability.execution.estimate import calibrate, confirm, estimate
from portability.execution.host_comparison import compare_pairs
from portability.execution.leases import Leases
from portability.execution.ledger import Ledger
from portability.execution.preview import preview
from portability.execution.worker import Setup
from portability.hosts.devices import STACKS, Place
from portability.planning.cost import cost_units
from portability.planning.plan import Plan
from portability.planning.study import Study, facts
from portability.store import Store
from portability.store.manifests import load, paths
from portability.tracking.runs import TrackingSpec

log = logging.getLogger(__name__)
STEPS = 1_000_000  # of the bar
# tqdm's own counts no unit that people know
BAR = "{desc}: {percentage:5.1f}%|{bar}| {elapsed}<{remaining}{postfix}"


class Meter:
    """The bar of the runs that are to do: of all their work, evaluations among it, the part that is done.

    Args:
        bar: of STEPS.
    """

    def __init__(self, book: Ledger, bar: tqdm):
        self.book, self.bar = book, bar
        self.runs = {run_id: run for run_id, run in book.todo.items() if run_id not in book.failed}
        marks = book.planned.marks
        self.whole = {i: cost_units(run, run.train.updates, len(marks[i])) for i, run in self.runs.items()}
        self.total = sum(self.whole.values())
        self.asked = sum(run.train.updates for run in self.runs.values())
        self.done, self.all_done = dict.fromkeys(self.runs, 0.0), 0.0  # units of work
        self.updates, self.made = dict.fromkeys(self.runs, 0), 0
        self.settled: set[str] = set()

    def hear(self, stage: Stage) -> None:
        """Move the bar to where runs are: back, too, where a run begins anew after its worker's death."""
        self._move({run_id: (stage.updates, cost_units(self.runs[run_id], stage.updates,
                                                       stage.scored + stage.part))
                    for run_id in stage.runs if run_id in self.runs and run_id not in self.settled})

    def settle(self) -> None:
        """Nothing more is to come of the runs that are done or failed."""
        over = (self.book.done | self.book.failed.keys()) & self.runs.keys() - self.settled
        failed = self.book.failed
        self._move({i: (self.updates[i] if i in failed else self.runs[i].train.updates, self.whole[i])
                    for i in over})
        self.settled |= over

    def _move(self, there: Mapping[str, tuple[int, float]]) -> None:
        """Set the bar by the updates that runs have made, and the units of work."""
        for run_id, (updates, done) in there.items():
            # one that was evaluated at other marks before is evaluated at those too
            done = min(done, self.whole[run_id])
            self.all_done += done - self.done[run_id]
            self.made += updates - self.updates[run_id]
            self.updates[run_id], self.done[run_id] = updates, done
        book = self.book
        text = (f"{self.made:,}/{self.asked:,} updates, {len(book.done)}/{len(book.todo)} runs, "
                f"{len(book.failed)} failed")
        self.bar.set_postfix_str(text, refresh=False)
        # whole steps, so that it ends at the end
        self.bar.update(int(STEPS * self.all_done / self.total + 1e-3) - self.bar.n)


def _refuse_other_contrasts(store: Store, study: Study) -> None:
    """What was declared before a study's first runs stays declared: with other contrasts a later command
    would undo it."""
    declared = [asdict(contrast) for contrast in study.primary]
    for manifest in map(load, paths(store.root)):
        if manifest.get("primary", declared) != declared:
            raise UserError(f"study {store.root.name} declared other primary contrasts before its runs; "
                            "choose another study=NAME, or leave the grid and its contrasts whole and carry "
                            "out a part of it with only={...}")


def run_plan(planned: Plan, chosen: Collection[str], store: Store, study: Study, tracking: TrackingSpec,
              asked: Sequence[str] = ()) -> int:
    """Run what the store lacks; to resume after a crash or Ctrl-C, call it again. Gives back the number of
    failures.

    Nothing is written before it is clear that the work can and may begin.
    """
    store.expect(planned.cells, None)
    _refuse_other_contrasts(store, study)
    conf, engine = study.engine, ENGINES[study.engine.kind]()
    engine.check(conf)
    here = engine.places(conf)  # without a number, stacks for workers elsewhere are as large as they may be
    on_cpu = (here[0].device if here else conf.device) in ("cpu", "auto")
    stack = conf.stack or STACKS["cpu" if on_cpu else "cuda"]
    book = Ledger(planned, store, stack, len(here) or conf.workers or 1, chosen, study.part.retry)
    log.info("%d of %s to do in study %s", len(book.todo) - book.earlier, counted(len(planned.runs), "run"),
             study.name)
    if book.earlier:
        log.warning("%s failed before and not tried again, or waiting for one that is not; retry=failed "
                    "tries them", counted(book.earlier, "run"))
    todo = {run_id: run for run_id, run in book.todo.items() if run_id not in book.failed}
    setup = Setup(store.root, study.sources, study.overlap, tracking, conf.checkpoint_seconds,
                  conf.timeout_minutes)
    preview(planned, todo, setup)
    if todo:
        _weigh(book, todo, study, setup, here)
    store.expect(planned.cells, facts(study, tracking.sweep) | ({"overrides": list(asked)} if asked else {}))
    store.tidy_up()
    Leases(store.root).tidy()
    for run_id, fault in book.broken.items():
        log.warning("run %s, from which others start, is broken (%s); it is set aside in %s and trained "
                    "again", run_id, fault, store.set_aside(run_id))
    if todo:
        every = 0.5 if sys.stderr.isatty() else 15.0  # seconds; a log file needs fewer lines than a terminal
        with tqdm(total=STEPS, desc=study.name, smoothing=0.05, mininterval=every, maxinterval=60.0,
                  bar_format=BAR) as bar:
            run_jobs(book, engine(conf, setup), Meter(book, bar))
    store.compact()
    if study.similarity:
        try:
            compare_pairs(planned, chosen, store, setup)
        except Exception as error:  # whatever it is, the runs are done
            log.warning("hosts were not compared: %s; the next command tries again (similarity=false leaves "
                        "it out)", error)
    return len(book.failed)


def _weigh(
    book: Ledger, todo: Mapping[str, RunSpec], study: Study, setup: Setup, here: Sequence[Place]
) -> None:
    """Say how long the launch will take, and ask before more than an hour (engines elsewhere are not
    calibrated from here)."""
    found = estimate(book.planned, todo, book.store, book.workers)
    if found is None and study.part.yes:
        return
    if found is None and not here:
        raise UserError("nothing of this study has run yet, so how long it takes is not known, and it may be "
                        "more than an hour: run a part first (only=...), or repeat the command with yes=true")
    if found is None:
        found = calibrate(book.planned, todo, setup, here[0], book.stack, book.workers)
    if found is None:  # nothing is to be trained
        return
    log.info("%s", found)
    confirm(found, study.part.yes)


def run_jobs(book: Ledger, engine: Engine, meter: Meter) -> None:
    """Hand everything over, and note what becomes of it, until nothing is left here or in other commands'
    hands."""
    try:
        engine.submit(book.jobs())
        for event in engine.events():
            if isinstance(event, Stage):
                meter.hear(event)
            else:
                engine.submit(book.settle(event.job, event.death))
                engine.forget(book.failed)  # what starts from a run that failed is blocked
                meter.settle()
    finally:
        engine.drain()
