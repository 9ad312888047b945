"""What an engine is: it starts workers, which share a list of jobs through the store, and follows what
becomes of the runs.

A worker (execution/worker.py, `work`) takes what nobody has in hand and what it starts from is done, so that
workers go on without the command where the engine lets them, and several commands share the work of one
study. A run whose worker died keeps the claim of that worker; other workers leave it alone, so that the death
is counted here.
"""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from portability.core.errors import UserError
from portability.core.stages import Stage
from portability.execution.leases import Lease, Leases
from portability.execution.worker import Job, Setup, is_settled
from portability.hosts.devices import Place
from portability.planning.study import EngineConf
from portability.store import Store

STARTS = 3  # so many workers in a row may end before they have begun (our choice)
SCAN_SECONDS = 10.0  # after which all runs are looked at though no worker began or ended anything


@dataclass(frozen=True)
class Ended:
    """Ids of runs that are done or failed, or that one worker left behind: `death` says how it ended."""

    runs: Sequence[str]
    death: str | None = None


class Engine(ABC):
    """Added by a file here that says how workers are started and watched, a line in ENGINES, and
    conf/engine/NAME.yaml.

    `poll_seconds` lie between two looks; a file that another machine wrote is seen after `late_seconds`.

    Raises:
        UserError: it cannot begin.
    """

    poll_seconds = 0.2
    late_seconds = 0.0
    sees_all_gpus = False  # of this machine, in each worker

    def __init__(self, conf: EngineConf, setup: Setup):
        self.conf, self.setup = conf, replace(setup, store=setup.store.resolve())
        self.store, self.claims = Store(self.setup.store), Leases(self.setup.store)
        self.where = self.places(conf)
        self.jobs: dict[str, Job] = {}  # run id -> the job that it is in, of those that have not ended
        self.pool: dict[str, Any] = {}  # workers that were started here, by name
        self.alive: set[str] = set()  # workers that wait or run
        self.ended: dict[str, tuple[str, float]] = {}  # how a worker ended, and when that was seen
        self.origins: set[str] = set()  # that are known to be done
        self.barren = 0  # workers in a row that ended before they had begun

    # ---- what an engine says

    @classmethod
    def check(cls, conf: EngineConf) -> None:
        """See that this engine can work here.

        Raises:
            UserError: something is missing, or an option is wrong.
        """
        cls.places(conf)

    @staticmethod
    def places(conf: EngineConf) -> list[Place]:
        """Where on this machine its workers compute; empty where that is elsewhere.

        Raises:
            UserError: there is no such device.
        """
        return []

    def most(self) -> int:
        """How many workers there may be now."""
        return len(self.where)

    def launch(self, name: str, jobs: Sequence[Job]) -> Any:
        """Start a worker on a list of jobs; gives back what `over` is to be asked about."""
        raise NotImplementedError

    def over(self, worker: Any) -> str | None:
        """How a worker ended, empty where well; None while it waits or runs.

        Raises:
            UserError: no run can be carried out, say for a full disk; finished runs are in the store.
        """
        raise NotImplementedError

    def start(self, jobs: Sequence[Job], count: int) -> Collection[str]:
        """Start workers on a list of jobs; gives back their names, by which they own runs.

        Raises:
            UserError: none can be started.
        """
        names = [uuid.uuid4().hex for _ in range(count)]
        for name in names:
            self.pool[name] = self.launch(name, jobs)
        return names

    def look(self) -> tuple[Collection[str], Mapping[str, str]]:
        """Names of the workers that wait or run now; and how those ended that did since the last look.

        Raises:
            UserError: see `over`.
        """
        ended = {name: how for name, one in self.pool.items() if (how := self.over(one)) is not None}
        for name in ended:
            del self.pool[name]
        return set(self.pool), ended

    @abstractmethod
    def drain(self) -> None:
        """End the workers; those at work keep checkpoints. Called in any case, once."""

    # ---- what all engines share

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs over, those whose origins are not done yet among them."""
        for job in jobs:
            self.jobs |= dict.fromkeys((run.run_id for run in job.runs), job)

    def forget(self, run_ids: Iterable[str]) -> None:
        """Follow these runs no longer; a worker leaves them alone, as what they start from has failed."""
        for run_id in run_ids:
            self.jobs.pop(run_id, None)

    def events(self) -> Iterator[Stage | Ended]:
        """What happens, until all jobs have ended, those submitted meanwhile among them.

        Raises:
            UserError: see `look` and `start`.
        """
        before: Collection[str] | None = None  # runs in hand at the last look
        scanned = 0.0
        while self.jobs:
            alive, over = self.look()
            self.alive = set(alive)
            for name in self.alive & self.ended.keys():  # it was put into the queue again
                del self.ended[name]
            self.ended |= {name: (how, time.monotonic()) for name, how in over.items()}
            held = self.claims.all()
            yield from self.claims.stages().values()
            count = len(self.jobs)
            if over or held.keys() != before or time.monotonic() - scanned > SCAN_SECONDS:
                scanned = time.monotonic()
                for run_id, job in list(self.jobs.items()):
                    if run_id in self.jobs and run_id not in held and is_settled(run_id, job, self.store):
                        self.forget([run_id])
                        yield Ended([run_id])
            yield from self._deaths(held.values())
            before = held.keys() if len(self.jobs) == count else None  # what ended may have blocked others
            self.barren = 0 if held or before is None else self.barren + sum(map(bool, over.values()))
            if self.barren >= STARTS:
                raise UserError(f"{self.barren} workers in a row ended before they had begun; the last: "
                                f"{[*filter(None, over.values())][-1]}")
            if self.jobs:
                self._start(held)
                time.sleep(self.poll_seconds)

    def _deaths(self, held: Collection[Lease]) -> Iterator[Ended]:
        """What workers left behind, and other commands, whose runs are free again."""
        dead: dict[str, list[Lease]] = {}
        for claim in held:
            _, since = self.ended.get(claim.owner, ("", None))
            if since is not None and time.monotonic() - since >= self.late_seconds:
                dead.setdefault(claim.owner, []).append(claim)
            elif since is None and claim.owner not in self.alive and not self.claims.lives(claim):
                self.claims.drop(claim)
        for owner, claims in dead.items():
            ids = [claim.run_id for claim in claims]
            # workers that live still have the whole stack listed
            self.claims.limit(ids, max(1, len(ids) // 2))
            for claim in claims:
                self.claims.drop(claim)
            if left := [run_id for run_id in ids if run_id in self.jobs]:
                self.forget(left)
                yield Ended(left, self.ended[owner][0] or "the worker ended without a record of the run")

    def _start(self, held: Mapping[str, Lease]) -> None:
        """Start a worker for each job that can begin and has none in view."""
        room = self.most() - len(self.alive)
        if room <= 0:
            return
        jobs = list({id(job): job for job in self.jobs.values()}.values())
        origins = {run.origin for job in jobs for run in job.runs if run.origin} - self.origins
        self.origins |= {origin for origin in origins if self.store.has(origin)}
        free = self.jobs.keys() - held.keys()
        able = sum(any(run.run_id in free and (not run.origin or run.origin in self.origins)
                       for run in job.runs) for job in jobs)
        available = self.alive - {claim.owner for claim in held.values()}
        if (count := min(room, able - len(available))) > 0:
            self.alive |= set(self.start(jobs, count))


def cannot_go_on(error: object) -> UserError:
    """What to raise where a worker could not read or write a file, so that no run can be carried out."""
    return UserError(f"cannot go on: {error}; finished runs are kept, repeat the command once it is put "
                     "right")


def last_line(said: str) -> str:
    """Where a program says what went wrong."""
    lines = said.strip().splitlines() or ["no reason given"]
    return lines[-1].strip()[:300].removeprefix("sbatch: error: ")
