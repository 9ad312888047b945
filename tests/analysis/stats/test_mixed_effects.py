"""The mixed-effects cross-check: close to the paired mean, and a failed fit is said in words."""


import numpy as np
import pytest

from portability.analysis.load import read
from portability.analysis.stats.cross_checks import mixed
from portability.analysis.stats.pairing import paired
from portability.store import Store
from support.synthetic import NANO, Axes, build


@pytest.fixture(scope="module")
def cells():
    return read(Store(NANO)).cells


def test_the_overall_gain_of_a_balanced_grid_is_the_mean_over_pairs(cells):
    found = mixed(cells, "sampled", 50)
    gains = paired(cells[cells["budget"] == 50], "ported", "sampled")["value"]
    assert found.overall[0] == pytest.approx(gains.mean(), abs=1e-3)
    assert found.overall[1] < found.overall[0] < found.overall[2]
    assert found.converged and found.words == "converged" and found.n == found.expected == 160
    assert found.seed_sd > 1 and len(found.terms) == 1 + 3 + 3 + 1


def test_a_fit_that_is_not_settled_says_so(cells):
    found = mixed(cells, "scratch", 200)
    assert not found.converged and "boundary" in found.words and np.isfinite(found.overall[0])


def test_spreads_of_zero_are_found_where_the_library_s_own_search_stops_short(cells):
    """Seeds differ no more at the start than their runs do, so their spread is 0; a search by gradients ends
    beside it."""
    found = mixed(cells, "scratch", 0)
    assert found.seed_sd == 0.0 and found.run_sd == pytest.approx(6.03,
                                                                  abs=0.02) and "boundary" in found.words
    assert found.overall[0] == pytest.approx(paired(cells[cells["budget"] == 0], "ported",
                                                    "scratch")["value"].mean(), abs=1e-3)


def test_a_factor_of_one_level_and_a_single_seed_are_named(tmp_path):
    one = read(build(tmp_path / "a", Axes(methods=("lora",))).store).cells
    assert "method has one level and is left out" in mixed(one, "scratch", 500).words
    lone = read(build(tmp_path / "b", Axes(seeds=(0,))).store).cells
    found = mixed(lone, "scratch", 500)
    assert not found.converged and "fewer than two seeds" in found.words and found.terms.empty


def test_a_singular_fit_is_words_and_no_crash(cells):
    flat = cells.assign(value=0.5)
    found = mixed(flat, "scratch", 50)
    assert not found.converged and found.words


def test_a_fit_that_does_not_converge_and_one_too_large_have_no_numbers(cells, monkeypatch):
    monkeypatch.setattr("portability.analysis.stats.cross_checks.STEPS", 2)
    found = mixed(cells, "scratch", 0)
    assert not found.converged and "did not converge: no result" in found.words and np.isnan(
        found.overall).all()
    monkeypatch.setattr("portability.analysis.stats.cross_checks.MOST", 100)
    found = mixed(cells, "scratch", 50)
    assert "more than 100 pairs: no model" in found.words and found.terms.empty and found.n == 160
