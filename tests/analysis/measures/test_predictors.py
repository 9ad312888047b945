"""What goes with a gain: correlations by hand, hosts exchanged by brute force, and no number where there is
too little."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from portability.analysis.context import StudyContext, gather
from portability.analysis.load import HOST_PAIR
from portability.analysis.measures.predictors import CARRIED, SIMILARITIES, gain_and_similarity, predictors
from portability.analysis.metrics import METRICS
from portability.analysis.stats.exchange import arrangements, correlate
from portability.analysis.tables.captions import notes
from portability.analysis.tables.registry import TABLES
from support.synthetic import Axes, build
from support.written import entry

HOSTS = ("a", "b", "c", "d")
DIRECTIONS = [(one, other) for one in HOSTS for other in HOSTS if one != other]
PAIRS = [(one, other) for one, other in DIRECTIONS if one < other]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> StudyContext:
    """Four hosts in all directions, with invented similarities and carried fractions."""
    axes = Axes(pairs=tuple(DIRECTIONS), relations=("same", "different"), inits=("ported", "scratch"),
                budgets=(0, 100))
    study = gather(build(tmp_path_factory.mktemp("hosts") / "toy", axes).store).study
    random = np.random.default_rng(1)
    rows = [(other, one, random.random(), None if one == "a" else random.random(), 1.0, 0.5, None)
            for one, other in PAIRS]
    pairs = pd.DataFrame(rows, columns=list(HOST_PAIR))
    fractions = {"carried": random.random(len(study.runs)), "carried_norm": np.nan}
    return StudyContext(replace(study, pairs=pairs, runs=study.runs.assign(**fractions)),
                        METRICS["eval_accuracy"])


# ---- points


def test_points_hold_the_gain_of_each_direction_and_the_similarity_of_its_hosts_in_any_order(found):
    points = gain_and_similarity(found)
    assert len(points) == 2 * 12 * 2 * 2  # methods, directions, relations, budgets
    there, back = (entry(points, method="lora", origin=one, receiving=other, relation="same", budget=100)
                   for one, other in (("a", "b"), ("b", "a")))
    pair = found.study.pairs.iloc[0]
    assert there["cka"] == back["cka"] == pair["cka"] and np.isnan(there["weight_distance"])
    level = found.levels["direction"]
    keys = {"method": "lora", "origin": "a", "receiving": "b", "relation": "same", "budget": 100}
    assert there["gain"] == entry(level, **keys)["mean"] and there["low"] == entry(level, **keys)["low"]
    cells = found.arms[(found.arms[list(keys)] == pd.Series(keys)).all(axis=1)
                       & (found.arms["init"] == "ported")]
    carried = found.study.runs.set_index("run_id").loc[cells["run_id"], "carried"]
    assert there["carried"] == pytest.approx(carried.mean()) and there["n"] == there["blocks"] == 3


def test_several_records_of_two_hosts_are_averaged(found):
    twice = pd.concat([found.study.pairs, found.study.pairs.assign(cka=1.0)])
    points = gain_and_similarity(replace(found, study=replace(found.study, pairs=twice)))
    row = points[(points["origin"] == "a") & (points["receiving"] == "b")].iloc[0]
    assert row["cka"] == pytest.approx((found.study.pairs["cka"].iloc[0] + 1) / 2)


# ---- correlations


def test_a_similarity_is_correlated_over_pairs_of_hosts_with_gains_averaged(found):
    row = entry(predictors(found), method="lora", budget=100, predictor="cka")
    points = gain_and_similarity(found)
    points = points[(points["method"] == "lora") & (points["budget"] == 100)]
    points = points.assign(pair=[tuple(sorted(x)) for x in zip(points["origin"], points["receiving"],
                                                               strict=True)])
    table = points.groupby("pair")[["cka", "gain"]].mean()
    assert row["spearman"] == pytest.approx(stats.spearmanr(table["cka"], table["gain"]).statistic)
    assert row["pearson"] == pytest.approx(stats.pearsonr(table["cka"], table["gain"]).statistic)
    assert (row["n"], row["hosts"], row["points"], row["expected"]) == (6, 4, 6, 6)


def test_p_is_that_of_all_orders_of_the_hosts_by_brute_force(found):
    points = gain_and_similarity(found)
    points = points[(points["method"] == "lora") & (points["budget"] == 100)]
    for predictor in ("cka", "carried"):
        row = entry(predictors(found), method="lora", budget=100, predictor=predictor)
        table = points.groupby(["origin", "receiving"])[[predictor, "gain"]].mean()
        units = PAIRS if predictor == "cka" else DIRECTIONS
        values = [table.loc[unit, predictor] for unit in units]
        found_r = []
        for order in permutations(HOSTS):
            new = dict(zip(HOSTS, order, strict=True))
            gains = [table.loc[(new[one], new[other]), "gain"] for one, other in units]
            if predictor == "cka":
                gains = [(gain + table.loc[(new[other], new[one]), "gain"]) / 2 for gain, (one, other) in
                         zip(gains, units, strict=True)]
            found_r.append(abs(stats.spearmanr(values, gains).statistic))
        observed = abs(row["spearman"])
        assert row["p"] == pytest.approx(np.mean([r >= observed - 1e-9 for r in found_r]))
        assert row["smallest_p"] == pytest.approx(np.mean([r >= max(found_r) - 1e-9 for r in found_r]))


def test_over_all_methods_ranks_are_centred_within_each(found):
    row = entry(predictors(found), method="(all)", budget=100, predictor="carried")
    points = gain_and_similarity(found)
    points = points[points["budget"] == 100]
    table = points.groupby(["method", "origin", "receiving"])[["carried", "gain"]].mean()
    ranks = table.groupby(level="method").rank()
    # ranks have one mean
    assert row["spearman"] == pytest.approx(stats.pearsonr(ranks["carried"], ranks["gain"]).statistic)
    centred = table - table.groupby(level="method").transform("mean")
    assert row["pearson"] == pytest.approx(stats.pearsonr(centred["carried"], centred["gain"]).statistic)
    assert (row["n"], row["points"]) == (12, 24)


def test_what_is_constant_missing_or_too_little_gives_words_and_no_number(found):
    frame = predictors(found)
    last = {"method": "lora", "budget": 100}
    assert entry(frame, **last, predictor="shape_distance")["note"] == "the predictor is the same for all"
    assert entry(frame, **last, predictor="carried_norm")["note"] == "not recorded"
    few = entry(frame, **last, predictor="weight_distance")
    assert few["note"] == "3 pairs of hosts: too few for a correlation"
    assert (few["n"], few["missing"], few["mark"]) == (3, 3, "†")
    silent = frame[frame["note"] != ""]
    assert silent[["spearman", "pearson", "p", "p_holm"]].isna().all(axis=None)
    assert "carried norm" in notes(TABLES["predictors"], found, frame)


def test_holm_is_over_all_correlations_of_the_frame(found):
    frame = predictors(found)
    p = frame["p"].dropna()
    # methods and all, budgets, cka and carried
    assert (frame["family"] == len(p)).all() and len(p) == 3 * 2 * 2
    assert frame["p_holm"].min() == pytest.approx(min(1.0, len(p) * p.min()))


def test_a_study_without_similarity_says_so(study):
    found = gather(study.store)
    assert found.study.pairs.empty
    frame = predictors(found)
    assert set(frame["note"]) == {"not recorded"} and set(frame["predictor"]) == {*SIMILARITIES, *CARRIED}
    words = notes(TABLES["predictors"], found, frame)
    assert "Not recorded: cka, weight distance, shape distance, carried, carried norm." in words


def test_directions_that_are_not_there_are_counted(tmp_path: Path):
    axes = Axes(methods=("lora",), pairs=tuple(DIRECTIONS), relations=("same",), inits=("ported", "scratch"),
                budgets=(0, 100))
    study = build(tmp_path / "holes", axes)
    for cell in study.pick(init="ported", origin="a", receiving="b", budget=0):
        study.remove(cell.run_id)
    found = gather(study.store)
    runs = found.study.runs.assign(carried=np.linspace(0, 1, len(found.study.runs)))
    row = entry(predictors(replace(found, study=replace(found.study, runs=runs))), budget=100,
                predictor="carried")
    assert row[["n", "expected", "missing", "mark", "status"]].tolist() == [11, 12, 1, "†", "incomplete"]


# ---- exchanging hosts


def test_orders_lay_directions_on_directions():
    star = (("m", "x"), ("m", "y"), ("m", "z"), ("x", "m"))
    found = arrangements(star, False)
    # only y and z can change places
    assert sorted(map(tuple, found.tolist())) == [(0, 1, 2, 3), (0, 2, 1, 3)]
    assert len(arrangements(tuple(PAIRS), True)) == len(arrangements(tuple(DIRECTIONS), False)) == 24
    many = tuple((f"h{i}", f"h{j}") for i in range(9) for j in range(9) if i != j)
    orders = arrangements(many, False)
    assert orders.shape == (9_999, 72) and orders[0].tolist() == list(range(72))


@pytest.mark.parametrize(("hosts", "symmetric"), [(4, True), (5, True), (5, False), (6, True)])
def test_hosts_that_differ_make_no_false_link(hosts, symmetric):
    """Good and bad hosts make alike the pairs they are in: exchanging single pairs finds a link in 5 to 18 %
    of such grids."""
    names = [f"h{i}" for i in range(hosts)]
    units = [(one, other) for one in names for other in names if (one < other if symmetric else one != other)]
    ends = np.array([[names.index(host) for host in unit] for unit in units])
    random, wrong = np.random.default_rng(0), []
    for _ in range(400):
        values, gains = (3 * random.normal(size=hosts)[ends].sum(axis=1) + random.normal(size=len(units))
                         for _ in range(2))
        wrong.append(correlate(values[None], gains[None], units, symmetric).p <= 0.05)
    assert np.mean(wrong) <= 0.085


def test_a_link_that_is_there_is_found():
    random = np.random.default_rng(0)
    units = [(f"h{i}", f"h{j}") for i in range(6) for j in range(6) if i < j]
    values = random.normal(size=len(units))
    found = correlate(values[None], (values + 0.1 * random.normal(size=len(units)))[None], units, True)
    assert found.spearman > 0.9 and found.p == found.smallest_p == pytest.approx(1 / 720)
