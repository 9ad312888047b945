"""Who works on what: claims of processes that live, that are gone, and that fell silent."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from portability.data.splits import DataSource
from portability.execution import leases as claims
from portability.execution.leases import Leases
from portability.execution.worker import Setup, Worker
from portability.hosts.devices import Place
from portability.tracking.runs import TrackingSpec

ID, OTHER = "0123456789abcdef", "fedcba9876543210"
HOLD = """
import sys, time
from portability.execution.leases import Leases
with Leases(sys.argv[1]).held([sys.argv[2]]) as mine:
    print(sorted(mine), flush=True)
    time.sleep(float(sys.argv[3]))
"""


def holder(root, seconds="60"):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(root), ID, seconds], stdout=subprocess.PIPE,
                               text=True)
    return process, process.stdout.readline().strip()


def forge(root, **changes):
    """A claim as another process would leave it behind."""
    with Leases(root).held([ID]):
        claim = Leases(root).read(ID)
    path = root / "running" / f"{ID}.json"
    path.write_text(json.dumps(asdict(replace(claim, **changes))))
    return path


@pytest.mark.system
def test_a_run_is_held_by_one_process_and_free_afterwards(tmp_path):
    process, said = holder(tmp_path, "1.5")
    assert said == str([ID])
    with Leases(tmp_path).held([ID, OTHER]) as mine:
        assert mine == {OTHER}
        claim = Leases(tmp_path).read(ID)
        assert claim.pid == process.pid and Leases(tmp_path).lives(claim) and set(Leases(tmp_path).all()) == {
            ID, OTHER}
    assert process.wait() == 0
    assert Leases(tmp_path).all() == {} and list((tmp_path / "running").iterdir()) == []


@pytest.mark.system
def test_what_a_killed_process_held_is_taken_over_at_once(tmp_path):
    process, _ = holder(tmp_path)
    process.kill()
    process.wait()
    assert not Leases(tmp_path).lives(Leases(tmp_path).read(ID))
    with Leases(tmp_path).held([ID]) as mine:
        assert mine == {ID} and Leases(tmp_path).read(ID).pid == os.getpid()
    assert list((tmp_path / "running").iterdir()) == []


def test_a_process_number_that_was_given_out_again_is_not_taken_for_the_owner(tmp_path):
    forge(tmp_path, started="1")
    assert not Leases(tmp_path).lives(Leases(tmp_path).read(ID))


def test_a_claim_of_another_machine_lives_while_its_heart_beats(tmp_path, monkeypatch):
    path = forge(tmp_path, machine="elsewhere", host="elsewhere", pid=1)
    with Leases(tmp_path).held([ID]) as mine:
        assert mine == set()
    past = time.time() - claims.STALE_SECONDS - 5
    os.utime(path, (past, past))
    assert Leases(tmp_path).silence(Leases(tmp_path).read(ID)) > claims.STALE_SECONDS
    with Leases(tmp_path).held([ID]) as mine:
        assert mine == {ID}


def test_the_heart_beats_while_a_run_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.05)
    with Leases(tmp_path).held([ID]):
        path = tmp_path / "running" / f"{ID}.json"
        os.utime(path, (0, 0))
        until = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.02)
        assert path.stat().st_mtime > 0


def test_a_takeover_that_comes_too_late_is_given_back(tmp_path, monkeypatch):
    """Two find the claim stale; the slower one moves the faster one's new claim away, sees it, and puts it
    back."""
    forge(tmp_path, started="1")
    fast, slow = Leases(tmp_path), Leases(tmp_path)
    seen = slow.read(ID)
    assert fast._take(ID)
    monkeypatch.setattr(slow, "read", lambda run_id: seen)
    assert not slow._take(ID)
    monkeypatch.undo()
    assert slow.read(ID).owner == fast.owner


def test_where_processes_cannot_be_looked_at_the_heartbeat_decides(tmp_path):
    path = forge(tmp_path, started="")  # a system without /proc
    assert Leases(tmp_path).lives(Leases(tmp_path).read(ID))
    past = time.time() - claims.STALE_SECONDS - 5
    os.utime(path, (past, past))
    assert not Leases(tmp_path).lives(Leases(tmp_path).read(ID))


def test_what_was_left_behind_is_tidied_up_and_what_lives_is_not(tmp_path):
    forge(tmp_path, started="1")
    with Leases(tmp_path).held([OTHER]):
        Leases(tmp_path).tidy()
        assert set(Leases(tmp_path).all()) == {OTHER}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run_id": 3}'])
def test_a_torn_claim_holds_nobody_up_for_ever(tmp_path, text):
    path = forge(tmp_path)
    path.write_text(text)
    past = time.time() - claims.STALE_SECONDS - 5
    os.utime(path, (past, past))
    with Leases(tmp_path).held([ID]) as mine:
        assert mine == {ID}


@pytest.mark.system
def test_of_many_processes_that_want_one_run_one_gets_it(tmp_path):
    code = HOLD.replace("time.sleep(float(sys.argv[3]))", "time.sleep(float(sys.argv[3]) if mine else 0)")
    many = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), ID, "5"], stdout=subprocess.PIPE,
                             text=True)
            for _ in range(6)]
    said = [process.communicate()[0].strip() for process in many]
    assert said.count(str([ID])) == 1


@pytest.mark.system
def test_neighbours_are_other_processes_of_this_machine_at_work(tmp_path):
    mine = Leases(tmp_path)
    with mine.held([OTHER]):
        assert mine.neighbours() == 0, "not this process itself"
        process, _ = holder(tmp_path)
        assert mine.neighbours() == 1
        process.kill()
        process.wait()
        assert mine.neighbours() == 0, "not one that is gone"
        forge(tmp_path, pid=1, machine="another")
        assert mine.neighbours() == 0, "not on another machine"


@pytest.mark.system
def test_a_worker_has_an_even_part_of_the_cores(tmp_path, data_folders):
    sources = (DataSource("one", path=str(data_folders["one"])),)
    setup = Setup(tmp_path, sources, "drop", TrackingSpec("disabled", "", tmp_path))
    worker = Worker(setup, Place("cpu", 1.0, 4), lambda made: None)
    assert worker.context.free() == 4
    process, _ = holder(tmp_path)
    assert worker.context.free() == 2
    process.kill()
    process.wait()
    assert worker.context.free() == 4
