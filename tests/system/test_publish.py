"""Studies are filed in W&B once each, whole, with the lineage of their modules; read back from W&B's own
offline files."""

import json
import re
import shutil
import sys

import pandas as pd
import pytest

from portability.analysis.load import tidy
from portability.analysis.metrics import METRICS
from portability.core.errors import UserError
from portability.dashboard import VERSION, save, workspace
from portability.publish import main
from portability.store.admin.archive import pack
from portability.study_run import comparisons, heat_map
from portability.tracking.entries import entry_of, filing_of
from portability.tracking.runs import Tracker, TrackingSpec
from support.store_parts import contents, flip, ported, study
from support.synthetic import build
from support.wandb_files import files, inspect

pytestmark = pytest.mark.usefixtures("no_home")


@pytest.fixture
def store(tmp_path):
    """A real study of two origins, a ported run and a bare host, with their modules."""
    return study("format2", tmp_path / "mine")


@pytest.fixture
def invented(tmp_path):
    """A whole small study of invented records."""
    return build(tmp_path / "toy")


def written(root):
    """Every file of a study but W&B's own logs, which its service may still write."""
    return {name: data for name, data in contents(root).items() if not name.endswith(".log")}


def publish(store, *how):
    return main([str(store.root), "--to", "wandb", "--mode", "offline", *how])


def named(store, run_id):
    """A run's id in W&B."""
    return entry_of(store.read(run_id), []).id


def study_run(store):
    """The id of the study's own run in W&B, as it is remembered."""
    path, = store.root.glob("wandb/sent/study-*.json")
    return json.loads(path.read_text())["id"]


def told(*parts):
    """What W&B was told of a run, in one folder or several: its first run record with config, history by
    step, summary, and artifacts."""
    records = [record for file in parts for record in inspect(file)]
    summary = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    run = next(record["run"] for record in records if record["type"] == "run")
    points = {r["history"]["item"]["_step"]: r["history"]["item"] for r in records if r["type"] == "history"}
    return run, points, summary, [record["artifact"] for record in records if record["type"] == "artifact"]


def plain(points):
    return {step: {k: v for k, v in values.items() if not k.startswith("_")}
            for step, values in points.items()}


def test_every_run_of_a_study_is_filed_as_while_it_runs(store, tmp_path, capsys):
    live = tmp_path / "live"
    tracker = Tracker(TrackingSpec("offline", "portability", live))
    tracker.send(entry_of(store.read(ported(store)), study="mine"))
    assert publish(store) == 0 and "5 sent" in capsys.readouterr().out
    assert sorted(files(store.root)) == sorted([*(named(store, record["run_id"])
                                                  for record in store.records()), study_run(store)])
    name = named(store, ported(store))
    (run, points, summary, _), (before, curve, _, _) = told(files(store.root)[name]), told(files(live)[name])
    for key in ("run_id", "run_group", "job_type", "display_name", "project", "config"):
        assert run[key] == before[key], key
    record = store.read(ported(store))
    told_of = {point["step"]: point["values"] for point in entry_of(record, []).curve}
    assert plain(points) == plain(curve) == told_of
    assert run["tags"] == entry_of(record, [store.manifests()[0]["sweep"]], study="mine").how["tags"]
    assert summary["zero_shot_lift"] == pytest.approx(lift_of(store))


def lift_of(store):
    cells = tidy(store)
    return cells[(cells["run_id"] == ported(store)) & (cells["budget"] == 0)]["lift"].item()


def test_a_module_is_traced_from_its_origin_to_what_was_trained(store):
    publish(store)
    record, found = store.read(ported(store)), files(store.root)
    of_run, of_origin = (found[named(store, run_id)] for run_id in (record["run_id"],
                                                                    record["spec"]["origin"]))
    (used, made), (logged,) = told(of_run)[3], told(of_origin)[3]
    assert used["name"] == logged["name"] == f"module-{record['spec']['origin']}" and used[
        "digest"] == logged["digest"]
    assert used["use_after_commit"] and used["user_created"] and not logged.get("use_after_commit")
    assert made["name"] == f"module-{record['run_id']}" and not made.get("use_after_commit")
    content, = made["manifest"]["contents"]
    assert content["size"] == str(record["files"]["module.safetensors"]["bytes"])
    assert content["local_path"] == str(store.folder(record["run_id"]).resolve() / "module.safetensors")
    assert of_origin.parent.name <= of_run.parent.name  # origins first


def test_a_second_call_sends_nothing(store, capsys):
    publish(store)
    before = written(store.root)
    assert publish(store) == 0 and "0 sent" in capsys.readouterr().out.splitlines()[-1]
    assert written(store.root) == before


def test_what_was_logged_while_running_is_completed_and_not_doubled(store):
    tracker, run_id = Tracker(TrackingSpec("offline", "portability", store.root.resolve())), ported(store)
    for record in store.records():
        if record["run_id"] != run_id:
            tracker.send(entry_of(record, study="mine"))
    entry = entry_of(store.read(run_id), study="mine")
    opened = tracker.begin(run_id, filing_of(store.read(run_id), "mine"))  # as while it trains
    tracker.log(opened, 0, entry.curve[0]["values"], entry.curve[-1]["step"])
    tracker.finish(opened, entry)
    publish(store)
    assert len(files(store.root)) == 5, "a run is of two W&B runs"
    name = opened.id
    first, then = sorted(store.root.glob(f"wandb/offline-run-*-{name}*/*.wandb"))
    run, points, summary, artifacts = told(then)
    assert run["resume"] and points == {} and len(artifacts) == 2 and "zero_shot_lift" in summary
    assert plain(told(first, then)[1]) == {point["step"]: point["values"]
                                           for point in entry_of(store.read(ported(store)), []).curve}


def test_a_published_copy_is_filed_without_modules(store, tmp_path):
    pack(store, tmp_path / "copy")
    copy = type(store)(tmp_path / "copy")
    assert publish(copy) == 0 and sorted(files(copy.root)) == sorted(
        [*(named(store, record["run_id"]) for record in store.records()), study_run(copy)])
    run, points, _, artifacts = told(files(copy.root)[named(store, ported(store))])
    assert points and artifacts == [] and run["config"]["update"]["origin_run"] == store.read(ported(store))[
        "spec"]["origin"]
    before = written(copy.root)
    assert publish(copy) == 0 and written(copy.root) == before


def test_a_broken_module_is_named_the_others_go_on_and_it_is_sent_when_it_is_sound_again(store, caplog,
                                                                                         capsys):
    origin = store.read(ported(store))["spec"]["origin"]
    flip(store.folder(origin) / "module.safetensors")
    assert publish(store) == 1 and f"run {origin}: " in caplog.text and "SHA-256" in caplog.text
    assert "4 sent" in capsys.readouterr().out and named(store, origin) not in files(store.root)
    assert [one["name"] for one in told(files(store.root)[named(store, ported(store))])[3]] == [
        f"module-{ported(store)}"]
    flip(store.folder(origin) / "module.safetensors")
    assert publish(store) == 0
    # and what started from it
    assert "sent to" in (line := capsys.readouterr().out.splitlines()[0]) and " 2 sent" in line
    assert len(told(files(store.root)[named(store, ported(store))])[3]) == 2


def test_a_run_that_wandb_refuses_is_named_and_the_others_go_on(store, caplog, capsys, monkeypatch):
    run_id, init = ported(store), Tracker._init

    def refuses(self, found, *rest):
        if found.startswith(run_id):
            raise ValueError("W&B does not like it")
        return init(self, found, *rest)

    monkeypatch.setattr(Tracker, "_init", refuses)
    assert publish(store) == 1
    assert f"run {run_id}: W&B did not take it: W&B does not like it" in caplog.text
    assert "4 sent" in capsys.readouterr().out and named(store, run_id) not in files(store.root)


def test_a_study_is_given_up_when_wandb_takes_nothing(store, capsys):
    assert main([str(store.root), "--to", "wandb", "--mode", "online"]) == 2  # there is no key
    assert "W&B did not take 5 runs in a row" in capsys.readouterr().err
    assert not list(store.root.glob("wandb/sent/*"))
    assert publish(store) == 0 and len(files(store.root)) == 5


def test_records_that_cannot_be_described_are_named_and_the_tables_are_sent(invented, caplog):
    assert publish(invented.store) == 1
    assert list(files(invented.store.root)) == [study_run(invented.store)]
    assert caplog.text.count("its record or module cannot be used: it has no") == len(set(invented.runs))


def test_the_tables_hold_every_cell_and_the_gains_of_each_pair(invented):
    publish(invented.store)
    tables = {}
    for path in invented.store.root.glob("wandb/offline-run-*-study-toy*/files/media/table/*.json"):
        tables[path.name.partition("_")[0]] = json.loads(path.read_text())
    assert len(tables["cells"]["data"]) == len(invented.cells)
    rows = [dict(zip(tables["gains"]["columns"], row, strict=True)) for row in tables["gains"]["data"]]
    axes = invented.axes
    assert len(rows) == len(axes.methods) * len(axes.pairs) * len(axes.relations) * (len(axes.budgets)
                                                                                     - 1) * 2
    row = next(row for row in rows if (row["method"], row["receiving"], row["baseline"])
               == ("lora", "base", "scratch"))
    by_seed = [gain(invented, row, seed, row["budget"], "scratch") for seed in axes.seeds]
    assert row["pairs"] == len(axes.seeds) and row["gain"] == pytest.approx(sum(by_seed) / len(by_seed))


def gain(invented, row, seed, budget, baseline):
    """A gain by hand, from the records on disk."""
    where = {key: row[key] for key in ("method", "origin", "receiving", "relation")} | {"seed": seed,
                                                                                        "budget": budget}
    (one,), (other,) = (invented.pick(init=init, **where) for init in ("ported", baseline))
    return invented.accuracy(one) - invented.accuracy(other)


def test_the_studys_own_run_holds_its_verdict_and_the_charts_of_its_report(invented):
    assert main([str(invented.store.root), "--to", "wandb", "--mode", "offline", "--only-study"]) == 0
    (name, path), = files(invented.store.root).items()
    _, points, summary, _ = told(path)
    assert name == study_run(invented.store) and re.fullmatch("study-toy-[0-9a-f]{8}", name)
    assert "declared before the runs" in summary["verdict"]
    drawn = {page.name.rpartition("_")[0].rpartition("_")[0]: page.read_text()
             for page in invented.store.root.glob("wandb/offline-run-*/files/media/html/*.html")}
    assert drawn.keys() == {"arms_by_updates", "forest", "heat_map"}
    assert all("<svg" in drawn[name] for name in ("arms_by_updates", "forest"))
    for baseline in ("scratch", "sampled"):
        row = {"method": "lora", "budget": max(invented.axes.budgets)}
        gains = [gain(invented, {**row, "origin": one, "receiving": other, "relation": relation,
                                 "method": method}, seed, row["budget"], baseline)
                 for one, other in invented.axes.pairs for relation in invented.axes.relations
                 for method in invented.axes.methods for seed in invented.axes.seeds]
        assert summary[f"mean_gain_over_{baseline}"] == pytest.approx(sum(gains) / len(gains))


def test_the_heat_map_has_a_cell_for_each_pair_of_hosts_at_the_largest_budget():
    rows = [("a", "b", 9, "scratch", 0.1), ("a", "b", 9, "scratch", 0.3), ("b", "a", 9, "scratch", -0.05),
            ("a", "b", 3, "scratch", 0.9), ("a", "b", 9, "sampled", 0.2)]
    text = heat_map(pd.DataFrame(rows, columns=["origin", "receiving", "budget", "baseline", "gain"]))
    assert text.count("<table>") == 2 and "0.9" not in text and "+90" not in text
    assert "<td style='background:rgba(196,79,0,0.53)'>+20.0</td>" in text  # two thirds of the strongest
    assert "rgba(0,105,168,0.13)'>-5.0<" in text and text.count("<td></td>") == 2


def test_a_runs_comparisons_are_those_of_its_largest_budget(invented):
    found = comparisons(tidy(invented.store))
    for cell in invented.pick(init="ported", budget=max(invented.axes.budgets), seed=1):
        for baseline in ("scratch", "sampled"):
            by_hand = gain(invented, vars(cell), 1, cell.budget, baseline)
            assert found[cell.run_id][f"gain_over_{baseline}"] == pytest.approx(by_hand)
    cell = invented.pick(init="ported", budget=0)[0]
    bare = json.loads(invented.path(cell.bare_id).read_text())["train_info"]["metrics"][0]["eval_accuracy"]
    assert found[cell.run_id]["zero_shot_lift"] == pytest.approx(invented.accuracy(cell) - bare)


def test_a_study_that_grows_sends_what_is_new_and_its_tables_anew(store, capsys):
    from support.store_parts import grow

    publish(store)
    new = grow(store, range(5, 7))
    assert publish(store) == 0
    # two runs, their origin with its new tag, the tables
    assert " 4 sent" in capsys.readouterr().out.splitlines()[-2]
    assert {named(store, run_id) for run_id in new} <= set(files(store.root))
    tables = [path.parents[2].name
              for path in store.root.glob("wandb/offline-run-*-study*/files/media/table/cells_*.json")]
    assert len(tables) == 2, "the second resumes the first"


@pytest.mark.parametrize(("how", "fault"), [
    (["--dashboard"], "needs a key"), (["--dashboard", "--mode", "online"], "needs a key"),
])
def test_a_dashboard_without_a_key_is_refused_before_anything_is_sent(store, capsys, how, fault):
    assert main([str(store.root), "--to", "wandb", *how]) == 2
    assert fault in capsys.readouterr().err and not (store.root / "wandb").exists()


def test_a_tracker_that_is_disabled_or_a_folder_without_a_study_is_named(store, tmp_path, capsys,
                                                                         monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert main([str(store.root), "--to",
                 "wandb"]) == 2 and "WANDB_MODE is disabled" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing"), "--to", "wandb", "--mode", "offline"]) == 2
    assert "no study in" in capsys.readouterr().err


def test_the_workspace_holds_the_comparison_panels_and_only_metrics_that_are_sent(store):
    pytest.importorskip("wandb_workspaces")
    accuracy, auc = (workspace("somebody", "portability", "mine", METRICS[name])._to_model()
                     for name in ("eval_accuracy", "eval_auc"))
    text, other = (made.model_dump_json(by_alias=True) for made in (accuracy, auc))
    assert "Gain in AUC over scratch, by method" in other and "eval_accuracy" not in other
    spec = json.loads(text)["spec"]["section"]
    sections = {section["name"]: section["panels"] for section in spec["panelBankConfig"]["sections"]}
    assert list(sections) == ["Verdict", "Accuracy against updates", "Training", "Gain by pair",
                              "Zero-shot", "Cost", "Runs"]
    shown = {(panel["config"]["metrics"][0], panel["config"]["groupBy"]) for panels in sections.values()
             for panel in panels
             if "metrics" in panel["config"]}
    assert {("eval_accuracy", "init.value"), ("gain_over_scratch", "pair.value"),
            ("zero_shot_lift", "pair.value")} <= shown
    assert '"study"' in text and '"mine"' in text, "of one study of the project"
    publish(store)
    run, _, summary, _ = told(files(store.root)[named(store, ported(store))])
    live = {"learning_rate", "tokens_per_second"}  # told while it trains alone
    assert {metric for metric, _ in shown} <= {*summary, "gain_over_scratch", "gain_over_sampled", *live}
    groups = {by for _, by in shown} | {group["name"] for group in spec["runSets"][0]["grouping"]}
    assert {by.removesuffix(".value") for by in groups} <= set(run["config"]["update"])


def test_a_workspace_is_saved_once_and_what_wandb_refuses_is_said(tmp_path):
    pytest.importorskip("wandb_workspaces")
    with pytest.raises(UserError, match="W&B did not take the dashboard of mine"):
        save("mine", "online: /mine", tmp_path, METRICS["eval_accuracy"])  # there is no key
    assert not (tmp_path / "wandb").exists()
    path = tmp_path / "wandb" / "sent" / "dashboard.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"online: /mine": {"version": VERSION, "url": "https://somewhere"}}))
    assert save("mine", "online: /mine", tmp_path, METRICS["eval_accuracy"]) == "https://somewhere"


def test_a_dashboard_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_ENTITY", "somebody")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    for name in ("reports", "reports.v2", "workspaces"):
        monkeypatch.setitem(sys.modules, f"wandb_workspaces.{name}", None)
    with pytest.raises(UserError, match="^a dashboard needs: pip install"):
        save("mine", "online: /mine", tmp_path, METRICS["eval_accuracy"])
    assert not (tmp_path / "wandb").exists()


def test_a_study_can_be_moved_after_it_was_published(store, tmp_path):
    publish(store, "--project", "p")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(store.root, tmp_path / "elsewhere")
    moved = type(store)(tmp_path / "elsewhere" / "mine")
    before = sorted(files(moved.root))
    assert publish(moved, "--project", "p") == 0 and sorted(files(moved.root)) == before
