"""Interquartile means over all runs of a set of tasks, with a bootstrap of seeds."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

DRAWS = 2000
FEWEST, MOST = 200, 2_000_000  # draws of a large study: fewer than DRAWS where these hold more scores than MOST together
SEED = 0
TASK = ["method", "origin", "receiving", "relation", "origin_data", "data", "port"]


@dataclass(frozen=True)
class Scores:
    """Scores of one init: `values` (n seeds, m tasks), NaN where a cell is not done; `expected` cells asked for."""

    values: np.ndarray
    tasks: list[str]
    expected: int

    @property
    def mark(self) -> str:
        """† where cells are missing."""
        return "†" if np.isfinite(self.values).sum() < self.expected else ""


@dataclass(frozen=True)
class Interval:
    """A statistic and its 95 % bootstrap interval: floats for a mean, (K,) for a profile."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def scores_of(cells: pd.DataFrame, init: str, budget: int) -> Scores:
    """The scores of an init after `budget` updates, a task for every method, direction and relation."""
    own = cells[(cells["init"] == init) & (cells["budget"] == budget)]
    own = own.assign(task=own.groupby(TASK, sort=False, dropna=False).ngroup())
    table = own.pivot(index="seed", columns="task", values="value")
    names = own.drop_duplicates("task").sort_values("task")[TASK].itertuples(index=False, name=None)
    return Scores(table.to_numpy(float), [" ".join(map(str, name)) for name in names], len(own))


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last axis: a quarter of the scores is cut on each side, NaN are left out.

    Source: Agarwal et al., Deep RL at the Edge of the Statistical Precipice, NeurIPS 2021, section 4.3 (rliable's
    aggregate_iqm: scipy's trim_mean of all runs and tasks together).

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


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], values: np.ndarray, fewer: int = 1) -> Interval:
    """A statistic of all scores with its percentile interval, whole seeds drawn anew.

    n - `fewer` of n seeds are drawn: with n - 1 the variance of a mean is unbiased at few seeds. Even so this is for
    description: the interval for a claim is that of analysis.inference (coverage of both: D-61). rliable, and
    scipy.stats.bootstrap, draw n; rliable draws each task by itself, but the runs of a seed are not independent.

    Args:
        statistic: (..., K) flattened scores to (...) or (..., T), as `iqm`.
        values: (n, m) seeds by tasks.

    Returns:
        The statistic (NaN without a score); its interval is NaN where fewer than two seeds have scores.

    Source: Agarwal et al. 2021, section 4.1; n - 1: Rao & Wu, J. Am. Stat. Assoc. 83, 1988, section 2.1.
    """
    value = statistic(values.reshape(-1))
    values = values[np.isfinite(values).any(axis=1)]
    count = len(values)
    if count < 2:
        return Interval(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    drawn = count - fewer
    draws = int(np.clip(MOST // (drawn * values.shape[1]), FEWEST, DRAWS))
    found = values[np.random.default_rng(SEED).integers(0, count, size=(draws, drawn))]
    low, high = np.nanpercentile(statistic(found.reshape(draws, -1)), [2.5, 97.5], axis=0)
    return Interval(value, low, high)
