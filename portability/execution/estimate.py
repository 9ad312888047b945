"""How long a launch will take: from the study's finished runs, or from a few updates made
for the purpose."""

import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from portability.core.errors import UserError
from portability.core.specs import RunSpec
from portability.core.stages import TRAINING, Stage
from portability.core.wording import counted, duration
from portability.execution.processes import in_child
from portability.execution.worker import Job, Setup, Worker
from portability.hosts.devices import Place
from portability.planning.cost import cost, cost_units, port_updates
from portability.planning.plan import SCRATCH, Plan
from portability.store import Store

log = logging.getLogger(__name__)
ASK_SECONDS = 3600.0
UPDATES = 6  # of a calibration, the first of which is not counted
HOSTS = 3  # that a calibration measures: the ones that the most work is on
# seconds per unit of work, and per update: slower than any CPU we saw (our choice, DECISIONS D-46)
WORST = 1.5e-8, 0.03


@dataclass(frozen=True)
class Estimate:
    """What the runs that are to do will take: `seconds` on all workers together, where that comes from, and
    `about`, or "less than" where it is a bound that no machine should exceed."""

    runs: int
    seconds: float
    workers: int
    source: str
    about: str = "about"

    def __str__(self) -> str:
        runs, workers = counted(self.runs, "run"), counted(self.workers, "worker")
        return f"{runs} to do: {self.about} {duration(self.seconds)} on {workers} ({self.source})"


def weigh(planned: Plan, todo: Mapping[str, RunSpec], store: Store, setup: Setup, workers: int,
          here: Place | None, stack: int, yes: bool) -> None:
    """Say how long the launch will take, and ask before more than an hour.

    Args:
        here: where a calibration may compute; None where workers are elsewhere.

    Raises:
        UserError: see `calibrate` and `confirm`; or a launch of unknown length would start elsewhere.
    """
    found = estimate(planned, todo, store, workers)
    if found is None and not yes:
        if here is None:
            raise UserError("nothing of this study has run yet, so how long it takes is unknown: run a part "
                            "first (only=...), or repeat the command with yes=true")
        found = calibrate(planned, todo, setup, here, stack, workers)
    if found is not None:
        log.info("%s", found)
        confirm(found, yes)


def estimate(planned: Plan, todo: Mapping[str, RunSpec], store: Store, workers: int) -> Estimate | None:
    """The estimate for the runs that are to do, without measuring anything: from the study's finished runs,
    which must know most of the work's hosts, or else a bound; None where the bound says nothing.

    A run's share of its stack's time is taken per unit of work, by host.
    """
    sums: dict[str, np.ndarray] = {}  # seconds of one worker, and units of work, by host
    for record in store.records():
        run = planned.runs.get(record["run_id"])
        if run is not None and run.method is not None:
            made = cost_units(run, run.train.updates, len(record["train_info"]["metrics"]))
            sums.setdefault(run.host.fingerprint, np.zeros(2))[:] += record["run_info"]["total_time"], made
    units = _units(planned, todo)
    known = sum(unit for run_id, unit in units.items() if todo[run_id].host.fingerprint in sums)
    if known > sum(units.values()) / 2:
        seconds = _seconds({host: taken / made for host, (taken, made) in sums.items()}, todo, units)
        return Estimate(len(todo), seconds / workers, workers, "from the study's finished runs")
    bound = sum(max(WORST[0] * units[run_id], WORST[1] * (run.train.updates + sum(
        size for size, _ in port_updates(run)))) for run_id, run in todo.items())
    if bound / workers >= ASK_SECONDS:
        return None
    return Estimate(len(todo), bound / workers, workers, "a bound; nothing was measured yet", "less than")


def _units(planned: Plan, todo: Mapping[str, RunSpec]) -> dict[str, float]:
    return {run_id: cost_units(run, run.train.updates, len(planned.marks[run_id]))
            for run_id, run in todo.items()}


def _seconds(rates: Mapping[str, float], todo: Mapping[str, RunSpec], units: Mapping[str, float]) -> float:
    """What the runs take one worker, each by its host's rate, or by the mean of those known."""
    other = statistics.mean(rates.values())
    return sum(rates.get(todo[run_id].host.fingerprint, other) * unit for run_id, unit in units.items())


def confirm(found: Estimate, yes: bool) -> None:
    """Ask before more than an hour of work.

    Raises:
        UserError: nobody can be asked, or the answer was no.
    """
    if yes or found.seconds <= ASK_SECONDS:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{found}; nothing was started: repeat the command with yes=true")
    sys.stderr.write(f"{found}. Start? [y/N] ")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("nothing was started")


# ---- calibration


def calibrate(
    planned: Plan, todo: Mapping[str, RunSpec], setup: Setup, place: Place, stack: int, workers: int
) -> Estimate | None:
    """Train the most expensive method on the hosts that the most work is on, for a few updates in a process
    of its own, and scale; None where nothing is to be trained.

    Raises:
        UserError: a host could not be loaded or trained.
    """
    by_host: dict[str, list[RunSpec]] = {}
    for run in todo.values():
        if run.method is not None:
            by_host.setdefault(run.host.fingerprint, []).append(run)
    if not by_host:
        return None
    groups = sorted(by_host.values(), key=lambda runs: -sum(map(cost, runs)))[:HOSTS]
    samples = [(_sample(max(runs, key=cost)), min(stack, len(runs))) for runs in groups]
    try:
        with tempfile.TemporaryDirectory() as folder:
            elsewhere = replace(setup, store=Path(folder), tracking=replace(setup.tracking, mode="disabled"))
            answers = list(in_child(_measure, elsewhere, place, samples))
    except UserError as error:
        raise UserError(f"the calibration failed: {error}; yes=true starts without an estimate") from error
    rates = {run.host.fingerprint: seconds / cost_units(run, 1, 0)
             for (run, _), seconds in zip(samples, answers, strict=True)}
    seconds = _seconds(rates, todo, _units(planned, todo))
    return Estimate(len(todo), seconds / workers, workers, f"calibrated on {counted(len(samples), 'host')}")


def _sample(run: RunSpec) -> RunSpec:
    """A few updates of a run's kind, from scratch, so that nothing of the study is needed."""
    return replace(run, init=SCRATCH, port=None, origin=None, teacher=None, eval=replace(run.eval, limit=1),
                   head="none" if run.head == "none" else "fresh").with_updates(UPDATES)


def _measure(setup: Setup, place: Place, samples: Sequence[tuple[RunSpec, int]]) -> Iterator[float]:
    """In a process of its own, by an ordinary worker: seconds per module-update for each sample."""
    times: dict[tuple[str, ...], list[float]] = {}

    def hear(stage: Stage) -> None:
        if stage.doing == TRAINING and stage.updates:
            times.setdefault(tuple(stage.runs), []).append(time.perf_counter())

    worker = Worker(setup, place, hear)
    for run, members in samples:
        runs = [replace(run, seed=seed) for seed in range(members)]
        worker.run(Job(runs, {one.run_id: [UPDATES] for one in runs}))
        failures = worker.context.store.failures()
        if all(one.run_id in failures for one in runs):
            raise UserError(failures[runs[0].run_id]["error"])
        together, at = max(times.items(), key=lambda item: (len(item[1]), len(item[0])))
        times.clear()
        yield (at[-1] - at[0]) / (UPDATES - 1) / len(together)
