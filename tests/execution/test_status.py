"""What a plan's state looks like from outside, while it is carried out and afterwards."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from portability.core.wording import duration
from portability.execution.leases import Leases
from portability.execution.status import states, status_lines
from portability.planning.plan import plan
from portability.store import Result, Store
from support.plans import grid, record
from support.studies import slow_to_score, small


def planned():
    return plan(grid(methods=grid().methods[:1], pairs=grid().pairs[:1], relations={"same": grid().data[0]},
                     seeds=[0, 1]))


def test_every_state_is_told_apart_and_named(tmp_path):
    plan_, store = planned(), Store(tmp_path)
    ids = list(plan_.runs)
    done, running, stale, failed, over = ids[:5]
    blocked = next(run_id for run_id in ids[5:] if plan_.runs[run_id].origin)
    store.commit(done, Result(record(done, plan_.marks[done])))
    store.commit(over, Result(record(over, [7])))  # evaluated, but not where this plan asks
    store.fail(failed, {"error": "boom", "kind": "ValueError"})
    store.fail(running, {"error": "earlier", "kind": "WorkerDied"})
    store.fail(blocked, {"error": "blocked", "kind": "Blocked", "origin": failed})
    with Leases(tmp_path).held([stale]):
        gone = replace(Leases(tmp_path).read(stale), started="1")
    (tmp_path / "running" / f"{stale}.json").write_text(json.dumps(asdict(gone)))
    with Leases(tmp_path).held([running]):
        found, lines = states(plan_, store), "\n".join(status_lines(plan_, store))
    named = {run_id: state.name for run_id, state in found.items()}
    assert [named[i] for i in (done, running, stale, failed, blocked, over)] == [
        "done", "running", "stale", "failed", "blocked", "planned"]
    assert f"running {running}" in lines and f"by process {os.getpid()} on {os.uname().nodename}" in lines
    assert f"stale {stale}" in lines and "heartbeat" in lines
    assert "at attempt 1: boom" in lines and str(store.root / "failures" / f"{failed}-1.json") in lines
    assert f"blocked: 1 run by its origin run {failed}" in lines and f"slowest: {done}" in lines
    assert "1 done, 1 running, 1 stale, 1 failed, 1 blocked" in lines


def test_a_failure_after_a_claim_is_a_failure_and_a_claim_after_a_failure_is_stale(tmp_path):
    plan_, store = planned(), Store(tmp_path)
    run_id = next(iter(plan_.runs))
    with Leases(tmp_path).held([run_id]):
        gone = replace(Leases(tmp_path).read(run_id), started="1", since="2026-01-01T00:00:00+00:00")
    (tmp_path / "running" / f"{run_id}.json").write_text(json.dumps(asdict(gone)))
    store.fail(run_id, {"error": "boom", "kind": "TimedOut"})
    assert states(plan_, store)[run_id].name == "failed"
    later = replace(gone, since="2999-01-01T00:00:00+00:00")
    (tmp_path / "running" / f"{run_id}.json").write_text(json.dumps(asdict(later)))
    assert states(plan_, store)[run_id].name == "stale"


def test_the_rate_is_that_of_the_last_half_hour(tmp_path):
    plan_, store = planned(), Store(tmp_path)
    now = time.time()
    trained = [run_id for run_id, run in plan_.runs.items() if run.method]
    for place, run_id in enumerate(trained[:2]):
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(now - 60 * place))
        store.commit(run_id, Result(record(run_id, plan_.marks[run_id]) | {
            "run_info": {"created_at": stamp, "total_time": 15.0},
            "train_info": {"stack": 4, "metrics": [{"updates": mark} for mark in plan_.marks[run_id]]}}))
    (line,) = [line for line in status_lines(plan_, store) if line.startswith("rate:")]
    rate = float(line.split()[1])
    assert 0.9 < rate < 1.1  # two runs, each a quarter of a stack that took a minute, one after the other
    minutes = float(line.partition("; ")[2].split()[0])
    assert 0.7 < minutes / (len(trained) - 2) < 1.3
    assert duration(59) == "59 s"


WORKER = """
import sys
from portability.execution import leases as claims
from portability.hosts.devices import Place
from portability.planning.plan import plan
from portability.run import compose
from portability.tracking.runs import TrackingSpec
from portability.execution.worker import Job, Setup, Worker
claims.HEARTBEAT_SECONDS = 0.05
study = compose(sys.argv[1:])
planned, root = plan(study.grid), study.results / study.name
setup = Setup(root, study.sources, study.overlap, TrackingSpec("disabled", "p", root))
worker = Worker(setup, Place("cpu", 0.5), lambda stage: None)
for run_id, run in planned.runs.items():
    worker.run(Job([run], {run_id: sorted(planned.marks[run_id])}))
"""


@pytest.mark.system
def test_the_status_says_what_a_worker_is_at(many_questions, data_folders, make_host, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("support.studies.study", lambda *words: asked.extend(words))
    small(data_folders, make_host, *slow_to_score(many_questions, tmp_path))
    monkeypatch.undo()
    study = small(data_folders, make_host, *slow_to_score(many_questions, tmp_path))
    plan_, store = plan(study.grid), Store(tmp_path / "slow")
    process = subprocess.Popen([sys.executable, "-c", WORKER, *asked], stderr=subprocess.PIPE, text=True)
    seen: dict[str, dict[str, None]] = {}
    while process.poll() is None:
        for run_id, state in states(plan_, store).items():
            if state.name == "running":
                seen.setdefault(run_id, {})[state.says.partition(", by process")[0]] = None
        time.sleep(0.02)
    assert process.returncode == 0, process.stderr.read()
    for run_id, run in plan_.runs.items():
        said = list(seen[run_id])
        at = f" at update {run.train.updates} of {run.train.updates}" if run.method else ""
        last = f"scoring{at} ("
        parts = [float(text.removeprefix(last).partition("%")[0]) for text in said if text.startswith(last)]
        assert parts == sorted(parts) and any(0 < part < 100 for part in parts), said
        assert not run.method or any(text.startswith("training at update ") for text in said), said
    assert list((store.root / "running").iterdir()) == []


def test_one_is_not_many_and_a_bare_host_is_named_as_such(tmp_path):
    plan_, store = planned(), Store(tmp_path)
    bare = next(run_id for run_id, run in plan_.runs.items() if run.method is None)
    store.fail(bare, {"error": "boom", "kind": "ValueError"})
    lines = "\n".join(status_lines(plan_, store))
    assert f"failed {bare} (bare host {plan_.runs[bare].host.name}): at attempt 1" in lines
