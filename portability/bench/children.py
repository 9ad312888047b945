"""Starting, asking and ending child processes."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portability.bench.workload import Workload
from portability.execution.worker import ENVIRONMENT

ONE_THREAD: Mapping[str, str] = ENVIRONMENT  # what a worker of a study runs under
ALL_CORES = {key: value for key, value in ENVIRONMENT.items() if not key.endswith("_NUM_THREADS")}
AS_IT_COMES: Mapping[str, str] = {}
REPOSITORY = Path(__file__).resolve().parents[2]


class ChildFailed(Exception):
    """A child ended before it answered; the message is the last line it wrote."""


@dataclass
class Child:
    """One process at the other end of a line."""

    process: "subprocess.Popen[str]"
    log: Path

    @classmethod
    def start(cls, work: Workload, environment: Mapping[str, str], name: str) -> "Child":
        """Start a part; thread settings of the caller's own environment do not reach it."""
        own = {key: value for key, value in os.environ.items() if key not in ENVIRONMENT}
        paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        own |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths), **environment}
        own.setdefault("CUDA_VISIBLE_DEVICES", "0")  # Trainer would spread over all that it sees
        log = work.path / f"{name}.log"
        command = [sys.executable, "-m", "portability.bench.contender", json.dumps(work.to_dict())]
        with log.open("w") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=own)
        return cls(process, log)

    def send(self, command: str) -> None:
        """Give a command, without waiting for its answer.

        Raises:
            ChildFailed: the child is gone.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise ChildFailed(self._last_words()) from error

    def receive(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            ChildFailed: the child ended instead.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildFailed(self._last_words())
        return json.loads(line)

    def end(self) -> None:
        """End the child, whatever it does."""
        self.process.kill()
        self.process.communicate()

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text().splitlines() if line.strip()]
        return lines[-1][:200] if lines else f"ended with exit code {self.process.wait()}"


def once(work: Workload, environment: Mapping[str, str], name: str) -> dict[str, Any]:
    """Play a part that gives one answer and ends.

    Raises:
        ChildFailed: it ended without an answer.
    """
    child = Child.start(work, environment, name)
    try:
        return child.receive()
    finally:
        child.end()
