"""Estimators beside the paired means, as cross-checks: interquartile means, and a mixed-effects model."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.regression.mixed_linear_model import MixedLM

from portability.analysis.stats.pairing import arm_of, paired

DRAWS = 2000
FEWEST, SCORES = 200, 2_000_000  # least draws; most scores in all draws together, so a large study has fewer
SEED = 0


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last axis: a quarter of the scores is cut on each side, NaN are left out.

    Source: Agarwal et al., Deep RL at the Edge of the Statistical Precipice, NeurIPS 2021, section 4.3
    (rliable's aggregate_iqm: scipy's trim_mean of all runs and tasks together).

    Example:
        >>> float(iqm(np.array([9.0, 1.0, 2.0, 3.0, -7.0, 2.0, 4.0, 0.0])))
        2.0
    """
    ordered = np.sort(scores, axis=-1)  # NaN last
    count = np.isfinite(ordered).sum(axis=-1, keepdims=True)
    cut, place = count // 4, np.arange(ordered.shape[-1])
    kept = (place >= cut) & (place < count - cut)
    with np.errstate(invalid="ignore"):
        return np.where(kept, ordered, 0.0).sum(axis=-1) / kept.sum(axis=-1)


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], values: np.ndarray, fewer: int = 1
) -> tuple[float, float, float]:
    """A statistic of all scores with its percentile interval, whole seeds drawn anew.

    n - `fewer` of n seeds are drawn: with n - 1 the variance of a mean is unbiased at few seeds. Even so this
    is for description: the interval for a claim is that of stats.blocks (coverage of both: D-61, D-119).
    rliable, and scipy.stats.bootstrap, draw n; rliable draws each task by itself, but the runs of a seed are
    not independent.

    Args:
        statistic: (..., K) flattened scores to (...), as `iqm`.
        values: (n, m) seeds by tasks.

    Returns:
        The statistic (NaN without a score), and the ends of its 95 % interval, NaN where fewer than two seeds
        have scores.

    Source: Agarwal et al. 2021, section 4.1; n - 1: Rao & Wu, J. Am. Stat. Assoc. 83, 1988, section 2.1.
    """
    value = statistic(values.reshape(-1))
    values = values[np.isfinite(values).any(axis=1)]
    count = len(values)
    if count < 2:
        return float(value), np.nan, np.nan
    drawn = count - fewer
    draws = int(np.clip(SCORES // (drawn * values.shape[1]), FEWEST, DRAWS))
    found = values[np.random.default_rng(SEED).integers(0, count, size=(draws, drawn))]
    low, high = np.nanpercentile(statistic(found.reshape(draws, -1)), [2.5, 97.5], axis=0)
    return float(value), float(low), float(high)


TERM = ["term", "value", "low", "high", "p"]
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

    n: int
    expected: int
    words: str
    terms: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=TERM))
    overall: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    seed_sd: float = math.nan
    run_sd: float = math.nan
    rest_sd: float = math.nan
    converged: bool = False


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

    def without(why: str) -> Mixed:
        return Mixed(len(gains), expected, "; ".join([*words, why]))

    if gains["seed"].nunique() < 2:
        return without("fewer than two seeds: no model")
    if len(gains) > MOST:
        return without(f"more than {MOST:,} pairs: no model")
    parts = {"run": "0 + C(run_id)"} if gains["run_id"].duplicated().any() else None
    formula = "value ~ " + " + ".join(["1", *(f"C({name}, Sum)" for name in used)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = MixedLM.from_formula(formula, gains, groups="seed", re_formula="1", vc_formula=parts)
            fit = model.fit(reml=True, method=["nm"], maxiter=STEPS)
            terms = _terms(fit)
        except (np.linalg.LinAlgError, ValueError, FloatingPointError) as error:
            return without(f"the fit failed: {error}")
    words += list(dict.fromkeys(str(item.message).strip().splitlines()[0] for item in caught))
    if not fit.converged:
        return without("the optimiser did not converge: no result")
    words += ["the spreads are not settled: read the fixed effects with care"] if caught else []
    variances = (fit.cov_re.iloc[0, 0], fit.vcomp[0] if len(fit.vcomp) else 0.0, fit.scale)
    seed, run, rest = (round(float(np.sqrt(max(0.0, value))), 2) for value in variances)
    overall = tuple(terms.loc[0, ["value", "low", "high"]])
    return Mixed(len(gains), expected, "; ".join(words) or "converged", terms, overall, seed, run, rest,
                 not caught)


def _terms(fit: Any) -> pd.DataFrame:
    """The fixed effects of a fit: TERM."""
    names, ends = fit.fe_params.index, fit.conf_int()
    rows = [(name, *(round(float(item), DIGITS) for item in (fit.fe_params[name], *ends.loc[name])),
             float(f"{fit.pvalues[name]:.3g}")) for name in names]
    return pd.DataFrame(rows, columns=TERM)
