"""Whole curves and what they cost, against the same numbers worked out another way."""

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, median

import numpy as np
import pytest
from scipy import stats
from statsmodels.duration.survfunc import SurvfuncRight

from portability.analysis.context import StudyContext, gather
from portability.analysis.measures.costs import break_even, cost
from portability.analysis.measures.curves import area, take_off, updates_to_match
from portability.analysis.measures.port_measures import win_rate
from portability.analysis.tables.registry import TABLES
from portability.store import Store
from support.synthetic import FACTS, NANO, build
from support.written import SMALL, change, entry, rewrite, spend


@pytest.fixture(scope="module")
def published() -> StudyContext:
    """The published study, with its predictions."""
    return gather(Store(NANO))


# ---- area


@pytest.mark.parametrize(("metric", "value"), [("eval_accuracy", lambda x: x),
                                               ("eval_loss", lambda x: 1 - x)])
def test_the_area_is_the_trapezoid_over_updates(study, metric, value):
    frame = area(gather(study.store, metric))
    quantity = {"eval_accuracy": "area under accuracy", "eval_loss": "area under loss"}[metric]
    for init, method in itertools.product(study.axes.inits, study.axes.methods):
        runs = {cell.run_id for cell in study.pick(init=init, method=method)}
        cells = [cell.run_id for cell in study.pick(init=init, method=method, budget=0)]  # they weigh alike
        heights = [np.trapezoid([value(study.runs[run][b]) for b in (0, 100, 500)], [0, 100, 500]) / 500
                   for run in cells]
        row = entry(frame, init=init, method=method, quantity=quantity)
        assert row["mean"] == pytest.approx(mean(heights)) and row["runs"] == len(runs)


def test_the_gain_in_area_pairs_seeds_and_carries_interval_and_test(tmp_path: Path):
    study = build(tmp_path / "area", SMALL)
    rewrite(study, ported=[[0.5, 0.7, 0.9], [0.6, 0.7, 0.9], [0.7, 0.9, 0.9]], scratch=[[0.5, 0.5, 0.9]] * 3)
    row = entry(area(gather(study.store)), quantity="gain over scratch")
    # weights 0.1, 0.5, 0.4
    blocks = [100 * 0.2 * 0.5, 100 * (0.1 * 0.1 + 0.2 * 0.5), 100 * (0.2 * 0.1 + 0.4 * 0.5)]
    low, high = stats.ttest_1samp(blocks, 0).confidence_interval()
    assert row["mean"] == pytest.approx(mean(blocks)) and (row["low"], row["high"]) == (pytest.approx(low),
                                                                                        pytest.approx(high))
    assert (row["n"], row["blocks"], row["unit"]) == (6, 3, "pp")
    assert row["p"] == pytest.approx(stats.ttest_1samp(blocks, 0).pvalue)


def test_the_published_areas_cover_test_examples_and_agree_with_the_means(published):
    frame = area(published)
    gains = frame[frame["quantity"] == "gain over scratch"]
    by_budget = published.compare(published.cells, ["method", "budget"])
    for _, row in gains.iterrows():
        own = by_budget[(by_budget["method"] == row["method"]) & (by_budget["baseline"] == "scratch")]
        own = own.set_index("budget")["mean"]
        assert row["mean"] == pytest.approx(np.trapezoid(own.sort_index(), sorted(own.index)) / 200)
        assert row["examples"] == 400


def test_a_curve_that_lacks_a_mark_has_no_area_and_is_counted(tmp_path: Path):
    study = build(tmp_path / "holes", SMALL)
    ported = study.pick(init="ported", budget=0)
    study.remove(ported[0].run_id)
    study.remove(ported[1].run_id)
    study.store.fail(ported[1].run_id, {"error": "boom"})
    record = json.loads(study.path(ported[2].run_id).read_text())
    record["train_info"]["metrics"] = record["train_info"]["metrics"][:-1]
    study.path(ported[2].run_id).write_text(json.dumps(record))
    row = entry(area(gather(study.store)), quantity="gain over scratch")
    assert row[["expected", "n", "failed", "missing", "mark"]].tolist() == [6, 3, 1, 2,
                                                                            "†"] and row[
                                                                                "status"] == "incomplete"
    row = entry(updates_to_match(gather(study.store)), level="method", init="ported")
    assert row[["expected", "n", "failed", "missing", "mark"]].tolist() == [6, 3, 1, 2, "†"]
    assert row["reached"] + row["censored"] == row["runs"] == 3


def test_a_cell_that_two_runs_claim_gives_no_area_and_no_updates(tmp_path: Path):
    study = build(tmp_path / "twice", SMALL)
    cell = study.pick(init="ported", budget=500)[0]
    other = study.pick(init="ported", budget=500)[1]
    twin = {**FACTS, "cells": [asdict(replace(cell, run_id=other.run_id))]}
    # as two merged by hand would stand
    (study.store.root / "manifests" / "twin.json").write_text(json.dumps(twin))
    for frame in (area(gather(study.store)), updates_to_match(gather(study.store))):
        own = {"level": "method", "init": "ported"} if "level" in frame else {"quantity": "gain over scratch"}
        row = entry(frame, **own)
        assert (row["n"], row["expected"], row["duplicate"]) == (5, 6, 1)


# ---- updates to match


def test_a_shared_run_that_one_cell_may_not_use_is_used_by_the_others(published):
    cells = published.cells.copy()
    shared = cells[(cells["init"] == "scratch") & (cells["method"] == "lora") & (cells["seed"] == 0)].iloc[0]
    same = ["method", "init", "seed", "origin", "receiving", "relation"]
    cells.loc[(cells[same] == shared[same]).all(axis=1), ["status", "value"]] = ["duplicate", np.nan]
    held = StudyContext(replace(published.study, cells=cells), published.metric, published.answers)
    before, after = (entry(area(found), method="lora", quantity="gain over scratch")
                     for found in (published, held))
    assert (before["n"], after["n"]) == (40, 39) and np.isfinite(after["low"])


def test_a_time_lies_between_two_marks_and_what_is_saved_between_two_numbers(tmp_path: Path):
    study = build(tmp_path / "match", SMALL)
    rewrite(study, scratch=[[0.5, 0.6, 0.8], [0.5, 0.8, 0.8], [0.5, 0.6, 0.8]],
            ported=[[0.8, 0.7, 0.9], [0.5, 0.8, 0.7], [0.5, 0.6, 0.78]])
    frame = updates_to_match(gather(study.store))
    row = entry(frame, level="method", init="ported")
    assert row[["reached", "censored", "runs", "n", "largest"]].tolist() == [4, 2, 6, 6, 500]
    assert row[["median_after", "median_by"]].tolist() == [0, 100]
    assert (row["after"], row["by"]) == (pytest.approx((0 + 0 + 500) / 3), pytest.approx((0 + 100 + 500) / 3))
    # scratch: (100, 500], (0, 100], (100, 500]
    least, most = [100 - 0, 0 - 100, 100 - 500], [500 - 0, 100 - 0, 500 - 500]
    assert (row["saved_least"], row["saved_most"]) == (pytest.approx(mean(least)), pytest.approx(mean(most)))
    low, high = stats.ttest_1samp(least, 0).confidence_interval().low, stats.ttest_1samp(most,
                                                                                         0).confidence_interval().high
    assert (row["blocks"], row["low"], row["high"]) == (3, pytest.approx(low), pytest.approx(high))
    own = entry(frame, level="method", init="scratch")
    assert own[["reached", "censored", "median_after", "median_by"]].tolist() == [3, 0, 100,
                                                                                  500] and np.isnan(
                                                                                      own["saved"])
    assert set(frame[frame["level"] == "direction"]["origin"]) == {"base", "tuned"}


def test_within_one_point_is_as_good(tmp_path: Path):
    study = build(tmp_path / "near", SMALL)
    rewrite(study, scratch=[[0.5, 0.6, 0.8]] * 3, ported=[[0.5, 0.79, 0.5], [0.5, 0.791, 0.5],
                                                          [0.5, 0.789, 0.5]])
    row = entry(updates_to_match(gather(study.store)), level="method", init="ported")
    assert row[["reached", "censored"]].tolist() == [4, 2]


def test_the_median_is_beyond_the_largest_budget_where_more_than_half_are_censored(tmp_path: Path):
    study = build(tmp_path / "late", SMALL)
    rewrite(study, scratch=[[0.5, 0.6, 0.8]] * 3, ported=[[0.9] * 3, [0.5] * 3, [0.5] * 3])
    found = gather(study.store)
    row = entry(updates_to_match(found), level="method", init="ported")
    assert np.isnan(row["median_by"]) and (row["reached"], row["censored"]) == (2, 4)
    spec = TABLES["updates_to_match"]
    shown = spec.view(spec.make(found)).set_index("init")
    assert shown.loc["ported", "median updates"] == ">500" and shown.loc["ported", "mean updates"] == "≥ 333"
    assert shown.loc["ported", "reached"] == "2 of 6 runs" and shown.loc["scratch",
                                                                         "median updates"] == "100 to 500"


def test_the_median_is_that_of_statsmodels_survival_function(published):
    row = entry(updates_to_match(published), level="method", method="lora", init="ported")
    cells = published.arms[published.arms["method"] == "lora"]
    cells = cells.set_index(["origin", "receiving", "relation", "seed", "init", "budget"])
    times = []
    for point in itertools.product(*[cells.index.unique(i) for i in (0, 1, 2, 3)]):
        if (*point, "ported", 0) in cells.index:
            value = {b: cells.loc[(*point, "ported", b), "value"] for b in (0, 50, 100, 200)}
            last = cells.loc[(*point, "scratch", 200), "value"]
            times.append(next((b for b in value if value[b] >= last - 0.01 - 1e-9), np.inf))
    curve = SurvfuncRight(np.minimum(times, 200), np.isfinite(times))
    assert row["median_by"] == curve.quantile(0.5) and row["censored"] == times.count(np.inf)
    assert row["by"] == pytest.approx(mean(min(time, 200) for time in times))


# ---- take-off


def test_a_run_has_taken_off_halfway_from_bare_to_native(tmp_path: Path):
    study = build(tmp_path / "flown", SMALL)
    rewrite(study, scratch=[[0.5, 0.5, 0.5]] * 3, ported=[[0.8, 0.5, 0.9], [0.5, 0.71, 0.7],
                                                          [0.5, 0.6, 0.69]])
    for cell in study.cells:
        change(study, cell.native_id, {500: 0.9})
        change(study, cell.bare_id, {0: 0.5})
    frame = take_off(gather(study.store))  # halfway is 0.7
    shares = {budget: entry(frame, init="ported", budget=budget)["mean"] for budget in (0, 100, 500)}
    assert shares == {0: pytest.approx(1 / 3), 100: pytest.approx(2 / 3), 500: pytest.approx(2 / 3)}
    last = entry(frame, init="ported", budget=500)
    assert last[["median_after", "median_by", "n", "expected", "blocks"]].tolist() == [0, 100, 6, 6, 3]
    own = entry(frame, init="scratch", budget=500)
    assert own["mean"] == 0.0 and np.isnan(own["median_by"])
    shown = TABLES["take_off"].view(frame).set_index("init")
    assert shown.loc["ported", "half took off"] == "0 to 100" and shown.loc["scratch",
                                                                            "half took off"] == ">500"


def test_no_run_is_held_against_itself_and_a_seed_whose_native_failed_to_learn_counts(tmp_path: Path):
    study = build(tmp_path / "flown", SMALL)
    # each its own native: halfway is 0.7
    rewrite(study, scratch=[[0.5, 0.5, 0.9], [0.5, 0.5, 0.55], [0.5, 0.5, 0.5]])
    for cell in study.cells:
        change(study, cell.bare_id, {0: 0.5})
    natives = {cell.seed: cell.native_id for cell in study.cells}
    for seed, height in enumerate((0.9, 0.55, 0.5)):
        change(study, natives[seed], {500: height})
    own = entry(take_off(gather(study.store)), init="scratch", budget=500)
    assert own["mean"] == pytest.approx(1 / 3) and own["blocks"] == 3 and own["mark"] == ""


def test_where_native_is_no_better_than_the_bare_host_there_is_no_halfway(tmp_path: Path):
    study = build(tmp_path / "flat", SMALL)
    for cell in study.cells:
        change(study, cell.native_id, {500: 0.505})
        change(study, cell.bare_id, {0: 0.5})
    frame = take_off(gather(study.store))
    assert frame["mean"].isna().all() and (frame["n"] == 0).all() and (frame["mark"] == "†").all()


def test_reaching_a_loss_means_falling_to_it(tmp_path: Path):
    study = build(tmp_path / "loss", SMALL)
    rewrite(study, scratch=[[0.5, 0.6, 0.8]] * 3, ported=[[0.5, 0.9, 0.5]] * 3)  # losses 0.5, 0.1, 0.5
    frame = updates_to_match(gather(study.store, "eval_loss"))
    assert entry(frame, level="method", init="ported")["median_by"] == 100
    assert entry(win_rate(gather(study.store, "eval_loss")), init="ported", against="scratch")["mean"] == 0.0


# ---- cost and break-even


def test_costs_are_medians_over_distinct_runs_with_the_origins_beside(tmp_path: Path):
    study = build(tmp_path / "cost", SMALL)
    spend(study)
    frame = cost(gather(study.store))
    own = {"method": "lora", "receiving": "large"}
    assert entry(frame, **own, init="ported", quantity="seconds")[["median", "n",
                                                                   "expected"]].tolist() == [11, 6, 6]
    assert entry(frame, **own, init="scratch", quantity="seconds")[["median", "n",
                                                                    "expected"]].tolist() == [11, 3, 3]
    assert entry(frame, **own, init="ported", quantity="origin's tokens")[["median", "n",
                                                                           "expected"]].tolist() == [7, 3, 3]
    bare = entry(frame, **own, init="scratch", quantity="seconds to port")
    assert bare["n"] == 0 and bare["status"] == "none recorded" and bare["mark"] == ""
    study.remove(study.pick(init="scratch")[0].run_id)
    study.remove(study.pick(init="scratch")[0].native_id)
    frame = cost(gather(study.store))
    row = entry(frame, **own, init="scratch", quantity="updates")
    assert row[["n", "expected", "missing", "mark"]].tolist() == [2, 3, 1, "†"]
    assert entry(frame, **own, init="ported", quantity="origin's updates")[["n", "expected",
                                                                            "mark"]].tolist() == [2, 3, "†"]


def test_published_costs_are_those_of_the_records(published):
    runs = published.study.runs.set_index("run_id")
    # five seeds, two sets
    for host, count, origins in (("nano-raw-base", 20, 20), ("nano-raw-large", 10, 10)):
        where = {"method": "lora", "init": "ported", "receiving": host}
        cells = published.arms.loc[(published.arms[list(where)] == list(where.values())).all(axis=1)]
        row = entry(cost(published), **where, quantity="seconds")
        assert row["median"] == pytest.approx(median(runs.loc[cells["run_id"].unique(), "seconds"])) and row[
            "n"] == count
        row = entry(cost(published), **where, quantity="origin's updates")
        assert (row["median"], row["n"]) == (200, origins)


def test_costs_of_two_hosts_are_never_pooled(published):
    for name in ("cost", "break_even"):
        frame = TABLES[name].make(published)
        shown = TABLES[name].view(frame)
        assert set(frame["receiving"]) == set(shown["receiving"]) == set(published.arms["receiving"])
        assert len(shown) == len(shown.drop_duplicates([key for key in ("method", "receiving", "init")
                                                        if key in shown]))


def test_break_even_is_the_origin_over_what_a_port_saves(tmp_path: Path):
    study = build(tmp_path / "even", SMALL)
    spend(study)
    rewrite(study, scratch=[[0.5, 0.6, 0.8]] * 3, ported=[[0.9] * 3, [0.5, 0.8, 0.9], [0.5, 0.8, 0.9]])
    found = gather(study.store)
    row = entry(break_even(found), unit="updates")
    # 100 to 500, and twice 0 to 500
    assert row["saved"] == pytest.approx((300 + 250 + 250) / 3) and row["ports"] == 2
    assert entry(break_even(found), unit="tokens")["saved"] == pytest.approx(1000 * 800 / 3)


def test_a_port_that_saves_nothing_never_pays_back_and_censored_ports_make_bounds(tmp_path: Path):
    study = build(tmp_path / "never", SMALL)
    spend(study)
    rewrite(study, scratch=[[0.5, 0.6, 0.8]] * 3, ported=[[0.5] * 3] * 3)
    found = gather(study.store)
    assert np.isinf(entry(break_even(found), unit="updates")["ports"])
    rewrite(study, ported=[[0.9] * 3, [0.9] * 3, [0.5] * 3])
    shown = TABLES["break_even"].view(break_even(gather(study.store)))
    assert shown["{starts} to pay back"].tolist() == ["≥4 [1, never]"] and shown["not reached"].tolist() == [
        "2 of 6"]


def test_what_is_not_recorded_or_not_there_is_said(tmp_path: Path):
    study = build(tmp_path / "blank", SMALL)
    rewrite(study, scratch=[[0.5, 0.6, 0.8]] * 3, ported=[[0.9] * 3] * 3)
    assert np.isnan(entry(break_even(gather(study.store)), unit="updates")["origin_cost"])
    for cell in study.pick(init="ported", budget=0):
        study.remove(cell.run_id)
    row = entry(updates_to_match(gather(study.store)), level="method", init="ported")
    assert (row["n"], row["missing"], row["mark"], row["status"]) == (0, 6, "†", "missing")


def test_an_init_without_zero_shot_has_no_area_but_updates(tmp_path: Path):
    study = build(tmp_path / "matched", SMALL)
    late = [replace(cell, init="matched") for cell in study.cells if cell.init == "sampled" and cell.budget]
    study.store.expect(late, FACTS)
    found = gather(study.store)
    assert "matched" not in set(area(found)["init"]) and "matched" in set(found.arms["init"])
