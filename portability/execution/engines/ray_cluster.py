"""A Ray cluster: how it is started or joined, with a token, and for how many workers it has room."""

import contextlib
import importlib.util
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from portability.core.errors import UserError
from portability.core.schema import build
from portability.hosts.devices import cores
from portability.planning.study import EngineConf

log = logging.getLogger(__name__)
# a cluster that has not let us in by then does not (our choice; Ray itself tries for many minutes)
CONNECT_SECONDS = 20
OBJECT_STORE = 80 * 2**20  # bytes, near Ray's least: jobs and counts are small, results go to the store
REHEARSAL = """
import socket, sys, ray
if sys.argv[1] != "auto":
    host, _, port = sys.argv[1].rpartition(":")
    socket.create_connection((host, int(port)), 5).close()
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
"""


@dataclass(frozen=True)
class Options:
    """`engine.options` of conf/engine/ray.yaml: the cluster, and what one worker takes of it."""

    address: str | None
    gpus: float | None
    cpus: float

    @classmethod
    def checked(cls, value: Any) -> "Options":
        """From the configuration.

        Raises:
            UserError: a key or a value that cannot be.
        """
        options = build(cls, value, "engine.options")
        if options.cpus <= 0:
            raise UserError(f"engine.options.cpus must be above 0, got {options.cpus:g}")
        if options.gpus is not None and not 0 < options.gpus <= 1:
            raise UserError("engine.options.gpus must be above 0 and at most 1 (a worker has one GPU), got "
                            f"{options.gpus:g}")
        address = options.address or "auto"
        if address != "auto" and not address.rpartition(":")[2].isdigit():
            raise UserError(f"engine.options.address must be null, auto or host:port, got '{address}'")
        if "://" in address:
            raise UserError("engine.options.address must be host:port of the cluster's head, got "
                            f"'{address}'; run the command on a node of the cluster")
        return options


@dataclass(frozen=True)
class Need:
    """What one worker takes of a node; with `gpus` above 0 it computes on a GPU."""

    cpus: float
    gpus: float

    def room(self, resources: Mapping[str, float]) -> int:
        """Workers that fit on a node with these resources, were it empty. A worker's share is never of two
        GPUs.

        Example:
            >>> Need(1, 0).room({"CPU": 8.0}), Need(1, 0.4).room({"CPU": 8.0, "GPU": 3.0})
            (8, 6)
        """
        by_cpus = int(resources.get("CPU", 0) / self.cpus + 1e-6)
        if not self.gpus:
            return by_cpus
        return min(by_cpus, int(resources.get("GPU", 0)) * int(1 / self.gpus + 1e-6))


@contextlib.contextmanager
def connected(options: Options, workers: int | None) -> Iterator[Any]:
    """Give the module `ray`, connected; afterwards a cluster that was started here ends, and any other is
    left.

    Raises:
        UserError: Ray is missing, cannot start here, or no cluster lets us in at the address.
    """
    ray = _imported()
    before = signal.getsignal(signal.SIGTERM)
    try:
        _join(ray, options, workers)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray put its own there
        yield ray
    finally:
        ray.shutdown()


def _imported() -> Any:
    if importlib.util.find_spec("ray") is None:
        raise UserError("engine=ray needs Ray: pip install 'peft-portability[ray]'")
    if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
        raise UserError("Ray was imported before its authentication was switched on; set RAY_AUTH_MODE=token "
                        "before")
    os.environ.update(RAY_AUTH_MODE="token", RAY_USAGE_STATS_ENABLED="0")
    import ray

    if ray.is_initialized():
        raise UserError("this process is connected to a Ray cluster already; call ray.shutdown() before "
                        "engine=ray")
    # pages of raylets' logs, on our stdout
    ray._private.worker.print_to_stdstream = lambda data, **_: log.debug("%s", data)
    return ray


def _join(ray: Any, options: Options, workers: int | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if options.address is not None:
        _rehearse(options.address)
        ray.init(address=options.address, **quiet)
        return
    _make_token()
    cpus = ceil(workers * options.cpus) if workers else cores()
    try:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE,
                 **quiet)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"Ray cannot start on this machine: {_last_words(str(error))}; engine=local needs no "
                        "Ray") from error


def _make_token() -> None:
    """Make the token where Ray looks for it, readable for its owner alone, unless there is one (Ray would let
    all read it)."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    if path.exists():
        if path.stat().st_mode & 0o077:
            log.warning("others can read Ray's token %s, and with it run code in your name: chmod 600 it",
                        path)
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(handle, secrets.token_hex(32).encode())
        os.close(handle)


def _rehearse(address: str) -> None:
    """Connect once in a process that can be ended; in ours, Ray would try for many minutes without a word.

    Raises:
        UserError: no cluster lets us in there.
    """
    environment = os.environ | {"RAY_NUM_REDIS_GET_RETRIES": "3"}
    try:
        done = subprocess.run([sys.executable, "-c", REHEARSAL, address], capture_output=True,
                              timeout=CONNECT_SECONDS, env=environment)
        code, said = done.returncode, done.stderr
    except subprocess.TimeoutExpired as error:
        code, said = 1, (error.stderr or b"") + f"\nno answer in {CONNECT_SECONDS} s".encode()
    if code == 0:
        return
    if b"InvalidAuthToken" in said or b"AuthenticationError" in said:
        raise UserError(f"the Ray cluster at {address} does not let us in without its token; copy "
                        "~/.ray/auth_token from its head to this machine (chmod 600), or name the file in "
                        "RAY_AUTH_TOKEN_PATH")
    raise UserError(f"no Ray cluster lets us in at {address} ({_last_words(said.decode(errors='replace'))}); "
                    "start one with 'ray start', run this on one of its nodes, or use "
                    "engine.options.address=null for this machine alone")


def _last_words(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it gave no reason"


def need(ray: Any, conf: EngineConf, options: Options) -> Need:
    """What a worker needs on this cluster.

    Raises:
        UserError: GPUs were asked for, and the cluster has none.
    """
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    if conf.device == "cuda" and not has_gpus:
        raise UserError("engine.device is cuda, but the Ray cluster has no GPU; use engine.device=auto or "
                        "cpu")
    if conf.device == "cpu" or not has_gpus:
        return Need(options.cpus, 0)
    return Need(options.cpus, 1.0 if options.gpus is None else options.gpus)


def room(ray: Any, need: Need) -> int:
    """Workers that fit on the cluster's nodes as they are now, were they empty."""
    return sum(need.room(node["Resources"]) for node in ray.nodes() if node["Alive"])
