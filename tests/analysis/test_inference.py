"""Comparisons: paired within seeds, blocks share no run, counts of what is not there, ties instead of ranks."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from calibrate import SETTINGS, World, coverage, draw, family_errors
from scipy import stats
from synthetic import Axes, build

from analysis.answers import right
from analysis.inference import LEVELS, compare, design_of, designs, pairs_of, ties
from analysis.load import read
from analysis.stats import paired, summarise
from portability.errors import UserError
from portability.store import Store


@pytest.fixture(scope="module")
def published():
    """The cells of a published study, and which test examples each gets right."""
    store = Store(Path(__file__).parents[2] / "results/nano_full")
    cells = read(store).cells
    return cells, right(store, cells)


def entry(table: pd.DataFrame, **keys: object) -> pd.Series:
    """The one row with these keys."""
    for key, value in keys.items():
        table = table[table[key] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_a_direction_is_the_paired_t_of_its_seeds(published):
    cells, _ = published
    found = compare(cells, LEVELS["direction"])
    pairs = paired(cells, "ported", "scratch")
    for _, row in found[(found["baseline"] == "scratch") & (found["budget"] == 50)].iterrows():
        own = pairs[(pairs[LEVELS["direction"]] == row[LEVELS["direction"]]).all(axis=1)]["value"].to_numpy()
        low, high = stats.ttest_1samp(own, 0).confidence_interval()
        assert (row["low"], row["high"], row["blocks"], row["n"]) == (pytest.approx(low), pytest.approx(high), 5, 5)
        assert row["p"] >= row["smallest_p"] >= 2 / 2**5  # five seeds cannot reach 5 %


@pytest.mark.parametrize("blocks", ["run", "seed"])
@pytest.mark.parametrize("level", list(LEVELS))
def test_the_mean_is_the_gain_of_the_tables(published, level, blocks):
    cells, answers = published
    found = compare(cells, LEVELS[level], answers, blocks=blocks)
    for baseline in ("sampled", "scratch"):
        expected = summarise(paired(cells, "ported", baseline), LEVELS[level])
        own = found[found["baseline"] == baseline]
        np.testing.assert_allclose(own["mean"], expected["mean"], atol=1e-9)
        assert own["blocks"].tolist() == (expected["runs"].tolist() if blocks == "run" else [5] * len(own))


def test_the_predictions_give_the_accuracies_and_lengthen_no_mean(published):
    cells, answers = published
    for row in cells[cells["budget"] == 100].itertuples():
        assert answers[row.run_id, row.mark].mean() == pytest.approx(row.value, abs=1e-9)
    over_seeds, both = compare(cells, LEVELS["method"]), compare(cells, LEVELS["method"], answers)
    np.testing.assert_allclose(both["mean"], over_seeds["mean"])
    assert set(both["examples"]) == {400} and set(over_seeds["examples"]) == {0}
    assert (both["p"] == over_seeds["p"]).all()  # the test is of these test examples


def test_rows_of_a_design_average_to_its_blocks(published):
    cells, answers = published
    pairs = pairs_of(cells[(cells["budget"] == 50) & (cells["method"] == "lora")], "init", ("ported", "scratch"), 100.0)
    design = design_of(pairs, answers, 100.0, "run")
    assert design.examples.shape == (15, 400)
    np.testing.assert_allclose(design.examples.mean(axis=1), design.differences, atol=1e-4)
    assert len(set(design.strata)) == 3  # hosts: the relations and the origins of a host share its scratch runs


@pytest.mark.parametrize("blocks", ["run", "seed"])
def test_the_designs_of_all_groups_are_those_of_each_by_itself(published, blocks):
    cells, answers = published
    pairs = pairs_of(cells, "init", ("ported", "scratch"), 100.0)
    pairs.loc[pairs.index[::7], "value"] = np.nan
    for level in ("relation", "direction"):
        groups = [group for _, group in pairs.groupby(LEVELS[level], sort=False)]
        for group, found in zip(groups, designs(pairs, LEVELS[level], answers, 100.0, blocks), strict=True):
            alone = design_of(group, answers, 100.0, blocks)
            np.testing.assert_allclose(found.differences, alone.differences)
            np.testing.assert_allclose(found.examples, alone.examples)
            same = [strata[:, None] == strata for strata in (found.strata, alone.strata)]
            assert (same[0] == same[1]).all()


def test_where_nothing_was_ported_there_is_no_row(tmp_path):
    cells = read(build(tmp_path / "s", Axes(inits=("sampled", "scratch"))).store).cells
    assert all(compare(cells, keys).empty for keys in LEVELS.values())
    assert ties(cells.iloc[:0], "init", LEVELS["method"]).empty
    assert design_of(pairs_of(cells, "init", ("ported", "scratch"), 1.0), None, 1.0, "run").differences.size == 0


def test_a_missing_and_a_failed_run_are_counted_and_marked(tmp_path):
    study = build(tmp_path / "s", Axes(methods=("lora",)))
    own = study.pick(init="ported", origin="base", receiving="large", relation="same", budget=500)
    gone, failed = own[0].run_id, own[1].run_id
    for run in (gone, failed):
        study.remove(run)
    study.store.fail(failed, {"error": "boom"})
    found = compare(read(study.store).cells, LEVELS["direction"])
    row = entry(found, origin="base", receiving="large", relation="same", budget=500, baseline="scratch")
    assert row[["expected", "n", "failed", "missing", "mark", "blocks"]].tolist() == [3, 1, 1, 1, "†", 1]
    assert np.isnan(row["low"]) and row["note"] == "one block: no interval" and row["p"] == 1.0
    whole = entry(found, origin="tuned", receiving="large", relation="same", budget=500, baseline="scratch")
    assert whole[["expected", "n", "mark", "smallest_p"]].tolist() == [3, 3, "", 0.25]


def test_nothing_done_gives_a_row_without_numbers(tmp_path):
    study = build(tmp_path / "s", Axes(methods=("lora",), pairs=(("base", "large"),), relations=("same",), budgets=(5,)))
    for cell in study.pick(init="ported"):
        study.remove(cell.run_id)
    row = entry(compare(read(study.store).cells, LEVELS["all"]), baseline="scratch")
    assert row[["n", "missing", "family", "note"]].tolist() == [0, 3, 0, "no pair"]
    assert row[["mean", "low", "p", "p_holm", "mdd"]].isna().all()


def test_budgets_are_never_pooled_and_seeds_never_keys(published):
    cells, _ = published
    for keys in (["method"], ["budget", "seed"], ["budget", "colour"]):
        with pytest.raises(UserError, match="name the budget"):
            compare(cells, keys)
    with pytest.raises(UserError, match="kind of blocks"):
        compare(cells, LEVELS["all"], blocks="origin")


def test_other_test_sets_are_refused(published):
    cells, answers = published
    cut = {key: row[:300] if key[0] == cells["run_id"].iloc[0] else row for key, row in answers.items()}
    with pytest.raises(UserError, match="different numbers of examples"):
        compare(cells, LEVELS["all"], cut)


def test_inits_and_methods_stand_in_tie_groups(published):
    cells, _ = published
    inits = ties(cells, "init", LEVELS["method"])
    first = inits[(inits["method"] == "lora") & (inits["budget"] == 50)]
    assert first[["init", "letters"]].values.tolist() == [["ported", "a"], ["sampled", "b"], ["scratch", "c"]]
    late = inits[(inits["method"] == "lora") & (inits["budget"] == 200)]
    assert set(late["letters"]) == {"a"}
    methods = ties(cells, "method", ["init", "budget"])
    assert set(methods.loc[(methods["init"] == "ported") & (methods["method"] == "prefix") & (methods["budget"] == 200),
                           "letters"]) == {"b"}


def test_where_the_lowest_is_the_best_it_is_first_and_has_the_first_letter(published):
    cells, _ = published
    found = ties(cells[(cells["budget"] == 50) & (cells["method"] == "lora")], "init", LEVELS["method"], better="lower")
    assert found[["init", "letters"]].values.tolist() == [["scratch", "a"], ["sampled", "b"], ["ported", "c"]]


def test_too_few_blocks_tell_nothing_apart(tmp_path):
    study = build(tmp_path / "s", Axes(pairs=(("base", "large"),), relations=("same",), budgets=(500,)))
    found = ties(read(study.store).cells, "init", LEVELS["method"])
    assert set(found["letters"]) == {"a"} and set(found["smallest_p"]) == {0.25}


def test_a_grid_with_predictions_is_compared_in_seconds(published):
    cells, answers = published
    start = time.process_time()
    for keys in LEVELS.values():
        compare(cells, keys, answers)
    assert time.process_time() - start < 20


def test_thousands_of_directions_are_compared_in_seconds():
    world = draw(World(seeds=5, origins=40), 60, np.random.default_rng(0))[0]
    start = time.process_time()
    assert len(compare(world, LEVELS["direction"])) == 2400
    assert time.process_time() - start < 5


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_whole_comparisons_hold_the_gain_where_origins_share_a_baseline(seeds):
    held, _ = coverage(World(seeds=seeds, examples=200), 300)
    assert 0.92 <= held <= 0.98  # 300 grids: one standard error is 1.3 points


def test_pairs_taken_as_independent_would_hold_it_far_less():
    cells, _ = draw(World(seeds=5), 300, np.random.default_rng(0))
    gains = paired(cells, "ported", "scratch").groupby("budget")["value"]
    half = stats.t.ppf(0.975, 19) * gains.std() / np.sqrt(20)
    assert ((gains.mean() - 4.0).abs() <= half).mean() < 0.85


def test_null_families_are_called_different_in_less_than_one_in_twenty():
    assert family_errors(replace(SETTINGS["3 hosts x 4 origins"], seeds=5), 40, 6) <= 0.15  # 5 % expected: at most 6 of 40
    assert family_errors(World(seeds=5), 40, 6) == 0.0  # five blocks cannot reach 5 % at all
