"""The Slurm engine on a real Slurm of one node; what needs none is tested without."""

import importlib.util
import os
import pickle
import signal
import subprocess
import threading
import time
from collections import Counter

import numpy as np
import pytest

from portability.core.errors import UserError
from portability.execution.engines import slurm
from portability.execution.engines.slurm import STOPS, Slurm, run_task
from portability.execution.leases import Leases
from portability.execution.worker import Setup
from portability.planning.plan import plan
from portability.run import command
from portability.store import Store
from portability.tracking.runs import TrackingSpec
from support.slurm_node import slurm_node, why_not
from support.studies import launch, small

QUICK = ("engine=slurm", "engine.options.poll_seconds=0.3", "engine.options.late_seconds=0.5")
FAST = (*QUICK, "tracking.wandb=disabled", "yes=true", "method=lora")
# a bare host, an origin, and a ported run that needs it
ONE = (*FAST, "grid.inits=[ported]", "grid.seeds=[0]")


@pytest.fixture(scope="module")
def node():
    """A Slurm of one node; everything that is started here submits to it."""
    reason = why_not() or (None if importlib.util.find_spec("submitit") else "needs submitit (the extra "
                           "[slurm])")
    if reason:
        pytest.skip(reason)
    with slurm_node() as environment, pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        yield environment


def ask(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


def tasks_since(before=()):
    """Tasks by id with their states, those that ended included, but for those that were there before."""
    lines = ask("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T")
    return {task: state for task, _, state in (line.partition("|") for line in lines) if task not in before}


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.05)
    return found


def ended(before):
    """How many of the tasks since then ended in which state, once all have."""
    wait_for(lambda: set(tasks_since(before).values()) <= {"COMPLETED", "FAILED", "CANCELLED"})
    return Counter(tasks_since(before).values())


def test_everything_runs_in_order_and_gives_the_bits_of_the_local_engine(node, data_folders, make_host,
                                                                         tmp_path):
    before = set(tasks_since())
    study = small(data_folders, make_host, f"results={tmp_path}", "study=slurm", "engine.stack=2", *FAST)
    assert command(study) == 0
    new = tasks_since(before)
    assert len(new) >= 3 and set(ended(before)) <= {"COMPLETED",
                                                    "CANCELLED"}, "those that came too late are cancelled"
    planned, store = plan(study.grid), Store(tmp_path / "slurm")
    assert not (store.root / "slurm").exists(), "files of arrays that ended well are left"
    assert not Leases(store.root).all() and store.failures() == {}
    local = small(data_folders, make_host, f"results={tmp_path}", "study=local", "engine.workers=1",
                  *FAST[len(QUICK):])
    assert command(local) == 0
    for run_id in planned.runs:
        one, two = store.predictions(run_id), Store(tmp_path / "local").predictions(run_id)
        assert all(np.array_equal(one[key], two[key]) for key in one)


def test_a_killed_and_a_stopped_task_are_tried_again_and_those_that_wait_for_them_too(
        node, data_folders, make_host, tmp_path):
    """The origin's task is killed half way; its second try is told that time is over; the third one
    completes."""
    study = small(data_folders, make_host, f"results={tmp_path}", "study=killed", "grid.budgets=[300]",
                  "engine.checkpoint_seconds=0.2", *ONE)
    store, planned = Store(tmp_path / "killed"), plan(study.grid)
    origin = next(run.origin for run in planned.runs.values() if run.init.name == "ported")
    seen, before = [], set(tasks_since())

    def disturb():
        claims = Leases(store.root)
        kept = lambda: store.checkpoint(origin) is not None and claims.read(origin)  # noqa: E731
        first = wait_for(kept)
        os.kill(first.pid, signal.SIGKILL)
        second = wait_for(lambda: (claim := kept()) and claim.pid != first.pid and claim)
        ask("scancel", "--signal=USR2", second.owner)
        third = wait_for(lambda: (claim := claims.read(origin)) and claim.owner != second.owner and claim)
        seen.extend([first, second, third])

    other = threading.Thread(target=disturb)
    other.start()
    assert command(study) == 0
    other.join()
    assert len(seen) == 3 and store.failures() == {} and all(map(store.has, planned.runs))
    assert ended(before)["FAILED"] == 1 and (store.root
                                             / "slurm").exists(), "one was killed, so the logs are kept"


def test_a_run_that_always_kills_its_task_fails_alone(node, data_folders, make_host, tmp_path):
    study = small(data_folders, make_host, f"results={tmp_path}", "study=deadly", "grid.budgets=[300]", *ONE)
    store, planned = Store(tmp_path / "deadly"), plan(study.grid)
    origin = next(run.origin for run in planned.runs.values() if run.init.name == "ported")
    over = threading.Event()

    def kill():
        while not over.is_set():
            if (claim := Leases(store.root).read(origin)) is not None:
                os.kill(claim.pid, signal.SIGKILL)
                wait_for(lambda: (c := Leases(store.root).read(origin)) is None or c.pid != claim.pid)  # noqa: B023
            time.sleep(0.1)

    other = threading.Thread(target=kill)
    other.start()
    assert command(study) == 1
    over.set()
    other.join()
    failures = store.failures()
    assert failures[origin]["kind"] == "WorkerDied" and "ended without a record of the run (" in failures[
        origin]["error"]
    assert {failure["kind"] for run_id, failure in failures.items() if run_id != origin} == {"Blocked"}


def test_tasks_go_on_without_the_command_and_a_repeated_one_submits_nothing_twice(node, data_folders,
                                                                                  make_host, tmp_path):
    more = ("study=again", "grid.budgets=[2,4]", *FAST, "grid.inits=[ported]", "grid.seeds=[0,1]",
            "engine.stack=2")
    store, before = Store(tmp_path / "again"), set(tasks_since())
    first = launch(tmp_path, data_folders, make_host, *more)
    submitted = wait_for(lambda: tasks_since(before))
    first.kill()
    first.communicate(timeout=60)
    second = launch(tmp_path, data_folders, make_host, *more)
    output = second.communicate(timeout=120)[0]
    assert second.returncode == 0 and "Slurm tasks of an earlier command are followed" in output, output
    assert len(tasks_since(before)) == len(submitted) and store.failures() == {} and len(
        list(store.records())) == 7


def test_tasks_that_end_before_they_begin_are_not_submitted_for_ever(node, data_folders, make_host, tmp_path):
    study = small(data_folders, make_host, f"results={tmp_path}", "study=barren", *ONE,
                  "engine.options.setup=['exit 7']")
    with pytest.raises(UserError, match="workers in a row ended before they had begun; the last: Slurm task "
                       ".*FAILED"):
        command(study)


def test_what_a_partition_never_starts_is_said_and_ctrl_c_says_how_to_end_it(node, data_folders, make_host,
                                                                             tmp_path):
    process = launch(tmp_path, data_folders, make_host, "study=long", *ONE, "engine.options.partition=short")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "PartitionTimeLimit" in line:
            process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    said = next(line for line in lines if "go on without this command" in line)
    ask("scancel", *said.strip().rpartition("scancel ")[2].split())


def test_a_task_that_somebody_cancels_ends_the_command(node, data_folders, make_host, tmp_path):
    study = small(data_folders, make_host, f"results={tmp_path}", "study=off", *ONE,
                  "engine.options.partition=short")
    before = set(tasks_since())
    cancel = threading.Thread(target=lambda: ask("scancel",
                                                 next(iter(wait_for(lambda: tasks_since(before))))))
    cancel.start()
    with pytest.raises(UserError, match="cancelled by somebody; finished runs and checkpoints are kept"):
        command(study)
    cancel.join()
    ask("scancel", "--me")


def test_an_array_that_slurm_refuses_is_one_sentence(node, data_folders, make_host, tmp_path):
    study = small(data_folders, make_host, f"results={tmp_path}", "study=no", *ONE,
                  "engine.options.partition=nowhere")
    with pytest.raises(UserError, match=r"Slurm refuses an array of tasks \(.*Invalid "
                       r"partition.*engine.options"):
        command(study)
    assert not list((tmp_path / "no" / "slurm").iterdir())


def test_bad_options_are_one_sentence(node, data_folders, make_host, tmp_path):
    study = small(data_folders, make_host, f"results={tmp_path}", "study=bad", *ONE,
                  "engine.options.minutes=1")
    with pytest.raises(UserError, match="engine.options.minutes must be at least 5, got 1"):
        command(study)


def test_without_submitit_or_slurm_one_sentence_says_what_to_do(data_folders, make_host, monkeypatch,
                                                                tmp_path):
    conf = small(data_folders, make_host, *FAST).engine
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs Slurm's commands, and sbatch, scancel|needs submitit"):
        Slurm.check(conf)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'peft-portability\[slurm\]'"):
        Slurm.check(conf)


def test_a_task_that_cannot_read_or_write_says_so_to_the_command(data_folders, make_host, tmp_path,
                                                                 monkeypatch):
    study = small(data_folders, make_host, *FAST)
    kept = {number: signal.getsignal(number) for number in STOPS}
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    setup = Setup(tmp_path, study.sources, study.overlap, TrackingSpec("disabled", "none", tmp_path, None))
    try:
        said = run_task(tmp_path / "jobs.pickle", setup, "cpu", None)
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    assert "No such file" in said
    monkeypatch.setattr(slurm, "read_queue", lambda name: [])
    engine = Slurm(study.engine, setup)
    (engine.folder / "token").mkdir(parents=True)
    (engine.folder / "token" / "7_0_result.pkl").write_bytes(pickle.dumps(("success", said)))
    with pytest.raises(UserError, match="cannot go on: .*No such file.*repeat the command once it is put "
                       "right"):
        engine._end("7", "COMPLETED")
