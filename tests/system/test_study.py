"""The whole way: from the command's configuration through real workers to the store, and again."""

import json
import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from portability.analysis.load import problems, tidy
from portability.core.errors import UserError
from portability.execution import execute
from portability.execution import scheduler as progress
from portability.inits.start import StartBuilder
from portability.planning.plan import plan
from portability.run import command
from portability.store import Store
from portability.tasks.classification import Scorer
from portability.training import trainer as engine
from support.metrics import mine
from support.studies import OFF, children, launch, small, wait_for
from support.tiny import CONF
from support.wandb_files import files, inspect

ASKED = ["+sweep=natives", "grid.seeds=[0,1]"]  # what the manifest says of the command, whatever the study is


@pytest.fixture(scope="module")
def finished(data_folders, make_host, tmp_path_factory):
    """A small study, run once through the pool: four methods, all arms and controls."""
    root = tmp_path_factory.mktemp("results")
    study = small(data_folders, make_host, f"results={root}", "study=small", "tracking.wandb=disabled",
                  "grid.inits=[ported,sampled,sampled_permute,sampled_norm,scratch,shuffled,compute_matched]",
                  "+grid.relations.different=nano_meals")
    code = command(study, ASKED)
    return study, Store(root / "small"), code


def test_every_cell_of_the_grid_is_there(finished):
    study, store, code = finished
    planned = plan(study.grid)
    assert code == 0 and not store.failures()
    for run_id, run in planned.runs.items():
        assert store.has(run_id, planned.marks[run_id]), run
        record = store.read(run_id)
        assert record["run_id"] == run_id and record["train_info"]["status"] == "success"
        assert [mark["updates"] for mark in record["train_info"]["metrics"]] == sorted(planned.marks[run_id])
    assert {cell.init for cell in planned.cells} >= {"bare", "compute_matched", "shuffled"}


def test_the_manifest_says_what_was_asked_for(finished):
    _, store, _ = finished
    manifest, = store.manifests()
    assert manifest["sweep"] == "natives" and manifest["overrides"] == ASKED


def test_nothing_private_is_in_a_record(finished, data_folders):
    _, store, _ = finished
    for path in (store.root / "runs").rglob("*.json"):
        text = path.read_text()
        assert str(data_folders["one"]) not in text and "/tmp" not in text and os.uname().nodename not in text


def test_repeating_the_command_trains_nothing(finished, monkeypatch):
    study, store, _ = finished
    stamps = {path: path.stat().st_mtime_ns for path in (store.root / "runs").rglob("record.json")}
    command(study, ASKED)
    assert {path: path.stat().st_mtime_ns for path in (store.root / "runs").rglob("record.json")} == stamps


def test_the_arms_of_a_cell_saw_the_same_token_ids(finished, monkeypatch):
    """The batches of ported, sampled and scratch, caught where the engine makes them."""
    study, store, _ = finished
    planned = plan(study.grid)
    cells = [c for c in planned.cells if c.method == "lora" and c.seed == 1 and c.budget == 4
             and c.relation == "same"
             and c.init in ("ported", "sampled", "scratch")]
    seen = {}
    original = engine.Trainer._batch

    def catch(self, step, *rest):
        ids, mask, target = original(self, step, *rest)
        seen.setdefault(current[0], []).append(torch.cat([ids.reshape(-1), mask.reshape(-1),
                                                          target.reshape(-1)]))
        return ids, mask, target

    monkeypatch.setattr(engine.Trainer, "_batch", catch)
    current = [""]
    context = execute.WorkerContext(store, study.data)
    for cell in cells:
        current[0] = cell.init
        execute.execute([planned.runs[cell.run_id]], {cell.run_id: sorted(planned.marks[cell.run_id])},
                        context)
    assert sorted(seen) == ["ported", "sampled", "scratch"] and all(len(batches) == 4
                                                                    for batches in seen.values())
    for one, two, three in zip(*seen.values(), strict=True):
        assert torch.equal(one, two) and torch.equal(two, three)


def test_one_worker_alone_and_stacks_of_one_give_the_same_bits(finished, data_folders, make_host, tmp_path):
    study, store, _ = finished
    again = small(data_folders, make_host, f"results={tmp_path}", "study=again", *OFF, "engine.stack=1",
                  "method=adapter", "grid.seeds=[1]")
    assert command(again) == 0
    other = Store(tmp_path / "again")
    ids = plan(again.grid).runs
    assert len(ids) == 5
    for run_id in ids:
        one, two = store.predictions(run_id), other.predictions(run_id)
        assert all(np.array_equal(one[key], two[key]) for key in one)
        if ids[run_id].method is not None:
            modules = [s.tensors(run_id, "module")[0] for s in (store, other)]
            assert all(torch.equal(modules[0][key], modules[1][key]) for key in modules[0])


def test_zero_shot_of_a_port_to_the_same_host_is_the_origins_own_score(data_folders, make_host, tmp_path):
    study = small(data_folders, make_host, f"results={tmp_path}", "study=self", *OFF, "method=compacter",
                  "grid.pairs=[[nano-raw-base,nano-raw-base]]", "grid.inits=[ported]", "grid.seeds=[0]",
                  "grid.ports=[copy]")
    assert command(study) == 0
    store, planned = Store(tmp_path / "self"), plan(study.grid)
    cell = next(cell for cell in planned.cells if cell.init == "ported" and cell.budget == 0)
    ported, origin = store.predictions(cell.run_id), store.predictions(planned.runs[cell.run_id].origin)
    assert np.array_equal(ported["margin"][0], origin["margin"][-1])
    assert store.read(cell.run_id)["port_info"]["carried_fraction"] == 1.0


def test_encoder_arms_start_from_the_origins_head(data_folders, make_host, tmp_path):
    six, three = make_host("bert", 32, 3, 4, 0), make_host("bert", 48, 2, 4, 1)
    study = small(data_folders, make_host, f"results={tmp_path}", "study=heads", *OFF, "method=lora",
                  "grid.seeds=[0]",
                  f"host.nano-raw-base.path={six.source}", f"host.nano-tuned-base.path={three.source}")
    assert command(study) == 0
    store, planned = Store(tmp_path / "heads"), plan(study.grid)
    cells = {cell.init: cell for cell in planned.cells if cell.budget == 0}
    origin = planned.runs[cells["ported"].run_id].origin
    head = store.tensors(origin, "head")[0]["head.weight"]
    bare = store.tensors(cells["bare"].run_id, "head")[0]["head.weight"]
    assert torch.equal(bare[:, :32], head) and not bare[:, 32:].any()
    scratch = store.predictions(cells["scratch"].run_id)["margin"][0]
    # LoRA starts as no change
    assert np.allclose(scratch, store.predictions(cells["bare"].run_id)["margin"][0], atol=1e-5)


def test_a_diverging_run_fails_with_its_update_and_blocks_what_needs_it(data_folders, make_host, tmp_path):
    study = small(data_folders, make_host, f"results={tmp_path}", "study=nan", *OFF, "method=[lora,adapter]",
                  "method.lora.learning_rate=1e30", "grid.seeds=[0]")
    assert command(study) == 1
    store, planned = Store(tmp_path / "nan"), plan(study.grid)
    for run_id, run in planned.runs.items():
        failed = run.method is not None and run.method.name == "lora"
        assert store.has(run_id) != failed
        if failed and run.origin is None:
            assert store.failures()[run_id]["updates"] >= 1 and "not finite at update" in store.failures()[
                run_id]["error"]
        elif failed:
            assert "blocked: its origin" in store.failures()[run_id]["error"]


def test_an_impossible_port_is_refused_before_work_and_fails_alone_in_it(data_folders, make_host, tmp_path,
                                                                         monkeypatch):
    other = make_host("gpt2", 32, 2, 4, 1)
    study = small(data_folders, make_host, f"results={tmp_path}", "study=far", *OFF, "method=lora",
                  "grid.seeds=[0]", f"host.nano-tuned-base.path={other.source}")
    with pytest.raises(UserError, match="from 'nano-raw-base' to 'nano-tuned-base' would lose .* partial "
                       "carry"):
        command(study)
    assert list(tmp_path.iterdir()) == []  # nothing was begun
    monkeypatch.setattr(progress, "preview", lambda *_: {})  # as if the rehearsal had not seen it
    assert command(study) == 1
    store = Store(tmp_path / "far")
    errors = [failure["error"] for failure in store.failures().values()]
    assert len(errors) == 2 and all("partial" in error for error in errors)
    assert {record["cell"]["init"] for record in store.records()} == {"scratch", "bare"}


def test_a_member_whose_scores_are_not_finite_fails_alone(data_folders, make_host, tmp_path, monkeypatch):
    study = small(data_folders, make_host, "method=lora", "grid.inits=[scratch]", "grid.seeds=[0,1,2]")
    planned = plan(study.grid)
    runs = [run for run in planned.runs.values() if run.method
            and run.host.name == study.grid.pairs[0][0].name]
    original, stacks = Scorer.predict, []

    def spoiled(*args):
        found = original(*args)
        stacks.append(len(found.margin))
        found.margin[1] = np.nan
        return found

    monkeypatch.setattr(Scorer, "predict", spoiled)
    store = Store(tmp_path)
    execute.execute(runs, {i: sorted(planned.marks[i]) for i in planned.runs},
                    execute.WorkerContext(store, study.data))
    assert set(stacks) == {3}, "the neighbours were trained again"
    assert [store.has(run.run_id) for run in runs] == [True, False, True]
    failure = store.failures()[runs[1].run_id]
    assert "margin is not finite" in failure["error"] and "/tmp" not in json.dumps(failure)
    assert str(CONF.parent) not in json.dumps(failure)


def test_a_broken_stack_is_halved_until_the_guilty_run_is_alone(data_folders, make_host, tmp_path,
                                                                monkeypatch):
    study = small(data_folders, make_host, "method=lora", "grid.inits=[scratch]", "grid.seeds=[0,1,2,3]")
    planned = plan(study.grid)
    runs = [run for run in planned.runs.values() if run.method
            and run.host.name == study.grid.pairs[0][0].name]
    guilty, tried = runs[2].run_id, []
    original = execute.outputs

    def fragile(stack, marks, context):
        tried.append(len(stack))
        if guilty in [run.run_id for run in stack]:
            raise RuntimeError("boom")
        return original(stack, marks, context)

    monkeypatch.setattr(execute, "outputs", fragile)
    store = Store(tmp_path)
    execute.execute(runs, {i: sorted(planned.marks[i]) for i in planned.runs},
                    execute.WorkerContext(store, study.data))
    assert tried == [4, 2, 2, 1, 1] and set(store.failures()) == {guilty}
    assert store.failures()[guilty]["traceback"].count("boom") and sum(store.has(r.run_id) for r in runs) == 3


def test_a_full_disk_stops_the_run_and_keeps_what_is_finished(data_folders, make_host, tmp_path, monkeypatch):
    study = small(data_folders, make_host, "method=lora", "grid.inits=[scratch]", "grid.seeds=[0,1]")
    planned = plan(study.grid)
    runs = [run for run in planned.runs.values() if run.method
            and run.host.name == study.grid.pairs[0][0].name]
    store, commits = Store(tmp_path), []
    original = Store.commit

    def full(self, run_id, result):
        if commits:
            raise OSError(28, "No space left on device")
        commits.append(run_id)
        original(self, run_id, result)

    monkeypatch.setattr(Store, "commit", full)
    with pytest.raises(OSError, match="No space"):
        execute.execute(runs, {i: sorted(planned.marks[i]) for i in planned.runs},
                        execute.WorkerContext(store, study.data))
    assert [store.has(run.run_id) for run in runs].count(True) == 1
    assert all(record for _, record, _ in store.entries())


def test_a_full_disk_in_a_worker_is_one_sentence(data_folders, make_host, tmp_path):
    """A real full disk: the study's folder is a file system of a few pages."""
    root = tmp_path / "results"
    root.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(root)],
                      capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        study = small(data_folders, make_host, f"results={root}", "study=full", *OFF, "method=lora",
                      "grid.seeds=[0,1,2]")
        with pytest.raises((UserError, OSError), match="No space left"):
            command(study)
        assert all(record for _, record, _ in Store(root / "full").entries())
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_a_record_of_another_mark_set_is_trained_again_to_the_same_numbers(data_folders, make_host, tmp_path):
    first = small(data_folders, make_host, f"results={tmp_path}", "study=marks", *OFF, "method=lora",
                  "grid.seeds=[0]", "grid.inits=[scratch]", "grid.budgets=[4]")
    assert command(first) == 0
    store, planned = Store(tmp_path / "marks"), plan(first.grid)
    cell = next(cell for cell in planned.cells if cell.init == "scratch" and cell.budget == 4)
    before = store.predictions(cell.run_id)["margin"][-1]
    more = small(data_folders, make_host, f"results={tmp_path}", "study=marks", *OFF, "method=lora",
                 "grid.seeds=[0]", "grid.inits=[scratch]", "grid.budgets=[2,4]")
    assert command(more) == 0
    assert store.has(cell.run_id, [0, 2, 4]) and np.array_equal(store.predictions(cell.run_id)["margin"][-1],
                                                                before)


def test_a_command_with_other_budgets_keeps_the_evaluations_that_are_there(data_folders, make_host, tmp_path):
    words = (f"results={tmp_path}", "study=budgets", *OFF, "method=lora", "grid.seeds=[0]",
             "grid.inits=[scratch]")
    for budgets in ("[2,6]", "[4,6]"):
        assert command(small(data_folders, make_host, *words, f"grid.budgets={budgets}")) == 0
    store = Store(tmp_path / "budgets")
    trained = [record for record in store.records() if record["cell"]["method"]]
    marks = {record["cell"]["host"]: [mark["updates"] for mark in record["train_info"]["metrics"]]
             for record in trained}
    assert sorted(marks.values()) == [[0, 2, 4, 6], [6]]  # the origin is asked for at its end alone
    first = plan(small(data_folders, make_host, *words, "grid.budgets=[2,6]").grid)
    assert all(store.has(run_id, first.marks[run_id])
               for run_id in first.runs), "the first command's cells are gone"


def test_nothing_is_written_where_the_work_cannot_begin(data_folders, make_host, tmp_path, monkeypatch):
    words = (f"results={tmp_path}", "study=never", *OFF, "method=lora", "grid.seeds=[0]")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="needs Slurm's commands|needs submitit"):
        command(small(data_folders, make_host, *words, "engine=slurm"))
    assert not (tmp_path / "never").exists()


def test_a_part_of_a_plan_is_shown_and_summed_up_alone(data_folders, make_host, tmp_path, capsys):
    words = (f"results={tmp_path}", "study=part", *OFF, "method=[lora,adapter]", "grid.inits=[scratch]",
             "grid.seeds=[0]")
    assert command(small(data_folders, make_host, *words, "only={method: lora}")) == 0
    assert "runs: 2, 2 done" in capsys.readouterr().out  # no port, so no origin
    for mode, said in (("plan", "2 done, 0 to do"), ("status", "runs: 2, 2 done")):
        command(small(data_folders, make_host, *words, "only={method: lora}", f"mode={mode}"))
        assert said in capsys.readouterr().out
    command(small(data_folders, make_host, *words, "grid.inits=[ported]", "only={init: bare}", "mode=plan"))
    # no cell is trained, and nothing is divided by that
    assert "study part: 0 cells" in capsys.readouterr().out
    command(small(data_folders, make_host, *words, "mode=status"))
    assert "runs: 5, 2 done, 0 failed, 3 planned" in capsys.readouterr().out


# ---- the command, killed


@pytest.mark.parametrize("how", ["parent killed", "worker killed", "interrupted"])
def test_a_killed_command_loses_nothing_and_is_completed_by_repeating_it(data_folders, make_host, tmp_path,
                                                                         how):
    store = Store(tmp_path / "kill")
    process = launch(tmp_path, data_folders, make_host)
    records = lambda: list((store.root / "runs").glob("??/*/record.json"))  # noqa: E731
    wait_for(lambda: records() or process.poll() is not None)
    workers = children(process.pid)
    if how == "worker killed":
        os.kill(workers[-1], signal.SIGKILL)
        output = process.communicate(timeout=240)[0]
        assert process.returncode == 0, output
    else:
        process.send_signal(signal.SIGKILL if how == "parent killed" else signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == (-signal.SIGKILL if how == "parent killed" else 130)
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 30)
    kept = {path: path.stat().st_mtime_ns for path in records()}
    assert all(json.loads(path.read_text()) for path in kept) and all(record
                                                                      for _, record, _ in store.entries())
    again = launch(tmp_path, data_folders, make_host)
    output = again.communicate(timeout=240)[0]
    assert again.returncode == 0 and "0 failed, 0 missing" in output, output
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "a finished run was trained again"


def test_running_out_of_an_origin_is_named(data_folders, make_host, tmp_path):
    study = small(data_folders, make_host, "method=lora", "grid.inits=[ported]", "grid.seeds=[0]")
    planned = plan(study.grid)
    run = next(run for run in planned.runs.values() if run.init.kind == "ported")
    bench = SimpleNamespace(attached=SimpleNamespace(spec=run.method))
    with pytest.raises(UserError, match="which is not in the store"):
        StartBuilder(bench, Store(tmp_path), study.data)._origin(run)


def test_a_port_that_failed_for_want_of_a_setting_is_asked_for_anew_with_it(
    data_folders, make_host, tmp_path, capsys, monkeypatch
):
    other = make_host("gpt2", 32, 2, 4, 1)
    words = (f"results={tmp_path}", "study=anew", *OFF, "method=lora", "grid.seeds=[0]",
             "grid.inits=[ported]", f"host.nano-tuned-base.path={other.source}")
    first = small(data_folders, make_host, *words)
    with monkeypatch.context() as patch:
        patch.setattr(progress, "preview", lambda *_: {})  # it would say at once what the run finds
        assert command(first) == 1
    store, old = Store(tmp_path / "anew"), plan(first.grid)
    (failed,) = store.failures()
    again = small(data_folders, make_host, *words, "port.pad.partial=true")
    capsys.readouterr()
    assert command(again) == 0
    said = capsys.readouterr().out
    assert "2 done, 0 failed, 0 missing" in said
    assert said.endswith(f"verdict and report: portability analyze {tmp_path / 'anew'}\n")
    cells = tidy(store)
    assert set(cells["status"]) == {"done"} and failed not in set(cells["run_id"]) and problems(store) == []
    # now there is a result
    with pytest.raises(UserError, match="already holds the cell .*choose another study=NAME"):
        command(first)
    assert {old.runs[failed].origin} <= set(plan(again.grid).runs), "the origin was trained for nothing"


def test_metrics_that_are_asked_for_stand_in_records_tables_and_wandb(data_folders, make_host, tmp_path,
                                                                      capsys):
    body = "return {'mine': sum(prediction_scores), 'odd': float('nan') if len(references) == 40 else 1.0}"
    folder = mine(tmp_path, body, ("prediction_scores", "references"))
    asked = small(data_folders, make_host, f"results={tmp_path / 'results'}", "tracking.wandb=offline",
                  "engine.workers=1",
                  "method=lora", "grid.seeds=[0]", "grid.inits=[ported,scratch]", "eval.limit=40",
                  f"eval.metrics=[auc,matthews_correlation,{folder}]")
    assert command(asked) == 0
    store = Store(tmp_path / "results" / asked.name)
    for run_id in plan(asked.grid).runs:
        text = (store.folder(run_id) / "record.json").read_text()
        record, saved = json.loads(text), store.predictions(run_id)
        assert str(tmp_path) not in text and "metrics" not in record["spec"]["eval"]
        for place, mark in enumerate(record["train_info"]["metrics"]):
            assert not {"eval_accuracy", "eval_f1", "eval_mine_odd"} & set(mark) and "eval_loss" in mark
            margin, label = saved["margin"][place].astype(float), saved["label"]
            pairs = [(p > q) + (p == q) / 2 for p in margin[label == 1] for q in margin[label == 0]]
            assert mark["eval_auc"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
            assert mark["eval_matthews_correlation"] == pytest.approx(
                np.corrcoef(margin > 0, label)[0, 1] if 0 < np.mean(margin > 0) < 1 else 0.0, abs=1e-9)
            assert mark["eval_mine"] == pytest.approx(margin.sum(), rel=1e-4)
        holes = record["train_info"]["unmeasured"]
        assert sorted((hole["updates"], hole["metric"], hole["reason"]) for hole in holes) == [
            (mark["updates"], f"{iterate}_mine_odd", "it is nan")
            for mark in record["train_info"]["metrics"] for iterate in ("eval", "last")]
        written, = (inspect(path) for name, path in files(store.root).items() if name.startswith(run_id))
        last = [line["history"]["item"] for line in written if line["type"] == "history"][-1]
        assert {key: last[key] for key in ("eval_auc", "eval_mine")} == {key: mark[key]
                                                                         for key in ("eval_auc", "eval_mine")}
    assert tidy(store, "eval_mine")["value"].notna().all() and tidy(store, "eval_auc")["value"].notna().all()
    assert tidy(store, "eval_accuracy")["value"].between(0, 1).all()  # out of the predictions
    assert {p.kind for p in problems(store)} == {"unmeasured"} and "no eval_mine_odd: it is nan" in str(
        problems(store)[0])
    wanting = small(data_folders, make_host, f"results={tmp_path / 'results'}", "tracking.wandb=disabled",
                    "mode=plan",
                    "method=lora", "grid.seeds=[0]", "grid.inits=[ported,scratch]", "eval.limit=40",
                    f"eval.metrics=[f1,auc,{mine(tmp_path, 'return 1', name='late')}]")
    capsys.readouterr()
    assert command(wanting) == 0
    said = capsys.readouterr().out
    assert "metric late: 4 done runs stored without it; it is computed for new runs only" in said
    assert ("metric f1: 4 done runs stored without it; `portability analyze --metric eval_f1` "
            "computes") in said
    assert "metric auc" not in said


def test_a_metric_that_fails_is_refused_before_any_work(data_folders, make_host, tmp_path):
    folder = mine(tmp_path, "return {'mine': 1 / 0}")
    asked = small(data_folders, make_host, f"results={tmp_path / 'results'}", *OFF,
                  f"eval.metrics=[accuracy,{folder}]")
    with pytest.raises(UserError, match="'mine' of eval.metrics fails on 64 invented examples .* division by "
                       "zero"):
        command(asked)
    assert not (tmp_path / "results").exists()


def test_what_was_declared_before_the_runs_stays_declared(data_folders, make_host, tmp_path):
    words = (f"results={tmp_path}", "study=declared", "grid.inits=[ported,scratch]", "method=lora", *OFF)
    contrast = "primary=[{name: a, arm: ported, baseline: scratch, budget: 4}]"
    assert command(small(data_folders, make_host, *words, contrast)) == 0
    before = sorted(path.name for path in (tmp_path / "declared" / "manifests").iterdir())
    with pytest.raises(UserError, match="declared other primary contrasts before its runs; choose another "
                       "study=NAME"):
        command(small(data_folders, make_host, *words))
    with pytest.raises(UserError, match="declared other primary metrics before its runs"):
        command(small(data_folders, make_host, *words, contrast, "primary_metric=accuracy"))
    assert command(small(data_folders, make_host, *words, contrast, "grid.seeds=[0,1,2]")) == 0
    assert before != sorted(path.name for path in (tmp_path / "declared" / "manifests").iterdir())
