"""Comparisons: seeds are the blocks, cells weigh alike, counts of what is not there, ties instead of
ranks."""

import time
from statistics import mean

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from portability.analysis.load import read
from portability.analysis.measures.comparisons import ties
from portability.analysis.records import by_example
from portability.analysis.stats.blocks import LEVELS, build_blocks, compare
from portability.analysis.stats.pairing import bare_pairs, paired, pairs_of
from portability.core.errors import UserError
from portability.store import Store
from support.synthetic import NANO, Axes, build


@pytest.fixture(scope="module")
def published():
    """The cells of a published study, and which test examples each gets right."""
    store = Store(NANO)
    cells = read(store).cells
    return cells, by_example(store, cells, "eval_accuracy")


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
        test = stats.ttest_1samp(own, 0)
        low, high = test.confidence_interval()
        assert (row["low"], row["high"], row["blocks"], row["n"]) == (pytest.approx(low), pytest.approx(high),
                                                                      5, 5)
        assert row["p"] == pytest.approx(test.pvalue)


@pytest.mark.parametrize("level", list(LEVELS))
def test_seeds_are_the_blocks_and_every_cell_weighs_alike(published, level):
    cells, _ = published
    found = compare(cells, LEVELS[level])
    for baseline in ("sampled", "scratch"):
        pairs = paired(cells, "ported", baseline)
        seeds = pairs.groupby([*LEVELS[level], "seed"], sort=False)["value"].mean().unstack("seed")
        own = found[found["baseline"] == baseline].set_index(LEVELS[level]).loc[seeds.index]
        np.testing.assert_allclose(own["mean"], seeds.mean(axis=1), atol=1e-9)
        test = stats.ttest_1samp(seeds.to_numpy(), 0, axis=1)
        spread = seeds.std(axis=1).to_numpy() > 0
        np.testing.assert_allclose(own["high"][spread], test.confidence_interval().high[spread], atol=1e-9)
        assert set(own["blocks"]) == {5}


def test_headlines_weigh_both_directions_into_one_host_as_all_others(published):
    """Worked out from the scores alone: 9.4, not the 10.5 of a mean over scratch runs."""
    cells, _ = published
    score = cells[cells["budget"] == 50].set_index(["init", "method", "origin", "receiving", "relation",
                                                    "seed"])["value"]
    gains = [100 * (value - score["scratch", *place]) for place, value in score["ported"].items()]
    row = entry(compare(cells, LEVELS["all"]), budget=50, baseline="scratch")
    assert row["mean"] == pytest.approx(mean(gains)) and round(row["mean"], 1) == 9.4


def test_a_seed_effect_stays_in_the_interval_however_many_cells_share_it(tmp_path):
    found = {}
    for count in (1, 12):
        pairs = tuple((f"o{i}", f"r{i}") for i in range(count))
        axes = Axes(("lora",), pairs, ("same",), ("ported", "sampled"), (100,), (0, 1, 2, 3))
        cells = read(build(tmp_path / str(count), axes).store).cells
        gains = cells["seed"].map({0: 0.01, 1: 0.05, 2: 0.02, 3: 0.08}).astype(float)
        cells = cells.assign(value=0.5 + gains.where(cells["init"] == "ported", 0.0))
        found[count] = entry(compare(cells, LEVELS["all"]), baseline="sampled")
    assert found[12][["mean", "low", "high"]].tolist() == pytest.approx(found[1][["mean", "low",
                                                                                  "high"]].tolist())


def test_the_predictions_give_the_accuracies_and_lengthen_no_mean(published):
    cells, answers = published
    for row in cells[cells["budget"] == 100].itertuples():
        assert answers[row.run_id, row.mark].mean() == pytest.approx(row.value, abs=1e-9)
    over_seeds, both = compare(cells, LEVELS["method"]), compare(cells, LEVELS["method"], answers)
    np.testing.assert_allclose(both["mean"], over_seeds["mean"])
    assert set(both["examples"]) == {400} and set(over_seeds["examples"]) == {0}
    assert (both["p"] >= over_seeds["p"] - 0.01).all()  # also new test examples


def test_examples_average_to_the_seeds_differences(published):
    cells, answers = published
    pairs = pairs_of(cells[(cells["budget"] == 50) & (cells["method"] == "lora")], "init",
                     ("ported", "scratch"), 100.0)
    design = next(build_blocks(pairs, ["budget"], answers, 100.0))
    assert [each.shape for each in design.examples] == [(5, 400)] and design.lacking == 0
    np.testing.assert_allclose(design.examples[0].mean(axis=1), design.differences, atol=1e-3)


def test_several_test_sets_stay_apart_and_average_together(published):
    cells, answers = published
    pairs = pairs_of(cells[(cells["budget"] == 50) & (cells["method"] == "lora")], "init",
                     ("ported", "scratch"), 100.0)
    two = pairs.assign(data=np.where(pairs["relation"] == "same", "films", "plays"))
    design = next(build_blocks(two, ["budget"], answers, 100.0))
    assert [each.shape for each in design.examples] == [(5, 400), (5, 400)]
    np.testing.assert_allclose(sum(each.mean(axis=1) for each in design.examples), design.differences,
                               atol=1e-3)


def test_the_bare_host_has_no_seed_and_its_examples_are_shared_by_all(published):
    cells, answers = published
    start = cells[(cells["budget"] == 0) & (cells["init"] == "ported") & (cells["method"] == "lora")]
    design = next(build_blocks(bare_pairs(start, 100.0), ["budget"], answers, 100.0))
    expected = 100 * (start["value"] - start["bare"]).groupby(start["seed"]).mean()
    np.testing.assert_allclose(np.sort(design.differences), np.sort(expected))
    assert design.examples[0].shape == (5, 400)


def test_the_designs_of_all_groups_are_those_of_each_by_itself(published):
    cells, answers = published
    pairs = pairs_of(cells, "init", ("ported", "scratch"), 100.0)
    pairs.loc[pairs.index[::37], "value"] = np.nan
    for level in ("relation", "direction"):
        groups = [group for _, group in pairs.groupby(LEVELS[level], sort=False)]
        for group, found in zip(groups, build_blocks(pairs, LEVELS[level], answers, 100.0), strict=True):
            alone = next(build_blocks(group, LEVELS[level], answers, 100.0))
            np.testing.assert_allclose(found.differences, alone.differences)
            assert found.lacking == alone.lacking and len(found.examples) == len(alone.examples)
            for one, other in zip(found.examples, alone.examples, strict=True):
                np.testing.assert_allclose(one, other)


def test_where_nothing_was_ported_there_is_no_row(tmp_path):
    cells = read(build(tmp_path / "s", Axes(inits=("sampled", "scratch"))).store).cells
    assert all(compare(cells, keys).empty for keys in LEVELS.values())
    assert ties(cells.iloc[:0], "init", LEVELS["method"]).empty


def test_a_seed_that_lacks_a_cell_is_left_out_whole_and_marked(tmp_path):
    study = build(tmp_path / "s", Axes(methods=("lora",), seeds=(0, 1, 2, 3)))
    own = study.pick(init="ported", origin="base", receiving="large", relation="same", budget=500)
    gone, failed = own[0].run_id, own[1].run_id
    for run in (gone, failed):
        study.remove(run)
    study.store.fail(failed, {"error": "boom"})
    cells = read(study.store).cells
    row = entry(compare(cells, LEVELS["all"]), budget=500, baseline="scratch")
    assert row[["expected", "n", "failed", "missing", "mark", "blocks"]].tolist() == [24, 22, 1, 1, "†", 2]
    rest = paired(cells, "ported", "scratch")
    rest = rest[(rest["budget"] == 500) & (rest["seed"] > 1)]["value"]
    assert row["mean"] == pytest.approx(rest.mean()) and row[
        "note"] == "2 of 4 seeds lack cells and are left out"
    found = compare(cells, LEVELS["direction"])
    whole = entry(found, origin="tuned", receiving="large", relation="same", budget=500, baseline="scratch")
    assert whole[["expected", "n", "mark", "blocks"]].tolist() == [4, 4, "", 4]


def test_where_no_seed_has_all_cells_there_is_no_number(tmp_path):
    study = build(tmp_path / "s", Axes(methods=("lora",)))
    for seed, relation in ((0, "same"), (1, "same"), (2, "different")):
        study.remove(study.pick(init="ported", origin="base", relation=relation, seed=seed,
                                budget=500)[0].run_id)
    row = entry(compare(read(study.store).cells, LEVELS["all"]), budget=500, baseline="scratch")
    assert row[["n", "blocks", "mark"]].tolist() == [15, 0, "†"] and np.isnan(row["mean"])
    assert row["note"] == "3 of 3 seeds lack cells and are left out"


def test_nothing_done_gives_a_row_without_numbers(tmp_path):
    study = build(tmp_path / "s", Axes(methods=("lora",), pairs=(("base", "large"),), relations=("same",),
                                       budgets=(5,)))
    for cell in study.pick(init="ported"):
        study.remove(cell.run_id)
    row = entry(compare(read(study.store).cells, LEVELS["all"]), baseline="scratch")
    assert row[["n", "missing", "family", "mark"]].tolist() == [0, 3, 0, "†"]
    assert row[["mean", "low", "p", "p_holm", "mdd"]].isna().all()


def test_budgets_are_never_pooled_and_seeds_never_keys(published):
    cells, _ = published
    for keys in (["method"], ["budget", "seed"], ["budget", "colour"]):
        with pytest.raises(ValueError, match="name the budget"):
            compare(cells, keys)


def test_other_test_sets_are_refused(published):
    cells, answers = published
    cut = {key: row[:300] if key[0] == cells["run_id"].iloc[0] else row for key, row in answers.items()}
    with pytest.raises(UserError, match="different numbers of examples"):
        compare(cells, LEVELS["all"], cut)


def test_inits_and_methods_stand_in_tie_groups(published):
    cells, answers = published
    inits = ties(cells, "init", LEVELS["method"], answers)
    first = inits[(inits["method"] == "compacter") & (inits["budget"] == 50)]
    assert first["init"].tolist() == ["ported", "sampled", "scratch"] and first["letters"].iloc[0] == "a"
    own = cells[(cells["budget"] == 50) & (cells["method"] == "compacter")]
    wide = own.pivot_table(index="seed", columns="init", values="value")
    for other in ("sampled", "scratch"):
        apart = set(first.set_index("init").loc["ported", "letters"]).isdisjoint(
            first.set_index("init").loc[other, "letters"])
        assert apart == (stats.ttest_rel(wide["ported"], wide[other]).pvalue * 3 <= 0.05)
    late = inits[(inits["method"] == "lora") & (inits["budget"] == 200)]
    assert set(late["letters"]) == {"a"}


def test_where_the_lowest_is_the_best_it_is_first_and_has_the_first_letter(published):
    cells, _ = published
    found = ties(cells[(cells["budget"] == 50) & (cells["method"] == "compacter")], "init", LEVELS["method"],
                 better="lower")
    assert found["init"].tolist() == ["scratch", "sampled", "ported"] and found["letters"].iloc[0] == "a"


def test_a_grid_with_predictions_is_compared_in_seconds(published):
    cells, answers = published
    start = time.process_time()
    for keys in LEVELS.values():
        compare(cells, keys, answers)
    assert time.process_time() - start < 20


def test_thousands_of_directions_are_compared_in_seconds(tmp_path):
    pairs = tuple((f"o{i}", f"r{i}") for i in range(40))
    axes = Axes(("lora",), pairs, ("same",), ("ported", "scratch"), (1,), tuple(range(5)))
    one = read(build(tmp_path / "s", axes).store).cells
    world = pd.concat([one.assign(budget=budget, mark=budget) for budget in range(60)], ignore_index=True)
    start = time.process_time()
    assert len(compare(world, LEVELS["direction"])) == 2400
    assert time.process_time() - start < 8
