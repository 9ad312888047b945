"""Interquartile means over all runs of a set of tasks, with a bootstrap of seeds."""

from collections.abc import Callable

import numpy as np

DRAWS = 2000
FEWEST, MOST = 200, 2_000_000  # least draws; most scores in all draws together, so a large study has fewer
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
    draws = int(np.clip(MOST // (drawn * values.shape[1]), FEWEST, DRAWS))
    found = values[np.random.default_rng(SEED).integers(0, count, size=(draws, drawn))]
    low, high = np.nanpercentile(statistic(found.reshape(draws, -1)), [2.5, 97.5], axis=0)
    return float(value), float(low), float(high)
