"""Intervals: equal to scipy's and statsmodels' where these exist, and they hold the truth as often as they
say."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.power import TTestPower

from portability.analysis.stats.intervals import ALPHA, detectable, estimate, spread
from support.calibrate import ARMS, SCRATCH, SETTINGS, draw, simulate

GRIDS = 1000
LOW, HIGH = 0.93, 0.975  # 1,000 grids: one standard error is 0.7 points


def held(draw, truth: float = 0.0) -> float:
    """Share of GRIDS drawn estimates whose interval holds the truth."""
    random = np.random.default_rng(1)
    found = [estimate(*draw(random)) for _ in range(GRIDS)]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def crossed(random, seeds: int, count: int, swing: float) -> np.ndarray:
    """(seeds, examples) differences: seed, example and rest, each random."""
    return random.normal(size=(seeds, 1)) + swing * random.normal(size=count) + 3 * random.normal(size=(seeds,
                                                                                                        count))


def test_over_seeds_alone_it_is_the_paired_t_test():
    random = np.random.default_rng(0)
    arm, base = random.normal(size=(2, 7))
    found, test = estimate(arm - base), stats.ttest_rel(arm, base)
    interval = test.confidence_interval()
    expected = [interval.low, interval.high, test.pvalue, 6]
    np.testing.assert_allclose([found.low, found.high, found.p, found.df], expected, rtol=1e-9)
    assert found.mean / found.se == pytest.approx(test.statistic, rel=1e-9)
    assert found.effect == pytest.approx(test.statistic / np.sqrt(7), rel=1e-9)


@pytest.mark.parametrize("blocks", [[], [1.0], [2.0, 2.0, 2.0]])
def test_without_spread_there_is_no_interval_and_words_say_so(blocks):
    found = estimate(np.array(blocks))
    assert np.isnan([found.low, found.high, found.p, found.effect]).all() and found.note


def test_examples_that_all_gain_alike_add_nothing_and_unlike_ones_do_not_vanish_with_more_seeds():
    blocks = np.array([1.0, 2.0, 4.0])
    alike = np.repeat(blocks[:, None], 50, axis=1)
    assert estimate(blocks, [alike]).high == pytest.approx(estimate(blocks).high)
    many = np.tile(blocks, 1000)
    unlike = np.repeat(many[:, None], 50, axis=1) + np.tile([30.0, -30.0], 25)
    assert estimate(many).se < 0.03
    assert estimate(many, [unlike]).se == pytest.approx(np.std(unlike[0], ddof=1) / np.sqrt(50), rel=0.01)


def test_the_variance_is_that_of_the_two_way_analysis_of_variance():
    each = crossed(np.random.default_rng(2), 6, 40, 2.0)
    frame = pd.DataFrame(each).rename_axis("seed").reset_index().melt("seed", var_name="item")
    table = anova_lm(ols("value ~ C(seed) + C(item)", frame).fit())
    seed, item, rest = table["mean_sq"]
    found = spread(each.mean(axis=1), [each])
    assert found.of_seeds == pytest.approx(seed / each.size)
    assert found.of_examples == pytest.approx((item - rest) / each.size)


def test_test_sets_add_up_and_are_not_one():
    random = np.random.default_rng(3)
    one, two = crossed(random, 5, 40, 2.0), crossed(random, 5, 60, 2.0)
    both = spread((one + 0).mean(axis=1) + two.mean(axis=1), [one, two])
    alone = [spread(each.mean(axis=1), [each]) for each in (one, two)]
    assert both.of_examples == pytest.approx(sum(part.of_examples for part in alone))


def test_p_is_at_most_5_percent_exactly_where_the_interval_leaves_0_out():
    random = np.random.default_rng(4)
    for _ in range(200):
        each = crossed(random, 5, 50, 3.0) + random.uniform(-4, 4)
        found = estimate(each.mean(axis=1), [each])
        assert (found.p <= ALPHA) == (found.low > 0 or found.high < 0)
        half = float(spread(each.mean(axis=1), [each]).half(found.p))
        assert half == pytest.approx(abs(found.mean), rel=1e-6)


def test_what_is_no_number_is_not_significant():
    each = crossed(np.random.default_rng(6), 3, 20, 1.0)
    each[0, 0] = np.nan
    found = estimate(each.mean(axis=1), [each])
    assert np.isnan(found.mean) and np.isnan(found.p)


def test_the_detectable_difference_is_that_of_statsmodels():
    for alpha in (ALPHA, ALPHA / 8):
        for df in (2.0, 4.0, 5.7, 9.0, 17.3, 59.0):
            solved = TTestPower().solve_power(nobs=df + 1, alpha=alpha, power=0.8) * np.sqrt(df + 1)
            found = detectable(np.array([2.0]), np.array([df]), alpha)[0]
            assert found == pytest.approx(2 * solved, rel=0.02 if df < 3 else 0.005)
    assert np.isnan(detectable(np.array([np.nan]), np.array([np.nan]))).all()


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("swing", [0.0, 0.3, 1.0, 3.0])
def test_intervals_over_seeds_and_examples_hold_the_mean(seeds, swing):
    def draw(random):
        each = crossed(random, seeds, 100, np.sqrt(swing * 100 / seeds))
        return each.mean(axis=1), [each]

    assert LOW <= held(draw) <= HIGH


def test_a_percentile_bootstrap_would_hold_far_less_at_five_seeds():
    random = np.random.default_rng(0)
    drawn = random.normal(size=(GRIDS, 5))
    means = drawn[:, random.integers(0, 5, size=(2000, 5))].mean(axis=2)
    low, high = np.percentile(means, [2.5, 97.5], axis=1)
    assert np.mean((low <= 0) & (high >= 0)) < 0.88


# ---- whole grids, at a small number: the table of all settings is made by calibrate.py


@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("name", ["seed effects, 4", "all together"])
def test_headlines_of_whole_grids_hold_the_truth_and_families_err_seldom(name, seeds):
    shares, _, wrong, _ = simulate(replace(SETTINGS[name], seeds=seeds, examples=100), 300)
    # 300 grids: one standard error is 1.3 points
    assert 0.92 <= shares[0] <= 0.985 and 0.92 <= shares[1] <= 0.985
    assert wrong <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_pairs_taken_as_independent_of_their_seed_would_hold_it_far_less():
    _, scores = draw(replace(SETTINGS["seed effects, 4"], examples=100), 300, np.random.default_rng(0))
    each = scores[..., SCRATCH : SCRATCH + ARMS] - scores[..., SCRATCH + ARMS :]
    pairs = each.reshape(len(each), -1)
    assert (stats.ttest_1samp(pairs, 0, axis=1).pvalue > 0.05).mean() < 0.6
