"""The ratio of two means over the same blocks, with Fieller's interval."""

from dataclasses import dataclass

import numpy as np
from scipy import special

from analysis.intervals import LEVEL, estimate, freedom, joined

NOISE = "native − scratch within noise"
WORSE = "native is not better than scratch"


@dataclass(frozen=True)
class Ratio:
    """A ratio of means; `mean`, `low`, `high` and `df` are NaN where `note` says why there is none.

    `numerator` and `denominator` are the means over blocks, `denominator_low` and `denominator_high` the 95 % interval of the
    latter.
    """

    mean: float
    low: float
    high: float
    df: float
    numerator: float
    denominator: float
    denominator_low: float
    denominator_high: float
    blocks: int
    note: str


def ratio(numerator: np.ndarray, denominator: np.ndarray, strata: np.ndarray, better: float = 1.0) -> Ratio:
    """Mean of `numerator` over mean of `denominator`, both (B,) over the same blocks in the same strata (B,).

    No ratio is given where the denominator's own 95 % interval holds 0 or Fieller's set is not an interval (both: within
    noise), nor where the denominator has the sign opposite to `better` (1.0 or -1.0).

    Source: Fieller, J. R. Stat. Soc. B 16, 1954: all ratios r that a t test of mean(numerator - r denominator) = 0 does not
    reject; variances within strata as in intervals.estimate, with the degrees of freedom at the estimate (our choice).

    Example:
        >>> found = ratio(np.array([1.0, 2.0, 3.0, 2.0]), np.array([4.0, 5.0, 4.0, 3.0]), np.zeros(4, int))
        >>> round(found.mean, 2), round(found.low, 2), round(found.high, 2)
        (0.5, 0.17, 0.95)
    """
    count, nan = len(numerator), float("nan")
    if count == 0:
        return Ratio(nan, nan, nan, nan, nan, nan, nan, nan, 0, "no pair")
    below = estimate(denominator, strata)
    top, bottom = float(numerator.mean()), float(denominator.mean())

    def refused(note: str) -> Ratio:
        return Ratio(nan, nan, nan, nan, top, bottom, below.low, below.high, count, note)

    if np.isnan(below.low):
        return refused(f"native − scratch: {below.note}")
    if below.low <= 0 <= below.high:
        return refused(NOISE)
    if bottom * better < 0:
        return refused(WORSE)
    labels, sizes = joined(strata)
    found = top / bottom
    parts = _covariances(numerator - found * denominator, numerator - found * denominator, labels, sizes)
    if parts.sum() < 1e-18:
        return refused("no spread between blocks: no interval")
    df = freedom(parts, sizes - 1.0)
    t2 = float(special.stdtrit(df, 0.5 + LEVEL / 2)) ** 2
    square = bottom**2 - t2 * _covariances(denominator, denominator, labels, sizes).sum()
    middle = top * bottom - t2 * _covariances(numerator, denominator, labels, sizes).sum()
    rest = top**2 - t2 * _covariances(numerator, numerator, labels, sizes).sum()
    if square <= 0:
        return refused(NOISE)
    half = np.sqrt(max(0.0, middle**2 - square * rest))
    low, high = float((middle - half) / square), float((middle + half) / square)
    return Ratio(found, low, high, df, top, bottom, below.low, below.high, count, "")


def _covariances(one: np.ndarray, two: np.ndarray, labels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(strata,) what each stratum adds to the covariance of the two means."""
    means = [(np.bincount(labels, x) / sizes)[labels] for x in (one, two)]
    sums = np.bincount(labels, (one - means[0]) * (two - means[1]))
    return sizes * (sums / (sizes - 1)) / len(one) ** 2
