"""A mixed-effects model of the gains, as a cross-check of the paired intervals."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.regression.mixed_linear_model import MixedLM

from portability.analysis.stats.pairing import arm_of, paired

FACTORS = ("method", "direction", "relation")
DIGITS = 3  # of a fixed effect, points: what the search for the spreads does not settle is left out
STEPS = 1000  # of the search
MOST = 1000  # pairs: a fit of these takes a second, and the time grows with the cube of the baselines' runs


@dataclass(frozen=True)
class Mixed:
    """A fitted model, or the words on why there is none.

    `terms` has one row per fixed effect: term, value, low, high (points, 95 % Wald), p; empty where the fit
    failed. `overall` is the mean gain with every level weighted alike. `seed_sd` and `run_sd` are the random
    effects' spread, `rest_sd` the remaining one, points. `converged` is False also for a fit on the boundary
    or with warnings, whose spreads are not settled; `words` always says what happened.
    """

    terms: pd.DataFrame
    overall: tuple[float, float, float]
    seed_sd: float
    run_sd: float
    rest_sd: float
    n: int
    expected: int
    converged: bool
    words: str


def mixed(cells: pd.DataFrame, baseline: str, budget: int, scale: float = 100.0) -> Mixed:
    """gain ~ method + direction + relation, with seeds, and the baselines' runs within them, as random
    effects (REML).

    A cross-check only: its Wald intervals take variances as known and are too short at few seeds. Factors are
    coded as deviations from the mean of their levels; a factor with one level is left out, and said so.
    Fitted by Nelder and Mead's search, which finds spreads of 0 where gradients stop short of them (D-93),
    and given to DIGITS decimals.

    Source: Laird & Ware, Biometrics 38, 1982, as in statsmodels' MixedLM; the model is our choice (D-62).
    """
    gains = paired(cells[cells["budget"] == budget], arm_of(cells), baseline, scale)
    expected = len(gains)
    gains = gains.assign(direction=gains["origin"] + " -> " + gains["receiving"]).dropna(subset="value")
    used = [name for name in FACTORS if gains[name].nunique() > 1]
    words = [f"{name} has one level and is left out" for name in FACTORS if name not in used]
    if gains["seed"].nunique() < 2:
        return _unfitted(len(gains), expected, [*words, "fewer than two seeds: no model"])
    if len(gains) > MOST:
        return _unfitted(len(gains), expected, [*words, f"more than {MOST:,} pairs: no model"])
    parts = {"run": "0 + C(run_id)"} if gains["run_id"].duplicated().any() else None
    formula = "value ~ " + " + ".join(["1", *(f"C({name}, Sum)" for name in used)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = MixedLM.from_formula(formula, gains, groups="seed", re_formula="1", vc_formula=parts)
            fit = model.fit(reml=True, method=["nm"], maxiter=STEPS)
            terms, overall = _terms(fit), _interval(fit, 0)
        except (np.linalg.LinAlgError, ValueError, FloatingPointError) as error:
            return _unfitted(len(gains), expected, [*words, f"the fit failed: {error}"])
    words += list(dict.fromkeys(str(item.message).strip().splitlines()[0] for item in caught))
    if not fit.converged:
        return _unfitted(len(gains), expected, [*words, "the optimiser did not converge: no result"])
    words += ["the spreads are not settled: read the fixed effects with care"] if caught else []
    seed, run = float(fit.cov_re.iloc[0, 0]), float(fit.vcomp[0]) if len(fit.vcomp) else 0.0
    seed, run, rest = (round(float(np.sqrt(max(0.0, value))), 2) for value in (seed, run, fit.scale))
    return Mixed(terms, overall, seed, run, rest, len(gains), expected, not caught,
                 "; ".join(words) or "converged")


def _terms(fit: Any) -> pd.DataFrame:
    """The fixed effects of a fit."""
    names = list(fit.fe_params.index)
    rows = [(name, *_interval(fit, i), float(f"{fit.pvalues.iloc[i]:.3g}")) for i, name in enumerate(names)]
    return pd.DataFrame(rows, columns=["term", "value", "low", "high", "p"])


def _interval(fit: Any, place: int) -> tuple[float, float, float]:
    """Value, low and high of one fixed effect."""
    low, high = fit.conf_int().iloc[place]
    value, low, high = (round(float(item), DIGITS) for item in (fit.fe_params.iloc[place], low, high))
    return value, low, high


def _unfitted(count: int, expected: int, words: list[str]) -> Mixed:
    nan = float("nan")
    empty = pd.DataFrame(columns=["term", "value", "low", "high", "p"])
    return Mixed(empty, (nan, nan, nan), nan, nan, nan, count, expected, False, "; ".join(words))
