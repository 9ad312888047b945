"""Exchanges of labels, Holm and tie groups: equal to scipy's and statsmodels', and honest about the smallest
p."""

import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from portability.analysis.stats.exchange import DRAWS, exchange, rotations
from portability.analysis.stats.multiple_comparisons import compact_letter_display, holm


def flips(seeds: np.ndarray):
    """The signs of seeds."""
    return exchange([np.array([value, -value]) for value in seeds])


@pytest.mark.parametrize("count", [3, 5, 8, 12])
def test_where_each_arm_has_its_own_baseline_it_is_scipys_exact_test_of_signs(count):
    random = np.random.default_rng(count)
    pairs = random.normal(0.4, 1.0, (count, 3))
    test = stats.permutation_test((pairs.mean(axis=1),), np.mean, permutation_type="samples",
                                  n_resamples=np.inf)
    found = exchange([rotations(own, np.arange(3), np.full(3, 1 / 3)) for own in pairs])
    assert found.p == pytest.approx(test.pvalue, abs=1e-6) and found.smallest == 2 / 2**count


def test_five_seeds_cannot_reach_five_percent_by_signs():
    assert flips(np.array([9.0, 8.0, 9.0, 7.0, 9.0])).p == flips(np.ones(5)).p == flips(
        np.ones(5)).smallest == 2 / 32
    assert np.isnan(exchange([]).p) and flips(np.zeros(4)).p == 1.0


def test_any_of_the_runs_that_share_a_baseline_may_be_called_the_baseline():
    """Every arrangement of a grid of two seeds, its mean worked out from the scores themselves."""
    random = np.random.default_rng(0)
    scores = random.normal(size=(2, 2, 3))  # seeds, hosts, (scratch and two arms)
    means = []
    for turns in itertools.product(range(3), repeat=2):
        total = 0.0
        for seed, turn in enumerate(turns):  # both hosts' labels turn together
            for host in range(2):
                base = scores[seed, host, turn]
                total += sum(value - base for i, value in enumerate(scores[seed, host]) if i != turn) / 4
        means.append(abs(total))
    differences = scores[..., 1:] - scores[..., :1]
    found = exchange([rotations(own.ravel(), np.array([0, 0, 1, 1]), np.full(4, 0.25))
                      for own in differences])
    assert found.p == pytest.approx(np.mean(np.array(means) >= means[0] - 1e-9))
    assert found.smallest == pytest.approx(np.mean(np.array(means) >= max(means) - 1e-9)) and found.note == ""


def test_sets_of_several_sizes_come_back_together():
    turned = rotations(np.arange(5.0), np.array([0, 0, 1, 1, 1]), np.full(5, 0.2))
    assert len(turned) == 12 and turned[0] == pytest.approx(2.0) and turned.sum() == pytest.approx(0.0)


def test_where_nothing_differs_p_is_below_a_level_no_more_often_than_it_says():
    random = np.random.default_rng(0)
    for arms in (1, 4):
        p = []
        # skewed: signs of means of four to one would err
        for scores in random.gamma(1.0, size=(500, 6, 2, arms + 1)):
            differences = (scores[..., 1:] - scores[..., :1]).reshape(6, -1)
            shared = np.repeat([0, 1], arms)
            p.append(exchange([rotations(own, shared, np.full(2 * arms, 0.5 / arms))
                               for own in differences]).p)
        assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 500)


def test_random_exchanges_agree_with_all_and_repeat():
    seeds = np.random.default_rng(3).normal(0.35, 1.0, 17)
    found = flips(seeds)
    sums = np.zeros(1)
    for value in seeds:
        sums = np.concatenate([sums + value, sums - value])
    exact = np.mean(np.abs(sums) >= abs(seeds.sum()) - 1e-9)
    assert found.note == "random exchanges" and found == flips(seeds) and found.smallest == 1 / (DRAWS + 1)
    assert abs(found.p - exact) < 4 * np.sqrt(exact * (1 - exact) / DRAWS)


def test_holm_is_that_of_statsmodels_and_leaves_nan_out():
    p = np.random.default_rng(0).uniform(0, 0.2, 30)
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], atol=1e-12)
    with_holes = np.insert(p, [0, 7], np.nan)
    np.testing.assert_allclose(holm(with_holes)[np.isfinite(with_holes)], holm(p))
    assert np.isnan(holm(with_holes)).sum() == 2 and holm(np.array([])).size == 0


@pytest.mark.parametrize("count", [2, 4, 6])
def test_two_share_a_letter_exactly_when_they_are_not_told_apart(count):
    random = np.random.default_rng(count)
    items = list(range(count))
    pairs = [frozenset(pair) for pair in itertools.combinations(items, 2)]
    for _ in range(50):
        apart = [pair for pair in pairs if random.random() < 0.5]
        named = compact_letter_display(items, apart)
        assert named[0].startswith("a")
        for pair in pairs:
            one, two = pair
            assert bool(set(named[one]) & set(named[two])) == (pair not in apart)
