"""Interquartile means are rliable's; seeds are drawn whole; holes are marked."""

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import trim_mean

from portability.analysis.stats.cross_checks import bootstrap, iqm

SCORES = np.random.default_rng(0).uniform(0.4, 1.0, size=(5, 7))


@pytest.fixture
def rliable(monkeypatch):
    """rliable's metrics and library; of arch, whose release does not import beside pandas 3.1, only names are
    needed."""
    metrics = pytest.importorskip("rliable.metrics")
    names = {"IIDBootstrap": object, "IndependentSamplesBootstrap": object}
    monkeypatch.setitem(sys.modules, "arch", SimpleNamespace(bootstrap=SimpleNamespace(**names)))
    monkeypatch.setitem(sys.modules, "arch.bootstrap", sys.modules["arch"].bootstrap)
    return metrics, importlib.import_module("rliable.library")


def test_iqm_is_that_of_rliable(rliable):
    metrics, _ = rliable
    for shape in ((5, 7), (3, 1), (10, 32)):
        scores = np.random.default_rng(1).uniform(0.4, 1.0, size=shape)
        assert iqm(scores.reshape(-1)) == pytest.approx(metrics.aggregate_iqm(scores), abs=1e-9)


def test_drawing_all_seeds_gives_the_interval_of_the_plain_bootstrap_of_seeds():
    random = np.random.default_rng(5)
    draws = [trim_mean(SCORES[random.integers(0, 5, size=5)], 0.25, axis=None) for _ in range(4000)]
    ours = bootstrap(iqm, SCORES, fewer=0)
    np.testing.assert_allclose(ours[1:], np.percentile(draws, [2.5, 97.5]), atol=0.01)  # both are random


def test_one_seed_fewer_makes_the_spread_of_a_mean_unbiased():
    scores = np.random.default_rng(0).normal(size=(5, 12))
    ends = {fewer: bootstrap(lambda x: x.mean(axis=-1), scores, fewer=fewer)[1:] for fewer in (0, 1)}
    width = {fewer: high - low for fewer, (low, high) in ends.items()}
    assert width[1] > 1.05 * width[0]  # sqrt(5 / 4) = 1.12, by percentiles of few distinct draws


def test_the_runs_of_a_seed_are_drawn_together():
    scores = np.random.default_rng(0).normal(size=(6, 1)).repeat(4, axis=1)
    together, alone = bootstrap(iqm, scores), bootstrap(iqm, scores[:, :1])
    assert together[2] - together[1] == pytest.approx(alone[2] - alone[1], rel=0.35)


def test_scores_that_are_missing_are_left_out():
    holes = SCORES.copy()
    holes[0, 2:5] = np.nan
    assert iqm(holes.reshape(-1)) == pytest.approx(iqm(holes[np.isfinite(holes)]))
    assert np.isfinite(bootstrap(iqm, holes)).all()


def test_one_seed_or_no_score_has_no_interval():
    alone = SCORES.copy()
    alone[1:] = np.nan  # one seed with scores
    for scores in (SCORES[:1], alone):
        found = bootstrap(iqm, scores)
        assert np.isfinite(found[0]) and np.isnan(found[1:]).all()
    assert np.isnan(bootstrap(iqm, np.full((3, 2), np.nan))[0])


def test_a_large_study_draws_fewer_samples():
    shapes = []

    def middle(scores):
        shapes.append(scores.shape)
        return iqm(scores)

    bootstrap(middle, np.random.default_rng(0).normal(size=(11, 2000)))
    assert shapes == [(22_000,), (200, 20_000)]
