"""A study with every kind of fault at once: each is named wherever a reader looks, and no number rests on any
of them."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from portability.analysis.context import gather
from portability.analysis.tables.registry import build as build_tables
from portability.analyze import main
from portability.store import manifests
from portability.store.records import seal
from support.synthetic import FACTS, Axes, Synthetic, build, write

AXES = Axes(methods=("lora",), pairs=(("base", "large"),), relations=("same",), seeds=tuple(range(8)))


@pytest.fixture
def faulty(tmp_path: Path) -> tuple[Synthetic, dict[str, str]]:
    """Eight seeds; seeds 1 to 5 of ported each have a fault of their own. Fault -> the run it is about."""
    study = build(tmp_path / "faulty", AXES)
    runs = {seed: study.pick(init="ported", seed=seed, budget=0)[0].run_id for seed in AXES.seeds}
    study.remove(runs[1])
    study.store.fail(runs[1], {"error": "ran out of memory"})
    study.remove(runs[2])
    twins = [replace(cell, run_id="d" * 16) for cell in study.pick(init="ported", seed=3)]
    study.store.expect(study.cells[:1], {**FACTS, "sweep": "again"})
    path = next(path for path in manifests.paths(study.store.root)
                if json.loads(path.read_text())["sweep"] == "again")
    # as two merged by hand would stand
    path.write_text(json.dumps({**FACTS, "cells": [asdict(cell) for cell in twins]}))
    write(study.store, "d" * 16, {**json.loads(study.path(runs[3]).read_text()), "run_id": "d" * 16})
    write(study.store, runs[4], {**json.loads(study.path(runs[4]).read_text()), "schema": 99})
    record = seal(json.loads(study.path(runs[5]).read_text()), {})
    record["train_info"]["metrics"][-1]["eval_accuracy"] = 0.9999  # somebody's better number
    write(study.store, runs[5], record)
    faults = ("failed", "missing", "duplicate", "foreign", "broken")
    return study, {fault: runs[seed] for seed, fault in enumerate(faults, start=1)}


def test_every_fault_is_named_in_the_report_the_page_and_the_terminal(faulty, capsys):
    study, about = faulty
    assert main([str(study.store.root)]) == 0
    root = study.store.root
    texts = {"terminal": capsys.readouterr().out, "report.md": (root / "report.md").read_text(),
             "index.html": (root / "report" / "index.html").read_text()}
    for name, text in texts.items():
        for fault, run_id in about.items():
            assert run_id in text and fault in text, (name, fault)
        assert "ran out of memory" in text and "schema 99" in text and "digest" in text, name


def test_no_number_rests_on_a_faulty_record_and_every_count_says_so(faulty):
    study, about = faulty
    found = gather(study.store)
    cells = found.cells[(found.cells["init"] == "ported") & (found.cells["budget"] == 500)]
    assert cells["status"].value_counts().to_dict() == {"done": 3, "missing": 2, "failed": 1, "duplicate": 1,
                                                        "foreign": 1}
    frame = build_tables(found, ["init_by_method"])[0].frame
    row = frame[(frame["init"] == "ported") & (frame["quantity"] == "eval_accuracy")].iloc[0]
    sound = [study.accuracy(study.pick(init="ported", seed=seed, budget=500)[0]) for seed in (0, 6, 7)]
    assert row["n"] == 3 and row["expected"] == 8 and row["mean"] == pytest.approx(sum(sound) / 3)
    assert row[["failed", "missing", "duplicate", "foreign"]].tolist() == [1, 2, 1, 1]
    assert row["status"] == "incomplete"
    for level in found.levels.values():
        pairs = level[level["budget"] == 500]
        assert (pairs["n"] == 3).all() and (pairs["expected"] == 8).all() and (pairs["mark"] == "†").all()


def test_every_table_marks_the_numbers_that_lack_a_cell(faulty):
    study, _ = faulty
    for table in build_tables(gather(study.store)):
        frame = table.frame
        if "n" in frame and "expected" in frame:
            lacking = frame[frame["n"] < frame["expected"]]
            if "status" in frame:
                # a scratch run has no port whose seconds could lack
                lacking = lacking[lacking["status"] != "none recorded"]
            assert (len(lacking) or frame.empty) and not frame["expected"].isna().any(), table.name
            marks = lacking["mark"] if "mark" in frame else lacking["status"].map({"complete": ""}).fillna(
                "†")
            assert (marks != "").all(), table.name
