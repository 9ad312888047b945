"""How long a launch takes, by finished runs, by a bound, and by calibration."""

import io
import re
from dataclasses import replace

import pytest

from portability.core.errors import UserError
from portability.core.specs import AnswerSpec
from portability.execution import estimate as module
from portability.execution.estimate import Estimate, confirm, estimate
from portability.execution.scheduler import run_plan
from portability.planning.cost import cost_units, port_updates
from portability.planning.plan import plan
from portability.run import command
from portability.store import Result, Store
from portability.tracking.runs import TrackingSpec
from support.plans import grid, record
from support.studies import small


def whole(run, marks):
    return cost_units(run, run.train.updates, len(marks[run.run_id]))


def test_finished_runs_tell_how_long_the_others_take(tmp_path):
    planned, store = plan(grid()), Store(tmp_path)
    runs = {run_id: run for run_id, run in planned.runs.items() if run.method}
    marks = planned.marks
    done = [run_id for run_id, run in runs.items() if run.seed == 0]
    for run_id in done:  # every run takes a second for a billion units of work
        store.commit(run_id, Result(record(run_id, marks[run_id], whole(runs[run_id], marks) / 1e9)))
    todo = {run_id: run for run_id, run in runs.items() if run_id not in done}
    found = estimate(planned, todo, store, workers=2)
    exact = sum(whole(run, marks) for run in todo.values()) / 1e9 / 2
    assert found.seconds == pytest.approx(exact) and found.about == "about" and found.runs == len(todo)
    assert "finished runs" in str(found)


def test_updates_of_a_port_itself_are_work_too(tmp_path):
    runs = [run for run in plan(grid()).runs.values() if run.port and run.init.kind == "ported"]
    inner = {"of": "warm", "of_options": {"updates": 7, "batch_size": 4}}
    for options, own in (({"of": "pad"}, []), ({"updates": 50, "batch_size": 8}, [(50, 8)]),
                         ({"updates": 50, "batch_size": 8, **inner}, [(50, 8), (7, 4)]),
                         ({"updates": 5}, [(5, runs[0].train.batch_size)]), ({"updates": "many"}, [])):
        run = replace(runs[0], port=replace(runs[0].port, options=options))
        assert port_updates(run) == own
        examples = sum(size * batch for size, batch in own)
        for updates, marks in ((0, 0), (100, 3)):
            more = cost_units(run, updates, marks) - cost_units(runs[0], updates, marks)
            assert more == pytest.approx(examples / run.train.batch_size * cost_units(runs[0], 1, 0))
    bare = replace(run, method=None)
    assert port_updates(bare) == [] == port_updates(replace(run, port=None))
    trained = plan(grid())
    few = {run.run_id: run for run in runs}
    trained.marks.update({run_id: {100} for run_id in few})
    long = {run_id: replace(run, port=replace(run.port, options={"updates": 10_000, "batch_size": 8}))
            for run_id, run in few.items()}
    found = [estimate(trained, todo, Store(tmp_path), workers=1) for todo in (few, long)]
    assert found[0] and (found[1] is None or found[1].seconds > 10 * found[0].seconds)


def test_what_no_run_is_known_of_is_bounded_or_left_open(tmp_path):
    planned = plan(grid())
    few = dict(list(planned.runs.items())[:4])
    found = estimate(planned, few, Store(tmp_path), workers=1)
    assert "less than" in str(found)
    many = {f"{i}-{n}": run for n in range(40) for i, run in planned.runs.items()}
    planned.marks.update({run_id: {200} for run_id in many})
    assert estimate(planned, many, Store(tmp_path), workers=1) is None


def test_more_than_an_hour_is_asked_for(monkeypatch):
    long = Estimate(10, 7200.0, 2, "guessed")
    confirm(Estimate(10, 3000.0, 2, "guessed"), yes=False)
    confirm(long, yes=True)
    with pytest.raises(UserError, match="2.0 h on 2 workers.*repeat the command with "
                       "yes=true"):
        confirm(long, yes=False)
    for answer, starts in (("y\n", True), ("\n", False), ("no\n", False)):
        terminal = io.StringIO(answer)
        terminal.isatty = lambda: True
        monkeypatch.setattr("sys.stdin", terminal)
        if starts:
            confirm(long, yes=False)
        else:
            with pytest.raises(UserError, match="nothing was started"):
                confirm(long, yes=False)


@pytest.mark.system
def test_a_calibration_measures_real_updates_and_a_long_launch_starts_nothing(data_folders, make_host,
                                                                              tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WORST", (1.0, 1.0))  # no bound says anything
    monkeypatch.setattr(module, "ASK_SECONDS", 0.01)
    study = small(data_folders, make_host, f"results={tmp_path}", "study=long", "method=lora",
                  "engine.workers=1", "tracking.wandb=disabled", "grid.seeds=[0]")
    with pytest.raises(UserError, match="calibrated on 2 hosts.*yes=true") as error:
        command(study)
    assert not (tmp_path / "long" / "runs").exists() and seconds(str(error.value)) < 600
    study = small(data_folders, make_host, f"results={tmp_path}", "study=long", "method=lora",
                  "engine.workers=1", "tracking.wandb=disabled", "grid.seeds=[0]", "yes=true")
    assert command(study) == 0


def seconds(text):
    number, unit = re.search(r"about ([\d.]+) (s|min|h)", text).groups()
    return float(number) * {"s": 1, "min": 60, "h": 3600}[unit]


def test_a_queue_elsewhere_is_not_calibrated_from_here(data_folders, make_host, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WORST", (1.0, 1e6))
    # no cluster is needed to ask
    monkeypatch.setattr("portability.execution.engines.slurm.Slurm.check", lambda conf: None)
    study = small(data_folders, make_host, f"results={tmp_path}", "study=far", "engine=slurm", "method=lora")
    planned, store = plan(study.grid), Store(tmp_path / "far")
    with pytest.raises(UserError, match="run a part first .only=...., or repeat the command with yes=true"):
        run_plan(planned, planned.runs, store, study, TrackingSpec("disabled", "x", tmp_path))


def test_written_answers_and_choices_are_more_work_than_labels():
    run = next(run for run in plan(grid()).runs.values() if run.method)
    spec = AnswerSpec("exact_match", "squad", None, 10, 64)
    written, chosen = (replace(run, task=task) for task in (spec,
                                                            replace(spec, scoring="choice", new_tokens=None)))
    scoring = [cost_units(one, 0, 1) for one in (run, written, chosen)]
    assert scoring[1] == pytest.approx(11 * scoring[0]) and scoring[2] == pytest.approx(4 * scoring[0])


def test_one_worker_is_no_workers():
    assert str(Estimate(1, 30.0, 1, "a bound")) == "1 run to do: about 30 s on 1 worker (a bound)"
