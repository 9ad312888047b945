"""The process that files a study's runs in W&B while they train: `python -m portability.tracking.follow`
with a TrackingSpec as JSON, and the seconds that it has after the end of its command.

It belongs to a command, which keeps its standard input open (beside.py): the end of that is the end of the
study, or of the command. It reads what workers tell (live.py) and the records that they leave, and is the
only one that ever calls W&B: when that is slow, hangs or breaks, workers do not notice. Of several commands
on one study one follows, and the next one takes over when it ends.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import psutil

from portability.core.errors import redact_paths
from portability.core.wording import counted
from portability.store import Store
from portability.store.records import evaluated
from portability.tracking import live
from portability.tracking.entries import entry_of, filing_of
from portability.tracking.runs import LEFT_ALONE, OpenRun, Tracker, TrackingSpec

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0  # between two looks at what workers tell
IN_A_ROW = 5  # refusals after which W&B is left alone (our choice): each may take INIT_SECONDS
ROOM = 2**30  # bytes that W&B leaves on the study's disk, for records (our choice)


class GivenUp(RuntimeError):
    """Why W&B is left alone."""


class Follower:
    """The W&B runs of a study's runs.

    Attributes:
        open: of runs that are not done; None where W&B did not take the beginning.
        marks: the updates at which a run is evaluated: with all of them its record is the one awaited.
        filed: how many runs were.
        cpu: seconds of CPU that telling took, by worker.
    """

    def __init__(self, spec: TrackingSpec):
        self.spec, self.tracker, self.store = spec, Tracker(spec), Store(spec.folder)
        self.open: dict[str, OpenRun | None] = {}
        self.marks: dict[str, list[int]] = {}
        self.cpu: dict[str, float] = {}
        self.filed = self.refused = 0
        self.ready: set[str] = set()  # whose records were there at the last look
        self.lock = filelock.FileLock(spec.folder / live.FOLDER / ".live.lock")

    def look(self) -> bool:
        """File what was told and done since the last look, unless another command's process does; gives back
        whether this one does.

        Raises:
            GivenUp: W&B takes nothing, or the disk is nearly full.
        """
        if not self.lock.is_locked:
            (self.spec.folder / live.FOLDER).mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(filelock.Timeout):
                self.lock.acquire(timeout=0)
        if not self.lock.is_locked:
            return False
        if shutil.disk_usage(self.spec.folder).free < ROOM:
            raise GivenUp(f"less than {ROOM / 2**30:.0f} GiB are free on the study's disk")
        live.taken(self.spec.folder, self.hear)
        live.take(self.spec.folder)
        done = {run_id: record for run_id in self.open if (record := self._done(run_id))}
        for run_id in done.keys() & self.ready:  # what was told before its record is heard by now
            self._finish(run_id, done[run_id])
        self.ready = set(done)
        return True

    def end(self) -> None:
        """File what there still is, and say what W&B lacks; runs that are not done are left for the next
        command."""
        if not all(self.look() for _ in range(3)):  # told, taken, heard: done, and filed
            return
        for run_id, opened in self.open.items():
            if opened is not None:
                self._try(run_id, self.tracker.leave, run_id, opened)
        done = {run_id for run_id, record in self.store.scan().items() if record}
        if lacking := len(done - self.open.keys() - self.tracker.filed()):
            say(f"W&B lacks {counted(lacking, 'run')} of those that are done; {self.spec.remedy} sends what "
                "is missing")

    def hear(self, owner: str, line: dict[str, Any]) -> None:
        """A line that a worker told."""
        if heading := line.get("begin"):
            self._begin(heading, line["marks"])
        elif run_id := line.get("failed"):
            if opened := self.open.pop(run_id, None):
                self._try(run_id, self.tracker.leave, run_id, opened, line["error"])
        else:
            self.cpu[owner] = max(line["cpu"], self.cpu.get(owner, 0.0))
            for run_id, values in line["values"].items():
                if opened := self.open.get(run_id):
                    last = self.marks[run_id][-1]
                    self._try(run_id, self.tracker.log, opened, line["step"], values, last)

    def _begin(self, heading: dict[str, Any], marks: list[int]) -> None:
        run_id = heading["run_id"]
        self.marks[run_id] = marks
        if self.open.get(run_id) is None:  # else it goes on after its worker's death
            self.open[run_id] = None
            if not self._done(run_id):
                filing = filing_of(heading, self.spec.folder.name, [self.spec.sweep])
                self.open[run_id] = self._try(run_id, self.tracker.begin, run_id, filing)

    def _done(self, run_id: str) -> dict[str, Any] | None:
        record, fault = self.store.parsed(run_id)
        whole = record is not None and not fault and evaluated(record) >= set(self.marks[run_id])
        return record if whole else None

    def _finish(self, run_id: str, record: dict[str, Any]) -> None:
        opened = self.open.pop(run_id)

        def file() -> bool:
            entry = entry_of(record, [self.spec.sweep], study=self.spec.folder.name)
            self.tracker.finish(opened, entry) if opened else self.tracker.send(entry)
            return True

        self.filed += self._try(run_id, file) is not None

    def _try(self, run_id: str, call: Callable[..., Any], *given: Any) -> Any:
        """What a call of W&B gives; None where it was refused, which is said.

        Raises:
            GivenUp: so many in a row were.
        """
        try:
            found = call(*given)
        except Exception as error:  # whatever a tracker may raise
            self.refused += 1
            said = redact_paths(str(error)) or type(error).__name__
            if self.refused == IN_A_ROW:
                raise GivenUp(f"it refused {IN_A_ROW} times in a row: {said}") from error
            say(f"W&B did not take run {run_id} ({said}); the run itself is stored")
            return None
        self.refused = 0
        return found


def say(text: str) -> None:
    """A line for the command, which shows it."""
    with contextlib.suppress(OSError):  # an interrupted command hears nothing more
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def cpu_seconds() -> float:
    """Seconds of CPU of this process and of W&B's own service below it."""
    found = time.process_time()
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            times = child.cpu_times()
            found += times.user + times.system
    return found


def main() -> None:
    """Follow until standard input ends, and end in time, whatever W&B is at; with exit code LEFT_ALONE where
    W&B is left alone, which is said."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    os.nice(5)  # workers come first
    told, seconds, over = json.loads(sys.argv[1]), float(sys.argv[2]), threading.Event()

    def await_end() -> None:
        sys.stdin.read()
        over.set()
        time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=await_end, daemon=True).start()
    spec, code = TrackingSpec(**{**told, "folder": Path(told["folder"])}), 0
    follower = Follower(spec)
    try:
        while not over.is_set():
            follower.look()
            over.wait(LOOK_SECONDS)
        follower.end()
    except Exception as error:  # GivenUp, or whatever a disk does
        why = str(error) if isinstance(error, GivenUp) else f"{type(error).__name__}: {error}"
        say(f"W&B is left alone ({redact_paths(why)}); the study goes on, and {spec.remedy} sends what is "
            "missing")
        code = LEFT_ALONE
    spent = sum(follower.cpu.values())
    if follower.filed or spent:
        say(f"W&B: {follower.filed} runs filed; {cpu_seconds():.1f} s of CPU in a process of its own, "
            f"{spent:.2f} s in the workers")
    sys.exit(code)


if __name__ == "__main__":
    main()
