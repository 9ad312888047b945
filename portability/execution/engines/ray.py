"""Workers on a Ray cluster, one actor each, on the study's store (engines/base.py): a lost node costs the
jobs at hand.

Ray's own retries are off, so that a death is counted where all deaths are counted.
"""

import contextlib
import importlib.util
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portability import __version__
from portability.core.errors import GracefulStop, UserError, redact_paths
from portability.core.stages import Stage
from portability.execution.engines.base import Ended, Engine, cannot_go_on
from portability.execution.engines.ray_cluster import Need, Options, connected, need, room
from portability.execution.worker import DRAIN_SECONDS, ENVIRONMENT, Job, Setup, Worker, work
from portability.hosts.devices import Place
from portability.planning.study import EngineConf

log = logging.getLogger(__name__)
LOOK_SECONDS = 2.0  # between a worker's looks for runs that it can have
# a file that another machine wrote may be seen so late (our choice: NFS keeps what it saw so long)
SHARED_SECONDS = 30.0


@dataclass(frozen=True)
class Start:
    """What an actor is started with.

    `beacon` is a file in the store that the command made; `folder` is where the command was started,
    `workers` how many it asked for, `version` its own.
    """

    setup: Setup
    need: Need
    beacon: Path
    folder: Path
    workers: int | None
    version: str = __version__


class Ray(Engine):
    """Starts as many actors as there are jobs for them and room on the cluster, counted again as nodes come
    and go."""

    poll_seconds = 1.0
    late_seconds = 10.0

    def __init__(self, conf: EngineConf, setup: Setup):
        super().__init__(conf, setup)
        self.options = Options.checked(conf.options)
        # by name: the actor, and what is there once its work has ended
        self.actors: dict[str, tuple[Any, Any]] = {}
        self.closing = contextlib.ExitStack()
        self.room: int | None = None  # workers that the cluster has room for, as it was seen last

    @classmethod
    def check(cls, conf: EngineConf) -> None:
        """See that this engine can work here, as far as that shows without a cluster.

        Raises:
            UserError: Ray is missing, or an option is wrong.
        """
        Options.checked(conf.options)
        if importlib.util.find_spec("ray") is None:
            raise UserError(
                "engine=ray needs the package ray; install it with: pip install 'peft-portability[ray]'")

    def events(self) -> Iterator[Stage | Ended]:
        """See Engine.events; the cluster is joined when there is something to do.

        Raises:
            UserError: no cluster, or one without room; a node that cannot work for this command.
        """
        if self.jobs and self.room is None:
            beacon = self.store.root / "manifests" / f".ray-{uuid.uuid4().hex}"
            beacon.parent.mkdir(parents=True, exist_ok=True)
            self.closing.callback(beacon.unlink, missing_ok=True)
            self.ray = self.closing.enter_context(connected(self.options, self.conf.workers))
            needed = need(self.ray, self.conf, self.options)
            self.begin = Start(self.setup, needed, beacon, Path.cwd(), self.conf.workers)
            if not self.most():
                raise UserError(f"no node of the Ray cluster has room for a worker ({needed.cpus:g} CPUs, "
                                f"{needed.gpus:g} GPUs); change engine.options.cpus or gpus, or start a node "
                                "that has")
        yield from super().events()

    def most(self) -> int:
        """See Engine.most."""
        before, self.room = self.room, room(self.ray, self.begin.need)
        if before and not self.room:
            log.warning("the Ray cluster has lost its last node with room for a worker; waiting for another")
        return min(self.conf.workers or self.room, self.room)

    def start(self, jobs: Sequence[Job], count: int) -> list[str]:
        """Start actors, and hand them the list."""
        self.begin.beacon.touch()  # so that nobody tidies it up
        names, listed = [uuid.uuid4().hex for _ in range(count)], self.ray.put(list(jobs))
        remote = self.ray.remote(Actor).options(
            num_cpus=self.begin.need.cpus, num_gpus=self.begin.need.gpus, max_concurrency=2, max_restarts=0,
            max_task_retries=0, scheduling_strategy="SPREAD", runtime_env={"env_vars": ENVIRONMENT})
        for name in names:
            actor = remote.remote(self.begin, name)
            self.actors[name] = actor, actor.work.remote(listed)
        return names

    def look(self) -> tuple[set[str], dict[str, str]]:
        """See Engine.look."""
        names = {ref: name for name, (_, ref) in self.actors.items()}
        over = self.ray.wait(list(names), num_returns=len(names), timeout=0)[0] if names else []
        ended = {names[ref]: self._end(ref) for ref in over}
        for name in ended:
            self.ray.kill(self.actors.pop(name)[0])
        return set(self.actors), ended

    def _end(self, ref: Any) -> str:
        """How an actor's work ended.

        Raises:
            UserError: its node cannot work for this command, or a file could not be read or written.
        """
        try:
            self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:  # raised by Actor.work
            if isinstance(error.cause, OSError):
                raise cannot_go_on(error.cause) from None
            return redact_paths(f"the worker broke: {type(error.cause).__name__}: {error.cause}")
        except self.ray.exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False):
                said = str(error).strip().splitlines()[-1].removeprefix("portability.core.errors.UserError: ")
                raise UserError(f"a Ray worker cannot start: {said}") from None
            return _death(error)
        return ""

    def drain(self) -> None:
        """See Engine.drain; a cluster that was started here ends."""
        try:
            for actor, _ in self.actors.values():
                actor.stop.remote()
            if refs := [ref for _, ref in self.actors.values()]:
                self.ray.wait(refs, num_returns=len(refs), timeout=DRAIN_SECONDS)
        finally:  # also when somebody loses patience and interrupts a second time
            for actor, _ in self.actors.values():
                self.ray.kill(actor)
            self.closing.close()


def _death(error: Exception) -> str:
    """How a worker ended, from what Ray says of it, without places and process numbers.

    Example:
        >>> _death(Exception("... Worker exit type: SYSTEM_ERROR ... with an exit code 4."))
        'the worker ended with exit code 4'
    """
    said = str(error)
    if "memory pressure" in said or "OUT_OF_MEMORY" in said:
        return "the worker was killed because its node ran short of memory"
    if code := re.search(r"exit code (\d+)", said):
        return f"the worker ended with exit code {code[1]}"
    return f"the worker crashed, was killed, or was lost with its node ({type(error).__name__})"


# ---- on a node


class Actor:
    """One worker; `stop` is called in another thread while it works.

    Raises:
        UserError: this node cannot work for the command.
    """

    def __init__(self, start: Start, name: str):
        _check(start)
        if start.folder.is_dir():  # for hosts and data whose paths are relative
            os.chdir(start.folder)
        self.worker = Worker(start.setup, _place(start), owner=name)

    def work(self, jobs: Sequence[Job]) -> None:
        """Carry out what of a list is left for this worker."""
        with contextlib.suppress(GracefulStop):
            work(jobs, self.worker, LOOK_SECONDS)

    def stop(self) -> None:
        """See Worker.stop."""
        self.worker.stop()


def _check(start: Start) -> None:
    import ray.util

    node = ray.util.get_node_ip_address()
    if start.version != __version__:
        raise UserError(f"node {node} has portability {__version__}, the command {start.version}; install "
                        "the same everywhere")
    until = time.monotonic() + SHARED_SECONDS
    while not start.beacon.exists():
        if time.monotonic() > until:
            raise UserError(f"node {node} does not see the command's files in {start.setup.store}; results= "
                            "must be a folder that all nodes share under the same path")
        time.sleep(0.5)


def _place(start: Start) -> Place:
    """Ray shows this process no GPU but its own; a CPU's memory is shared by the workers that fit on the
    node."""
    if start.need.gpus:
        return Place("cuda:0", start.need.gpus)
    import ray

    here = ray.get_runtime_context().get_node_id()
    fit = next(start.need.room(node["Resources"]) for node in ray.nodes() if node["NodeID"] == here)
    count = max(1, min(fit, start.workers or fit))
    return Place("cpu", 1 / count, max(1, int(count * start.need.cpus)))
