"""The ratio of two means over the same seeds, with Fieller's interval."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from portability.analysis.stats.intervals import LEVEL, estimate

NOISE = "native − scratch within noise"
WORSE = "native is not better than scratch"


@dataclass(frozen=True)
class Ratio:
    """A ratio of means; `mean`, `low`, `high` and `df` are NaN where `note` says why there is none.

    `numerator` and `denominator` are the means over seeds, `denominator_low` and `denominator_high` the 95 %
    interval of the latter.
    """

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    df: float = math.nan
    numerator: float = math.nan
    denominator: float = math.nan
    denominator_low: float = math.nan
    denominator_high: float = math.nan
    blocks: int = 0
    note: str = ""


def ratio(numerator: np.ndarray, denominator: np.ndarray, better: float = 1.0) -> Ratio:
    """Mean of `numerator` over mean of `denominator`, both (S,) over the same seeds.

    No ratio is given where the denominator's own 95 % interval holds 0 or Fieller's set is not an interval
    (both: within noise), nor where the denominator has the sign opposite to `better` (1.0 or -1.0).

    Source: Fieller, J. R. Stat. Soc. B 16, 1954: all ratios r that a t test of mean(numerator - r
    denominator) = 0 does not reject, with S - 1 degrees of freedom.

    Example:
        >>> found = ratio(np.array([1.0, 2.0, 3.0, 2.0]), np.array([4.0, 5.0, 4.0, 3.0]))
        >>> round(found.mean, 2), round(found.low, 2), round(found.high, 2)
        (0.5, 0.17, 0.95)
    """
    count = len(numerator)
    if count == 0:
        return Ratio(note="no pair")
    below, top, bottom = estimate(denominator), float(numerator.mean()), float(denominator.mean())
    found = Ratio(numerator=top, denominator=bottom, denominator_low=below.low, denominator_high=below.high,
                  blocks=count)
    if np.isnan(below.low):
        return replace(found, note=f"native − scratch: {below.note}")
    if below.low <= 0 <= below.high:
        return replace(found, note=NOISE)
    if bottom * better < 0:
        return replace(found, note=WORSE)
    quotient = top / bottom
    if np.var(numerator - quotient * denominator) < 1e-18:
        return replace(found, note="no spread between seeds: no interval")
    (of_top, between), (_, of_bottom) = np.cov(numerator, denominator) / count
    t2 = float(special.stdtrit(count - 1.0, 0.5 + LEVEL / 2)) ** 2
    square, middle, rest = bottom**2 - t2 * of_bottom, top * bottom - t2 * between, top**2 - t2 * of_top
    if square <= 0:
        return replace(found, note=NOISE)
    half = np.sqrt(max(0.0, middle**2 - square * rest))
    low, high = float((middle - half) / square), float((middle + half) / square)
    return replace(found, mean=quotient, low=low, high=high, df=count - 1.0)
