"""A worker as a Ray actor: what runs on a cluster's node. Results go to the store, so the store must be shared."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from portability import __version__
from portability.core.errors import UserError
from portability.core.stages import Stage
from portability.execution.engines.ray_cluster import Need
from portability.execution.worker import Job, Setup, Worker
from portability.hosts.devices import Place
from portability.store import Store

SHARED_SECONDS = 30.0  # a file that another machine wrote may be seen so late (our choice: NFS keeps what it saw so long)
Standing = Mapping[str, tuple[bool, int]]  # run id -> whether it is done, and how often it failed


@dataclass(frozen=True)
class Start:
    """What an actor is started with.

    `beacon` is a file in the store that the command made; `folder` is where the command was started, `workers` how many
    it asked for, `version` its own.
    """

    setup: Setup
    need: Need
    beacon: Path
    folder: Path
    workers: int | None
    version: str = __version__


class Actor:
    """One worker, and what its runs are at, which is asked for while a job runs (in another thread).

    Raises:
        UserError: this node cannot work for the command.
    """

    def __init__(self, start: Start):
        _check(start)
        if start.folder.is_dir():  # for hosts and data whose paths are relative
            os.chdir(start.folder)
        self.at = Stage([])
        self.store = Store(start.setup.store)
        self.worker = Worker(start.setup, _place(start), self._hear)

    def run(self, job: Job) -> Standing:
        """Carry out a job; gives back what became of the runs, as seen from here."""
        self.worker.run(job)
        return standing(self.store, job)

    def stage(self) -> Stage:
        """What the runs at hand are at."""
        return self.at

    def stop(self) -> None:
        """See Worker.stop."""
        self.worker.stop()

    def _hear(self, stage: Stage) -> None:
        self.at = stage


def standing(store: Store, job: Job) -> Standing:
    """What the store shows here of a job's runs."""
    return {run.run_id: (store.has(run.run_id, job.marks[run.run_id]), store.attempts(run.run_id)) for run in job.runs}


def _check(start: Start) -> None:
    import ray.util

    node = ray.util.get_node_ip_address()
    if start.version != __version__:
        raise UserError(f"node {node} has portability {__version__}, the command {start.version}; install the same everywhere")
    until = time.monotonic() + SHARED_SECONDS
    while not start.beacon.exists():
        if time.monotonic() > until:
            raise UserError(f"node {node} does not see the command's files in {start.setup.store}; results= must be a folder "
                            "that all nodes share under the same path")
        time.sleep(0.5)


def _place(start: Start) -> Place:
    """Ray shows this process no GPU but its own; a CPU's memory is shared by the workers that fit on the node."""
    if start.need.gpus:
        return Place("cuda:0", start.need.gpus)
    import ray

    here = ray.get_runtime_context().get_node_id()
    fit = next(start.need.room(node["Resources"]) for node in ray.nodes() if node["NodeID"] == here)
    count = max(1, min(fit, start.workers or fit))
    return Place("cpu", 1 / count, max(1, int(count * start.need.cpus)))
