"""What calls W&B, beside a command: processes that it can do without, and that it ends when they hang."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from portability.core.paths import PACKAGE
from portability.tracking.runs import LEFT_ALONE, TrackingSpec

log = logging.getLogger(__name__)
END_SECONDS = 30.0  # that W&B has after the last run (our choice), and
STUDY_SECONDS = 120.0  # for the study's own run


@contextlib.contextmanager
def filing(spec: TrackingSpec) -> Iterator[None]:
    """File a study's runs in W&B while the block goes on, and for at most END_SECONDS after it, and then the
    study itself. When the block is interrupted, the process is left to end by itself, within that time."""
    if spec.mode == "disabled":
        yield
        return
    told = json.dumps({**asdict(spec), "folder": str(spec.folder)})
    with _process("portability.tracking.follow", told, str(END_SECONDS)) as process:
        yield
        well = process is not None and end(process, END_SECONDS + 2, spec)
    if well:
        send_study(spec)


def send_study(spec: TrackingSpec) -> None:
    """File the study itself: verdict, gains and charts of what is done (study_run.study_entry), within
    STUDY_SECONDS; what interrupts this ends it."""
    with _process("portability.publish", str(spec.folder), "--to", "wandb", "--mode", spec.mode, "--project",
                  spec.project, "--only-study") as process:
        if process is None:
            return
        try:
            end(process, STUDY_SECONDS, spec)
        except BaseException:
            _kill(process)
            raise


@contextlib.contextmanager
def _process(module: str, *words: str) -> Iterator[subprocess.Popen[str] | None]:
    """A module as a process in a session of its own, so that Ctrl-C is not its affair; what it says is
    logged. It never meets a W&B of this process, nor what lies in the folder it is started in (python -P).
    None where it cannot be started, which is said."""
    around = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    path = os.pathsep.join([*filter(None, [around.get("PYTHONPATH")]), str(PACKAGE.parent)])
    try:
        process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**around, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"})
    except OSError as error:  # no memory, or no more processes
        log.warning("W&B is left alone (no process can be started for it: %s); the study goes on", error)
        yield None
        return
    reader = threading.Thread(target=_hear, args=(process,), daemon=True)
    reader.start()
    try:
        yield process
    finally:
        _close(process)
    reader.join(1.0)


def _close(process: subprocess.Popen[Any]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # it has ended already
            process.stdin.close()


def _hear(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        log.log(logging.INFO if line.startswith("W&B: ") else logging.WARNING, "%s", line.rstrip())


def end(process: subprocess.Popen[Any], seconds: float, spec: TrackingSpec) -> bool:
    """Close a process's standard input, wait so long for it, and then kill it; gives back whether it ended
    well. W&B's own service (wandb-core) has a session of its own, and ends when the process that it serves is
    gone."""
    _close(process)
    try:
        code = process.wait(seconds)
        how = f"ended with exit code {code}"
    except subprocess.TimeoutExpired:
        _kill(process)
        code, how = None, f"did not end within {seconds:.0f} s"
    if code not in (0, LEFT_ALONE):
        log.warning("W&B %s; the study is whole without it, and %s sends what is missing", how, spec.remedy)
    return code == 0


def _kill(process: subprocess.Popen[Any]) -> None:
    """End a process, and what it started in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
