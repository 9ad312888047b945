"""A Slurm of one node on loopback: munge, controller and node daemon, with all state in a temporary folder.

A Slurm that the machine has already is left alone: ports, keys, sockets and configuration are this one's own.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
CONF = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes={host} MaxTime=5 State=UP
"""


def why_not() -> str | None:
    """Why no node can be started here, or None."""
    missing = [name for name in NEEDED if shutil.which(name, path=_path()) is None]
    if missing:
        return f"needs {', '.join(missing)} (tests/packages.sh installs them)"
    return None if os.geteuid() == 0 else "needs root to start a Slurm of one node"


@contextmanager
def slurm_node(**settings: object) -> Iterator[Mapping[str, str]]:
    """Start a node (two CPUs at least) with further lines of slurm.conf; gives the environment that leads to
    it."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: paths of sockets end at 107 characters
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)  # munged wants its socket reachable for all
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        conf = CONF.format(host=host, folder=folder, ports=_free_ports(2), cpus=max(2, os.cpu_count() or 2))
        (folder / "slurm.conf").write_text(conf + "".join(f"{key}={value}\n"
                                                          for key, value in settings.items()))
        environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        start = lambda *command: _start(stack, folder, command, {**os.environ, **environment})  # noqa: E731
        start("munged", "--foreground", f"--key-file={key}", f"--socket={folder}/munge.socket",
              f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed")
        _until(lambda: (folder / "munge.socket").exists(), folder)
        start("slurmctld", "-D")
        start("slurmd", "-D", "-N", host)
        _until(lambda: "idle" in _ask(environment, "sinfo", "--noheader", "--format=%T"), folder)
        stack.callback(_ask, environment, "scancel", "--me", "--signal=KILL", "--full")
        yield environment


def _start(stack: ExitStack, folder: Path, command: tuple[str, ...], environment: Mapping[str, str]) -> None:
    log = stack.enter_context((folder / f"{command[0]}.log").open("w"))
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    stack.callback(_stop, process)


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ask(environment: Mapping[str, str], *command: str) -> str:
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True).stdout


def _until(there, folder: Path, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not there():
        if time.monotonic() > until:
            logs = "\n".join(f"{path.name}: {path.read_text()[-2000:]}"
                             for path in sorted(folder.glob("*.log")))
            raise RuntimeError(f"the Slurm node did not come up\n{logs}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin"
