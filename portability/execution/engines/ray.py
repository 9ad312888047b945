"""Workers on a Ray cluster, one actor each, on the study's store (engines/base.py): a lost node costs the
jobs at hand. A cluster is started for the command, or joined, with a token.

Ray's own retries are off, so that a death is counted where all deaths are counted.
"""

import contextlib
import importlib.util
import logging
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PositiveFloat

from portability import __version__
from portability.core.errors import UserError, redact_paths
from portability.core.schema import build
from portability.core.stages import Stage
from portability.execution.engines.base import Ended, Engine, cannot_go_on, last_line
from portability.execution.worker import DRAIN_SECONDS, ENVIRONMENT, Job, Setup, Worker, work
from portability.hosts.devices import Place, cores
from portability.planning.study import EngineConf

log = logging.getLogger(__name__)
LOOK_SECONDS = 2.0  # between a worker's looks for runs that it can have
# a file that another machine wrote may be seen so late (our choice: NFS keeps what it saw so long)
SHARED_SECONDS = 30.0
# a cluster that has not let us in by then does not (our choice; Ray itself tries for many minutes)
CONNECT_SECONDS = 20
OBJECT_STORE = 80 * 2**20  # bytes, near Ray's least: jobs and counts are small, results go to the store
QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}
REHEARSAL = """
import socket, sys, ray
if sys.argv[1] != "auto":
    host, _, port = sys.argv[1].rpartition(":")
    socket.create_connection((host, int(port)), 5).close()
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
"""


def _address(value: str) -> str:
    if value != "auto" and not re.fullmatch(r"[^/]*:\d+", value):
        raise UserError("engine.options.address must be null, auto or host:port of the cluster's head, "
                        f"got '{value}'")
    return value


@dataclass(frozen=True)
class Options:
    """`engine.options` of conf/engine/ray.yaml: the cluster, and what one worker takes of it."""

    address: Annotated[str, AfterValidator(_address)] | None
    gpus: Annotated[float, Field(gt=0, le=1)] | None  # a worker has one GPU
    cpus: PositiveFloat


@dataclass(frozen=True)
class Start:
    """What an actor is started with: what it takes of a node (with `gpus` above 0 it computes on a GPU),
    `beacon`, a file in the store that the command made, `folder`, where the command was started, how many
    `workers` it asked for, and its own `version`."""

    setup: Setup
    cpus: float
    gpus: float
    beacon: Path
    folder: Path
    workers: int | None
    version: str = __version__

    def room(self, resources: Mapping[str, float]) -> int:
        """Workers that fit on a node with these resources, were it empty. A worker's share is never of two
        GPUs.

        Example:
            >>> Start(None, 1, 0.4, None, None, None).room({"CPU": 8.0, "GPU": 3.0})
            6
        """
        by_cpus = int(resources.get("CPU", 0) / self.cpus + 1e-6)
        by_gpus = int(resources.get("GPU", 0)) * int(1 / self.gpus + 1e-6) if self.gpus else by_cpus
        return min(by_cpus, by_gpus)


class Ray(Engine):
    """Starts as many actors as there are jobs for them and room on the cluster, counted again as nodes come
    and go."""

    poll_seconds = 1.0
    late_seconds = 10.0

    def __init__(self, conf: EngineConf, setup: Setup):
        super().__init__(conf, setup)
        self.closing = contextlib.ExitStack()
        self.ray: Any = None
        self.room = 0  # workers that the cluster had room for, as it was seen last

    @classmethod
    def check(cls, conf: EngineConf) -> None:
        """See that this engine can work here, as far as that shows without a cluster.

        Raises:
            UserError: Ray is missing, or an option is wrong.
        """
        build(Options, conf.options, "engine.options")
        if importlib.util.find_spec("ray") is None:
            raise UserError("engine=ray needs Ray; install it with: pip install 'peft-portability[ray]'")

    def events(self) -> Iterator[Stage | Ended]:
        """See Engine.events; the cluster is joined when there is something to do.

        Raises:
            UserError: no cluster, or one without room; a node that cannot work for this command.
        """
        if self.jobs and self.ray is None:
            options = build(Options, self.conf.options, "engine.options")
            beacon = self.store.root / "manifests" / f".ray-{uuid.uuid4().hex}"
            beacon.parent.mkdir(parents=True, exist_ok=True)
            self.closing.callback(beacon.unlink, missing_ok=True)
            self.ray = connect(options, self.conf.workers)
            self.closing.callback(self.ray.shutdown)
            has_gpus = self.ray.cluster_resources().get("GPU", 0) > 0
            if self.conf.device == "cuda" and not has_gpus:
                raise UserError("engine.device is cuda, but the Ray cluster has no GPU; use auto or cpu")
            gpus = (options.gpus or 1.0) if has_gpus and self.conf.device != "cpu" else 0
            self.begin = Start(self.setup, options.cpus, gpus, beacon, Path.cwd(), self.conf.workers)
            if not self.most():
                raise UserError(f"no node of the Ray cluster has room for a worker ({options.cpus:g} CPUs, "
                                f"{gpus:g} GPUs); change engine.options, or start a node that has")
        yield from super().events()

    def most(self) -> int:
        """See Engine.most."""
        before, self.room = self.room, sum(
            self.begin.room(node["Resources"]) for node in self.ray.nodes() if node["Alive"])
        if before and not self.room:
            log.warning("the Ray cluster has lost its last node with room for a worker; waiting for another")
        return min(self.conf.workers or self.room, self.room)

    def launch(self, name: str, jobs: Sequence[Job]) -> tuple[Any, Any]:
        """Start an actor; gives it back with what is there once its work has ended."""
        self.begin.beacon.touch()  # so that nobody tidies it up
        actor = self.ray.remote(Actor).options(
            num_cpus=self.begin.cpus, num_gpus=self.begin.gpus, max_concurrency=2, max_restarts=0,
            max_task_retries=0, scheduling_strategy="SPREAD", runtime_env={"env_vars": ENVIRONMENT},
        ).remote(self.begin, name)
        return actor, actor.work.remote(list(jobs))

    def over(self, worker: tuple[Any, Any]) -> str | None:
        """See Engine.over.

        Raises:
            UserError: its node cannot work for this command, or a file could not be read or written.
        """
        actor, ref = worker
        if not self.ray.wait([ref], timeout=0)[0]:
            return None
        self.ray.kill(actor)
        try:
            self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:  # raised by Actor.work
            if isinstance(error.cause, OSError):
                raise cannot_go_on(error.cause) from None
            return redact_paths(f"the worker broke: {type(error.cause).__name__}: {error.cause}")
        except self.ray.exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False):
                said = last_line(str(error)).removeprefix("portability.core.errors.UserError: ")
                raise UserError(f"a Ray worker cannot start: {said}") from None
            return _death(error)
        return ""

    def drain(self) -> None:
        """See Engine.drain; a cluster that was started here ends."""
        try:
            for actor, _ in self.pool.values():
                actor.stop.remote()
            if refs := [ref for _, ref in self.pool.values()]:
                self.ray.wait(refs, num_returns=len(refs), timeout=DRAIN_SECONDS)
        finally:  # also when somebody loses patience and interrupts a second time
            for actor, _ in self.pool.values():
                self.ray.kill(actor)
            self.closing.close()


def _death(error: Exception) -> str:
    """How a worker ended, from what Ray says of it, without places and process numbers.

    Example:
        >>> _death(Exception("... Worker exit type: SYSTEM_ERROR ... with an exit code 4."))
        'the worker ended with exit code 4'
    """
    if code := re.search(r"exit code (\d+)", str(error)):
        return f"the worker ended with exit code {code[1]}"
    return f"the worker crashed, was killed, or was lost with its node ({type(error).__name__})"


# ---- the cluster


def connect(options: Options, workers: int | None) -> Any:
    """Give the module `ray`, connected to the cluster of the options, or to one that is started here.

    Raises:
        UserError: Ray cannot start here, this process is connected already, or no cluster lets us in at the
            address.
    """
    if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
        raise UserError("Ray was imported without its authentication; set RAY_AUTH_MODE=token before")
    os.environ.update(RAY_AUTH_MODE="token", RAY_USAGE_STATS_ENABLED="0")
    import ray

    if ray.is_initialized():
        raise UserError("this process is connected to a Ray cluster already; call ray.shutdown() before "
                        "engine=ray")
    # pages of raylets' logs, on our stdout
    ray._private.worker.print_to_stdstream = lambda data, **_: log.debug("%s", data)
    before = signal.getsignal(signal.SIGTERM)
    if options.address is not None:
        _rehearse(options.address)
        ray.init(address=options.address, **QUIET)
    else:
        _make_token()
        try:
            ray.init(address="local", num_cpus=ceil(workers * options.cpus) if workers else cores(),
                     include_dashboard=False, object_store_memory=OBJECT_STORE, **QUIET)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"Ray cannot start here ({last_line(str(error))}); try engine=local") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray put its own there
    return ray


def _make_token() -> None:
    """Make the token where Ray looks for it, readable for its owner alone, unless there is one (Ray would let
    all read it)."""
    path = Path.home() / ".ray" / "auth_token"
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    if path.exists():
        if path.stat().st_mode & 0o077:
            log.warning("others can read Ray's token %s, and with it run code in your name: chmod 600 it",
                        path)
    else:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.touch(0o600, exist_ok=False)
            path.write_text(secrets.token_hex(32))


def _rehearse(address: str) -> None:
    """Connect once in a process that can be ended; in ours, Ray would try for many minutes without a word.

    Raises:
        UserError: no cluster lets us in there.
    """
    try:
        subprocess.run([sys.executable, "-c", REHEARSAL, address], check=True, capture_output=True,
                       timeout=CONNECT_SECONDS, env=os.environ | {"RAY_NUM_REDIS_GET_RETRIES": "3"})
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = (error.stderr or b"").decode(errors="replace")
        if "InvalidAuthToken" in said or "AuthenticationError" in said:
            raise UserError(f"the Ray cluster at {address} does not let us in without its token; copy "
                            "~/.ray/auth_token from its head, or name it in RAY_AUTH_TOKEN_PATH") from None
        late = isinstance(error, subprocess.TimeoutExpired)
        why = f"no answer in {CONNECT_SECONDS} s" if late else last_line(said)
        raise UserError(f"no Ray cluster lets us in at {address} ({why}); start one with 'ray start', or use "
                        "engine.options.address=null for this machine alone") from None


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
        work(jobs, self.worker, LOOK_SECONDS)

    def stop(self) -> None:
        """See Worker.stopped."""
        self.worker.stopped.set()


def _check(start: Start) -> None:
    import ray.util

    node, until = ray.util.get_node_ip_address(), time.monotonic() + SHARED_SECONDS
    if start.version != __version__:
        raise UserError(f"node {node} has {__version__}, not the command's {start.version}; install the same")
    while not start.beacon.exists():
        if time.monotonic() > until:
            raise UserError(f"node {node} does not see the command's files in {start.setup.store}; "
                            "results= must be a folder that all nodes share under the same path")
        time.sleep(0.5)


def _place(start: Start) -> Place:
    """Ray shows this process no GPU but its own; a CPU's memory is shared by the workers that fit on the
    node."""
    if start.gpus:
        return Place("cuda:0", start.gpus)
    import ray

    here = ray.get_runtime_context().get_node_id()
    fit = next(start.room(node["Resources"]) for node in ray.nodes() if node["NodeID"] == here)
    count = max(1, min(fit, start.workers or fit))
    return Place("cpu", 1 / count, max(1, int(count * start.cpus)))
