"""The command from a results folder to files on disk."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pandas as pd
import pytest
from synthetic import Axes, Synthetic, build

from analysis.evidence import gather
from analysis.plots import PLOTS, gain_heat_map, learning_curves
from analysis.render import FORMS
from analysis.tables import TABLES
from portability.analyze import main

SMALL = Axes(methods=("lora",), pairs=(("base", "large"), ("large", "base")), relations=("same",), seeds=(0, 1))
ROOT = Path(__file__).parents[2]
ALWAYS = {name: recipe for name, recipe in TABLES.items() if name != "extraction"}


@pytest.fixture
def small(tmp_path: Path) -> Synthetic:
    """Two pairs, one method, one ported run failed."""
    study = build(tmp_path / "results" / "small", SMALL)
    for cell in study.pick(init="ported", origin="base", budget=0):
        study.remove(cell.run_id)
        study.store.fail(cell.run_id, {"error": "out of memory"})
    return study


def test_the_command_writes_every_table_plot_and_a_report_and_names_failures(small, capsys):
    assert main([str(small.store.root.parent)]) == 0
    out = capsys.readouterr().out
    assert "Init by method" in out and "Zero-shot" in out and "out of memory" in out and "6 failed" in out
    root = small.store.root
    assert {path.name for path in (root / "tables").iterdir()} == {f"{name}.{end}" for name in ALWAYS for end in FORMS}
    pictures = sorted(path.name for path in (root / "plots").iterdir())
    assert {f"{name}-same.{end}" for name in PLOTS for end in ("png", "svg")} <= set(pictures)
    assert {f"{name}.{end}" for name in ("forest-scratch", "cost", "profiles") for end in ("png", "svg")} <= set(pictures)
    for path in (root / "plots").glob("*.svg"):
        ElementTree.parse(path)
    report = (root / "report.md").read_text()
    assert all(f"### {recipe.title}" in report for recipe in ALWAYS.values())
    assert all(f"](plots/{name})" in report for name in pictures if name.endswith("png"))
    assert "out of memory" in report and "git commit: abc" in report and "torch: 2.13.0" in report


def test_each_study_below_the_folder_is_its_own(small, capsys, monkeypatch):
    monkeypatch.setattr("portability.analyze.PLOTS", {})
    other = build(small.store.root.parent / "other", SMALL)
    assert main([str(small.store.root.parent), "--quiet"]) == 0
    assert (other.store.root / "report.md").is_file() and (small.store.root / "report.md").is_file()
    assert capsys.readouterr().out.count("Written:") == 2


def test_another_metric_is_named_in_the_tables(small, monkeypatch):
    monkeypatch.setattr("portability.analyze.PLOTS", {})
    assert main([str(small.store.root), "--metric", "eval_loss", "--quiet"]) == 0
    frame = pd.read_csv(small.store.root / "tables" / "init_by_method.csv")
    assert set(frame["unit"]) == {"loss", "loss difference"}


@pytest.mark.parametrize("arguments", [["{results}", "--metric", "bleu"], ["{results}/nowhere"]])
def test_what_a_user_can_put_right_is_one_sentence_and_exit_2(small, arguments, capsys):
    assert main([text.format(results=small.store.root.parent) for text in arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and ("eval_f1" in err or "no study" in err)


def test_what_is_missing_is_hatched_or_crossed_and_never_drawn_as_zero(small):
    found = gather(small.store)
    panel = gain_heat_map(found)["gain_heat_map-same"].axes[0]
    hatched = [patch for patch in panel.patches if patch.get_hatch()]
    assert len(panel.patches) == 2 and len(hatched) == 1
    assert {text.get_text().split("\n")[0] for text in panel.texts} >= {"failed"}
    first = learning_curves(found)["learning_curves-same"].axes[0]  # base -> large
    crosses = [line for line in first.lines if line.get_marker() == "x"]
    assert len(crosses) == 1 and list(crosses[0].get_xdata()) == [0, 100, 500]
    drawn = [y for line in first.lines if line.get_marker() == "None" for y in line.get_ydata()]
    assert drawn and min(drawn) > 45


def test_a_plot_of_bare_cells_alone_draws_nothing(tmp_path):
    study = build(tmp_path / "bare", Axes(inits=("bare",), budgets=(0,), relations=("same",), seeds=(0,)))
    assert main([str(study.store.root), "--quiet"]) == 0


def test_tables_need_no_torch():
    code = (
        "import sys, portability.analyze, analysis.report, analysis.plots;"
        "assert not {'torch', 'transformers', 'hydra', 'omegaconf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
