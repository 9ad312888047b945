"""Workers on a Ray cluster, one actor each: jobs go only to actors that are up, and a lost node costs the jobs at hand.

Ray's own retries are off, so that a death is counted where all deaths are counted.
"""

import importlib.util
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from portability.core.errors import UserError, without_places
from portability.core.stages import Stage
from portability.execution.engines.ray_actor import SHARED_SECONDS, Actor, Standing, Start, standing
from portability.execution.engines.ray_cluster import Options, connected, need, room
from portability.execution.worker import DRAIN_SECONDS, ENVIRONMENT, Job, Setup, overdue
from portability.planning.study import EngineConf
from portability.store import Store

log = logging.getLogger(__name__)
POLL_SECONDS = 1.0
STARTS = 3  # so many workers in a row may die while they start (our choice)


@dataclass(eq=False)
class _Slot:
    actor: Any
    begun: Any  # there once the actor's constructor has returned
    up: bool = False
    job: Job | None = None
    since: float = 0.0  # when the job was handed over
    ended: Any = None  # there once the job has ended
    stage: Any = None  # what its runs are at, as it was asked for last


def check(conf: EngineConf) -> None:
    """See that this engine can work here, as far as that shows without a cluster.

    Raises:
        UserError: Ray is missing, or an option is wrong.
    """
    Options.checked(conf.options)
    if importlib.util.find_spec("ray") is None:
        raise UserError("engine=ray needs the package ray: pip install 'peft-portability[ray]'")


def run_jobs(
    jobs: Callable[[bool], Sequence[Job]], setup: Setup, conf: EngineConf, report: Callable[[Stage], None]
) -> Iterator[tuple[Job, str | None]]:
    """Carry out jobs as they become ready, and yield each with None, or with how its worker ended instead.

    Args:
        jobs: gives the jobs that are ready and were not given before; asked again after each job that ends, with True
            where a worker has nothing to do otherwise.
        report: called with what runs are at.

    Raises:
        UserError: no cluster, or one without room; a node that cannot work for this command; or a worker could not
            read or write a file. Finished runs are in the store.
    """
    options = Options.checked(conf.options)
    queue = [*jobs(False)] or [*jobs(True)]
    if not queue:
        return
    root = setup.store.resolve()
    beacon = root / "manifests" / f".ray-{uuid.uuid4().hex}"
    beacon.parent.mkdir(parents=True, exist_ok=True)
    try:
        with connected(options, conf.workers) as ray:
            start = Start(replace(setup, store=root), need(ray, conf, options), beacon, Path.cwd(), conf.workers)
            pool = _Pool(ray, start, conf, report)
            try:
                yield from pool.run(queue, jobs)
            finally:
                pool.stop()
    finally:
        beacon.unlink(missing_ok=True)


class _Pool:
    def __init__(self, ray: Any, start: Start, conf: EngineConf, report: Callable[[Stage], None]):
        self.ray, self.start, self.conf, self.report = ray, start, conf, report
        self.store = Store(start.setup.store)
        self.slots: list[_Slot] = []
        self.late: list[tuple[Job, Standing, float]] = []  # ended, but not all of it is seen here; until when to wait
        self.deaths = 0  # of workers while they started, in a row
        self.room = room(ray, start.need)
        self.looked = time.monotonic()
        if not self.room:
            raise UserError(f"no node of the Ray cluster has room for a worker ({start.need.cpus:g} CPUs, {start.need.gpus:g} "
                            "GPUs); change engine.options.cpus or gpus, or start a node that has")

    def run(self, queue: list[Job], jobs: Callable[[bool], Sequence[Job]]) -> Iterator[tuple[Job, str | None]]:
        while True:
            busy = sum(slot.job is not None for slot in self.slots)
            idle = sum(slot.up for slot in self.slots) - busy
            while len(queue) < (idle if busy else max(idle, 1)) and (more := jobs(True)):
                queue += more
            if not queue and not busy and not self.late:
                return
            self._grow(len(queue))
            for slot in self.slots:
                if queue and slot.up and slot.job is None:
                    slot.job, slot.since = queue.pop(0), time.monotonic()
                    slot.ended = slot.actor.run.remote(slot.job)
            for job, death in [*self._ended(), *self._overdue(), *self._seen()]:
                yield job, death
                queue += jobs(False)
            self._ask()

    def stop(self) -> None:
        """End all workers: idle ones at once, the others once they kept checkpoints, or after DRAIN_SECONDS."""
        busy = [slot for slot in self.slots if slot.job is not None]
        try:
            for slot in busy:
                slot.actor.stop.remote()
            if busy:
                self.ray.wait([slot.ended for slot in busy], num_returns=len(busy), timeout=DRAIN_SECONDS)
        finally:  # also when somebody loses patience and interrupts a second time
            for slot in list(self.slots):
                self._drop(slot)

    def _grow(self, queued: int) -> None:
        """Start a worker for each job that has none yet, as far as there is room."""
        if time.monotonic() - self.looked >= POLL_SECONDS:
            before, self.room, self.looked = self.room, room(self.ray, self.start.need), time.monotonic()
            if before and not self.room:
                log.warning("the Ray cluster has lost its last node with room for a worker; waiting for another")
        without = sum(slot.job is None for slot in self.slots)
        for _ in range(min(queued - without, (self.conf.workers or self.room) - len(self.slots))):
            self.start.beacon.touch()  # so that nobody tidies it up
            actor = self.ray.remote(Actor).options(
                num_cpus=self.start.need.cpus, num_gpus=self.start.need.gpus, max_concurrency=2, max_restarts=0,
                max_task_retries=0, scheduling_strategy="SPREAD", runtime_env={"env_vars": ENVIRONMENT}).remote(self.start)
            self.slots.append(_Slot(actor, actor.stage.remote()))

    def _drop(self, slot: _Slot) -> None:
        self.slots.remove(slot)
        self.ray.kill(slot.actor)

    # ---- what became of workers and jobs

    def _ended(self) -> list[tuple[Job, str | None]]:
        """Wait a little, and give back the jobs that ended, or whose worker died."""
        waited = {slot.ended or slot.begun: slot for slot in self.slots if slot.job is not None or not slot.up}
        if not waited:
            time.sleep(POLL_SECONDS)
            return []
        found, _ = self.ray.wait(list(waited), timeout=POLL_SECONDS)
        return [end for ref in found if (end := self._end(waited[ref])) is not None]

    def _end(self, slot: _Slot) -> tuple[Job, str | None] | None:
        if slot.job is None:
            self._begin(slot)
            return None
        job = slot.job
        try:
            there = self.ray.get(slot.ended)
        except self.ray.exceptions.RayTaskError as error:  # raised by Worker.run
            if isinstance(error.cause, OSError):
                raise UserError(f"cannot go on: {error.cause}; finished runs are kept, repeat the command once it is put "
                                "right") from None
            self._drop(slot)
            return job, without_places(f"the worker broke: {type(error.cause).__name__}: {error.cause}")
        except self.ray.exceptions.RayError as error:
            self._drop(slot)
            return job, _death(error)
        slot.job = slot.ended = None
        self.late.append((job, there, time.monotonic() + SHARED_SECONDS))
        return None

    def _begin(self, slot: _Slot) -> None:
        try:
            self.ray.get(slot.begun)
        except self.ray.exceptions.RayActorError as error:
            self._drop(slot)
            if error.actor_init_failed:
                said = str(error).strip().splitlines()[-1].removeprefix("portability.core.errors.UserError: ")
                raise UserError(f"a Ray worker cannot start: {said}") from None
            self.deaths += 1
            if self.deaths >= STARTS:
                raise UserError(f"{STARTS} Ray workers in a row ended at their start; the last: {_death(error)}") from None
            return
        slot.up, self.deaths = True, 0

    def _overdue(self) -> list[tuple[Job, str | None]]:
        found: list[tuple[Job, str | None]] = []
        for slot in [slot for slot in self.slots if slot.job is not None]:
            assert slot.job is not None
            if late := overdue(slot.job, time.monotonic() - slot.since, self.conf.timeout_minutes):
                self._drop(slot)
                found.append((slot.job, late))
        return found

    def _seen(self) -> list[tuple[Job, str | None]]:
        """Jobs that ended and whose results are seen here too: a network file system shows them late."""
        now, waiting, found = time.monotonic(), [], []
        for job, there, until in self.late:
            here = standing(self.store, job)
            if now < until and any(here[run_id] < there[run_id] for run_id in there):
                waiting.append((job, there, until))
            else:
                found.append((job, None))
        self.late = waiting
        return found

    def _ask(self) -> None:
        """Ask each worker what its runs are at, and report what those asked before have answered."""
        for slot in [slot for slot in self.slots if slot.up]:
            if slot.stage is not None:
                if not self.ray.wait([slot.stage], timeout=0)[0]:
                    continue
                try:
                    self.report(self.ray.get(slot.stage))
                except self.ray.exceptions.RayError:
                    if slot.job is None:  # it died while it was idle
                        self._drop(slot)
                    continue
            slot.stage = slot.actor.stage.remote()


def _death(error: Exception) -> str:
    """How a worker ended, from what Ray says of it, without places and process numbers.

    Example:
        >>> _death(Exception("... Worker exit type: SYSTEM_ERROR Worker exit detail: ... with an exit code 4."))
        'the worker ended with exit code 4'
    """
    said = str(error)
    if "node has died" in said or "node was terminated" in said:
        return "the worker was lost with its node"
    if "memory pressure" in said or "OUT_OF_MEMORY" in said:
        return "the worker was killed because its node ran short of memory"
    if code := re.search(r"exit code (\d+)", said):
        return f"the worker ended with exit code {code[1]}"
    if "unavailable" in said:
        return "the worker cannot be reached any more: it was killed, or lost with its node"
    kind = re.search(r"Worker exit type: (\w+)", said)
    return f"the worker was killed or crashed ({kind[1] if kind else type(error).__name__})"
