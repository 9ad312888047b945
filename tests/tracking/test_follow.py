"""What follows a study files each run once, whole, whoever dies meanwhile; W&B itself is played here."""

import io
import json
import os
import sys
from types import SimpleNamespace

import pytest

from portability.store import Result, Store
from portability.tracking import follow
from portability.tracking.entries import STUDY, Entry, entry_of
from portability.tracking.follow import Follower, GivenUp
from portability.tracking.live import Live
from portability.tracking.runs import LEFT_ALONE, Tracker, TrackingSpec

MARKS = [0, 20]
CURVE = [(0, {"eval_accuracy": 0.5}), (10, {"train_loss": 0.7}),
         (20, {"train_loss": 0.5, "eval_accuracy": 0.75})]


class Run:
    """A W&B run that remembers what it is told."""

    def __init__(self, id, **how):
        self.id, self.how, self.summary, self.points, self.code = id, how, {}, [], None
        self.offline = True

    def log(self, values, step=None, commit=None):
        assert self.code is None and (not self.points or step > self.points[-1][0]), "W&B would ignore it"
        self.points.append((step, values))

    def finish(self, exit_code=0):
        self.code = exit_code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.finish()


@pytest.fixture
def played(monkeypatch):
    """W&B: the runs that were begun, and whether it refuses any."""
    wandb = SimpleNamespace(runs=[], refuses=False, Settings=lambda **_: None)

    def init(**how):
        if wandb.refuses:
            raise ConnectionError("W&B is away")
        run = Run(**how)
        for before in wandb.runs:
            run.summary |= before.summary if before.id == run.id else {}  # it is resumed
        wandb.runs.append(run)
        return run

    wandb.init = init
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return wandb


class Study:
    """A worker of a study, and whoever follows it."""

    def __init__(self, root):
        (root / "running").mkdir(parents=True)
        self.root, self.store, self.live = root, Store(root), Live(root, "worker")
        self.follower = self.follow()

    def follow(self):
        return Follower(TrackingSpec("offline", "p", self.root, "demo"))

    def heading(self, number=1):
        cell = {"method": "lora", "host": "b", "data": "films", "init": "ported", "seed": number,
                "origin": {"host": "a", "data": "films"}}
        spec = {"init": {"kind": "ported"}, "origin": None}
        return {"run_id": f"{number:016x}", "spec": spec, "cell": cell, "port_info": None}

    def begin(self, number=1, marks=MARKS):
        self.live.begin(self.heading(number), marks)

    def tell(self, *steps, number=1):
        for step in steps:
            rate = {} if step == 0 else {"learning_rate": 0.1}
            self.live.measured(step, {f"{number:016x}": {**dict(CURVE)[step], **rate}})

    def commit(self, number=1):
        marks = [{"updates": step, "eval_accuracy": one["eval_accuracy"], "eval_mine": 1.0}
                 for step, one in CURVE if "eval_accuracy" in one]
        self.store.commit(f"{number:016x}", Result({
            **self.heading(number), "run_info": {"total_time": 1.0},
            "train_info": {"train_loss": [[10, 0.7], [20, 0.5]], "train_time": 1.0, "file_size": 4,
                           "num_trainable_params": 1, "metrics": marks}}))

    def look(self):
        """What is taken at one look is heard at the next, and a record that was there at one is filed at the
        next."""
        for _ in range(3):
            self.follower.look()


@pytest.fixture
def study(tmp_path, played):
    return Study(tmp_path / "mine")


def test_a_run_is_told_as_it_trains_and_completed_by_its_record(study, played):
    study.begin()
    study.tell(0, 10)
    study.look()
    run, = played.runs
    assert run.code is None
    assert run.points == [(0, CURVE[0][1]), (10, {"train_loss": 0.7, "learning_rate": 0.1})]
    assert run.id.startswith("0000000000000001-") and run.how["mode"] == "offline"
    assert {"study:mine", "arm:ported", "sweep:demo"} <= set(run.how["tags"])
    study.tell(20)
    study.look()
    assert len(run.points) == 2, "the last mark waits for the record, which may know more of it"
    study.commit()
    study.look()
    assert run.code == 0 and run.points[2:] == [(20, {"learning_rate": 0.1, "train_loss": 0.5,
                                                      "eval_accuracy": 0.75, "eval_mine": 1.0})]
    assert run.summary["updates"] == 20 and study.follower.filed == 1
    assert not list(study.root.glob("wandb/sent/open/*"))
    study.look()
    assert played.runs == [run]


def test_what_was_told_just_before_the_record_came_is_heard_before_it_is_filed(study, played):
    study.begin()
    study.tell(0, 10)
    study.look()
    study.tell(20)
    study.commit()
    study.look()
    assert played.runs[0].points[-1][1]["learning_rate"] == 0.1


def test_what_a_worker_tells_again_after_a_death_is_passed_over(study, played, capsys):
    study.begin()
    study.tell(0, 10)
    study.look()
    study.begin()
    study.tell(0, 10)
    study.commit()
    study.look()
    run, = played.runs
    assert [step for step, _ in run.points] == [0, 10, 20] and run.code == 0
    assert capsys.readouterr().out == "", "something was refused"


def test_a_run_that_is_left_goes_on_as_the_same_run_of_wandb(study, played, capsys):
    study.begin()
    study.tell(0, 10)
    study.follower.end()
    first, = played.runs
    assert first.code == 1 and len(first.points) == 2
    study.follower.lock.release()
    study.follower = study.follow()
    study.begin()  # the next command's worker tells the whole curve again
    study.tell(0, 10)
    study.commit()
    study.look()
    _, then = played.runs
    assert then.id == first.id and then.how["resume"] == "allow" and then.code == 0
    assert [step for step, _ in then.points] == [20] and capsys.readouterr().out == ""


def test_a_record_of_fewer_marks_is_not_the_one_awaited(study, played):
    study.commit()
    study.begin(marks=[0, 10, 20])
    study.tell(0)
    study.look()
    run, = played.runs
    assert run.code is None


def test_what_was_done_while_nobody_followed_is_filed_from_its_record(study, played):
    study.begin()
    study.commit()
    study.look()
    run, = played.runs
    assert run.code == 0 and [step for step, _ in run.points] == [0, 10, 20] and study.follower.filed == 1


def test_a_run_that_failed_says_why_and_goes_on_when_it_is_tried_again(study, played):
    study.begin()
    study.tell(0)
    study.live.failed(study.heading()["run_id"], "boom")
    study.look()
    first, = played.runs
    assert first.code == 1 and first.summary == {"error": "boom"}
    study.begin()
    study.commit()
    study.look()
    then = played.runs[1]
    assert then.id == first.id and [step for step, _ in then.points] == [10, 20]
    assert "error" not in then.summary and then.summary["updates"] == 20


def test_a_run_that_failed_and_is_only_sent_later_has_no_error_either(study, played):
    study.begin()
    study.live.failed(study.heading()["run_id"], "boom")
    study.look()
    study.commit()
    entry = entry_of(study.store.read(study.heading()["run_id"]))
    assert study.follower.tracker.send(entry) and played.runs[1].id == played.runs[0].id
    assert "error" not in played.runs[1].summary


def test_a_beginning_that_was_refused_is_made_good_by_the_record(study, played, capsys):
    played.refuses = True
    study.begin()
    study.tell(0, 10)
    study.look()
    assert "W&B did not take run 0000000000000001 (W&B is away); the run itself" in capsys.readouterr().out
    played.refuses = False
    study.commit()
    study.look()
    run, = played.runs
    assert run.code == 0 and len(run.points) == 3


def test_a_tracker_that_refuses_everything_is_left_alone(study, played, capsys):
    played.refuses = True
    for number in range(1, 8):
        study.begin(number)
    with pytest.raises(GivenUp, match="refused 5 times in a row: W&B is away"):
        study.look()
    assert capsys.readouterr().out.count("did not take run") == 4


def test_a_disk_that_is_nearly_full_is_left_to_the_records(study, played, monkeypatch):
    monkeypatch.setattr(follow.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**29))
    study.begin()
    with pytest.raises(GivenUp, match="less than 1 GiB are free"):
        study.look()
    assert played.runs == []


def test_of_two_commands_one_follows_and_the_other_takes_over(study, played):
    other = study.follow()
    assert study.follower.look() and not other.look()
    study.begin()
    study.look()
    study.follower.end()
    study.follower.lock.release()
    study.commit()
    study.begin()
    assert other.look() and other.look() and other.look()
    first, then = played.runs
    assert then.id == first.id and then.code == 0


def test_runs_that_are_done_and_were_never_told_of_are_counted_at_the_end(study, played, capsys):
    for number in (1, 2, 3):
        study.commit(number)
    study.begin(1)
    study.begin(4)
    study.follower.end()
    assert capsys.readouterr().out == ("W&B lacks 2 runs of those that are done; portability publish "
                                       f"{study.root} --to wandb --project p sends what is missing\n")
    assert sorted(run.code for run in played.runs) == [0, 1], "one is done, and one is left"


def end_of_main(study, monkeypatch, error):
    """The exit code of the process, whose looks raise an error."""
    def raises(self):
        raise error

    told = {"mode": "offline", "project": "p", "folder": str(study.root)}
    monkeypatch.setattr(Follower, "look", raises)
    monkeypatch.setattr(sys, "argv", ["follow", json.dumps(told), "1e6"])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(os, "nice", lambda by: by)
    with pytest.raises(SystemExit) as ended:
        follow.main()
    return ended.value.code


@pytest.mark.parametrize(("error", "said"), [
    (GivenUp("the disk is full"), "(the disk is full)"),
    (PermissionError(13, "Permission denied", "/home/me/results/mine/running"),
     "(PermissionError: [Errno 13] Permission denied: '.../mine/running')"),
])
def test_whatever_ends_the_process_is_one_sentence_and_a_code_of_its_own(study, monkeypatch, capsys, error,
                                                                         said):
    assert end_of_main(study, monkeypatch, error) == LEFT_ALONE
    line, = capsys.readouterr().out.splitlines()
    assert line.startswith(f"W&B is left alone {said}; the study goes on, and portability publish ")


def test_a_studys_own_run_is_nobody_elses_and_stays_the_same(tmp_path, played, monkeypatch):
    one, other = (Tracker(TrackingSpec("offline", "p", tmp_path / name / "mine")) for name in "ab")
    entry = Entry(f"{STUDY}-mine", {"job_type": STUDY}, {"cells": 1})
    assert one.send(entry) and other.send(entry) and not one.send(entry)
    grown = Entry(f"{STUDY}-mine", {"job_type": STUDY}, {"cells": 2})
    assert one.send(grown)
    first, others, then = (run.id for run in played.runs)
    assert then == first != others and first.startswith("study-mine-")


def test_a_studys_own_run_that_broke_half_way_is_gone_on_with(tmp_path, played, monkeypatch):
    tracker = Tracker(TrackingSpec("offline", "p", tmp_path))
    entry = Entry(f"{STUDY}-mine", {"job_type": STUDY}, {}, charts={"forest": "<p>"})
    with pytest.raises(AttributeError, match="Html"):
        tracker.send(entry)
    played.Html = lambda text, inject: text
    monkeypatch.setattr(Run, "log", lambda self, values: None)
    assert tracker.send(entry)
    assert played.runs[0].id == played.runs[1].id
