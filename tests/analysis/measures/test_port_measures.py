"""What porting is worth: lifts, ratios and win rates against the same numbers worked out another way."""

from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from portability.analysis.context import StudyContext, gather
from portability.analysis.measures.port_measures import SAME, lift, recovered, win_rate
from portability.analysis.records import by_example
from portability.analysis.stats.intervals import NOISE, WORSE, jeffreys, ratio
from portability.analysis.tables.registry import TABLES
from portability.analysis.tables.registry import build as build_tables
from portability.store import Store
from support.synthetic import FACTS, NANO, build
from support.written import SMALL, change, entry, rewrite

NAMES = ("lift", "area", "updates_to_match", "take_off", "recovered", "cost", "break_even", "predictors",
         "win_rate_inits", "win_rate_methods")
METRICS = ("eval_accuracy", "eval_loss", "eval_positive_share")


@pytest.fixture(scope="module")
def published() -> StudyContext:
    """The published study, with its predictions."""
    return gather(Store(NANO))


# ---- lift


def test_lift_is_over_seeds_and_the_bare_run_is_a_constant(study):
    frame = lift(gather(study.store))
    row = entry(frame, method="lora", receiving="large", init="ported")
    cells = study.pick(method="lora", receiving="large", init="ported", budget=0)
    gains = [100 * (study.accuracy(cell) - study.runs[cell.bare_id][0]) for cell in cells]
    assert row["mean"] == pytest.approx(mean(gains)) and (row["n"], row["blocks"], row["examples"]) == (12, 3,
                                                                                                        0)
    seeds = [mean(gain for gain, cell in zip(gains, cells, strict=True) if cell.seed == seed)
             for seed in (0, 1, 2)]
    assert row["p"] == pytest.approx(stats.ttest_1samp(seeds, 0).pvalue)
    scratch = entry(frame, method="lora", receiving="large", init="scratch")
    assert (scratch["n"], scratch["runs"], scratch["blocks"]) == (12, 3, 3)
    assert row["p_holm"] >= row["p"] and row["family"] == 12


def test_lift_equals_the_zero_shot_table_and_covers_test_examples(published):
    frame = lift(published)
    start = published.arms[(published.arms["budget"] == 0) & (published.arms["init"] == "ported")]
    for (method, receiving), cells in start.groupby(["method", "receiving"]):
        row = entry(frame, method=method, receiving=receiving, init="ported")
        assert row["mean"] == pytest.approx(100 * (cells["value"]
                                                   - cells["bare"]).mean()) and row["examples"] == 400
    alone = lift(replace(published, answers=None))
    assert (alone["examples"] == 0).all() and (alone["mean"] == frame["mean"]).all()
    both = frame["low"].notna() & alone["low"].notna()
    assert (frame["high"] - frame["low"])[both].mean() > (alone["high"] - alone["low"])[both].mean()


def test_bare_runs_without_predictions_leave_the_lift_over_seeds_only(published):
    arms = by_example(Store(NANO), published.arms, "eval_accuracy")
    assert (lift(replace(published, answers=arms))["examples"] == 0).all()


# ---- recovered fraction


def brute(numerator: np.ndarray, denominator: np.ndarray, ratios: np.ndarray) -> tuple[float, float]:
    """Ends of the set of ratios that a t test does not reject."""
    held = [r for r in ratios if stats.ttest_1samp(numerator - r * denominator, 0).pvalue >= 0.05]
    return min(held), max(held)


def test_fiellers_interval_is_the_set_of_ratios_that_a_t_test_does_not_reject():
    random = np.random.default_rng(3)
    for _ in range(5):
        denominator = random.normal(20, 4, 6)
        numerator = 0.5 * denominator + random.normal(0, 3, 6)
        found = ratio(numerator, denominator)
        low, high = brute(numerator, denominator, np.arange(-0.5, 2.0, 0.002))
        assert found.low == pytest.approx(low, abs=0.003) and found.high == pytest.approx(high, abs=0.003)
        assert found.mean == pytest.approx(numerator.mean() / denominator.mean())


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_fiellers_interval_holds_the_ratio(seeds):
    random = np.random.default_rng(0)
    held = []
    for _ in range(600):
        shared = 0.7 * random.normal(size=seeds)  # the scratch run is in both
        denominator, numerator = (mean + 4 * (shared + 0.7 * random.normal(size=seeds))
                                  for mean in (25.0, 15.0))
        found = ratio(numerator, denominator)
        held.append(found.low <= 0.6 <= found.high)
    assert 0.925 <= np.mean(held) <= 0.98


def test_a_denominator_within_noise_or_of_the_wrong_sign_gives_no_ratio():
    found = ratio(np.array([5.0, 6.0, 5.5, 5.2]), np.array([1.0, -1.0, 2.0, -1.5]))
    assert found.note == NOISE and np.isnan([found.mean, found.low, found.high]).all() and found.blocks == 4
    assert found.denominator == pytest.approx(0.125) and found.denominator_low < 0 < found.denominator_high
    down = np.array([-5.0, -6.0, -5.5, -5.2])
    assert ratio(down, 2 * down, -1.0).note == "no spread between seeds: no interval"
    assert ratio(-down, 2 * down + [0.1, 0, 0, 0.2]).note == WORSE
    assert ratio(down, 2 * down + [0.1, 0, 0, 0.2], -1.0).mean == pytest.approx(0.5, abs=0.01)
    assert ratio(down[:1], down[:1]).note == "native − scratch: one seed: no interval"
    assert ratio(down[:0], down[:0]).note == "no pair"


def test_the_recovered_fraction_is_a_ratio_of_means(tmp_path: Path):
    study = build(tmp_path / "part", SMALL)
    rewrite(study, scratch=[[0.5, 0.60, 0.7]] * 3, ported=[[0.5, 0.70, 0.8], [0.5, 0.72, 0.8],
                                                           [0.5, 0.74, 0.8]])
    for seed, value in enumerate((0.90, 0.91, 0.95)):
        change(study, study.pick(seed=seed)[0].native_id, {500: value})
    row = entry(recovered(gather(study.store)), level="method", budget=100)
    low, high = brute(np.array([10.0, 12.0, 14.0]), np.array([30.0, 31.0, 35.0]), np.arange(0.2, 0.7, 0.0005))
    assert row["mean"] == pytest.approx(36 / 96) and (row["n"], row["blocks"], row["expected"]) == (6, 3, 6)
    assert (row["low"], row["high"]) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))
    assert row["numerator"] == pytest.approx(12) and row["denominator"] == pytest.approx(32) and row[
        "unit_of_means"] == "pp"


def test_native_that_is_the_scratch_run_at_the_same_mark_is_refused(published):
    frame = recovered(published)
    last = frame[frame["budget"] == 200]
    assert (last["note"] == SAME).all() and last[["mean", "low", "high"]].isna().all(axis=None)
    assert np.allclose(last["denominator"], 0) and (last["status"] == "complete").all()
    early = frame[(frame["budget"] == 50) & (frame["level"] == "method")]
    assert early["mean"].between(0, 1).all() and (early["blocks"] == 5).all()
    assert "native is the scratch run itself" in TABLES["recovered"].view(frame).to_string()


def test_a_native_run_that_is_not_there_is_counted_and_named(tmp_path: Path):
    study = build(tmp_path / "gone", SMALL)
    native = study.pick(seed=0)[0].native_id
    study.remove(native)
    study.store.fail(native, {"error": "boom"})
    row = entry(recovered(gather(study.store)), level="method", budget=100)
    assert row[["expected", "n", "failed", "missing", "mark", "status"]].tolist() == [6, 4, 2, 0, "†",
                                                                                      "incomplete"]


# ---- win rates


def test_a_win_rate_counts_ties_half_and_is_paired_by_seed(tmp_path: Path):
    study = build(tmp_path / "wins", SMALL)
    rewrite(study, scratch=[[0.5, 0.6, 0.8]] * 3, ported=[[0.5, 0.5, 0.9], [0.5, 0.9, 0.8], [0.5, 0.9, 0.7]])
    frame = win_rate(gather(study.store))
    row = entry(frame, init="ported", against="scratch")
    assert row[["mean", "n", "blocks", "expected"]].tolist() == [0.5, 6, 3,
                                                                 6] and row["ties"] == pytest.approx(1 / 3)
    back = entry(frame, init="scratch", against="ported")
    assert (back["low"], back["high"]) == (pytest.approx(1 - row["high"]), pytest.approx(1 - row["low"]))
    assert row["low"] == pytest.approx(stats.beta.ppf(0.025, 2, 2))


def test_methods_win_within_the_same_point_of_the_grid(published):
    frame = win_rate(published, "method")
    cells = published.largest[published.largest["init"] == "ported"]
    wide = cells.pivot(index=["origin", "receiving", "relation", "seed"], columns="method", values="value")
    row = entry(frame, init="ported", method="adapter", against="lora")
    assert row["mean"] == pytest.approx((wide["adapter"] > wide["lora"]).mean()
                                        + (wide["adapter"] == wide["lora"]).mean() / 2)
    assert (row["n"], row["blocks"]) == (40, 5)


@pytest.mark.parametrize("blocks", [3, 5, 10])
@pytest.mark.parametrize("pairs", [1, 4])
def test_jeffreys_interval_over_blocks_holds_the_win_rate(blocks, pairs):
    random = np.random.default_rng(0)
    for rate in (0.5, 0.7, 0.9):
        of_blocks, of_pairs = (random.normal(size=(2000, blocks, count)) for count in (1, pairs))
        luck = np.sqrt(0.5) * of_blocks + np.sqrt(0.5) * of_pairs
        share = (luck + stats.norm.ppf(rate) > 0).mean(axis=(1, 2))
        low, high = jeffreys(share, np.full(2000, float(blocks)))
        assert ((low <= rate) & (rate <= high)).mean() > 0.90


# ---- all of them


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", NAMES)
def test_every_quantity_has_counts_and_text_and_none_where_nothing_is_better(study, metric, name):
    found = gather(study.store, metric)
    table, = build_tables(found, [name])
    frame, made = table.frame, table.shown
    assert {"quantity", "unit", "expected", "n", "missing", "mark", "status"} <= set(frame.columns)
    assert table.notes and (table.column is None or all(table.show(row) for _, row in made.iterrows()))
    undefined = metric == "eval_positive_share" and TABLES[name].needs_better
    assert (len(frame) == 0) == undefined == ("neither a high nor a low" in table.notes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("inits", [("bare",), ("ported",), ("scratch",)])
def test_a_study_without_pairs_raises_nothing(tmp_path: Path, name, inits):
    budgets = (0,) if inits == ("bare",) else (0, 100)
    study = build(tmp_path / "alone", replace(SMALL, inits=inits, budgets=budgets))
    found = gather(study.store)
    table, = build_tables(found, [name])
    assert table.notes and (inits != ("bare",) or table.frame.empty and table.shown.empty)


@pytest.mark.parametrize(("key", "values"), [("port", {"pad", "repeat"}), ("data", {"sst2", "imdb"})])
def test_ports_and_data_sets_are_told_apart_in_every_quantity(tmp_path: Path, key, values):
    study = build(tmp_path / "apart", replace(SMALL, methods=("lora", "prefix")))
    inits, other = ("ported",) if key == "port" else SMALL.inits, max(values - {"sst2"})
    extra = [replace(cell, **{key: other}, run_id=cell.run_id[::-1]) for cell in study.cells
             if cell.init in inits]
    study.store.expect(extra, FACTS)
    found = gather(study.store)
    for table in build_tables(found, NAMES):
        assert values == set(table.frame[key].dropna()) and key in table.shown, table.name


@pytest.mark.system
def test_the_order_of_commands_moves_no_quantity(study):
    found = gather(study.store)
    study.store.expect(study.cells[::-1], {**FACTS, "sweep": "backwards"})
    turned = gather(study.store)
    keys = ["level", "method", "origin", "receiving", "relation", "init", "against", "budget", "baseline",
            "predictor", "quantity"]
    for name in NAMES:
        frames = [TABLES[name].make(one) for one in (found, turned)]
        left, own = (frame.sort_values([key for key in keys if key in frame], ignore_index=True)
                     for frame in frames)
        pd.testing.assert_frame_equal(left, own, check_dtype=False)
