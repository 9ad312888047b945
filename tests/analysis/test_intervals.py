"""Intervals: equal to scipy's where that exists, and they hold the truth as often as they say."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from analysis.intervals import estimate, freedom, noncentrality

GRIDS = 1000
LOW, HIGH = 0.93, 0.97  # 1,000 grids: one standard error is 0.7 points


def held(draw, truth: float = 0.0) -> float:
    """Share of GRIDS drawn estimates whose interval holds the truth."""
    random = np.random.default_rng(1)
    found = [estimate(*draw(random)) for _ in range(GRIDS)]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def test_one_stratum_is_the_paired_t_test():
    random = np.random.default_rng(0)
    arm, base = random.normal(size=(2, 7))
    found, test = estimate(arm - base), stats.ttest_rel(arm, base)
    interval = test.confidence_interval()
    np.testing.assert_allclose([found.low, found.high, found.df], [interval.low, interval.high, 6], rtol=1e-9)
    assert found.mean / found.se == pytest.approx(test.statistic, rel=1e-9)
    assert found.effect == pytest.approx(test.statistic / np.sqrt(7), rel=1e-9)


def test_two_strata_have_welchs_statistic_and_about_his_freedom():
    random = np.random.default_rng(0)
    one, two = random.normal(size=8), 3 * random.normal(size=8)
    found = estimate(np.append(one, -two), np.repeat([0, 1], 8))
    test = stats.ttest_ind(one, two, equal_var=False)
    assert found.mean / found.se == pytest.approx(test.statistic, rel=1e-9)
    assert found.df == pytest.approx(test.df, rel=0.05)


def test_strata_take_the_differences_between_hosts_out_of_the_spread():
    blocks, strata = np.array([1.0, 2.0, 11.0, 12.0]), np.array([0, 0, 1, 1])
    assert estimate(blocks, strata).sd == pytest.approx(np.sqrt(0.5)) and estimate(blocks).sd > 5


def test_lone_blocks_are_joined_and_keep_an_interval():
    found = estimate(np.array([1.0, 5.0, 2.0, 3.0]), np.array(["a", "b", "c", "c"]))
    assert np.isfinite(found.low) and found.blocks == 4
    assert np.isfinite(estimate(np.array([1.0, 5.0, 2.0]), np.array(["a", "b", "b"])).low)


@pytest.mark.parametrize("blocks", [[], [1.0], [2.0, 2.0, 2.0]])
def test_without_spread_there_is_no_interval_and_words_say_so(blocks):
    found = estimate(np.array(blocks))
    assert np.isnan([found.low, found.high, found.effect]).all() and found.note


def test_examples_that_all_gain_alike_add_nothing_and_unlike_ones_do():
    blocks = np.array([1.0, 2.0, 4.0])
    alike = np.repeat(blocks[:, None], 50, axis=1)
    assert estimate(blocks, None, alike).high == pytest.approx(estimate(blocks).high)
    swing = np.tile([30.0, -30.0], 25)
    unlike = estimate(blocks, None, alike + swing)
    assert unlike.se == pytest.approx(np.hypot(estimate(blocks).se, np.std(swing, ddof=1) / np.sqrt(50)))
    assert unlike.examples == 50 and unlike.high - unlike.low > 2 * (estimate(blocks).high - estimate(blocks).low) / 2


def test_the_detectable_difference_is_that_of_statsmodels():
    for count in (3, 5, 10, 60):
        solved = TTestPower().solve_power(nobs=count, alpha=0.05, power=0.8) * np.sqrt(count)
        assert noncentrality(np.array([count - 1.0]))[0] == pytest.approx(solved, rel=1e-6)


def test_freedom_leaves_parts_of_zero_out():
    assert freedom(np.array([2.0, 0.0, 2.0]), np.array([4.0, 0.0, 4.0])) == 8.0


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("spreads", [(1,), (1, 1, 1), (5, 1, 1), (1,) * 12])
def test_intervals_over_seeds_hold_the_mean_in_95_of_100_grids(seeds, spreads):
    strata, scale = np.repeat(np.arange(len(spreads)), seeds), np.repeat(spreads, seeds)
    middle = np.repeat(np.linspace(-3, 3, len(spreads)), seeds) if len(spreads) > 1 else 0.0
    assert LOW <= held(lambda random: (random.normal(size=len(strata)) * scale + middle, strata)) <= HIGH


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("swing", [0.0, 0.3, 1.0, 3.0])
def test_intervals_over_seeds_and_examples_hold_the_mean(seeds, swing):
    count = 100

    def draw(random):
        effect = random.normal(size=(seeds, 1)) + random.normal(size=count) * np.sqrt(swing * count / seeds)
        each = effect + 3 * random.normal(size=(seeds, count))
        return each.mean(axis=1), None, each

    assert LOW <= held(draw) <= HIGH


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_hold_the_gain_with_a_shared_baseline_and_binomial_test_sets(seeds):
    count, origins = 100, 4

    def draw(random):
        base = 0.7 + 0.04 * random.normal(size=(seeds, 1))
        arms = 0.74 + 0.04 * random.normal(size=(seeds, origins))
        shared = random.random((seeds, 1, count)) < base[..., None]
        each = 100.0 * ((random.random((seeds, origins, count)) < arms[..., None]) * 1.0 - shared).mean(axis=1)
        return each.mean(axis=1), None, each

    assert LOW <= held(draw, 4.0) <= HIGH


def test_a_percentile_bootstrap_would_hold_far_less_at_five_seeds():
    random = np.random.default_rng(0)
    drawn = random.normal(size=(GRIDS, 5))
    means = drawn[:, random.integers(0, 5, size=(2000, 5))].mean(axis=2)
    low, high = np.percentile(means, [2.5, 97.5], axis=1)
    assert np.mean((low <= 0) & (high >= 0)) < 0.88
