"""What calls W&B, beside a command: processes that it can do without, and that it ends when they hang."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from portability.core.paths import PACKAGE
from portability.tracking.runs import TrackingSpec

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
    command = [sys.executable, "-m", "portability.tracking.follow",
               json.dumps({**asdict(spec), "folder": str(spec.folder)}), str(END_SECONDS)]
    with _process(command) as process:
        yield
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended already
            process.stdin.close()
        well = end(process, END_SECONDS + 2, spec)
    if well:
        send_study(spec)


def send_study(spec: TrackingSpec) -> None:
    """File the study itself: verdict, gains and charts of what is done (study_run.study_entry), within
    STUDY_SECONDS."""
    command = [sys.executable, "-m", "portability.publish", str(spec.folder), "--to", "wandb", "--mode",
               spec.mode, "--project", spec.project, "--only-study"]
    with _process(command) as process:
        end(process, STUDY_SECONDS, spec)


@contextlib.contextmanager
def _process(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, so that Ctrl-C is not its affair; what it says is logged. It never
    meets a W&B of this process."""
    around = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    path = os.pathsep.join([*filter(None, [around.get("PYTHONPATH")]), str(PACKAGE.parent)])
    process: subprocess.Popen[str] = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env={**around, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"})
    reader = threading.Thread(target=_hear, args=(process,), daemon=True)
    reader.start()
    try:
        yield process
    finally:
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
    reader.join(1.0)


def _hear(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        log.log(logging.INFO if line.startswith("W&B: ") else logging.WARNING, "%s", line.rstrip())


def end(process: subprocess.Popen[Any], seconds: float, spec: TrackingSpec) -> bool:
    """Wait so long for a process, and then end it with all below it; gives back whether it ended well."""
    try:
        if not (code := process.wait(seconds)):
            return True
        how = f"ended with exit code {code}"
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        how = f"did not end within {seconds:.0f} s"
    log.warning("W&B %s; the study is whole without it, and python -m portability.publish %s --to wandb "
                "sends what is missing", how, spec.folder)
    return False
