"""The page of a study of answers: scores instead of labels, of choices with margins, and what was cut out for
a start."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from portability.analysis.context import gather
from portability.analysis.report.findings import sections
from portability.analysis.report.html import page
from portability.analysis.report.run_details import EXAMPLES, Details, details
from support.synthetic import Synthetic
from support.written import CUT, answered, change

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
AXES = replace(CUT, seeds=(0,), inits=("extracted", "scratch"), budgets=(0, 50),
               data=("sums", "quiz", "notes"))
CUT_OUT = {"seed_count": 32, "layers": {"decoder": [1, 3]},
           "totals": {"decoder": [0.5, 2.0]}, "shared_tokens": None, "seconds": 1.5}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Synthetic, Details, str]:
    """A study of answers, what is known of its runs, and its page; scratch on sums was told to be an
    extraction."""
    study = answered(tmp_path_factory.mktemp("page") / "cut", AXES)
    change(study, study.pick(init="scratch", data="sums")[0].run_id, {}, port_info=CUT_OUT)
    found = gather(study.store)
    drilled = details(study.store, found)
    html = page(found, sections(found), [], drilled)
    return study, drilled, html


def run_of(study: Synthetic, data: str, init: str = "extracted") -> str:
    """The id of the one run."""
    return study.pick(data=data, init=init, relation="same")[0].run_id


@pytest.mark.parametrize(("data", "margins"), [("sums", False), ("quiz", True), ("notes", False)])
def test_details_hold_scores_and_of_choices_margins_and_no_labels(made, data, margins):
    study, drilled, _ = made
    run, saved = drilled.runs[run_of(study, data)], study.store.predictions(run_of(study, data))
    told = next(section for section in run["sections"] if section["title"] == "Predictions")
    assert ("in brackets" in told["note"]) == margins and "label" not in told["head"] and len(
        told["rows"]) == EXAMPLES
    assert f"of {saved['score'].shape[1]:,} test examples" in told["note"]
    for row, scores in zip(told["rows"], saved["score"].T, strict=False):
        assert [float(text.split(maxsplit=1)[0]) for text in row[1:]] == pytest.approx(scores.tolist(),
                                                                                       abs=6e-4)
    metrics, rows = study.store.read(run_of(study, data))["train_info"]["metrics"], run["sections"][0]["rows"]
    values = [[100 * mark.get("eval_accuracy", math.nan) for mark in metrics],
              [mark["eval_loss"] for mark in metrics]]
    for row, own in zip(rows, values, strict=False):
        shown = [math.nan if text == "–" else float(text) for text in row[1:]]
        assert shown == pytest.approx(own, abs=6e-3, nan_ok=True)


def test_the_script_reads_the_same_metrics_in_the_same_order(made):
    payload = json.loads(re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', made[2], re.S)[1])
    keys = [column["key"] for column in payload["columns"] if column["kind"] == "number"]
    assert keys == ["eval_score", "native", "bare", "lift", "eval_accuracy", "eval_loss", "eval_invalid_rate",
                    "eval_rougeL"]
    filters = [column["key"] for column in payload["columns"] if "options" in column]
    assert payload["metric"]["key"] == "eval_score" and "data" in filters


@pytest.mark.system
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path")
def test_a_reader_sees_scores_margins_and_what_was_cut_out(made, tmp_path: Path):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    study, _, html = made
    path = tmp_path / "index.html"
    path.write_text(html, encoding="utf-8")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for data in ("sums", "quiz", "notes"):
            tab, said = opened(browser, f"{path.as_uri()}#run={run_of(study, data)}")
            saved = study.store.predictions(run_of(study, data))
            lines = tab.locator("#sheet table[aria-label=Predictions] tbody tr").all_inner_texts()
            assert len(lines) == EXAMPLES and said == []
            for place, line in enumerate(lines):
                whole = [score for score in saved["score"][:, place] if score in (0, 1)]
                assert [mark == "✓" for mark in re.findall("[✓✗]", line)] == [score == 1 for score in whole]
                numbers = re.sub(r"\([^)]*\)", "", line.split(maxsplit=1)[1])
                found = [float(number) for number in re.findall(r"\d\.\d+|\d", numbers)]
                assert found == pytest.approx(saved["score"][:, place], abs=6e-4)
                margins = [float(text.replace("−", "-")) for text in re.findall(r"\(([^)]*)\)", line)]
                assert margins == (saved["margin"][:, place].tolist() if data == "quiz" else [])
            words = {"sums": "exact match", "quiz": "likelier the right choice", "notes": "rouge l"}[data]
            assert words in tab.inner_text("#sheet") and f"({data})" in tab.locator(
                "#sheet details li").first.text_content()
        tab, said = opened(browser, f"{path.as_uri()}#run={run_of(study, 'sums', 'scratch')}")
        text = tab.inner_text("#sheet")
        assert "What was cut out of the other host" in text and "decoder 1, 3" in text and said == []
        browser.close()


def opened(browser: Any, address: str) -> tuple[Any, list[str]]:
    """A tab, and all that it complains of."""
    tab, said = browser.new_page(), []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(address)
    return tab, said
