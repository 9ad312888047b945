"""Findings say what is significant and nothing else; what tests leave open, and what limits them, is said as such."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import Axes, build
from written import change, rewrite

from analysis.entries import interval, number
from analysis.evidence import gather
from analysis.findings import EXPLORATORY, NOTHING, caveats, findings, significant
from analysis.metrics import UNITS

OVERALL, NONE = (f"{EXPLORATORY}{name}" for name in ("Over all methods, directions and relations", "Comparisons"))
TEN = Axes(("lora",), (("base", "large"),), ("same",), ("ported", "scratch"), seeds=tuple(range(10)))


def told(root: Path, gain: float, spread: float = 0.01, axes: Axes = TEN, metric: str = "eval_accuracy"):
    """A study whose ported runs are `gain` above their scratch twins at every budget."""
    study = build(root, axes)
    noise = np.random.default_rng(0).normal(0, spread, (len(axes.seeds), len(axes.budgets)))
    noise -= noise.mean(axis=0)
    rewrite(study, scratch=[[0.6] * len(axes.budgets) for _ in axes.seeds], ported=(0.6 + gain + noise).tolist())
    return gather(study.store, metric)


@pytest.mark.parametrize(("gain", "side"), [(0.1, "ahead"), (-0.1, "behind")])
def test_a_planted_effect_is_said_with_its_interval_and_side(tmp_path, gain, side):
    found = told(tmp_path / "planted", gain)
    sentence, = findings(found)[OVERALL]
    row = found.levels["all"].query("budget == 500").iloc[0]
    assert row["mean"] == pytest.approx(100 * gain)
    low, high = sorted((abs(row["low"]), abs(row["high"])))
    assert f"{side} by 10.0 pp {interval(low, high, UNITS['pp'])} after 500 updates" in sentence
    assert ("behind" if side == "ahead" else "ahead") not in sentence and "10 seeds" in sentence


def test_where_lower_is_better_a_lower_loss_is_ahead(tmp_path):
    sentence, = findings(told(tmp_path / "loss", 0.1, metric="eval_loss"))[OVERALL]
    assert "ahead by 0.100 nats [+0.0" in sentence and "behind" not in sentence


def test_a_null_effect_is_no_finding_and_what_could_have_been_found_is_said(tmp_path):
    found = told(tmp_path / "null", 0.0, spread=0.05)
    said = findings(found)
    assert said[NONE] == [NOTHING]
    row = found.levels["all"].query("budget == 500").iloc[0]
    left, = (sentences for heading, sentences in said.items() if "Left open after 500" in heading)
    assert f"found four times in five would be {number(row['mdd'], UNITS['pp']).lstrip('+')} pp" in left[0]


def test_a_finding_is_what_holms_correction_leaves_and_its_interval_leaves_0_out(tmp_path):
    frame = told(tmp_path / "both", 0.1).levels["all"]
    assert len(significant(frame)) == len(frame) > 0 and ((frame["low"] > 0) | (frame["high"] < 0)).all()
    assert significant(frame.assign(p_holm=0.051)).empty and significant(frame.assign(p_holm=float("nan"))).empty


def test_what_a_seed_does_everywhere_is_no_finding(tmp_path):
    axes = replace(TEN, pairs=tuple((f"o{i}", f"r{i}") for i in range(4)), seeds=(0, 1, 2))
    study = build(tmp_path / "open", axes)
    gains = {0: 0.20, 1: 0.02, 2: 0.01}
    rewrite(study, scratch=[[0.6] * 3] * 3, ported=[[0.6 + gains[seed]] * 3 for seed in axes.seeds])
    assert findings(gather(study.store))[NONE] == [NOTHING]


def test_one_seed_says_nothing_and_the_caveats_say_why(tmp_path):
    pairs = tuple((f"o{i}", f"r{i}") for i in range(12))
    axes = replace(TEN, pairs=pairs, seeds=(0,))
    study = build(tmp_path / "one", axes)
    rewrite(study, scratch=[[0.6] * 3], ported=[[0.8] * 3])
    for i, cell in enumerate(study.pick(init="ported", budget=0)):
        change(study, cell.run_id, dict.fromkeys(axes.budgets, 0.8 + 0.001 * i))
    found = gather(study.store)
    assert found.levels["all"]["p"].isna().all() and findings(found)[NONE] == [NOTHING]
    assert any("There is one seed" in caveat for caveat in caveats(found))


def test_a_size_lies_within_the_interval_that_is_printed_with_it(tmp_path):
    for gain, metric in ((-0.1, "eval_accuracy"), (0.1, "eval_loss"), (0.1, "eval_accuracy")):
        said = findings(told(tmp_path / f"{metric}{gain}", gain, metric=metric))
        sentence, = said[OVERALL]
        for size, low, high in re.findall(r"by ([\d.]+) \w+ \[\+?([−\d.]+), \+?([−\d.]+)\]", sentence):
            assert float(low.replace("−", "-")) <= float(size) <= float(high.replace("−", "-")), sentence
        assert "by " in sentence


def test_lacking_cells_and_intervals_without_examples_are_caveats(tmp_path):
    study = build(tmp_path / "holes", TEN)
    study.remove(study.pick(init="ported", seed=3)[0].run_id)
    said = " ".join(caveats(gather(study.store)))
    assert "57 of 60 cells are done (3 missing)" in said and "over seeds only" in said
