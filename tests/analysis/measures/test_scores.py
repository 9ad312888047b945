"""Answers instead of labels: which metric a study has, intervals over real scores, and the second paper's
figures."""

import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file
from scipy import stats

from portability.analysis.context import StudyContext, gather
from portability.analysis.load import read
from portability.analysis.measures.paper_values import beside, of_study
from portability.analysis.measures.special_studies import extraction
from portability.analysis.report.run_details import details
from portability.analysis.tables.registry import build as tables
from portability.analyze import main
from support.synthetic import Synthetic, build, write
from support.synthetic import record as whole_record
from support.written import CUT, EXAMPLES, SIX, SMALL, answer, answered, crossed, entry, scores


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Synthetic:
    """Two tasks, six seeds, extracted and three baselines."""
    return answered(tmp_path_factory.mktemp("cut") / "cut", SIX)


@pytest.fixture(scope="module")
def found(study) -> StudyContext:
    """The same, read."""
    return gather(study.store)


# ---- metrics


@pytest.mark.parametrize(("data", "metric"), [
    (("sums", "quiz"), "eval_accuracy"), (("notes",), "eval_rougeL"),
    (("sums", "quiz", "notes"), "eval_score")])
def test_the_metric_is_what_all_runs_have_and_its_intervals_are_over_examples(tmp_path, data, metric):
    study = answered(tmp_path / "s", replace(CUT, data=data))
    # an origin on other data, which no cell reads
    answer(study, "ab" * 8, "rouge_l", {0: np.zeros(EXAMPLES, np.float32)})
    found = gather(study.store)
    assert found.metric.name == metric == read(study.store, None).metric and found.why == ""
    assert set(found.levels["all"]["examples"]) == {EXAMPLES}
    done = found.cells[found.cells["status"] == "done"]
    assert len(done) == len(found.cells)
    for row in done.itertuples():
        assert found.answers[row.run_id, row.mark].mean() == pytest.approx(row.value, abs=1e-6)
    for own in data:
        table = scores(study, 100, data=own, relation="same", init="extracted") - scores(
            study, 100, data=own, relation="same", init="scratch")
        row = entry(extraction(found), data=own, relation="same", budget=100, quantity="gain over scratch")
        assert (row["low"], row["high"]) == pytest.approx(crossed(table), abs=1e-4)


def test_metrics_that_nothing_holds_are_not_shown_and_the_score_only_where_it_is_mixed(tmp_path, found):
    def shown(evidence: StudyContext) -> set[str]:
        return set(tables(evidence, ["all_metrics"])[0].frame["quantity"])

    assert shown(found) == {"eval_accuracy", "eval_loss", "eval_invalid_rate"}
    mixed = gather(answered(tmp_path / "mixed", replace(CUT, data=("quiz", "notes"))).store)
    assert shown(mixed) == {"eval_accuracy", "eval_loss", "eval_invalid_rate", "eval_rougeL", "eval_score"}


def test_runs_with_other_numbers_of_answers_are_not_compared_over_examples(tmp_path, caplog):
    study = answered(tmp_path / "s", replace(CUT, data=("sums",)))
    answer(study, study.pick(init="pissa", seed=1)[0].run_id, "exact_match",
           {m: np.ones(7, np.float32) for m in (0, 50, 100)})
    assert gather(study.store).answers is None and "tested on other examples of sums" in caplog.text
    assert "belong in another study=NAME" in caplog.text


def test_runs_on_other_questions_are_not_compared_over_examples(tmp_path, caplog):
    study = answered(tmp_path / "s", replace(CUT, data=("sums",)))
    odd = study.pick(init="pissa", seed=1)[0].run_id
    for other in ("one", "another"):
        for run_id in study.runs:
            path = study.store.folder(run_id) / "record.json"
            whole = json.loads(path.read_text())
            whole["spec"]["data"] = {"eval_digest": other if run_id == odd else "one"}
            path.write_text(json.dumps(whole))
        assert (gather(study.store).answers is None) == (other == "another")
    assert "tested on other examples of sums" in caplog.text


def test_a_mark_without_predictions_is_named_with_what_puts_it_right(tmp_path, caplog):
    study = answered(tmp_path / "s", replace(CUT, data=("sums",)))
    folder = study.store.folder(study.pick(init="pissa", seed=1)[0].run_id)
    path = folder / "predictions.safetensors"
    save_file({name: column[:-1] for name, column in load_file(path).items()}, path)
    assert gather(study.store).answers is None
    assert f"no predictions at 100 updates; remove {folder} and repeat the command" in caplog.text


# ---- the papers


def test_scores_of_the_second_papers_hosts_and_sets_are_compared_and_others_are_not(study, found):
    frame = beside(found)
    assert set(frame["paper"]) == {"Zhong et al. 2024"} and len(frame) == 136 and frame["within"].isna().all()
    names = {"origin": {"large": "llama-2-13b"}, "receiving": {"base": "llama-2-7b"},
             "data": {"sums": "gsm", "quiz": "mmlu"},
             "origin_data": {"sums": "gsm", "quiz": "mmlu"}, "method": {"lora_all": "lora"}}
    cells = found.cells.replace(names)
    here = replace(found, study=replace(found.study, cells=cells))
    frame = beside(here)
    able = frame[frame["within"].notna()].set_index(["place", "data", "init", "variant", "quantity"])
    assert len(able) == 8 and not of_study(here).duplicated(["data", "init", "variant", "quantity"]).any()
    for (place, data, init, variant, quantity), row in able.iterrows():
        relation = "different" if variant and variant != f"seeds of {data}" else "same"
        own = scores(study, 100, data={"gsm": "sums", "mmlu": "quiz"}[data], relation=relation,
                     init=init).mean(axis=1)
        half = stats.t.ppf(0.975, 5) * own.std(ddof=1) / np.sqrt(6)
        assert (row["ours"], row["low"], row["high"]) == pytest.approx(
            (own.mean(), own.mean() - half, own.mean() + half), abs=1e-4)
        assert quantity == "accuracy 0-shot" and place in ("main results", "task-specific extraction")


def test_the_command_chooses_the_metric_and_writes_the_table(tmp_path: Path):
    axes = replace(CUT, data=("notes",), inits=("extracted", "scratch"), seeds=(0, 1))
    root = answered(tmp_path / "notes", axes).store.root
    assert main([str(root)]) == 0
    frame = pd.read_csv(root / "tables" / "extraction.csv")
    assert set(frame["data"]) == {"notes"} and "eval_rougeL" in set(frame["quantity"])
    assert "minus each other start" in (root / "tables" / "extraction.md").read_text()
    html = (root / "report" / "index.html").read_text()
    payload = json.loads(re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', html, re.S)[1])
    numbers = [column["key"] for column in payload["columns"] if column["kind"] == "number"]
    assert payload["metric"]["key"] == "eval_rougeL"
    assert numbers == ["eval_rougeL", "native", "bare", "lift", "eval_loss", "eval_invalid_rate"]


# ---- metrics that are asked for


def labelled(root: Path, **more: float) -> Synthetic:
    """A study of labels with margins beside its records, which hold `more` too."""
    study = build(root, SMALL)
    label = np.arange(EXAMPLES, dtype=np.int8) % 2
    for run_id, marks in study.runs.items():
        found = whole_record(run_id, marks)
        for mark in found["train_info"]["metrics"]:
            mark.update(more)
        write(study.store, run_id, found)
        random = np.random.default_rng(int(run_id, 16))
        margin = (random.normal(size=(len(marks), EXAMPLES)).round(1) + label).astype(np.float32)
        save_file({"updates": np.array(list(marks)), "margin": margin, "label": label,
                   "invalid": np.zeros(margin.shape, bool)},
                  study.store.folder(run_id) / "predictions.safetensors")
    return study


def ranked(study: Synthetic, run_id: str, mark: int) -> float:
    """AUC of a run's stored margins, pair by pair."""
    saved = study.store.predictions(run_id)
    margin = saved["margin"][saved["updates"].tolist().index(mark)].tolist()
    pairs = list(itertools.product(margin[1::2], margin[::2]))
    return sum(1.0 if p > q else 0.5 if p == q else 0.0 for p, q in pairs) / len(pairs)


@pytest.mark.system
def test_auc_that_records_lack_comes_out_of_their_predictions_without_torch(tmp_path):
    study = labelled(tmp_path / "s")
    cells = read(study.store, "eval_auc").cells
    for row in cells.itertuples():
        assert row.value == pytest.approx(ranked(study, row.run_id, row.mark), abs=1e-12)
        assert row.bare == pytest.approx(ranked(study, row.bare_id, 0), abs=1e-12)
    code = ("import sys; from portability.store import Store; from portability.analysis.load import read\n"
            f"read(Store({str(study.store.root)!r}), 'eval_auc'); assert not {{'torch', 'evaluate'}} & "
            "set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(gather(study.store).cells.columns) >= {"eval_auc"} and read(study.store,
                                                                           None).cells["eval_auc"].isna().all()
    run_id = cells["run_id"][0]
    curve = details(study.store, gather(study.store, "eval_auc")).runs[run_id]["curve"]
    assert curve[1][0] == pytest.approx(100 * ranked(study, run_id, 0), abs=1e-9)


def test_without_predictions_or_with_one_class_there_is_a_hole_with_its_reason(tmp_path):
    study = labelled(tmp_path / "s", eval_auc=0.75)
    lost, alone = study.pick(init="ported", seed=0)[0].run_id, study.pick(init="scratch", seed=1)[0].run_id
    for run_id in (lost, alone):
        found = json.loads(study.path(run_id).read_text())
        for mark in found["train_info"]["metrics"]:
            del mark["eval_auc"]
        if run_id == alone:
            found["train_info"]["unmeasured"] = [
                {"updates": mark, "metric": "eval_auc", "reason": "AUC needs both classes"}
                for mark in study.runs[run_id]]
        study.path(run_id).write_text(json.dumps(found))
        (study.store.folder(run_id) / "predictions.safetensors").unlink()
    whole = read(study.store, "eval_auc")
    holes = whole.cells[whole.cells["run_id"].isin([lost, alone])]
    assert set(holes["status"]) == {"missing"} and holes["value"].isna().all() and holes[
        "eval_accuracy"].notna().all()
    others = whole.cells[~whole.cells["run_id"].isin([lost, alone])]
    assert (others["value"] == 0.75).all() and (others["status"] == "done").all()
    said = [str(problem) for problem in whole.problems]
    assert any(lost in line and "no eval_auc: the run was stored without it, and its predictions" in line
               for line in said)
    assert any(alone in line and "no eval_auc: AUC needs both classes" in line for line in said)
    plain = read(study.store)
    assert (plain.cells["status"] == "done").all() and {problem.kind
                                                        for problem in plain.problems} == {"unmeasured"}
    row = entry(tables(gather(study.store, "eval_auc"), ["init_by_budget"])[0].frame, init="ported", budget=0,
                quantity="eval_auc")
    assert row["status"] == "incomplete" and row["missing"] == 1


@pytest.mark.system
@pytest.mark.parametrize("metric, label, shows", [
    ("eval_auc", "AUC, %", "62.5"), ("eval_matthews_correlation", "Matthews correlation, no unit", "0.625"),
    ("eval_mine", "mine, no unit", "0.625")])
def test_the_command_shows_any_metric_of_the_records(tmp_path, capsys, metric, label, shows):
    study = labelled(tmp_path / "s", eval_auc=0.625, eval_matthews_correlation=0.625, eval_mine=0.625)
    assert main([str(study.store.root), "--metric", metric, "--quiet"]) == 0
    table = (study.store.root / "tables" / "init_by_method.md").read_text()
    assert label in table and shows in table
    assert label in (study.store.root / "tables" / "all_metrics.md").read_text()
    assert metric in (study.store.root / "tables" / "init_by_method.csv").read_text()
    assert f'"metric":{{"key":"{metric}"' in (study.store.root / "report"
                                              / "index.html").read_text().replace(" ", "")
    assert (study.store.root / "plots" / "headline.svg").is_file()


def test_an_unknown_metric_is_refused_with_those_of_the_study(tmp_path, capsys):
    study = labelled(tmp_path / "s", eval_mine=0.5)
    assert main([str(study.store.root), "--metric", "eval_yours"]) == 2
    assert "eval_matthews_correlation, eval_mine, eval_positive_share" in capsys.readouterr().err
    assert not (study.store.root / "tables").exists()


def test_a_study_without_accuracy_shows_what_all_its_runs_have(tmp_path):
    study = labelled(tmp_path / "s", eval_mine=0.5)
    for run_id in study.runs:
        found = json.loads(study.path(run_id).read_text())
        for mark in found["train_info"]["metrics"]:
            del mark["eval_accuracy"], mark["eval_f1"]
        study.path(run_id).write_text(json.dumps(found))
    assert read(study.store, None).metric == "eval_mine"
