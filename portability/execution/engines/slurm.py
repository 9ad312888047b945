"""Tasks of a Slurm queue, handed to `sbatch` by submitit: each is a worker on the study's store
(engines/base.py).

They go on without the command. A repeated one finds them by the name of their arrays, which follows from the
study's folder:

    <study>/slurm/<token>/    the jobs that the tasks of an array share, submitit's files and logs; removed
                              at the end if all went well

Without Slurm's accounting a task's state is unknown soon after its end, so only the store says what is done;
states say how a task ended.
"""

import contextlib
import importlib.util
import io
import logging
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from portability.core.errors import UserError
from portability.core.schema import Count, build
from portability.core.specs import digest
from portability.execution.engines.base import Engine, cannot_go_on, last_line
from portability.execution.worker import ENVIRONMENT, Job, Setup, Worker, work
from portability.hosts.devices import Place, places
from portability.planning.study import EngineConf

log = logging.getLogger(__name__)
COMMANDS = ("sbatch", "scancel", "scontrol", "squeue", "srun")
OVER = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
        "PREEMPTED", "REVOKED", "TIMEOUT")
# ordinary reasons to wait
TURN = ("", "None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime", "Cleaning")
NOTICE_SECONDS = 90  # before the time limit a task is told; Slurm may be up to a minute early
# scancel and preemption; submitit's sign that time is nearly over
STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
LOOK_SECONDS = 2.0  # between a task's looks for runs that it can have
END_SECONDS = 10.0  # that tasks have to end by themselves when nothing is left (our choice)


@dataclass(frozen=True)
class Options:
    """engine.options of conf/engine/slurm.yaml, where each is explained."""

    partition: str | None
    account: str | None
    minutes: Annotated[int, Field(ge=5)]
    cpus: Count
    memory_gb: Annotated[float, Field(ge=0.1)] | None
    gpus: NonNegativeInt
    at_once: Count
    jobs_per_task: Count | None
    setup: list
    extra: Mapping[str, Any]
    poll_seconds: Annotated[float, Field(ge=0.1)]
    late_seconds: NonNegativeFloat


class Slurm(Engine):
    """Submits arrays of tasks, and follows them in the queue."""

    def __init__(self, conf: EngineConf, setup: Setup):
        super().__init__(conf, setup)
        self.options = build(Options, conf.options, "engine.options")
        self.poll_seconds, self.late_seconds = self.options.poll_seconds, self.options.late_seconds
        self.folder = self.store.root / "slurm"
        self.name = "portability-" + digest(str(self.store.root))[:12]
        self.said: set[str] = set()  # reasons to wait that were told
        self.pending: set[str] = set()  # tasks that had not begun when they were seen last
        self.spoiled = False  # whether a task ended badly, so that logs are kept
        self.alive = {task for task, state, _ in read_queue(self.name) if state not in OVER}
        if self.alive:
            log.info("%d Slurm tasks of an earlier command are followed", len(self.alive))

    @classmethod
    def check(cls, conf: EngineConf) -> None:
        """See that this engine can work here.

        Raises:
            UserError: Slurm or submitit is missing, the controller does not answer, or an option is wrong.
        """
        build(Options, conf.options, "engine.options")
        if importlib.util.find_spec("submitit") is None:
            raise UserError("engine=slurm needs submitit: pip install 'peft-portability[slurm]'")
        if missing := [name for name in COMMANDS if shutil.which(name) is None]:
            raise UserError(f"engine=slurm needs Slurm's commands, and {', '.join(missing)} cannot be found; "
                            "start this where a cluster is at hand, or use engine=local")
        read_queue("portability")

    def most(self) -> int:
        """See Engine.most."""
        return self.options.at_once

    def start(self, jobs: Sequence[Job], count: int) -> list[str]:
        """Submit an array by submitit; gives back the ids of its tasks.

        Raises:
            UserError: Slurm refuses.
        """
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        folder, options = self.folder / uuid.uuid4().hex[:12], self.options
        folder.mkdir(parents=True)
        (folder / "jobs.pickle").write_bytes(pickle.dumps(jobs))
        task = partial(run_task, folder / "jobs.pickle", self.setup, self.conf.device, options.jobs_per_task)
        executor = submitit.SlurmExecutor(folder)
        try:
            executor.update_parameters(  # None leaves a line out
                job_name=self.name, partition=options.partition, account=options.account,
                time=options.minutes, cpus_per_task=options.cpus, array_parallelism=options.at_once,
                signal_delay_s=NOTICE_SECONDS, stderr_to_stdout=True, wckey=None,
                mem=f"{round(options.memory_gb * 1024)}MB" if options.memory_gb else None,
                gres=f"gpu:{options.gpus}" if options.gpus else None,
                setup=[*(f"export {key}={shlex.quote(text)}" for key, text in ENVIRONMENT.items()),
                       *options.setup],
                srun_args=[f"--cpus-per-task={options.cpus}"],  # Slurm from 22.05 on does not hand it down
                additional_parameters=dict(options.extra))
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what sbatch said, and raises it
                names = [job.job_id for job in executor.submit_array([task] * count)]
        except (FailedJobError, FailedSubmissionError) as error:
            shutil.rmtree(folder)
            raise UserError(f"Slurm refuses an array of tasks ({last_line(str(error))}); change "
                            "engine.options, or repeat the command when the queue is shorter") from error
        self.pending |= set(names)
        return names

    def look(self) -> tuple[set[str], dict[str, str]]:
        """See Engine.look.

        Raises:
            UserError: somebody cancelled a task, or one could not read or write a file.
        """
        try:
            queue = read_queue(self.name)
        except UserError as error:  # the controller is restarted, say: what was seen last counts
            log.warning("%s; looking again in %g s", error, self.poll_seconds)
            return self.alive, {}
        for task, state, reason in queue:
            if state == "PENDING" and reason not in TURN and reason not in self.said:
                self.said.add(reason)
                log.warning("Slurm keeps task %s waiting, perhaps for good (%s): see whether engine.options "
                            "suit the partition", task, reason)
        states = {task: state for task, state, _ in queue}
        alive = {task for task, state in states.items() if state not in OVER}
        ended = {task: self._end(task, states.get(task, "")) for task in self.alive - alive}
        self.pending = {task for task in alive if states[task] == "PENDING"}
        return alive, ended

    def _end(self, task: str, state: str) -> str:
        """How a task ended; `state` is empty where Slurm does not know it any more."""
        with contextlib.suppress(StopIteration, EOFError, pickle.UnpicklingError):
            kind, value = pickle.loads(next(self.folder.glob(f"*/{task}_0_result.pkl")).read_bytes())
            if kind == "success" and value is None:
                return ""
            if kind == "success":
                raise cannot_go_on(value)
        if state == "COMPLETED":  # what it says of itself is seen later
            return ""
        if state == "CANCELLED" or (not state and task in self.pending):
            raise UserError(f"Slurm task {task} was cancelled by somebody; finished runs and checkpoints are "
                            "kept, repeat the command to go on")
        self.spoiled = True
        return (f"Slurm task {task} ended without a record of the run ({state or 'unknown'}); see "
                f"{task}_0_log.out in the study's folder slurm")

    def drain(self) -> None:
        """Tasks go on while there is something to do; else they end, and their files are removed."""
        if self.jobs and self.alive:
            arrays = " ".join(sorted({task.partition("_")[0] for task in self.alive}))
            log.warning("%d Slurm tasks go on without this command: repeat it to follow them, or end them "
                        "with: scancel %s", len(self.alive), arrays)
        if self.jobs:
            return
        with contextlib.suppress(UserError):  # Slurm does not answer: its tasks end all the same
            _ask("scancel", "--me", f"--name={self.name}", "--state=PENDING")
            until = time.monotonic() + END_SECONDS
            while time.monotonic() < until and any(state not in OVER
                                                   for _, state, _ in read_queue(self.name)):
                time.sleep(0.5)
            if time.monotonic() < until and not self.spoiled:
                shutil.rmtree(self.folder, ignore_errors=True)


def read_queue(name: str) -> list[tuple[str, str, str]]:
    """This user's tasks of arrays of a name, with those that ended some minutes ago: id (ARRAY_INDEX, or the
    job's number where it is no array), state, and why it waits.

    Raises:
        UserError: Slurm does not answer.
    """
    said = _ask("squeue", "--me", f"--name={name}", "--noheader", "--array", "--states=all",
                "--format=%i|%T|%r")
    lines = [line.strip().split("|", 2) for line in said.splitlines()]
    return [(task, state, reason) for task, state, reason in lines]


def _ask(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"Slurm does not answer: {last_line(done.stderr)}")
    return done.stdout


# ---- inside a task


def run_task(jobs: Path, setup: Setup, device: str, most: int | None) -> str | None:
    """One worker, in a process that Slurm started. A worker that is told to stop keeps its checkpoints and
    leaves the rest.

    Returns:
        why a file could not be read or written, or None.
    """
    stopped = threading.Event()
    for number in STOPS:
        signal.signal(number, lambda *_: stopped.set())
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    owner = f"{array}_{index}" if array else os.environ["SLURM_JOB_ID"]
    try:
        worker = Worker(setup, _place(device), owner=owner, stopped=stopped)
        work(pickle.loads(jobs.read_bytes()), worker, LOOK_SECONDS, most)
    except OSError as error:
        return str(error)
    return None


def _place(device: str) -> Place:
    """This task's device; of a node's memory it may use what Slurm gave it, or else as large a part as of its
    cores."""
    (place,) = places(device, 1)
    if place.device != "cpu":
        return place
    cpus = int(os.environ.get("SLURM_CPUS_ON_NODE", "1"))
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
    per_cpu = int(os.environ.get("SLURM_MEM_PER_CPU", "0"))
    given = int(os.environ.get("SLURM_MEM_PER_NODE", "0")) or cpus * per_cpu
    share = min(1.0, given / whole if given else cpus / (os.cpu_count() or cpus))
    return Place("cpu", share, min(cpus, place.cores))
