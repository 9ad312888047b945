"""The command from a results folder to files on disk."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from portability.analysis.context import gather
from portability.analysis.tables.registry import TABLES
from portability.analysis.tables.registry import build as build_tables
from portability.analysis.tables.render import FORMS
from portability.analyze import main
from support.synthetic import ROOT, Axes, Synthetic, build

SMALL = Axes(methods=("lora",), pairs=(("base", "large"), ("large", "base")), relations=("same",),
             seeds=(0, 1))


@pytest.fixture
def small(tmp_path: Path) -> Synthetic:
    """Two pairs, one method, one ported run failed."""
    study = build(tmp_path / "results" / "small", SMALL)
    for cell in study.pick(init="ported", origin="base", budget=0):
        study.remove(cell.run_id)
        study.store.fail(cell.run_id, {"error": "out of memory"})
    return study


def test_the_command_writes_every_table_chart_and_a_report_and_names_failures(small, capsys):
    assert main([str(small.store.root.parent)]) == 0
    out = capsys.readouterr().out
    assert "No contrast was declared before the runs" in out and "out of memory" in out
    assert "8 failed" not in out
    assert "24 cells of the grid (20 done, 4 failed); 12 before any update (10 done, 2 failed)" in " ".join(
        out.split())
    assert max(map(len, out.split("written:")[0].split("failed: ")[0].splitlines())) <= 100
    root = small.store.root
    found = gather(small.store)
    names = [name for name, spec in TABLES.items() if spec.applies(found)]
    assert {path.name for path in (root / "tables").iterdir()} == {f"{name}.{end}" for name in names
                                                                   for end in FORMS}
    pictures = sorted(path.name for path in (root / "plots").iterdir())
    assert pictures == sorted(f"{name}.svg" for name in (
        "headline", "curves_by_method", "curves_by_direction", "curves-same", "differences", "take_off"))
    for path in (root / "plots").glob("*.svg"):
        ElementTree.parse(path)
    report = (root / "report.md").read_text()
    assert all(f"### {table.lead}" in report for table in build_tables(found, names))
    assert all(f"](plots/{name})" in report for name in pictures)
    assert "out of memory" in report and "git commit: abc" in report and "torch: 2.13.0" in report


def test_each_study_below_the_folder_is_its_own(small, capsys):
    other = build(small.store.root.parent / "other", replace(SMALL, seeds=(0,), budgets=(0, 100)))
    assert main([str(small.store.root.parent), "--quiet"]) == 0
    assert (other.store.root / "report.md").is_file() and (small.store.root / "report.md").is_file()
    assert capsys.readouterr().out.count("written:") == 2


def test_another_metric_is_named_in_the_tables(small):
    assert main([str(small.store.root), "--metric", "eval_loss", "--quiet"]) == 0
    frame = pd.read_csv(small.store.root / "tables" / "init_by_method.csv")
    assert set(frame["unit"]) == {"loss", "loss difference"}


@pytest.mark.parametrize("arguments", [["{results}", "--metric", "bleu"], ["{results}/nowhere"]])
def test_what_a_user_can_put_right_is_one_sentence_and_exit_2(small, arguments, capsys):
    assert main([text.format(results=small.store.root.parent) for text in arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and ("eval_f1" in err or "no study" in err)


def test_a_study_of_bare_cells_alone_has_no_chart(tmp_path):
    study = build(tmp_path / "bare", Axes(inits=("bare",), budgets=(0,), relations=("same",), seeds=(0,)))
    assert main([str(study.store.root), "--quiet"]) == 0
    assert not list((study.store.root / "plots").iterdir())


@pytest.mark.system
def test_tables_need_no_torch():
    code = (
        "import sys, portability.analyze, portability.analysis.report.html, "
        "portability.analysis.figures.charts;assert not {'torch', 'transformers', 'hydra', 'omegaconf', "
        "'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
