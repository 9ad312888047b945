"""Who works on what: a file a run while it is executed, so that several commands on one store share the work.

`<study>/running/<run_id>.json` names host, process and time; its modification time is the heartbeat. A claim
is stale when its process is gone (seen on the same machine at once) or its heartbeat is older than
STALE_SECONDS. With each heartbeat a process also writes what its runs are at (stages.Stage), in
`<study>/running/<owner>.stage`.
"""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from portability.core.errors import GracefulStop
from portability.core.specs import digest
from portability.core.stages import Stage
from portability.store.atomic import replacing

HEARTBEAT_SECONDS = 5.0
# our choice: twelve heartbeats, because network file systems show times late (D-44)
STALE_SECONDS = 60.0


@dataclass(frozen=True)
class Lease:
    """What a claim says: the run, and who has had it in hand since when (UTC)."""

    run_id: str
    host: str
    pid: int
    since: str
    machine: str  # digest of what tells machines, boots and containers apart
    started: str  # of the process, so that a number that the system gave out again is not taken for it
    owner: str  # one a worker


class Leases:
    """The claims of a study. Safe between processes and machines but for one race: when two find the same
    claim stale at the same moment, both may come to own it for a moment, and the run may be executed twice,
    to the same record."""

    def __init__(self, root: Path | str, owner: str | None = None, beat: float | None = None):
        self.folder = Path(root) / "running"
        self.owner, self.beat = owner or uuid.uuid4().hex, beat or HEARTBEAT_SECONDS
        self.mine: set[str] = set()
        self.stage: Stage | None = None  # what runs that are held are at; written within `beat` seconds

    @contextlib.contextmanager
    def held(self, run_ids: Iterable[str]) -> Iterator[set[str]]:
        """Claim what is free, keep the heartbeat going inside the block, and let go of it afterwards; but not
        where the block breaks by an error that nobody expects: then the worker ends, which counts as its
        death.

        Raises:
            OSError: the study's folder cannot be written.
        """
        self.stage = None
        self.mine = {run_id for run_id in run_ids if self._take(run_id)}
        over = threading.Event()
        beat = threading.Thread(target=self._beat, args=(over,), daemon=True)
        beat.start()
        try:
            yield set(self.mine)
        except Exception as error:
            if not isinstance(error, OSError | GracefulStop):  # claims stay, for whoever counts the death
                self.mine = set()
            raise
        finally:
            over.set()
            beat.join()
            self._path(self.owner, "stage").unlink(missing_ok=True)
            for run_id in self.mine:
                if (claim := self.read(run_id)) is not None and claim.owner == self.owner:
                    self._path(run_id).unlink(missing_ok=True)
                    self._path(run_id, "limit").unlink(missing_ok=True)

    def _beat(self, over: threading.Event) -> None:
        last = time.monotonic()
        while not over.wait(min(self.beat, HEARTBEAT_SECONDS)):
            if time.monotonic() - last >= HEARTBEAT_SECONDS:
                last = time.monotonic()
                for run_id in self.mine:
                    # taken over as stale, or the disk is away for a moment
                    with contextlib.suppress(OSError):
                        os.utime(self._path(run_id))
            stage, self.stage = self.stage, None
            with contextlib.suppress(OSError):  # a full disk, say: the heartbeat does not depend on it
                if stage is not None:
                    with replacing(self._path(self.owner, "stage"), flush=False) as draft:
                        draft.write_text(json.dumps(asdict(stage)))

    def stages(self) -> dict[str, Stage]:
        """What the processes that hold runs were at, at their last heartbeats, by owner."""
        return dict(self._files("stage", lambda text: Stage(**json.loads(text))))

    def _files(self, kind: str, parse: Callable[[str], Any]) -> Iterator[tuple[str, Any]]:
        """The names and contents of files of a kind."""
        for path in self.folder.glob(f"*.{kind}"):
            # its owner let go, or it is being written, or a crash tore it
            with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
                yield path.stem, parse(path.read_text())

    def _take(self, run_id: str) -> bool:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        claim = Lease(run_id, platform.node(), os.getpid(), now, machine(), started(os.getpid()), self.owner)
        for _ in range(2):
            with (contextlib.suppress(FileExistsError),
                  replacing(self._path(run_id), flush=False, anew=True) as draft):
                draft.write_text(json.dumps(asdict(claim)))
            held = self.read(run_id)  # a network file system may call a link there that it made itself
            if held is not None and held.owner == self.owner:
                return True
            if held is not None and (self.lives(held) or not self.drop(held)):
                return False
        return False

    def drop(self, seen: Lease) -> bool:
        """Move a claim of a process that is gone out of the way; False where another took the run over in
        this very moment."""
        path, away = self._path(seen.run_id), self.folder / f".{self.owner}-stale"
        try:
            path.rename(away)
        except FileNotFoundError:  # another was faster, or its owner let go
            return True
        found = _parse(away, seen.run_id)
        if found == seen:
            self._path(seen.owner, "stage").unlink(missing_ok=True)
        else:  # give it back
            with contextlib.suppress(FileExistsError):
                os.link(away, path)
        away.unlink(missing_ok=True)
        return found == seen

    def limit(self, run_ids: Iterable[str], most: int) -> None:
        """Note that these runs are to be taken at most so many at once, because a worker died of a larger
        stack; until they are let go of by one who ended well."""
        for run_id in run_ids:
            self._path(run_id, "limit").write_text(str(most))

    def limits(self) -> dict[str, int]:
        """By run id, how many at once it may be taken with, where that is limited."""
        return dict(self._files("limit", int))

    def tidy(self) -> None:
        """Remove what processes that are gone left behind."""
        held = self.all()
        for run_id in self.limits().keys() - held.keys():
            self._path(run_id, "limit").unlink(missing_ok=True)
        for claim in held.values():
            if not self.lives(claim):
                self.drop(claim)

    def read(self, run_id: str) -> Lease | None:
        """The claim on a run, or None where there is none."""
        return _parse(self._path(run_id), run_id)

    def all(self) -> dict[str, Lease]:
        """Every claim by run id, stale ones too."""
        found = (_parse(path, path.stem) for path in sorted(self.folder.glob("*.json")))
        return {claim.run_id: claim for claim in found if claim is not None}

    def neighbours(self) -> int:
        """How many other processes of this machine have runs of the study in hand, of those that share a core
        with this one."""
        mine = machine()
        here = {claim.pid for claim in self.all().values() if claim.machine == mine and self.lives(claim)}
        return sum(_share_cores(pid) for pid in here - {os.getpid()})

    def lives(self, claim: Lease) -> bool:
        """Whether the claim's owner still works on it."""
        if claim.machine == machine() and claim.started:
            return started(claim.pid) in (claim.started, "")  # empty: another user's, hidden from us
        return self.silence(claim) <= STALE_SECONDS

    def silence(self, claim: Lease) -> float:
        """Seconds since the claim's last heartbeat, by the clock of the file system."""
        probe, now = self.folder / f".{self.owner}-clock", time.time()
        with contextlib.suppress(OSError):  # a reader of somebody else's study
            probe.touch()
            now = probe.stat().st_mtime
            probe.unlink()
        try:
            return max(0.0, now - self._path(claim.run_id).stat().st_mtime)
        except FileNotFoundError:
            return float("inf")

    def _path(self, name: str, kind: str = "json") -> Path:
        """The file of a run's claim or limit, or of an owner's stage."""
        return self.folder / f"{name}.{kind}"


def _parse(path: Path, run_id: str) -> Lease | None:
    try:
        return Lease(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # torn by a crash of the machine
        return Lease(run_id, "unknown", 0, "", "", "", "")


def _share_cores(pid: int) -> bool:
    """Whether a process may use a core that this one may use too, as far as that can be seen."""
    with contextlib.suppress(AttributeError, OSError):
        return bool(os.sched_getaffinity(pid) & os.sched_getaffinity(0))
    return True


def machine() -> str:
    """Tells machines, boots and containers apart: process numbers mean something only where this is equal."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = boot.read_text() if boot.exists() else "", os.readlink(space) if space.exists() else ""
    return digest([platform.node(), *parts])


def started(pid: int) -> str:
    """When a process of this machine began, in ticks since boot; empty where that cannot be seen, "gone" of
    one that has ended, though its parent has not noticed."""
    try:
        with contextlib.suppress(PermissionError):  # somebody else's
            os.kill(pid, 0)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except ProcessLookupError:
        return "gone"
    except OSError:
        return ""
    return "gone" if fields[0] == "Z" else fields[19]
