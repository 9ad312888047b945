"""What is told of runs in training is what their records hold, and telling it changes no record."""

import json

import pytest

from portability.execution import execute
from portability.execution.execute import WorkerContext
from portability.planning.plan import plan
from portability.store import Store
from portability.tracking.live import Live, take, taken
from portability.training import curves
from support.studies import small

FIELDS = ("train_loss", "metrics")


@pytest.fixture(scope="module")
def untold(data_folders, make_host, tmp_path_factory):
    """Two runs and a bare host, of which nothing was told."""
    study = small(data_folders, make_host, "method=lora", "grid.inits=[scratch]", "grid.seeds=[0,1]",
                  "grid.budgets=[4,12]", "train.warmup=8")
    planned = plan(study.grid)
    runs = [one for one in planned.runs.values() if one.host.name == study.grid.pairs[0][1].name]
    marks = {run_id: sorted(found) for run_id, found in planned.marks.items()}
    return study, runs, marks, carried_out(study, runs, marks, tmp_path_factory.mktemp("untold"), None)


def carried_out(study, runs, marks, root, live, *how, **more):
    """Carry runs out, the bare host apart; what their records hold."""
    store = Store(root)
    context = WorkerContext(store, study.data, *how, live=live, **more)
    for part in ([run for run in runs if run.method], [run for run in runs if not run.method]):
        execute.execute(part, marks, context)
    return {run.run_id: held(store, run.run_id) for run in runs if store.has(run.run_id)}


def held(store, run_id):
    record = store.read(run_id)
    return {"files": {name: one["sha256"] for name, one in record["files"].items()},
            **{name: record["train_info"][name] for name in FIELDS}}


def heard(root):
    """All that was told: headings by run, and what was measured by run and update."""
    lines, headings, points = [], {}, {}
    take(root)
    taken(root, lambda owner, line: lines.append(line))
    for line in lines:
        if "begin" in line:
            headings[line["begin"]["run_id"]] = line
        for run_id, values in line.get("values", {}).items():
            assert line["step"] not in points.setdefault(run_id, {}) or headings, "told twice"
            points[run_id].setdefault(line["step"], {}).update(values)
    return headings, points, lines


def live_in(root):
    (root / "running").mkdir(parents=True)
    return Live(root, "worker")


def test_what_is_told_is_what_the_records_hold(untold, tmp_path):
    study, runs, marks, before = untold
    live = live_in(tmp_path)
    assert carried_out(study, runs, marks, tmp_path, live) == before
    headings, points, lines = heard(tmp_path)
    assert headings.keys() == before.keys() and live.cpu > 0 and lines[-2]["cpu"] <= live.cpu
    store = Store(tmp_path)
    for run in runs:
        begun, record = headings[run.run_id], store.read(run.run_id)
        assert begun["marks"] == marks[run.run_id]
        assert begun["begin"] == json.loads(json.dumps({name: record[name] for name in begun["begin"]}))
        if run.method is None:
            continue
        own = points[run.run_id]
        assert [[step, own[step]["train_loss"]] for step in (10, 12)] == record["train_info"]["train_loss"]
        for mark in record["train_info"]["metrics"]:
            assert {"updates": mark["updates"], **own[mark["updates"]]}.items() >= mark.items()
        rate = run.method.learning_rate
        assert own[10]["learning_rate"] == own[12]["learning_rate"] == rate  # the warm-up is over
        assert own[10]["tokens_per_second"] > 0 and "train_loss" not in own[4]


def test_the_rate_in_the_warm_up_is_a_part_of_the_methods(data_folders, make_host, tmp_path):
    study = small(data_folders, make_host, "method=lora", "grid.inits=[scratch]", "grid.seeds=[0]",
                  "grid.budgets=[10]", "train.warmup=40", "grid.pairs=[[raw_base,raw_base]]")
    planned = plan(study.grid)
    runs = [run for run in planned.runs.values() if run.method]
    carried_out(study, runs, {i: sorted(m) for i, m in planned.marks.items()}, tmp_path, live_in(tmp_path))
    point = heard(tmp_path)[1][runs[0].run_id][10]
    assert point["learning_rate"] == pytest.approx(runs[0].method.learning_rate / 4)  # the tenth of forty


def test_a_run_that_goes_on_tells_its_whole_curve_again(untold, tmp_path):
    study, runs, marks, before = untold
    live, made = live_in(tmp_path), []

    def dies(stage):
        made.append(stage.updates)
        if stage.updates == 11:
            raise KeyboardInterrupt

    trained = [run for run in runs if run.method]
    with pytest.raises(KeyboardInterrupt):
        carried_out(study, trained, marks, tmp_path, live, dies, checkpoint_seconds=0)
    first = heard(tmp_path)[1]
    after = carried_out(study, trained, marks, tmp_path, live)
    assert after == {run_id: one for run_id, one in before.items() if run_id in after}
    headings, points, _ = heard(tmp_path)
    for run in trained:
        assert headings[run.run_id] and sorted(points[run.run_id]) == sorted({*marks[run.run_id], 10})
        for step, values in first[run.run_id].items():
            for name in values.keys() - {"learning_rate", "tokens_per_second"}:
                assert points[run.run_id][step][name] == values[name]


def test_telling_that_breaks_or_cannot_be_written_changes_nothing(untold, tmp_path, monkeypatch, caplog):
    study, runs, marks, before = untold
    assert carried_out(study, runs, marks, tmp_path / "nowhere", Live(tmp_path / "none", "worker")) == before
    monkeypatch.setattr(curves, "heading", lambda *_: 1 / 0)
    live = live_in(tmp_path / "breaks")
    assert carried_out(study, runs, marks, tmp_path / "breaks", live) == before
    assert live.broken and "not told while runs train (ZeroDivisionError" in caplog.text


def test_where_telling_has_broken_runs_still_begin(untold, tmp_path):
    study, runs, marks, _ = untold
    live = live_in(tmp_path)
    live.broken = True
    carried_out(study, runs, marks, tmp_path, live)
    headings, points, _ = heard(tmp_path)
    assert headings.keys() == {run.run_id for run in runs} and not any(points.values())


def test_a_run_that_failed_is_told(untold, tmp_path, monkeypatch):
    study, runs, marks, _ = untold
    live = live_in(tmp_path)
    monkeypatch.setattr(execute, "build_result", lambda output: {}["nothing /home/me/secret there"])
    carried_out(study, runs, marks, tmp_path, live)
    failed = [line for line in heard(tmp_path)[2] if "failed" in line]
    assert {line["failed"] for line in failed} == {run.run_id for run in runs}
    assert all("nothing" in line["error"] and "/home/me" not in line["error"] for line in failed)
