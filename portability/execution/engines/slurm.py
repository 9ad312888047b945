"""Arrays of Slurm tasks: everything is handed to `sbatch` at once, then followed by what the store and `squeue` show.

A task carries out one or more jobs (engines.slurm_task). Tasks whose runs start from others' carry `afterok` on the tasks
that train those. What was submitted is found again in the queue by its name, so a repeated command submits nothing twice:

    <study>/slurm/<token>/    of the array named portability-<token>: the run ids of its tasks (tasks.json), their notes,
                              submitit's files and logs; removed once all its tasks ended well

Without Slurm's accounting a task's state is unknown soon after its end, so the store says what is done and failed, and a
task that has left the queue without that ended badly; states and notes only say how.
"""

import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from portability.core.errors import UserError
from portability.core.specs import RunSpec
from portability.core.stages import SCORING, Stage
from portability.execution.engines.slurm_queue import Entry, Options, array_limit, read_queue, require, submit_array
from portability.execution.engines.slurm_task import Notes, run_task
from portability.execution.leases import Claims
from portability.execution.worker import Job, Setup, TimedOut
from portability.planning.plan import cost, evenly
from portability.planning.study import EngineConf
from portability.store import Store

log = logging.getLogger(__name__)
SHARE = 4  # tasks for each that can run at once: the last ones to end then idle little (our choice)
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "CONFIGURING")
OVER = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
        "TIMEOUT", "GONE")  # GONE is ours: Slurm knows nothing of it any more
ENDING = (*OVER, "COMPLETING")
TASKS = "tasks.json"


@dataclass(eq=False)
class _Task:
    """A task in the queue; `attempts` are the failures of each of its runs that were recorded before its submission."""

    token: str
    index: str
    entry: Entry
    attempts: Mapping[str, int]
    jobs: list[Job] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)  # runs seen to be done or failed
    over: float | None = None  # when it was first seen to have ended

    @property
    def unsettled(self) -> list[Job]:
        """Jobs with a run that is neither done nor failed."""
        return [job for job in self.jobs if not {run.run_id for run in job.runs} <= self.settled]


def check(conf: EngineConf) -> None:
    """See that this engine can work here.

    Raises:
        UserError: Slurm or submitit is missing, the controller does not answer, or an option is wrong.
    """
    Options.checked(conf.options)
    require()
    read_queue()


def run_waves(
    waves: Sequence[Sequence[Job]], setup: Setup, conf: EngineConf, report: Callable[[Stage], None]
) -> Iterator[tuple[Job, str | None]]:
    """Submit what is not in the queue yet, and yield each job when its task has ended, with None or how it ended badly.

    A job that an earlier command cut otherwise is followed, and yielded, in parts.

    Args:
        waves: jobs whose runs start from runs in the store or in earlier waves.
        report: called with what runs are at.

    Raises:
        UserError: Slurm or submitit is missing, Slurm refuses an array, or somebody cancelled a task.
    """
    session = _Session(Store(setup.store), setup, conf, Options.checked(conf.options), report)
    try:
        session.submit(waves)
        yield from session.follow()
    finally:
        if session.tasks:
            arrays = " ".join(dict.fromkeys(task.entry.array for task in session.tasks))
            log.warning("%d Slurm tasks go on without this command: repeat it to follow them, or end them with: scancel %s",
                        len(session.tasks), arrays)


@dataclass
class _Session:
    """One call of run_waves."""

    store: Store
    setup: Setup
    conf: EngineConf
    options: Options
    report: Callable[[Stage], None]
    tasks: list[_Task] = field(default_factory=list)  # those that have not ended, in the order of their waves
    home: dict[str, _Task] = field(default_factory=dict)  # run id -> the task that has it in hand
    queue: dict[tuple[str, str], Entry] = field(default_factory=dict)  # as last seen
    reasons: set[str] = field(default_factory=set)  # why tasks wait, as far as it was said
    spoiled: set[str] = field(default_factory=set)  # tokens of which a task ended badly: their logs are kept
    over: list[Job] = field(default_factory=list)  # runs that ended well between the planning and the look at the queue

    def folder(self, token: str) -> Path:
        """Where the files of an array are."""
        return self.store.root.absolute() / "slurm" / token

    # ---- submission

    def submit(self, waves: Sequence[Sequence[Job]]) -> None:
        """Find the tasks that have some of the runs in hand, and submit arrays for the others."""
        queued = self._queued()
        self.home = {run_id: task for task in queued for run_id in task.attempts}
        fresh: list[list[Job]] = []
        for wave in waves:
            fresh.append([])
            for task, part in (pair for job in wave for pair in _parts(job, self.home)):
                if task is not None:
                    task.jobs.append(part)
                elif left := self._left(part):
                    fresh[-1].append(left)
        self.tasks = [task for task in queued if task.jobs]
        if self.tasks:
            log.info("%d Slurm tasks of an earlier command are followed", len(self.tasks))
        for jobs in fresh:
            if jobs:
                self._submit_wave(jobs)

    def _left(self, job: Job) -> Job | None:
        """What of a job is still to be done, now that the queue has been read: a task that ended since the store was asked
        is in neither."""
        done = [run for run in job.runs if self.store.has(run.run_id, job.marks[run.run_id])]
        if done:
            self.over.append(replace(job, runs=done))
        left = [run for run in job.runs if run not in done]
        return replace(job, runs=left) if left else None

    def _submit_wave(self, jobs: Sequence[Job]) -> None:
        groups: dict[frozenset[str], list[Job]] = {}
        for job in jobs:
            needs = frozenset(self.home[run.origin].entry.id for run in job.runs if run.origin in self.home)
            groups.setdefault(needs, []).append(job)
        by_number = self.options.jobs_per_task
        weigh = (lambda job: 1.0) if by_number else _cost
        most = by_number or sum(map(_cost, jobs)) / SHARE / self.options.at_once
        for needs, group in groups.items():
            for chunk in evenly(_packed(group, most, weigh), self.limit):
                self._array(chunk, needs)

    def _array(self, tasks: Sequence[Sequence[Job]], needs: frozenset[str]) -> None:
        """Submit one array; it is written down before, so that a command that is killed in between finds it again."""
        token = uuid.uuid4().hex[:12]
        folder = self.folder(token)
        folder.mkdir(parents=True)
        attempts = [{run.run_id: self.store.attempts(run.run_id) for job in jobs for run in job.runs} for jobs in tasks]
        (folder / TASKS).write_text(json.dumps(attempts))
        rest = (self.setup, self.conf.device, self.conf.timeout_minutes, self.options.late_seconds)
        calls = [partial(run_task, list(jobs), *rest, folder / f"{index}.json") for index, jobs in enumerate(tasks)]
        try:
            entries = submit_array(calls, folder, token, needs, self.options)
        except UserError:
            shutil.rmtree(folder)
            raise
        for index, (jobs, entry) in enumerate(zip(tasks, entries, strict=True)):
            task = _Task(token, str(index), entry, attempts[index], list(jobs))
            self.tasks.append(task)
            self.home.update(dict.fromkeys(task.attempts, task))

    @cached_property
    def limit(self) -> int:
        """Tasks that an array may have."""
        return array_limit()

    def _queued(self) -> list[_Task]:
        """This study's tasks that wait or run, in the order in which they were submitted."""
        self.queue = read_queue()
        known: dict[str, list[dict[str, int]]] = {}
        found = []
        for (token, index), entry in sorted(self.queue.items(), key=lambda item: int(item[1].array)):
            path = self.folder(token) / TASKS
            if entry.state in OVER or not path.exists():  # or it is another study's
                continue
            if token not in known:
                known[token] = json.loads(path.read_text())
            found.append(_Task(token, index, entry, known[token][int(index)]))
        return found

    # ---- what becomes of it

    def follow(self) -> Iterator[tuple[Job, str | None]]:
        """Yield the jobs of each task that has ended, until all have."""
        yield from ((job, None) for job in self.over)
        while self.tasks:
            self._look()
            for task in [task for task in self.tasks if task.entry.state not in WAITING]:
                if self._has_ended(task):
                    self.tasks.remove(task)
                    yield from self._outcomes(task)
            if self.tasks:
                time.sleep(self.options.poll_seconds)

    def _look(self) -> None:
        for stage in Claims(self.store.root).stages().values():
            self.report(stage)
        try:
            self.queue = read_queue()
        except UserError as error:  # the controller is restarted, say: what was seen last counts
            log.warning("%s; looking again in %g s", error, self.options.poll_seconds)
            return
        for task in self.tasks:
            task.entry = self.queue.get((task.token, task.index), Entry(task.entry.id, "GONE"))
            if task.entry.stuck and task.entry.reason not in self.reasons:
                self.reasons.add(task.entry.reason)
                log.warning("Slurm keeps task %s waiting, perhaps for good (%s): do engine.options suit the partition? Ctrl-C "
                            "ends this command", task.entry.id, task.entry.reason)

    def _has_ended(self, task: _Task) -> bool:
        """Whether nothing more is to come of a task; note what of its runs is done or failed."""
        for job in task.jobs:
            for run in job.runs:
                if run.run_id in task.settled:
                    continue
                if self.store.has(run.run_id, job.marks[run.run_id]):
                    self.report(Stage([run.run_id], SCORING, run.train.updates, len(job.marks[run.run_id])))
                    task.settled.add(run.run_id)
                elif self.store.attempts(run.run_id) > task.attempts[run.run_id]:
                    task.settled.add(run.run_id)
        if task.entry.state not in ENDING:
            return False
        if not task.unsettled or task.entry.forsaken:
            return True
        task.over = task.over or time.monotonic()
        return task.entry.state in OVER and time.monotonic() - task.over >= self.options.late_seconds

    def _outcomes(self, task: _Task) -> Iterator[tuple[Job, str | None]]:
        """A task's jobs with None or how they ended badly; those that it did not come to are submitted again."""
        notes = Notes.read(self.folder(task.token) / f"{task.index}.json")
        bad = task.unsettled
        self._tidy(task, bool(bad))
        if bad and task.entry.state == "CANCELLED" and not task.entry.forsaken:
            raise UserError(f"Slurm task {task.entry.id} was cancelled by somebody; finished runs and checkpoints are kept, "
                            "repeat the command to go on")
        yield from ((job, None) for job in task.jobs if not any(job is other for other in bad))
        if notes.end == "left":  # nothing went wrong: others have these runs, or what they start from, in hand
            yield from ((job, None) for job in bad)
            return
        begun = [job for job in bad if any(run.run_id in notes.begun for run in job.runs)]
        rest = [job for job in bad if not any(job is other for other in begun)]
        if begun and rest:
            self._array([rest], frozenset())
            rest = []
        yield from ((job, _explained(task, notes, self.options)) for job in (*begun, *rest))

    def _tidy(self, task: _Task, bad: bool) -> None:
        """Remove an array's files once all its tasks have ended well."""
        if bad:
            self.spoiled.add(task.token)
        states = [entry.state for (token, _), entry in self.queue.items() if token == task.token]
        if task.token not in self.spoiled and all(state in ENDING for state in states):
            shutil.rmtree(self.folder(task.token), ignore_errors=True)


def _parts(job: Job, home: Mapping[str, _Task]) -> Iterator[tuple[_Task | None, Job]]:
    """A job cut by the tasks that have its runs in hand already (None: those that none has)."""
    cut: dict[_Task | None, list[RunSpec]] = {}
    for run in job.runs:
        cut.setdefault(home.get(run.run_id), []).append(run)
    for task, runs in cut.items():
        yield task, replace(job, runs=runs)


def _packed(jobs: Sequence[Job], most: float, weigh: Callable[[Job], float]) -> list[list[Job]]:
    """Jobs in tasks: the next job goes into the same one as long as no more than `most` comes together."""
    tasks: list[list[Job]] = []
    load = 0.0
    for job in jobs:
        if not tasks or load + weigh(job) > most:
            tasks.append([])
            load = 0.0
        tasks[-1].append(job)
        load += weigh(job)
    return tasks


def _cost(job: Job) -> float:
    return sum(cost(run) for run in job.runs)


def _explained(task: _Task, notes: Notes, options: Options) -> str:
    """How a task ended that left runs without record or failure."""
    name, entry = f"Slurm task {task.entry.id}", task.entry
    if notes.end == "late":
        return TimedOut(notes.text)
    if entry.forsaken:
        return f"{name} was cancelled because a task that it waits for ended badly"
    if notes.end == "stopped":
        return (f"{name} was stopped and kept its checkpoints (its time limit, engine.options.minutes={options.minutes}, was "
                "near, or it was preempted)")
    state = "unknown to Slurm by now" if entry.state == "GONE" else entry.state
    return f"{name} ended without a record of the run ({state}); see {entry.log} in the study's folder slurm/{task.token}"
