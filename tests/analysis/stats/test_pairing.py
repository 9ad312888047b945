"""Cells weigh alike, spreads are over distinct runs with ddof 1, pairs are pairs of one seed."""

import math
from statistics import mean, stdev

import pandas as pd
import pytest

from portability.analysis.load import tidy
from portability.analysis.stats.pairing import paired, reference, summarise, varying
from support.synthetic import Axes, build


def entry(table: pd.DataFrame, **keys: object) -> pd.Series:
    """The one row with these keys."""
    for key, value in keys.items():
        table = table[table[key] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_cells_weigh_alike_and_a_shared_scratch_run_counts_once_in_the_spread(study):
    row = entry(summarise(tidy(study.store), ["method", "receiving", "init", "budget"]),
                method="lora", receiving="large", init="scratch", budget=500)
    cells = study.pick(method="lora", receiving="large", init="scratch", budget=500)
    numbers = list({cell.run_id: study.accuracy(cell) for cell in cells}.values())
    assert len(cells) == 12 and len(numbers) == 3  # two origins, two relations, three seeds: three runs
    assert row[["n", "expected", "runs"]].tolist() == [12, 12, 3]
    assert row["mean"] == pytest.approx(mean(study.accuracy(cell) for cell in cells), abs=1e-12)
    assert row["std"] == pytest.approx(stdev(numbers), abs=1e-12)  # stdev divides by n - 1
    assert row["status"] == "complete"


def test_ported_runs_are_not_shared(study):
    row = entry(summarise(tidy(study.store), ["method", "receiving", "init", "budget"]),
                method="lora", receiving="large", init="ported", budget=500)
    assert row[["n", "expected", "runs"]].tolist() == [12, 12, 12]


def test_one_run_has_no_spread(tmp_path):
    study = build(tmp_path / "one", Axes(relations=("same",), seeds=(0,)))
    table = summarise(tidy(study.store), ["method", "origin", "receiving", "init", "budget"])
    assert table["std"].isna().all() and table["mean"].notna().all()


def test_missing_cells_lower_n_and_never_the_mean(study):
    cell = study.pick(method="lora", origin="base", relation="same", init="ported", budget=500, seed=1)[0]
    study.remove(cell.run_id)
    point = {"method": "lora", "origin": "base", "relation": "same", "init": "ported", "budget": 500}
    row = entry(summarise(tidy(study.store), list(point)), **point)
    rest = [study.accuracy(c) for c in study.pick(**point) if c.seed != 1]
    assert row[["n", "expected", "missing", "failed"]].tolist() == [2, 3, 1, 0]
    assert row["mean"] == pytest.approx(mean(rest)) and row["status"] == "incomplete"


def test_a_group_without_any_number_says_why(study):
    for cell in study.pick(method="lora", origin="base", relation="same", init="ported", budget=0):
        study.remove(cell.run_id)
        if cell.seed:
            study.store.fail(cell.run_id, {"error": "x"})
    table = summarise(tidy(study.store), ["method", "origin", "relation", "init", "budget"])
    row = entry(table, method="lora", origin="base", relation="same", init="ported", budget=0)
    assert row["status"] == "failed+missing" and row["n"] == 0 and math.isnan(row["mean"])


def test_gains_are_paired_by_seed_and_counted_per_baseline(study):
    gains = summarise(paired(tidy(study.store), "ported", "scratch"), ["method", "receiving", "budget"])
    row = entry(gains, method="lora", receiving="large", budget=500)
    per_baseline: dict[str, list[float]] = {}
    for cell in study.pick(method="lora", receiving="large", budget=500, init="ported"):
        (base,) = study.pick(method="lora", origin=cell.origin, receiving="large", relation=cell.relation,
                             budget=500, init="scratch", seed=cell.seed)
        per_baseline.setdefault(base.run_id, []).append(100 * (study.accuracy(cell) - study.accuracy(base)))
    means = [mean(values) for values in per_baseline.values()]
    assert [len(values) for values in per_baseline.values()] == [4, 4, 4]
    assert row[["n", "runs", "expected"]].tolist() == [12, 3, 12]
    assert row["mean"] == pytest.approx(mean(means)) and row["std"] == pytest.approx(stdev(means))


def test_error_bars_do_not_shrink_when_an_origin_is_added_that_brings_nothing_new(study):
    cells = tidy(study.store)
    one = cells[(cells["origin"] == "base") & (cells["receiving"] == "large")]
    twin = one.assign(origin="twin")  # another origin whose ported runs land on the same numbers
    twin = twin.assign(run_id=twin["run_id"].where(twin["init"] == "scratch", "twin-" + twin["run_id"]))
    keys = ["method", "receiving", "relation", "budget"]
    alone = summarise(paired(one, "ported", "scratch"), keys)
    both = summarise(paired(pd.concat([one, twin]), "ported", "scratch"), keys)
    assert (both["n"] == 2 * alone["n"]).all()
    pd.testing.assert_frame_equal(both[["mean", "std", "runs"]], alone[["mean", "std", "runs"]])


def test_a_lost_baseline_makes_the_gain_incomplete(study):
    base = study.pick(method="lora", receiving="large", init="scratch", seed=0)[0]
    study.remove(base.run_id)
    gains = summarise(paired(tidy(study.store), "ported", "scratch"), ["method", "receiving", "budget"])
    row = entry(gains, method="lora", receiving="large", budget=500)
    assert row[["n", "runs", "expected", "missing"]].tolist() == [8, 2, 12,
                                                                  4] and row["status"] == "incomplete"


def test_an_arm_without_an_asked_baseline_is_unpaired(study):
    cells = tidy(study.store)
    pairs = paired(cells[~((cells["init"] == "scratch") & (cells["seed"] == 2))], "ported", "scratch")
    assert set(pairs.loc[pairs["seed"] == 2, "status"]) == {"unpaired"}
    assert pairs.loc[pairs["seed"] == 2, "value"].isna().all()


def test_a_scratch_run_without_a_port_is_still_the_baseline(study):
    cells = tidy(study.store)
    plain = cells.assign(port=cells["port"].where(cells["init"] != "scratch", "none"))
    expected = paired(cells, "ported", "scratch")["value"]
    assert paired(plain, "ported", "scratch")["value"].tolist() == expected.tolist()


def test_reference_runs_are_distinct(study):
    table = summarise(reference(tidy(study.store), "native", ["method", "receiving"]),
                      ["method", "receiving"])
    assert set(table["n"]) == set(table["runs"]) == set(table["expected"]) == {3}


def test_what_varies_between_replicates_is_counted(study):
    assert varying(tidy(study.store), ["method", "receiving", "init", "budget"]) == {
        "origin": 2, "relation": 2, "origin_data": 2, "seed": 3}
