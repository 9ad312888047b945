"""Answers instead of labels: which metric a study has, intervals over real scores, and the second paper's figures."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_extraction import found as found  # two tasks, six seeds, three baselines
from test_extraction import study as study
from written import CUT, EXAMPLES, answer, answered, crossed, entry, scores

from analysis.evidence import Evidence, gather
from analysis.extraction import extraction
from analysis.load import read
from analysis.published import beside, of_study
from analysis.tables import build as tables
from portability.analyze import main

# ---- metrics


@pytest.mark.parametrize(("data", "metric"), [
    (("sums", "quiz"), "eval_accuracy"), (("notes",), "eval_rougeL"), (("sums", "quiz", "notes"), "eval_score")])
def test_the_metric_is_what_all_runs_have_and_its_intervals_are_over_examples(tmp_path, data, metric):
    study = answered(tmp_path / "s", replace(CUT, data=data))
    answer(study, "ab" * 8, "rouge_l", {0: np.zeros(EXAMPLES, np.float32)})  # an origin on other data, which no cell reads
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
    def shown(evidence: Evidence) -> set[str]:
        return set(tables(evidence, ["all_metrics"])[0].frame["quantity"])

    assert shown(found) == {"eval_accuracy", "eval_loss", "eval_invalid_rate"}
    mixed = gather(answered(tmp_path / "mixed", replace(CUT, data=("quiz", "notes"))).store)
    assert shown(mixed) == {"eval_accuracy", "eval_loss", "eval_invalid_rate", "eval_rougeL", "eval_score"}


def test_runs_with_other_numbers_of_answers_are_not_compared_over_examples(tmp_path, caplog):
    study = answered(tmp_path / "s", replace(CUT, data=("sums",)))
    answer(study, study.pick(init="pissa", seed=1)[0].run_id, "exact_match", {m: np.ones(7, np.float32) for m in (0, 50, 100)})
    assert gather(study.store).answers is None and "tested on other examples of sums" in caplog.text


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


# ---- the papers


def test_scores_of_the_second_papers_hosts_and_sets_are_compared_and_others_are_not(study, found):
    frame = beside(found)
    assert set(frame["paper"]) == {"Zhong et al. 2024"} and len(frame) == 136 and frame["within"].isna().all()
    names = {"origin": {"large": "llama-2-13b"}, "receiving": {"base": "llama-2-7b"}, "data": {"sums": "gsm", "quiz": "mmlu"},
             "origin_data": {"sums": "gsm", "quiz": "mmlu"}, "method": {"lora_all": "lora"}}
    cells = found.cells.replace(names)
    here = replace(found, study=replace(found.study, cells=cells))
    frame = beside(here)
    able = frame[frame["within"].notna()].set_index(["place", "data", "init", "variant", "quantity"])
    assert len(able) == 8 and not of_study(here).duplicated(["data", "init", "variant", "quantity"]).any()
    for (place, data, init, variant, quantity), row in able.iterrows():
        relation = "different" if variant and variant != f"seeds of {data}" else "same"
        own = scores(study, 100, data={"gsm": "sums", "mmlu": "quiz"}[data], relation=relation, init=init).mean(axis=1)
        half = stats.t.ppf(0.975, 5) * own.std(ddof=1) / np.sqrt(6)
        assert (row["ours"], row["low"], row["high"]) == pytest.approx(
            (own.mean(), own.mean() - half, own.mean() + half), abs=1e-4)
        assert quantity == "accuracy 0-shot" and place in ("main results", "task-specific extraction")


def test_the_command_chooses_the_metric_and_writes_the_table(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("portability.analyze.PLOTS", {})
    axes = replace(CUT, data=("notes",), inits=("extracted", "scratch"), seeds=(0, 1))
    root = answered(tmp_path / "notes", axes).store.root
    assert main([str(root)]) == 0
    frame = pd.read_csv(root / "tables" / "extraction.csv")
    assert set(frame["data"]) == {"notes"} and "eval_rougeL" in set(frame["quantity"])
    assert "Extraction" in capsys.readouterr().out
    html = (root / "report" / "index.html").read_text()
    payload = json.loads(re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', html, re.S)[1])
    assert payload["metric"] == "eval_rougeL"
    assert [column["key"] for column in payload["metrics"]] == ["eval_loss", "eval_invalid_rate", "eval_rougeL"]
