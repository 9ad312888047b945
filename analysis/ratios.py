"""The ratio of two means over the same seeds, with Fieller's interval."""

from dataclasses import dataclass

import numpy as np
from scipy import special

from analysis.intervals import LEVEL, estimate

NOISE = "native − scratch within noise"
WORSE = "native is not better than scratch"


@dataclass(frozen=True)
class Ratio:
    """A ratio of means; `mean`, `low`, `high` and `df` are NaN where `note` says why there is none.

    `numerator` and `denominator` are the means over seeds, `denominator_low` and `denominator_high` the 95 % interval of the
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


def ratio(numerator: np.ndarray, denominator: np.ndarray, better: float = 1.0) -> Ratio:
    """Mean of `numerator` over mean of `denominator`, both (S,) over the same seeds.

    No ratio is given where the denominator's own 95 % interval holds 0 or Fieller's set is not an interval (both: within
    noise), nor where the denominator has the sign opposite to `better` (1.0 or -1.0).

    Source: Fieller, J. R. Stat. Soc. B 16, 1954: all ratios r that a t test of mean(numerator - r denominator) = 0 does not
    reject, with S - 1 degrees of freedom.

    Example:
        >>> found = ratio(np.array([1.0, 2.0, 3.0, 2.0]), np.array([4.0, 5.0, 4.0, 3.0]))
        >>> round(found.mean, 2), round(found.low, 2), round(found.high, 2)
        (0.5, 0.17, 0.95)
    """
    count, nan = len(numerator), float("nan")
    if count == 0:
        return Ratio(nan, nan, nan, nan, nan, nan, nan, nan, 0, "no pair")
    below = estimate(denominator)
    top, bottom = float(numerator.mean()), float(denominator.mean())

    def refused(note: str) -> Ratio:
        return Ratio(nan, nan, nan, nan, top, bottom, below.low, below.high, count, note)

    if np.isnan(below.low):
        return refused(f"native − scratch: {below.note}")
    if below.low <= 0 <= below.high:
        return refused(NOISE)
    if bottom * better < 0:
        return refused(WORSE)
    found = top / bottom
    if np.var(numerator - found * denominator) < 1e-18:
        return refused("no spread between seeds: no interval")
    (of_top, between), (_, of_bottom) = np.cov(numerator, denominator) / count
    t2 = float(special.stdtrit(count - 1.0, 0.5 + LEVEL / 2)) ** 2
    square, middle, rest = bottom**2 - t2 * of_bottom, top * bottom - t2 * between, top**2 - t2 * of_top
    if square <= 0:
        return refused(NOISE)
    half = np.sqrt(max(0.0, middle**2 - square * rest))
    low, high = float((middle - half) / square), float((middle + half) / square)
    return Ratio(found, low, high, count - 1.0, top, bottom, below.low, below.high, count, "")
