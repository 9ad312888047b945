"""Slurm's commands, as far as the Slurm engine needs them: what is in the queue, and how an array of tasks gets into it."""

import contextlib
import importlib.util
import io
import shlex
import shutil
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portability.core.errors import UserError
from portability.core.schema import build
from portability.execution.worker import ENVIRONMENT

COMMANDS = ("sbatch", "squeue", "scontrol", "srun")
NAME = "portability-"  # of our arrays; a token follows
TURN = ("", "None", "Priority", "Resources", "Dependency", "DependencyNeverSatisfied", "JobArrayTaskLimit", "BeginTime",
        "Cleaning")  # ordinary reasons to wait
NOTICE_SECONDS = 90  # before the time limit a task is told; Slurm may be up to a minute early


@dataclass(frozen=True)
class Options:
    """engine.options of conf/engine/slurm.yaml, where each is explained."""

    partition: str | None
    account: str | None
    minutes: int
    cpus: int
    memory_gb: float | None
    gpus: int
    at_once: int
    jobs_per_task: int | None
    setup: list
    extra: Mapping[str, Any]
    poll_seconds: float
    late_seconds: float

    @staticmethod
    def checked(value: Mapping[str, Any]) -> "Options":
        """Options from the configuration.

        Raises:
            UserError: a key or value is wrong.
        """
        options = build(Options, value, "engine.options")
        for key, least in (("minutes", 5), ("cpus", 1), ("gpus", 0), ("at_once", 1), ("jobs_per_task", 1), ("memory_gb", 0.1),
                           ("poll_seconds", 0.1), ("late_seconds", 0)):
            number = getattr(options, key)
            if number is not None and number < least:
                raise UserError(f"engine.options.{key} must be at least {least}, got {number}")
        return options


@dataclass(frozen=True)
class Entry:
    """A line of `squeue`: `id` is ARRAY_INDEX, or the job's number where it is no array."""

    id: str
    state: str
    reason: str = ""

    @property
    def array(self) -> str:
        """What `scancel` takes to cancel the whole array."""
        return self.id.partition("_")[0]

    @property
    def stuck(self) -> bool:
        """Whether it waits for something else than its turn; by default Slurm takes what a partition can never start."""
        return self.state == "PENDING" and self.reason not in TURN

    @property
    def forsaken(self) -> bool:
        """Whether Slurm cancelled it because a task that it needs ended badly."""
        return self.state == "CANCELLED" and self.reason.startswith("Dependency")

    @property
    def log(self) -> str:
        """Name of the file with its output (submitit's)."""
        return f"{self.id}_0_log.out"


def require() -> None:
    """Check that tasks can be submitted here.

    Raises:
        UserError: submitit or Slurm's commands are missing.
    """
    if importlib.util.find_spec("submitit") is None:
        raise UserError("engine=slurm needs the package submitit: pip install 'peft-portability[slurm]'")
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        raise UserError(f"engine=slurm needs Slurm's commands, and {', '.join(missing)} is not on PATH; start this on a "
                        "machine that submits to a Slurm cluster, or use engine=local")


def read_queue() -> dict[tuple[str, str], Entry]:
    """This user's tasks of ours by token and index, with those that ended some minutes ago.

    Raises:
        UserError: Slurm does not answer.
    """
    found = {}
    for line in _ask("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%j").splitlines():
        number, state, reason, name = line.strip().split("|", 3)
        if name.startswith(NAME):
            found[name.removeprefix(NAME), number.partition("_")[2] or "0"] = Entry(number, state, reason)
    return found


def array_limit() -> int:
    """The most tasks that an array may have on this cluster (MaxArraySize; 1 where arrays are switched off)."""
    for line in _ask("scontrol", "show", "config").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize":
            return max(1, int(value))
    raise UserError("scontrol show config names no MaxArraySize; is this Slurm's scontrol?")


def _ask(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"Slurm does not answer: {_last_line(done.stderr)}")
    return done.stdout


def submit_array(
    calls: Sequence[Callable[[], None]], folder: Path, token: str, needs: Collection[str], options: Options
) -> list[Entry]:
    """Submit functions without arguments as one array; gives back an entry for each.

    Args:
        needs: ids of the tasks that must have ended well before any of these begins.

    Raises:
        UserError: Slurm refuses.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = submitit.SlurmExecutor(folder)
    try:
        executor.update_parameters(**_parameters(token, needs, options))
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what sbatch said, and raises it too
            jobs = executor.submit_array(calls)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(
            f"Slurm refuses an array of tasks ({_last_line(str(error))}); change engine.options (partition, "
            "account, minutes, ...; a larger jobs_per_task makes fewer tasks), or repeat the command when the queue is shorter"
        ) from error
    return [Entry(job.job_id, "PENDING") for job in jobs]


def _parameters(token: str, needs: Collection[str], options: Options) -> dict[str, Any]:
    """What submitit is to write into the sbatch file; None leaves a line out."""
    extra = {"kill-on-invalid-dep": "yes", **options.extra}
    return {
        "job_name": NAME + token, "partition": options.partition, "account": options.account, "time": options.minutes,
        "cpus_per_task": options.cpus, "array_parallelism": options.at_once, "signal_delay_s": NOTICE_SECONDS,
        "mem": f"{round(options.memory_gb * 1024)}MB" if options.memory_gb else None,
        "gres": f"gpu:{options.gpus}" if options.gpus else None,
        "dependency": ":".join(["afterok", *sorted(needs)]) if needs else None,
        "setup": [*(f"export {key}={shlex.quote(value)}" for key, value in ENVIRONMENT.items()), *options.setup],
        "srun_args": [f"--cpus-per-task={options.cpus}"],  # Slurm from 22.05 on does not hand it down
        "additional_parameters": extra, "stderr_to_stdout": True, "wckey": None,
    }


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1].removeprefix("sbatch: error: ")
