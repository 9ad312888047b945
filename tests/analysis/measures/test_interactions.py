"""Differences of gains, worked out from the scores of each seed."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from portability.analysis.context import StudyContext, gather
from portability.analysis.measures.comparisons import interactions
from portability.analysis.stats.pairing import paired
from portability.analysis.tables.registry import build as build_tables
from support.synthetic import FACTS, Axes, build
from support.written import entry

KINDS = [["base", "large", "size"], ["tuned", "large", "lineage"], ["large", "base", "size"]]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> StudyContext:
    return gather(build(tmp_path_factory.mktemp("i") / "s", Axes(budgets=(0, 100)),
                        FACTS | {"pairs": KINDS}).store)


def of_seeds(found: StudyContext, held) -> np.ndarray:
    """(S,) mean gain over sampled of the held cells at 100 updates."""
    pairs = paired(found.cells, "ported", "sampled")
    pairs = pairs[pairs["budget"] == 100]
    return pairs[held(pairs)].groupby("seed")["value"].mean().to_numpy()


@pytest.mark.parametrize(("axis", "item", "against", "one", "other"), [
    ("direction", "tuned → large", "mean of all", lambda p: (p["origin"] == "tuned"),
     lambda p: p["seed"] >= 0),
    ("method", "lora", "mean of all", lambda p: p["method"] == "lora", lambda p: p["seed"] >= 0),
    ("pairs", "lineage", "size", lambda p: p["origin"] == "tuned", lambda p: p["origin"] != "tuned"),
    ("relation", "same", "different", lambda p: p["relation"] == "same",
     lambda p: p["relation"] == "different"),
])
def test_it_is_the_t_test_of_the_seeds_differences(found, axis, item, against, one, other):
    row = entry(interactions(found), axis=axis, item=item, against=against, baseline="sampled", budget=100)
    values = of_seeds(found, one) - of_seeds(found, other)
    test = stats.ttest_1samp(values, 0)
    low, high = test.confidence_interval()
    assert row[["mean", "low", "high", "p"]].tolist() == pytest.approx([values.mean(), low, high,
                                                                        test.pvalue])
    assert row["blocks"] == 3 and row["mark"] == ""


def test_all_differences_are_one_family_and_methods_add_up_to_nothing(found):
    frame = interactions(found)
    assert set(frame["family"]) == {int(frame["p"].notna().sum())}
    means = frame[frame["axis"] == "method"].groupby(["baseline", "budget"])["mean"].sum()
    np.testing.assert_allclose(means, 0, atol=1e-9)
    table = build_tables(found, ["interactions"])[0]
    assert len(table.shown) == len(frame) and "of one lineage" in table.notes


def test_a_side_that_a_grid_leaves_out_at_a_budget_is_compared_with_nothing(tmp_path: Path):
    study = build(tmp_path / "s", Axes(budgets=(0, 100), seeds=(0, 1)))
    study.store.root.joinpath("manifests").rename(tmp_path / "aside")
    study.store.expect([cell for cell in study.cells if cell.budget == 0 or cell.method == "lora" and (
        cell.relation == "same")], FACTS)
    found = gather(study.store)
    frame = interactions(found)
    assert set(frame.loc[frame["budget"] == 0, "axis"]) == {"direction", "method", "relation"}
    assert set(frame.loc[frame["budget"] == 100, "axis"]) == {"direction"}  # one method, one relation
    assert frame["mean"].notna().all()
    study.store.root.joinpath("manifests").rename(tmp_path / "more")
    study.store.expect([cell for cell in study.cells if cell.method == "lora" and cell.relation == "same" and
                        cell.origin == "base" or cell.init == "scratch"], FACTS)
    few = gather(study.store)
    assert interactions(few).empty and build_tables(few, ["interactions"])[0].notes


def test_without_kinds_of_hosts_in_the_manifests_these_are_not_compared(tmp_path: Path):
    frame = interactions(gather(build(tmp_path / "s", Axes(budgets=(100,), seeds=(0, 1))).store))
    assert set(frame["axis"]) == {"direction", "method", "relation"}
    alone = gather(build(tmp_path / "one", Axes(budgets=(100,), inits=("scratch",), seeds=(0, 1))).store)
    assert interactions(alone).empty and build_tables(alone, ["interactions"])[0].notes
