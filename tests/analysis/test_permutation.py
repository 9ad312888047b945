"""Sign flips, Holm and tie groups: equal to scipy's and statsmodels', and honest about the smallest p."""

import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from analysis.permutation import DRAWS, EXACT, MANY, SEED, holm, letters, sign_flip, sign_flips


@pytest.mark.parametrize("count", [3, 5, 8, 12])
def test_all_patterns_give_scipys_exact_p(count):
    blocks = np.random.default_rng(count).normal(0.4, 1.0, count)
    test = stats.permutation_test((blocks,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(blocks).p == pytest.approx(test.pvalue, abs=1e-6)


def test_five_blocks_cannot_reach_five_percent():
    assert sign_flip(np.array([9.0, 8.0, 9.0, 7.0, 9.0])) == sign_flip(np.ones(5))
    assert sign_flip(np.ones(5)).p == sign_flip(np.ones(5)).smallest == 2 / 32


def test_blocks_of_zero_carry_no_sign():
    found = sign_flip(np.array([1.0, 1.0, 1.0, 0.0, 0.0]))
    assert found.p == found.smallest == 2 / 8
    assert sign_flip(np.zeros(4)).p == sign_flip(np.zeros(4)).smallest == 1.0


def test_equal_sums_are_ties_whatever_the_rounding():
    blocks = np.array([0.1, 0.2, 0.3, -0.3, 0.7])
    sums = [abs(round(sum(s * b for s, b in zip(signs, blocks, strict=True)), 6))
            for signs in itertools.product((1, -1), repeat=5)]
    assert sign_flip(blocks).p == np.mean(np.array(sums) >= 1.0)


def test_random_patterns_agree_with_all_and_repeat():
    blocks = np.random.default_rng(3).normal(0.35, 1.0, EXACT + 1)
    found = sign_flip(blocks)
    sums = np.zeros(1)
    for value in blocks:
        sums = np.concatenate([sums + value, sums - value])
    exact = np.mean(np.abs(sums) >= abs(blocks.sum()) - 1e-9)
    assert found.note == "random signs" and found == sign_flip(blocks) == sign_flip(blocks[::-1])
    assert abs(found.p - exact) < 4 * np.sqrt(exact * (1 - exact) / DRAWS)
    assert sign_flip(np.ones(40)).p == sign_flip(np.ones(40)).smallest == 1 / (DRAWS + 1)


def test_many_blocks_agree_with_random_patterns_and_need_no_memory():
    random = np.random.default_rng(5)
    blocks = random.normal(0.08, 1.0, MANY + 1) * random.gamma(2.0, size=MANY + 1)
    found = sign_flip(blocks)
    sums = random.choice([-1.0, 1.0], size=(20_000, len(blocks))) @ blocks
    drawn = np.mean(np.abs(sums) >= abs(blocks.sum()))
    assert found.note == "signs taken as normal" and 0.001 < drawn < 0.5
    assert abs(found.p - drawn) < 5 * np.sqrt(drawn / 20_000)
    assert sign_flip(np.zeros(MANY + 1)).p == 1.0 and 0 <= sign_flip(np.ones(100_000)).p < 1e-9


def test_holm_is_that_of_statsmodels_and_leaves_nan_out():
    p = np.random.default_rng(0).uniform(0, 0.2, 30)
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], atol=1e-12)
    with_holes = np.insert(p, [0, 7], np.nan)
    np.testing.assert_allclose(holm(with_holes)[np.isfinite(with_holes)], holm(p))
    assert np.isnan(holm(with_holes)).sum() == 2 and holm(np.array([])).size == 0


def test_p_of_a_true_null_is_below_a_level_no_more_often_than_it_says():
    random = np.random.default_rng(0)
    for count in (6, 10, 20):
        p = np.array([sign_flip(random.normal(size=count)).p for _ in range(1000)])
        assert np.mean(p <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.parametrize("count", [2, 4, 6])
def test_two_share_a_letter_exactly_when_they_are_not_told_apart(count):
    random = np.random.default_rng(count)
    items = list(range(count))
    pairs = [frozenset(pair) for pair in itertools.combinations(items, 2)]
    for _ in range(50):
        apart = [pair for pair in pairs if random.random() < 0.5]
        named = letters(items, apart)
        assert named[0].startswith("a")
        for pair in pairs:
            one, two = pair
            assert bool(set(named[one]) & set(named[two])) == (pair not in apart)


def test_many_tests_together_are_each_alone():
    rng = np.random.default_rng(5)
    tests = [rng.normal(0.3, 1, count) for count in (3, 20, 0, MANY + 1, 20, EXACT, 31, *[20] * 70)]
    together, alone = sign_flips(tests), [sign_flip(blocks) for blocks in tests]
    assert repr(together) == repr(alone) and len({flips.p for flips in together[7:]}) > 30
    signs = np.random.default_rng(SEED).integers(0, 2, size=(DRAWS, 20), dtype=np.int8) * 2.0 - 1
    reached = sum(abs(row @ np.sort(tests[1])) >= abs(tests[1].sum()) - 1e-9 for row in signs)
    assert together[1].p == (1 + reached) / (DRAWS + 1)
