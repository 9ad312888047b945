"""Workers on a Ray cluster: the same bits as on this machine alone, and nothing is lost with a worker or a
node."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from portability.core.errors import UserError
from portability.core.schema import build
from portability.execution.engines import ray as ray_engine
from portability.execution.engines.base import Ended
from portability.execution.leases import Leases
from portability.execution.worker import Job, Setup
from portability.planning.plan import plan
from portability.planning.study import EngineConf
from portability.run import command, compose
from portability.store import Store
from portability.tracking.runs import TrackingSpec
from support.studies import small
from support.tiny import CONF

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None,
                                reason="needs Ray (pip install 'peft-portability[ray]')")
OFF = ("tracking.wandb=disabled", "yes=true")
SLOW = ("method=lora", "grid.inits=[scratch,ported]", "grid.seeds=[0,1]", "grid.budgets=[60]",
        "engine.stack=1", "engine.checkpoint_seconds=0.2", *OFF)


class Cluster:
    """Two nodes of one CPU each on loopback, started as a person would, with a token of their own."""

    def __init__(self, folder: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.folder = folder
        port = self.address.partition(":")[2]
        self.head = self._start("--head", f"--port={port}", "--include-dashboard=false",
                                f"--temp-dir={folder}")
        until = time.monotonic() + 40
        while True:
            try:
                ray_engine._rehearse(self.address)
                break
            except UserError:
                assert time.monotonic() < until and self.head.poll() is None, "the head did not start"
        self.second = self._start(f"--address={self.address}")

    def _start(self, *arguments):
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), "start", *arguments, "--num-cpus=1",
             "--object-store-memory=80000000",
             "--block"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def kill(self, node):
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()


@pytest.fixture(scope="module")
def token(tmp_path_factory):
    """All of Ray in this module goes by one token, outside of anybody's home."""
    path = tmp_path_factory.mktemp("token") / "auth_token"
    path.write_text("1" * 64)
    path.chmod(0o600)
    patch = pytest.MonkeyPatch()
    for name, value in (("RAY_AUTH_MODE", "token"), ("RAY_AUTH_TOKEN_PATH", str(path)),
                        ("RAY_USAGE_STATS_ENABLED", "0")):
        patch.setenv(name, value)
    yield path
    patch.undo()


@pytest.fixture(scope="module")
def cluster(token, _quiet):
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets' paths must be short
    made = Cluster(folder)
    yield made
    for node in (made.second, made.head):
        if node.poll() is None:
            made.kill(node)
    shutil.rmtree(folder, ignore_errors=True)


def stamps(store):
    return {path: path.stat().st_mtime_ns for path in store.root.glob("runs/??/*/record.json")}


def wait_for(condition, seconds=240):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.05)
    return found


def meanwhile(action):
    """Run something beside the study; give back what it found."""
    found = []
    thread = threading.Thread(target=lambda: found.append(action()))
    thread.start()
    return thread, found


def first_claim(store, ready):
    """A process that is at work on a run, once some records are there."""
    def look():
        claims = [claim for claim in Leases(store.root).all().values() if Leases(store.root).lives(claim)]
        return claims[0] if ready <= len(stamps(store)) and claims else None

    return wait_for(look)


def gone(pids):
    return lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_ray_cluster_gives_the_bits_of_one_worker_here(token, data_folders, make_host, tmp_path):
    common = (f"results={tmp_path}", "method=prefix", "grid.inits=[ported,scratch]", "grid.seeds=[0]", *OFF)
    one = small(data_folders, make_host, *common, "study=here", "engine.workers=1")
    two = small(data_folders, make_host, *common, "study=ray", "engine=ray", "engine.workers=2",
                "engine.stack=1")
    assert command(one) == 0 and command(two) == 0
    here, there, runs = Store(tmp_path / "here"), Store(tmp_path / "ray"), plan(one.grid).runs
    assert set(runs) == set(plan(two.grid).runs) and len(runs) > 3
    for run_id in runs:
        assert here.read(run_id)["train_info"]["metrics"] == there.read(run_id)["train_info"]["metrics"]
        mine, theirs = here.predictions(run_id), there.predictions(run_id)
        assert set(mine) == set(theirs) and all(np.array_equal(mine[key], theirs[key]) for key in mine)
    assert not list(there.root.glob("manifests/.*")), "a beacon stayed"


def test_an_ended_command_takes_its_actors_along_and_is_completed_by_repeating_it_though_an_actor_is_killed(
        cluster, data_folders, make_host, tmp_path):
    one, two = make_host("t5", 32, 2, 4, 0), make_host("t5", 32, 2, 4, 1)
    words = [f"host.nano-raw-base.path={one.source}", f"host.nano-tuned-base.path={two.source}",
             f"data.nano_films.path={data_folders['one']}", f"data.nano_meals.path={data_folders['two']}",
             "grid.study_data=[nano_films,nano_meals]", "task.template='{text} answer :'",
             f"results={tmp_path}", "study=end",
             *SLOW, "grid.seeds=[0]", "grid.budgets=[120]", "engine=ray",
             f"engine.options.address={cluster.address}"]
    store = Store(tmp_path / "end")
    for how in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen([sys.executable, "-m", "portability.run", *words], cwd=CONF.parent,
                                   start_new_session=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_for(lambda: Leases(store.root).all() and list(store.root.glob("checkpoints/*.safetensors")))
        pids = [claim.pid for claim in Leases(store.root).all().values()]
        os.killpg(process.pid, how)  # as a terminal does
        output = process.communicate(timeout=30)[0]
        assert process.returncode == (130 if how == signal.SIGINT else -how), output
        wait_for(gone(pids), 20)
        if how == signal.SIGINT:
            assert list(store.root.glob("checkpoints/*.safetensors")) and not Leases(store.root).all(), output

    def kill():
        pid = first_claim(store, 1).pid
        kept = stamps(store)
        os.kill(pid, signal.SIGKILL)
        return kept

    thread, found = meanwhile(kill)
    assert command(compose(words)) == 0
    thread.join()
    assert {path: stamps(store)[path] for path in found[0]} == found[0], "a finished run was trained again"


def one_job(study):
    planned = plan(study.grid)
    run = next(run for run in planned.runs.values() if run.method and run.origin is None)
    return Job([run], {run.run_id: sorted(planned.marks[run.run_id])})


def engine_of(study, job, folder, address, timeout_minutes=None, **conf):
    """Let the engine carry out one job; gives back how it ended, and what it reported."""
    setup = Setup(folder, study.sources, study.overlap, TrackingSpec("disabled", "p", folder), 60.0,
                  timeout_minutes)
    options = {"address": address, "gpus": None, "cpus": 1}
    whole = EngineConf(**{"kind": "ray", "device": "cpu", "workers": 1, "stack": 1,
                          "checkpoint_seconds": 60.0,
                          "timeout_minutes": timeout_minutes, "options": options} | conf)
    engine = ray_engine.Ray(whole, setup)
    try:
        engine.submit([job])
        events = list(engine.events())
    finally:
        engine.drain()
    return [event for event in events if isinstance(event, Ended)], [event for event in events
                                                                     if not isinstance(event, Ended)]


def test_a_job_that_takes_too_long_is_ended_and_updates_are_reported_meanwhile(
        cluster, data_folders, make_host, tmp_path, monkeypatch):
    study = small(data_folders, make_host, *SLOW, "grid.budgets=[20000]", "grid.seeds=[0]")
    job = one_job(study)
    [end], seen = engine_of(study, job, tmp_path / "late", cluster.address, timeout_minutes=20 / 60)
    (failure,) = Store(tmp_path / "late").failures().values()
    assert end.runs == [run.run_id for run in job.runs] and failure[
        "kind"] == "TimedOut" and "timed out after" in failure["error"]
    made = [stage.updates for stage in seen if stage.runs]
    assert 0 < max(made) < 20000 and made == sorted(made), "the bar would not have moved"


def test_a_folder_that_nodes_do_not_share_and_another_version_are_one_sentence(token, tmp_path, monkeypatch):
    setup = Setup(tmp_path, [], "drop", TrackingSpec("disabled", "p", tmp_path))
    monkeypatch.setattr(ray_engine, "SHARED_SECONDS", 0.1)
    with pytest.raises(UserError, match="results= must be a folder that all nodes share"):
        ray_engine._check(ray_engine.Start(setup, 1, 0, tmp_path / "nothing", tmp_path, None))
    with pytest.raises(UserError, match="not the command's 0.0; install the same"):
        ray_engine._check(ray_engine.Start(setup, 1, 0, tmp_path, tmp_path, None, "0.0"))


def test_a_cluster_without_room_for_a_worker_says_so(cluster, data_folders, make_host, tmp_path):
    study = small(data_folders, make_host, *SLOW)
    with pytest.raises(UserError, match=r"no node of the Ray cluster has room for a worker \(64 CPUs, 0 "
                       r"GPUs\)"):
        engine_of(study, one_job(study), tmp_path, cluster.address,
                  options={"address": "auto", "gpus": None, "cpus": 64})
    with pytest.raises(UserError, match="the Ray cluster has no GPU"):
        engine_of(study, one_job(study), tmp_path, cluster.address, device="cuda")


def test_a_cluster_that_does_not_answer_or_refuses_the_token_is_one_sentence(cluster, tmp_path, monkeypatch):
    started = time.monotonic()
    with pytest.raises(UserError, match="no Ray cluster lets us in at 127.0.0.1:1 .*refused.*ray start"):
        ray_engine._rehearse("127.0.0.1:1")
    with socket.socket() as silent:  # something listens, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(ray_engine, "CONNECT_SECONDS", 4)
        with pytest.raises(UserError, match="no answer in 4 s"):
            ray_engine._rehearse(f"127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.undo()
    other = tmp_path / "other"
    other.write_text("2" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    with pytest.raises(UserError, match="does not let us in without its token; copy ~/.ray/auth_token"):
        ray_engine._rehearse(cluster.address)
    assert time.monotonic() - started < 25


def test_a_token_is_made_once_and_for_its_owner_alone(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    ray_engine._make_token()
    path = tmp_path / ".ray" / "auth_token"
    made = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600 and len(made) == 64 and len(list(path.parent.iterdir())) == 1
    ray_engine._make_token()
    assert path.read_text() == made and not caplog.text
    path.chmod(0o644)  # as Ray makes it
    ray_engine._make_token()
    assert "chmod 600" in caplog.text and path.read_text() == made


def test_a_process_that_is_connected_already_is_refused(monkeypatch):
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(UserError, match="connected to a Ray cluster already; call ray.shutdown"):
        ray_engine.connect(ray_engine.Options(None, None, 1), None)


def test_a_cluster_whose_last_node_is_lost_is_said_to_be_waited_for(caplog):
    engine, node = object.__new__(ray_engine.Ray), {"Resources": {"CPU": 2.0}, "Alive": True}
    engine.room, engine.conf = 0, SimpleNamespace(workers=None)
    engine.begin = ray_engine.Start(None, 1, 0, None, None, None)
    engine.ray = SimpleNamespace(nodes=lambda: [node])
    assert engine.most() == 2 and not caplog.text
    node["Alive"] = False
    assert engine.most() == engine.most() == 0
    assert caplog.text.count("waiting for another") == 1


@pytest.mark.parametrize(("options", "words"), [
    ({"gpus": 2.0}, "gpus must be at most 1, got 2.0"),
    ({"cpus": 0}, "cpus must be above 0"),
    ({"address": "nonsense"}, "must be null, auto or host:port"),
    ({"address": "ray://h:10001"}, "host:port of the cluster's head"),
])
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        build(ray_engine.Options, {"address": None, "gpus": None, "cpus": 1} | options, "engine.options")


def test_a_lost_node_costs_the_run_at_hand_and_no_other(cluster, data_folders, make_host, tmp_path):
    """Last of those with the cluster: afterwards it has one node."""
    store = Store(tmp_path / "node")

    def kill():
        wait_for(lambda: len(stamps(store)) >= 2 and len(Leases(store.root).all()) == 2)
        kept, pids = stamps(store), {claim.pid for claim in Leases(store.root).all().values()}
        cluster.kill(cluster.second)
        return kept, pids

    thread, found = meanwhile(kill)
    assert command(small(data_folders, make_host, f"results={tmp_path}", "study=node", *SLOW, "engine=ray",
                         f"engine.options.address={cluster.address}")) == 0
    thread.join()
    (kept, pids), after = found[0], stamps(store)
    assert len(kept) < len(after) and {path: after[path]
                                       for path in kept} == kept, "a finished run was trained again"
    wait_for(gone(pids), 20)
