"""How long a launch will take and how much disk: from the study's finished runs, or from a few updates made for the purpose."""

import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from portability.core.errors import FAULTS, UserError
from portability.core.specs import RunSpec
from portability.core.wording import counted
from portability.execution.status import duration
from portability.execution.worker import ENVIRONMENT, Setup, Worker
from portability.hosts.devices import Place
from portability.planning.plan import Plan, cost, work
from portability.store import Store

ASK_SECONDS = 3600.0
UPDATES = 6  # of a calibration, the first of which is not counted
HOSTS = 3  # that a calibration measures: the ones that the most work is on
WORST = 1.5e-8, 0.03  # seconds per unit of work and per update, slower than any CPU we saw (our choice, D-46)
RECORD_BYTES = 16_384  # a record, its report and the tracker's file, roughly


@dataclass(frozen=True)
class Estimate:
    """What the runs that are to do will take: `seconds` on all workers together, and where that comes from.

    `worst` says that nothing was measured, and the numbers are bounds that no machine should exceed.
    """

    runs: int
    seconds: float
    workers: int
    megabytes: float | None
    source: str
    worst: bool = False

    def __str__(self) -> str:
        disk = "" if self.megabytes is None else f", {self.megabytes:,.0f} MB of disk"
        about = "less than" if self.worst else "about"
        runs, workers = counted(self.runs, "run"), counted(self.workers, "worker")
        return f"{runs} to do: {about} {duration(self.seconds)} on {workers}{disk} ({self.source})"


def estimate(planned: Plan, todo: Mapping[str, RunSpec], store: Store, workers: int) -> Estimate | None:
    """The estimate for the runs that are to do, without measuring anything: from the study's finished runs, which must know
    most of the work's hosts, or else a bound; None where the bound says nothing.

    A run's share of its stack's time is taken per unit of work, by host and method, then by host, then over all.
    """
    units = {run_id: work(run, run.train.updates, len(planned.marks[run_id])) for run_id, run in todo.items()}
    rates = _rates(planned, store)
    known = sum(unit for run_id, unit in units.items() if _host(todo[run_id]) in rates)
    if known > sum(units.values()) / 2:
        seconds = sum(unit * _rate(rates, todo[run_id]) for run_id, unit in units.items())
        sizes = [sum(file["bytes"] for file in record["files"].values()) for record in store.records() if "files" in record]
        disk = len(todo) * (statistics.mean(sizes) + RECORD_BYTES) / 1e6 if sizes else None
        return Estimate(len(todo), seconds / workers, workers, disk, "from the study's finished runs")
    bound = sum(max(WORST[0] * units[run_id], WORST[1] * run.train.updates) for run_id, run in todo.items()) / workers
    if bound >= ASK_SECONDS:
        return None
    return Estimate(len(todo), bound, workers, None, "a bound; nothing was measured yet", worst=True)


def _rates(planned: Plan, store: Store) -> dict[tuple[str, ...], float]:
    """Seconds of one worker per unit of work: by (host, method), by host, and over all."""
    sums: dict[tuple[str, ...], list[float]] = {}
    for record in store.records():
        run = planned.runs.get(record["run_id"])
        if run is None or run.method is None:
            continue
        units = work(run, run.train.updates, len(record["train_info"]["metrics"]))
        for key in ((*_host(run), run.method.name), _host(run), ()):
            total = sums.setdefault(key, [0.0, 0.0])
            total[0] += record["run_info"]["total_time"]
            total[1] += units
    return {key: seconds / units for key, (seconds, units) in sums.items()}


def _host(run: RunSpec) -> tuple[str, ...]:
    return (run.host.fingerprint,)


def _rate(rates: Mapping[tuple[str, ...], float], run: RunSpec) -> float:
    keys: tuple[tuple[str, ...], ...] = ((*_host(run), run.method.name if run.method else ""), _host(run), ())
    return next(rates[key] for key in keys if key in rates)


def agree(found: Estimate, yes: bool) -> None:
    """Ask before more than an hour of work.

    Raises:
        UserError: nobody can be asked, or the answer was no.
    """
    if yes or found.seconds <= ASK_SECONDS:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{found}; that is more than an hour, so nothing was started: repeat the command with yes=true")
    sys.stderr.write(f"{found}. Start? [y/N] ")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("nothing was started")


# ---- calibration


def calibrate(
    planned: Plan, todo: Mapping[str, RunSpec], setup: Setup, place: Place, stack: int, workers: int
) -> Estimate | None:
    """Train the dearest method on the hosts that the most work is on, for a few updates in a process of its own, and scale;
    None where nothing is to be trained.

    Raises:
        UserError: a host could not be loaded or trained.
    """
    by_host: dict[tuple[str, ...], list[RunSpec]] = {}
    for run in todo.values():
        if run.method is not None:
            by_host.setdefault(_host(run), []).append(run)
    if not by_host:
        return None
    groups = sorted(by_host.values(), key=lambda runs: -sum(map(cost, runs)))[:HOSTS]
    samples = [(max(runs, key=cost), min(stack, len(runs))) for runs in groups]
    os.environ.update(ENVIRONMENT)
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_measure, args=(theirs, setup, place, samples), daemon=True)
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        answer = "the process ended"
    finally:
        process.join(5)  # it cleans up
        process.kill()
        process.join()
    if isinstance(answer, str):
        raise UserError(f"the calibration before a large launch failed: {answer}; yes=true starts without an estimate")
    rates = {_host(run): seconds / work(run, 1, 0) for (run, _), (seconds, _) in zip(samples, answer, strict=True)}
    rates[()] = statistics.mean(rates.values())
    seconds = sum(work(run, run.train.updates, len(planned.marks[i])) * _rate(rates, run) for i, run in todo.items())
    size = statistics.mean(size for _, size in answer) + RECORD_BYTES
    source = f"calibrated on {counted(len(samples), 'host')}"
    return Estimate(len(todo), seconds / workers, workers, len(todo) * size / 1e6, source)


def _measure(pipe: Connection, setup: Setup, place: Place, samples: Sequence[tuple[RunSpec, int]]) -> None:
    """In a process of its own: seconds per module-update and bytes of files, for each sample."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    with tempfile.TemporaryDirectory() as folder:
        try:
            times: list[float] = []
            worker = Worker(replace(setup, store=folder), place, lambda _: times.append(time.perf_counter()))
            from portability.execution.execute import trial

            found = []
            for run, members in samples:
                times.clear()
                members, size = trial(run.with_updates(UPDATES), members, worker.desk)
                found.append(((times[-1] - times[0]) / (UPDATES - 1) / members, size))
            pipe.send(found)
        except (*FAULTS, OSError) as error:
            pipe.send(f"{type(error).__name__}: {error}")
