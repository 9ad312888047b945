"""Carry out a plan: what is ready goes to an engine, what it tells goes to the ledger, and the bar shows the
rest."""

import logging
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict

from tqdm import tqdm

from portability.core.errors import UserError
from portability.core.stages import Stage
from portability.core.wording import counted
from portability.execution.engines import ENGINES
from portability.execution.engines.base import Engine
from portability.execution.estimate import weigh
from portability.execution.host_comparison import compare_pairs
from portability.execution.leases import Leases
from portability.execution.ledger import Ledger
from portability.execution.preview import preview
from portability.execution.worker import Setup
from portability.hosts.devices import STACKS
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
        self.whole = {run_id: cost_units(run, run.train.updates, len(book.planned.marks[run_id]))
                      for run_id, run in self.runs.items()}
        self.at = dict.fromkeys(self.runs, (0, 0.0))  # updates that were made, and units of work
        self.settled: set[str] = set()

    def hear(self, stage: Stage) -> None:
        """Move the bar to where runs are: back, too, where a run begins anew after its worker's death."""
        for run_id in self.runs.keys() & set(stage.runs) - self.settled:
            done = cost_units(self.runs[run_id], stage.updates, stage.scored + stage.part)
            # one that was evaluated at other marks before is evaluated at those too
            self.at[run_id] = stage.updates, min(done, self.whole[run_id])
        self._show()

    def settle(self) -> None:
        """Nothing more is to come of the runs that are done or failed."""
        over = (self.book.done | self.book.failed.keys()) & self.runs.keys() - self.settled
        for run_id in over:
            made = self.at[run_id][0] if run_id in self.book.failed else self.runs[run_id].train.updates
            self.at[run_id] = made, self.whole[run_id]
        self.settled |= over
        self._show()

    def _show(self) -> None:
        book, (made, done) = self.book, map(sum, zip(*self.at.values(), strict=True))
        asked = sum(run.train.updates for run in self.runs.values())
        self.bar.set_postfix_str(f"{made:,}/{asked:,} updates, {len(book.done)}/{len(book.todo)} runs, "
                                 f"{len(book.failed)} failed", refresh=False)
        # whole steps, so that it ends at the end
        self.bar.update(int(STEPS * done / sum(self.whole.values()) + 1e-3) - self.bar.n)


def _refuse_other_contrasts(store: Store, study: Study) -> None:
    """What was declared before a study's first runs stays declared: with other contrasts a later command
    would undo it."""
    declared = [asdict(contrast) for contrast in study.primary]
    for manifest in map(load, paths(store.root)):
        if manifest.get("primary", declared) != declared:
            raise UserError(f"study {store.root.name} declared other primary contrasts before its runs; "
                            "choose another study=NAME, or carry out a part of the same grid with only={...}")


def run_plan(planned: Plan, chosen: Collection[str], store: Store, study: Study, tracking: TrackingSpec,
              asked: Sequence[str] = ()) -> int:
    """Run what the store lacks; to resume after a crash or Ctrl-C, call it again. Gives back the number of
    failures.

    Nothing is written before it is clear that the work can and may begin.
    """
    store.refuse_other_settings(planned.cells)
    _refuse_other_contrasts(store, study)
    conf, engine = study.engine, ENGINES[study.engine.kind]
    engine.check(conf)
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
    preview(planned, todo, setup)
    if todo:
        weigh(planned, todo, store, setup, book.workers, here[0] if here else None, stack, study.part.yes)
    store.expect(planned.cells, facts(study, tracking.sweep) | ({"overrides": list(asked)} if asked else {}))
    store.tidy_up()
    Leases(store.root).tidy()
    for run_id, fault in book.broken.items():
        log.warning("run %s, from which others start, is broken (%s); set aside in %s and trained again",
                    run_id, fault, store.set_aside(run_id))
    if todo:
        every = 0.5 if sys.stderr.isatty() else 15.0  # seconds; a log file needs fewer lines than a terminal
        with tqdm(total=STEPS, desc=study.name, smoothing=0.05, mininterval=every, bar_format=BAR) as bar:
            run_jobs(book, engine(conf, setup), Meter(book, bar))
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
