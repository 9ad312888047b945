"""The Slurm engine on a real Slurm of one node; what needs none is tested without."""

import importlib.util
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from datetime import datetime

import numpy as np
import pytest
from slurm_node import slurm_node, why_not
from test_config import small
from test_plan import grid
from test_study import launch

from portability.core.errors import UserError
from portability.execution.engines import slurm
from portability.execution.engines.slurm import _cost, _packed
from portability.execution.engines.slurm_queue import require
from portability.execution.engines.slurm_task import STOPS, Notes, _limit, _Log, run_task
from portability.execution.leases import Claims
from portability.execution.worker import Job, Setup
from portability.planning.plan import plan
from portability.run import command
from portability.store import Store
from portability.tracking.runs import TrackingSpec

QUICK = ("engine=slurm", "engine.options.poll_seconds=0.3", "engine.options.late_seconds=0")
FAST = (*QUICK, "tracking.wandb=disabled", "yes=true", "method=lora")
ONE = (*FAST, "grid.inits=[ported]", "grid.seeds=[0]")  # a bare host, an origin, and a ported run that needs it


@pytest.fixture(scope="module")
def node():
    """A Slurm of one node whose arrays hold two tasks at most; everything that is started here submits to it."""
    reason = why_not() or (None if importlib.util.find_spec("submitit") else "needs submitit (the extra [slurm])")
    if reason:
        pytest.skip(reason)
    with slurm_node(MaxArraySize=2) as environment, pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        yield environment


def ask(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


def arrays():
    """Tasks by the name of their array: id, state, start and end, those that ended included."""
    found = {}
    for line in ask("squeue", "--noheader", "--array", "--states=all", "--format=%j|%i|%T|%S|%e"):
        name, *rest = line.split("|")
        found.setdefault(name, []).append(rest)
    return found


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.05)
    return found


def test_everything_runs_in_order_and_gives_the_bits_of_the_local_engine(node, data_folders, make_host, tmp_path):
    before = set(arrays())
    study = small(data_folders, make_host, f"results={tmp_path}", "study=slurm", "engine.stack=2", *FAST)
    assert command(study) == 0
    new = {name: tasks for name, tasks in arrays().items() if name not in before}
    assert sorted(len(tasks) for tasks in new.values()) == [1, 2, 2], "three tasks and two that wait, in arrays of two"
    assert all(task[1] == "COMPLETED" for tasks in new.values() for task in tasks)
    planned, store = plan(study.grid), Store(tmp_path / "slurm")
    origins = {run.origin for run in planned.runs.values() if run.origin}
    done = max((store.folder(run_id) / "record.json").stat().st_mtime for run_id in origins)
    last = max(new.values(), key=lambda tasks: int(tasks[0][0].partition("_")[0]))
    assert all(datetime.fromisoformat(task[2]).timestamp() >= int(done) for task in last), "a run began too early"
    assert list((store.root / "slurm").iterdir()) == [], "files of arrays that ended well are left"
    local = small(data_folders, make_host, f"results={tmp_path}", "study=local", "engine.workers=1", *FAST[len(QUICK):])
    assert command(local) == 0
    for run_id in planned.runs:
        one, two = store.predictions(run_id), Store(tmp_path / "local").predictions(run_id)
        assert all(np.array_equal(one[key], two[key]) for key in one)


def test_a_killed_and_a_stopped_task_are_tried_again_and_those_that_wait_for_them_too(
        node, data_folders, make_host, tmp_path):
    """The origin's task is killed half way; its second try is told that time is over; the third one completes."""
    study = small(data_folders, make_host, f"results={tmp_path}", "study=killed", "grid.budgets=[100]",
                  "engine.checkpoint_seconds=0.2", "engine.options.jobs_per_task=3", *ONE)
    store, planned = Store(tmp_path / "killed"), plan(study.grid)
    origin = next(run.origin for run in planned.runs.values() if run.init.name == "ported")
    seen, before = [], set(arrays())

    def disturb():
        claims = Claims(store.root)
        kept = lambda: store.checkpoint(origin) is not None and claims.read(origin)  # noqa: E731
        first = wait_for(kept)
        os.kill(first.pid, signal.SIGKILL)
        second = wait_for(lambda: (claim := kept()) and claim.pid != first.pid and claim)
        (task,) = [task for name, tasks in arrays().items() if name not in before for task in tasks if task[1] == "RUNNING"]
        ask("scancel", "--signal=USR2", task[0])
        seen.extend([first, second])

    other = threading.Thread(target=disturb)
    other.start()
    assert command(study) == 0
    other.join()
    assert len(seen) == 2 and store.failures() == {} and all(map(store.has, planned.runs))
    states = Counter(task[1] for name, tasks in arrays().items() if name not in before for task in tasks)
    assert states == {"FAILED": 2, "CANCELLED": 1, "COMPLETED": 3}, "origin twice; its port; bare host and native, origin, port"


def test_a_killed_command_that_is_repeated_submits_nothing_twice(node, data_folders, make_host, tmp_path):
    more = ("study=again", "grid.budgets=[2,4]", *FAST, "grid.inits=[ported]", "grid.seeds=[0,1]")
    store, before = Store(tmp_path / "again"), set(arrays())
    first = launch(tmp_path, data_folders, make_host, *more, "engine.stack=2")
    new = lambda: {name: tasks for name, tasks in arrays().items() if name not in before}  # noqa: E731
    submitted = wait_for(lambda: len(found := new()) == 3 and found)
    first.kill()
    first.communicate(timeout=60)
    second = launch(tmp_path, data_folders, make_host, *more, "engine.stack=1")  # other jobs of the same runs
    output = second.communicate(timeout=120)[0]
    assert second.returncode == 0 and "Slurm tasks of an earlier command are followed" in output, output
    assert set(new()) == set(submitted) and store.failures() == {} and len(list(store.records())) == 7


def test_what_ended_after_the_store_was_asked_is_not_submitted_again(node, data_folders, make_host, tmp_path, monkeypatch):
    study = small(data_folders, make_host, f"results={tmp_path}", "study=late", "grid.budgets=[2]", "engine.stack=2", *ONE)
    store, before = Store(tmp_path / "late"), set(arrays())
    queued, said = slurm._Session._queued, []

    def meanwhile(session):
        """Another command's tasks do all the work and leave the queue before this one looks at it."""
        monkeypatch.setattr(slurm._Session, "_queued", queued)
        assert command(study) == 0
        said.append({name for name in arrays() if name not in before})
        return queued(session)

    monkeypatch.setattr(slurm._Session, "_queued", meanwhile)
    assert command(study) == 0
    assert {name for name in arrays() if name not in before} == said[0] and store.failures() == {}
    assert len(list(store.records())) == len(plan(study.grid).runs)


def test_what_a_partition_never_starts_is_said_and_ctrl_c_says_how_to_end_it(node, data_folders, make_host, tmp_path):
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
    study = small(data_folders, make_host, f"results={tmp_path}", "study=off", *ONE, "engine.options.partition=short")
    before = set(arrays())
    cancel = threading.Thread(target=lambda: ask("scancel", wait_for(
        lambda: [task[0] for name, tasks in arrays().items() if name not in before for task in tasks])[0]))
    cancel.start()
    with pytest.raises(UserError, match="cancelled by somebody; finished runs and checkpoints are kept"):
        command(study)
    cancel.join()
    ask("scancel", "--me")


def test_an_array_that_slurm_refuses_is_one_sentence(node, data_folders, make_host, tmp_path):
    study = small(data_folders, make_host, f"results={tmp_path}", "study=no", *ONE, "engine.options.partition=nowhere")
    with pytest.raises(UserError, match=r"Slurm refuses an array of tasks \(.*Invalid partition.*engine.options"):
        command(study)
    assert not list((tmp_path / "no" / "slurm").iterdir())


def test_bad_options_are_one_sentence(node, data_folders, make_host, tmp_path):
    study = small(data_folders, make_host, f"results={tmp_path}", "study=bad", *ONE, "engine.options.minutes=1")
    with pytest.raises(UserError, match="engine.options.minutes must be at least 5, got 1"):
        command(study)


def test_without_submitit_or_slurm_one_sentence_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch, squeue, scontrol, srun is not on PATH|needs the package submitit"):
        require()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'peft-portability\[slurm\]'"):
        require()


def test_short_jobs_share_a_task_and_long_ones_have_their_own():
    runs = sorted(plan(grid()).runs.values(), key=lambda run: run.run_id)
    jobs = sorted((Job([run], {}) for run in runs), key=_cost, reverse=True)
    most = 2 * _cost(jobs[0])
    tasks = _packed(jobs, most, _cost)
    assert [job for task in tasks for job in task] == jobs
    assert all(len(task) == 1 or sum(map(_cost, task)) <= most for task in tasks) and len(tasks) <= len(jobs) // 2 + 1
    assert [len(task) for task in _packed(jobs[:7], 3, lambda job: 1.0)] == [3, 3, 1]


@pytest.fixture
def signals():
    """Puts back what a task does to this process's signals."""
    kept = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_a_run_whose_origin_is_not_there_is_left_and_not_a_failure(data_folders, make_host, tmp_path, signals):
    study = small(data_folders, make_host, *FAST[len(QUICK):], "grid.inits=[ported]", "grid.seeds=[0]")
    planned, store = plan(study.grid), Store(tmp_path / "left")
    jobs = [Job([run], {run_id: [0]}) for run_id, run in planned.runs.items() if run.origin or run.method is None]
    setup = Setup(store.root, study.sources, study.overlap, TrackingSpec("disabled", "none", tmp_path, None))
    with pytest.raises(SystemExit) as stop:
        run_task(jobs, setup, "cpu", None, 0.0, tmp_path / "notes.json")
    notes = Notes.read(tmp_path / "notes.json")
    assert stop.value.code == 4 and notes.end == "left" and len(notes.begun) == 1
    assert [record["run_id"] for record in store.records()] == list(notes.begun) and store.failures() == {}


def test_a_job_that_takes_too_long_ends_its_process_and_says_so(tmp_path, monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    job = Job(list(plan(grid()).runs.values())[:2], {})
    with _limit(job, 0.001, _Log(tmp_path / "notes.json")):
        time.sleep(0.4)
    notes = Notes.read(tmp_path / "notes.json")
    assert codes == [5] and notes.end == "late" and notes.text.startswith("timed out after")
