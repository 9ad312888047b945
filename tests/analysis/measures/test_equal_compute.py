"""Ports that train against scratch with as many updates more: the same numbers, worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from portability.analysis.context import gather
from portability.analysis.measures.equal_compute import around, equal_compute
from portability.analysis.tables.registry import TABLES, build_table
from support.synthetic import FACTS, Axes, build
from support.written import EXAMPLES, answer, change, crossed, entry, scores

AXES = Axes(("lora",), (("base", "large"), ("tuned", "large")), ("same",), ("ported", "scratch"),
            (0, 20, 50, 200), (0, 1, 2, 3), port="warm")
KINDS = FACTS | {"pairs": [["base", "large", "size"], ["tuned", "large", "apart"]]}
SPENT = {"port_info": {"updates": 20}, "spec": {"port": {"options": {"batch_size": 8}},
                                                "train": {"batch_size": 16}}}


def trained(root, axes=AXES, facts=KINDS, own=SPENT):
    """A study whose ported runs come of a port that made updates."""
    study = build(root, axes, facts)
    for cell in study.pick(init="ported", budget=0):
        change(study, cell.run_id, {}, **own)
    return study


def gains(study, weights, **keys):
    """By seed, the mean over pairs of hosts of ported less scratch at the weighted marks, in points."""
    found = []
    for seed in study.axes.seeds:
        each = []
        for cell in study.pick(init="ported", seed=seed, **keys):
            twins = {budget: study.pick(init="scratch", seed=seed, budget=budget, origin=cell.origin)[0]
                     for budget in weights}
            base = sum(weight * study.accuracy(twins[budget]) for budget, weight in weights.items())
            each.append(100 * (study.accuracy(cell) - base))
        found.append(np.mean(each))
    return np.array(found)


@pytest.mark.parametrize(("budget", "weights"), [(0, {20: 1}), (20, {20: 1 / 3, 50: 2 / 3})])
def test_scratch_is_read_after_as_many_updates_more(tmp_path, budget, weights):
    study = trained(tmp_path / "toy")
    frame = equal_compute(gather(study.store))
    for kind, keys in (("(all)", {}), ("size", {"origin": "base"}), ("apart", {"origin": "tuned"})):
        row, wanted = entry(frame, budget=budget, pairs=kind), gains(study, weights, budget=budget, **keys)
        assert row["mean"] == pytest.approx(wanted.mean(), abs=1e-9) and row["blocks"] == 4
        half = 3.182446305 * wanted.std(ddof=1) / 2  # t of 3 degrees, root of 4 seeds
        assert (row["low"], row["high"]) == pytest.approx((wanted.mean() - half, wanted.mean() + half))
        assert row["own"] - row["scratch"] == pytest.approx(wanted.mean() / 100)
        assert (row["more"], row["at"], row["below"], row["above"]) == (20, budget + 20, min(weights),
                                                                         max(weights))
    assert set(frame["family"]) == {6}


def test_marks_that_are_too_far_apart_or_beyond_give_no_pair(tmp_path):
    study = trained(tmp_path / "toy")
    table = build_table("equal_compute", gather(study.store))
    frame = table.frame
    assert set(zip(frame["budget"], frame["pairs"], strict=True)) == {
        (budget, kind) for budget in (0, 20) for kind in ("(all)", "size", "apart")} | {
        (budget, "(all)") for budget in (50, 200)}
    for budget in (50, 200):
        row = entry(frame, budget=budget)
        assert np.isnan(row["mean"]) and row["n"] == 0 and row["expected"] == 8 and row["mark"] == "†"
    shown = table.shown.set_index(["hosts", "updates"])
    assert shown.loc[("(all)", 20), "scratch at"] == "40, between 20 and 50"
    assert shown.loc[("(all)", 50), "scratch at"] == "no mark near 70"
    assert "Examples of an update: 8 for warm, 16 in a run" in table.notes
    assert around([0, 20, 60], 30) == (20, 60) and around([0, 20, 61], 30) is None
    assert around([0, 20], 10) is None and around([20, 50], 10) is None and around([], 5) is None


def test_a_twin_that_is_not_there_is_counted(tmp_path):
    study = trained(tmp_path / "toy")
    study.remove(study.pick(init="scratch", seed=2)[0].run_id)
    row = entry(equal_compute(gather(study.store)), budget=20, pairs="(all)")
    assert (row["blocks"], row["n"], row["expected"], row["missing"], row["mark"]) == (3, 6, 8, 2, "†")


def test_answers_between_marks_are_interpolated_in_the_interval(tmp_path):
    axes = replace(AXES, pairs=AXES.pairs[:1], budgets=(0, 20, 50))
    study, random = build(tmp_path / "toy", axes), np.random.default_rng(0)
    for run_id, marks in study.runs.items():
        answer(study, run_id, "exact_match", {
            mark: (random.random(EXAMPLES) < .3 + mark / 100).astype(np.float32) for mark in marks})
    for cell in study.pick(init="ported", budget=0):
        change(study, cell.run_id, {}, **SPENT)
    row = entry(equal_compute(gather(study.store)), budget=20)
    low, high = (scores(study, mark, init="scratch") for mark in (20, 50))
    table = scores(study, 20, init="ported") - (low / 3 + 2 * high / 3)
    assert row["mean"] == pytest.approx(table.mean(), abs=1e-4)
    assert (row["low"], row["high"]) == pytest.approx(crossed(table), abs=1e-3)
    assert row["examples"] == EXAMPLES


def test_ports_that_do_not_train_have_no_such_table(tmp_path):
    still = trained(tmp_path / "still", own={"port_info": {"updates": 0}})
    alone = trained(tmp_path / "alone", replace(AXES, inits=("ported",)))
    for study in (still, alone):
        assert not TABLES["equal_compute"].applies(gather(study.store))
