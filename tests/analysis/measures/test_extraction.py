"""Extracted as the arm, several tasks, and answers with scores: numbers by formulas of their own, and the
words beside them."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from portability.analysis.context import StudyContext, gather
from portability.analysis.figures.charts import headline
from portability.analysis.measures.costs import break_even, cost
from portability.analysis.measures.special_studies import extraction, seeds
from portability.analysis.report.findings import numbers, sections
from portability.analysis.report.markdown import report
from portability.analysis.stats.pairing import arm_of
from portability.analysis.tables.captions import Table
from portability.analysis.tables.registry import TABLES
from portability.analysis.tables.registry import build as tables
from support.synthetic import Axes, Synthetic, build, run_name
from support.written import CUT, EXAMPLES, LEVELS, SIX, answer, answered, change, crossed, entry, scores

TABLED = ("init_by_method", "origin_by_receiving", "init_by_budget", "by_relation", "extraction",
          "comparisons", "by_direction",
          "ties", "lift", "area", "updates_to_match", "take_off", "win_rate_inits", "interquartile")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Synthetic:
    """Two tasks, six seeds, extracted and three baselines."""
    return answered(tmp_path_factory.mktemp("cut") / "cut", SIX)


@pytest.fixture(scope="module")
def found(study) -> StudyContext:
    """The same, read."""
    return gather(study.store)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[StudyContext, list[Table]]:
    """The two tasks at two seeds, with every table."""
    two = replace(CUT, seeds=(0, 1), inits=("extracted", "scratch"), budgets=(0, 100))
    found = gather(answered(tmp_path_factory.mktemp("two") / "two", two).store)
    return found, tables(found)


# ---- the arm


def test_the_arm_is_ported_where_it_is_there_and_else_extracted(tmp_path, found):
    axes = Axes(("lora",), (("base", "large"),), inits=("extracted", "ported", "scratch"), budgets=(0, 100))
    both = gather(build(tmp_path / "both", axes).store)
    assert both.arm == "ported" and set(both.levels["all"]["baseline"]) == {"extracted", "scratch"}
    assert set(both.levels["all"]["arm"]) == {"ported"} and not TABLES["extraction"].applies(both)
    assert found.arm == "extracted" and set(found.levels["all"]["arm"]) == {"extracted"}
    assert set(found.levels["all"]["baseline"]) == {"scratch", "extracted_random", "pissa"}
    assert arm_of(pd.DataFrame({"init": ["scratch", "sampled"]})) == "ported"


@pytest.mark.system
def test_a_report_on_extracted_speaks_of_no_port(whole):
    found, made = whole
    text = report(found, sections(found), headline(found))
    text += " ".join(str(name) for table in made if "quantity" in table.frame
                     for name in table.frame["quantity"].unique())
    lines = text.splitlines()
    assert "extracted − scratch" in text and [line for line in lines
                                              if re.search(r"\bport(s|ed|ing)?\b", line)] == []
    assert "## What does a start from extracted weights save, and what does it cost on each host?" in lines
    assert "whether the seed examples are of" in text


def test_an_extraction_costs_no_updates_and_only_its_seconds(tmp_path):
    axes = replace(CUT, data=("sums",), relations=("same",), inits=("extracted", "scratch"))
    study = answered(tmp_path / "s", axes, {**LEVELS, "scratch": 0.2, "same": 0.9})
    for cell in study.pick(budget=0):
        cut = run_name("extraction", cell.seed)
        answer(study, cut, "exact_match", {0: np.zeros(EXAMPLES, np.float32)})
        change(study, cut, {}, spec={"train": {"updates": 0}}, run_info={"total_time": 4.0})
        more = {"origin": cut} if cell.init == "extracted" else {}
        change(study, cell.run_id, {}, spec={"train": {"updates": 100}, **more}, train_info={"tokens": 500})
    found = gather(study.store)
    costs = cost(found)
    assert entry(costs, quantity="origin's updates")["median"] == 0
    assert entry(costs, quantity="origin's seconds")["median"] == 4.0
    assert {"seconds to port", "calibration examples"}.isdisjoint(costs["quantity"])
    row = entry(break_even(found), unit="updates")
    assert (row["origin_cost"], row["ports"]) == (0, 0) and not np.signbit(row["ports"])


# ---- the table


@pytest.mark.parametrize(("data", "relation", "baseline"), [
    ("sums", "same", "scratch"), ("quiz", "different", "extracted_random"), ("quiz", "same", "pissa")])
def test_extracted_minus_another_start_is_the_mean_over_seeds_and_examples(study, found, data, relation,
                                                                           baseline):
    table = scores(study, 100, data=data, relation=relation, init="extracted") - scores(
        study, 100, data=data, relation=relation, init=baseline)
    frame = extraction(found)
    row = entry(frame, data=data, relation=relation, budget=100, quantity=f"gain over {baseline}")
    assert row["mean"] == pytest.approx(table.mean(), abs=1e-5) and row["n"] == row["blocks"] == 6
    assert (row["low"], row["high"]) == pytest.approx(crossed(table), abs=1e-4)
    assert (row["p"] <= 0.05) == (row["low"] > 0 or row["high"] < 0) and row["init"] == "extracted"
    own = scores(study, 100, data=data, relation=relation, init=baseline).mean(axis=1) / 100
    mean = entry(frame, data=data, relation=relation, budget=100, quantity="eval_accuracy", init=baseline)
    assert (mean["mean"], mean["std"]) == pytest.approx((own.mean(), own.std(ddof=1)), abs=1e-6)


def test_seed_examples_of_the_task_are_set_against_those_of_another_by_seed(study, found):
    frame, p = extraction(found), {}
    for data, budget in itertools.product(("sums", "quiz"), (50, 100)):
        table = scores(study, budget, data=data, relation="same", init="extracted") - scores(
            study, budget, data=data, relation="different", init="extracted")
        row = entry(frame, data=data, budget=budget, quantity="seed examples: same − different")
        assert row["mean"] == pytest.approx(table.mean(), abs=1e-5) and row["n"] == 6 and row["family"] == 4
        assert (row["low"], row["high"]) == pytest.approx(crossed(table), abs=1e-4)
        p[data, budget] = row["p_holm"], row["p"]
    adjusted = multipletests([value for _, value in p.values()], method="holm")[1]
    assert [value for value, _ in p.values()] == pytest.approx(adjusted)


def test_nothing_is_compared_before_the_first_update_nor_counted_in_a_family(found):
    for name, frame in found.levels.items():
        assert set(frame["budget"]) == {50, 100}, name
        assert set(frame["family"]) == {int(frame["p"].notna().sum())}, name


def test_over_seeds_alone_the_intervals_are_those_of_a_paired_t_test(study, found):
    alone = StudyContext(found.study, found.metric)
    row = entry(extraction(alone), data="sums", budget=50, quantity="seed examples: same − different")
    sides = [scores(study, 50, data="sums", relation=name, init="extracted").mean(axis=1)
             for name in ("same", "different")]
    whole = stats.ttest_rel(*sides).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((whole.low, whole.high), abs=1e-4)
    row = entry(extraction(alone), data="quiz", budget=50, relation="same", quantity="gain over scratch")
    sides = [scores(study, 50, data="quiz", relation="same", init=name).mean(axis=1)
             for name in ("extracted", "scratch")]
    whole = stats.ttest_rel(*sides).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((whole.low, whole.high), abs=1e-4)


def test_nothing_is_compared_before_the_first_update_and_shared_runs_stand_in_both_relations(found):
    frame = extraction(found)
    assert set(frame.loc[frame["budget"] == 0, "quantity"]) == {"eval_accuracy"}
    means = frame[(frame["quantity"] == "eval_accuracy") & (frame["budget"] == 100)]
    means = means.set_index(["data", "init", "relation"])["mean"]
    for data, init in itertools.product(("sums", "quiz"), ("scratch", "pissa", "extracted_random")):
        assert means[data, init, "same"] == means[data, init, "different"]


def test_a_seed_that_failed_is_left_out_and_marked(tmp_path):
    study = answered(tmp_path / "holes", replace(SIX, data=("sums",)))
    study.remove(study.pick(init="extracted", relation="different", seed=2)[0].run_id)
    row = entry(seeds(gather(study.store)), budget=100)
    assert (row["n"], row["expected"], row["missing"], row["mark"]) == (5, 6, 1, "†")


# ---- several tasks


@pytest.mark.system
def test_what_one_task_scores_moves_no_number_of_another_and_every_number_names_its_task(tmp_path, found):
    levels = {**LEVELS, "same": 0.9, "scratch": 0.6}
    other = answered(tmp_path / "cut", SIX)
    for cell in other.cells:
        if cell.data == "quiz" and cell.budget == 100:
            height = levels["same"] if cell.init == "extracted" else levels["scratch"]
            answer(other, cell.run_id, "choice", {mark: np.full(EXAMPLES, height, np.float32)
                                                  for mark in (0, 50, 100)})
    moved = gather(other.store)
    for name in TABLED:
        one, two = (table.frame for evidence in (found, moved) for table in tables(evidence, [name]))
        columns = [column for column in ("mean", "low", "high", "iqm", "value", "p") if column in one]
        for data, same in (("sums", True), ("quiz", False)):
            rows = [frame.loc[frame["data"] == data, columns].reset_index(drop=True).astype(float)
                    for frame in (one, two)]
            assert len(rows[0]) and rows[0].equals(rows[1]) == same, (name, data)
    assert all(re.search(", (sums|quiz)$", row.name) for row in numbers(found))


def test_replicates_of_no_caption_differ_in_the_data(whole):
    assert sum("differ in:" in table.caption for table in whole[1]) > 10
    assert [table.name for table in whole[1] if re.search(r"differ in:[^.]*[^n] data \(up to",
                                                          table.caption)] == []
