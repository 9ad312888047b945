"""What a worker tells of its runs while they train: lines of JSON in a file of its own, beside the leases.

    <study>/running/<owner>.live          what the worker of that name tells; it appends
    <study>/running/<owner>.<ns>.taken    the same, once whoever files it in W&B (follow.py) has taken it

A worker never waits for whoever reads: a file that nobody takes stops growing (but for the beginnings of
runs), and what cannot be written is not told. So this works wherever workers share the study's folder with a
command, and costs a worker the time of writing a line.
"""

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
FOLDER = "running"  # of a study, where the leases are
MOST_BYTES = 4 * 2**20  # of lines that nobody takes, beginnings of runs aside (our choice)


class Live:
    """A worker's file; `cpu` are the seconds of CPU that telling took so far, reading losses and making
    metrics among them."""

    def __init__(self, root: Path, owner: str):
        self.path, self.cpu, self.broken = root / FOLDER / f"{owner}.live", 0.0, False

    def begin(self, heading: Mapping[str, Any], marks: Iterable[int]) -> None:
        """A run begins, or goes on: its heading (training.run_output.heading) and all its marks. Told however
        long the file is, since a run that never began is never filed."""
        self._write({"begin": heading, "marks": sorted(marks)}, math.inf)

    def measured(self, step: int, values: Mapping[str, Mapping[str, float]]) -> None:
        """What was measured at an update: run id -> name -> number."""
        self._write({"step": step, "values": values, "cpu": round(self.cpu, 4)})

    def failed(self, run_id: str, error: str) -> None:
        """A run has failed."""
        self._write({"failed": run_id, "error": error})

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Count what the block takes. Whatever breaks in it ends the telling, and not the run."""
        began = time.thread_time()
        try:
            yield
        except Exception as error:
            self.broken = True
            log.warning("what is measured is not told while runs train (%s: %s); records are sent as they "
                        "are done", type(error).__name__, error)
        finally:
            self.cpu += time.thread_time() - began

    def _write(self, line: Mapping[str, Any], most: float | None = None) -> None:
        text = json.dumps(line, allow_nan=False) + "\n"
        with contextlib.suppress(OSError), self.path.open("a") as file:
            if file.tell() + len(text) <= (most or MOST_BYTES):
                file.write(text)


def take(root: Path) -> None:
    """Take what workers have told so far: they go on in new files. Read it at the next look, when a line that
    was being written is whole."""
    for path in (root / FOLDER).glob("*.live"):
        with contextlib.suppress(FileNotFoundError):
            path.rename(path.with_name(f"{path.stem}.{time.time_ns()}.taken"))


def taken(root: Path, hear: Callable[[str, dict[str, Any]], None]) -> None:
    """Hear every line of what was taken, with its owner, in order of time, and remove it."""
    for path in sorted((root / FOLDER).glob("*.taken"), key=lambda path: path.suffixes[-2:]):
        with contextlib.suppress(FileNotFoundError):
            lines = path.read_text().splitlines()
            path.unlink()
            for line in lines:
                with contextlib.suppress(ValueError):  # torn by a crash, or a full disk
                    hear(path.name.partition(".")[0], json.loads(line))
