"""The mean of paired differences with an interval and a test that hold at few seeds, for new seeds and new
test examples; and the ratio of two means over the same seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import special, stats
from scipy.optimize import brentq
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95
ALPHA = 1 - LEVEL
POWER = 0.80
FAR = 30.0  # standard errors from which on scipy's noncentral t is not to be relied on
TIE = 1e-9  # share by which mean squares differ that are not equal but for rounding
LEAST = -69.0  # logarithm of the least p, 1e-30
DEGREES = np.r_[1.0:3.0:0.1, 3.0:9.0:0.5, 9.0:16.0:1.0, 20.0, 30.0, 60.0, 200.0, 1e6]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds. All but `blocks`, `examples` and `mean` are NaN where the data cannot give them.

    mean, low, high, se (half of the interval over the t quantile) and sd are in the unit of the differences;
    `p` is that of a two-sided t test of 0, which is at most 0.05 exactly where the interval leaves 0 out;
    `df` are the degrees of freedom of both, `sd` is the spread of seeds, `effect` = mean / sd, `blocks` the
    seeds and `examples` the test examples behind it (0: over seeds only), `note` what is out of the ordinary,
    in words.
    """

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    se: float = math.nan
    df: float = math.nan
    sd: float = math.nan
    effect: float = math.nan
    blocks: int = 0
    examples: int = 0
    note: str = ""


def estimate(blocks: np.ndarray, examples: Sequence[np.ndarray] = ()) -> Estimate:
    """Mean over seeds with a t interval whose variance adds what seeds and what test examples contribute (see
    `spread`).

    Args:
        blocks: (S,) the difference of each seed, points.
        examples: for each test set (S, M) what its examples contribute to the differences: the row means of
            all sets add up to `blocks`. None: over seeds only.

    Source: `effect` is Cohen's d_z (Lakens, Front. Psychol. 4, 2013), not corrected for few seeds. Our
    choice: an interval without any spread is NaN, not of width 0.

    Example:
        >>> found = estimate(np.array([1.0, 2.0, 3.0]))
        >>> round(found.mean, 2), round(found.low, 2), round(found.high, 2), round(found.p, 3)
        (2.0, -0.48, 4.48, 0.074)
    """
    count, used = len(blocks), sum(each.shape[1] for each in examples)
    if count == 0:
        return Estimate(note="no pair")
    mean = float(np.mean(blocks))
    if count == 1:
        return Estimate(mean, blocks=1, examples=used, note="one seed: no interval")
    found = spread(blocks, examples)
    sd, half = float(np.std(blocks, ddof=1)), float(found.half(ALPHA))
    if half < 1e-8:
        note = "no spread between seeds: no interval"
        return Estimate(mean, sd=0.0, blocks=count, examples=used, note=note)
    df = float(found.df)
    se = half / float(special.stdtrit(df, 0.5 + LEVEL / 2))
    effect = mean / sd if sd > 1e-9 else math.nan
    return Estimate(mean, mean - half, mean + half, found.p(mean), se, df, sd, effect, count, used)


@dataclass(frozen=True)
class Spread:
    """The variance of a mean, (...) each: what seeds and what test examples contribute, and the degrees of
    freedom of each part and of both together."""

    of_seeds: np.ndarray
    of_examples: np.ndarray
    df_seeds: int
    df_examples: np.ndarray
    df: np.ndarray

    def half(self, alpha: float) -> np.ndarray:
        """Half the width of the interval that leaves the truth out with probability `alpha`: (...).

        The mean of t with the degrees of freedom of both parts together (Satterthwaite: short at 5 seeds,
        most of all in the tail that Holm's correction asks about) and of the t intervals of both parts in
        quadrature (Howe: long).

        Source: Howe, J. Am. Stat. Assoc. 69, 1974; the mean of both is our choice, by simulation
        (D-119).
        """
        def limit(df: np.ndarray | int) -> np.ndarray:
            return -special.stdtrit(df, alpha / 2)

        seeds, examples = np.sqrt(self.of_seeds), np.sqrt(self.of_examples)
        short = limit(self.df) * np.sqrt(self.of_seeds + self.of_examples)
        long = np.hypot(limit(self.df_seeds) * seeds, limit(self.df_examples) * examples)
        return (short + long) / 2

    def p(self, mean: float) -> float:
        """The `alpha` whose interval around a mean just ends at 0, of one mean; NaN of none."""
        if math.isnan(mean):
            return math.nan

        def beyond(log: float) -> float:
            return float(self.half(np.exp(log))) - abs(mean)

        if self.of_examples == 0:
            return 2 * float(special.stdtr(self.df_seeds, -abs(mean) / np.sqrt(self.of_seeds)))
        return float(np.exp(brentq(beyond, LEAST, 0.0, xtol=1e-10) if beyond(LEAST) > 0 else LEAST))


def spread(blocks: np.ndarray, examples: Sequence[np.ndarray] = ()) -> Spread:
    """What seeds and test examples contribute to the variance of the mean over seeds.

    The model is crossed: difference[seed, example] = mean + seed + example + rest, seeds and examples random,
    examples nested in their test set. The variance of the mean is the seeds' (of the seeds' means, which the
    rest is in) plus each test set's: the variance of its per-example means less what the rest puts into it,
    never below 0. So it does not vanish with more seeds.

    Args:
        blocks: (..., S). examples: for each test set (..., S, M), as of `estimate`. Without them it is that
        of the paired t test.

    Source: two-way random effects: Searle, Casella & McCulloch, Variance Components, 1992, section 4.4; Owen,
    The pigeonhole bootstrap, Ann. Appl. Stat. 2007, section 3; degrees of freedom of sums and differences of
    mean squares: Satterthwaite, Biometrics Bulletin 2, 1946.
    """
    seeds = blocks.shape[-1]
    of_seeds = blocks.var(axis=-1, ddof=1) / seeds
    of_examples, squares, below = (np.zeros_like(of_seeds) for _ in range(3))
    for each in examples:
        count = each.shape[-1]
        if count < 2:
            continue
        columns, rows = each.mean(axis=-2), each.mean(axis=-1)
        total = columns.var(axis=-1, ddof=1) / count
        alone = each - columns[..., None, :] - rows[..., None] + rows.mean(axis=-1)[..., None, None]
        rest = np.square(alone).sum(axis=(-2, -1))
        df_rest = (seeds - 1) * (count - 1)
        rest = rest / df_rest / (seeds * count)
        own = np.where(total > rest * (1 + TIE), total - rest, 0.0)
        of_examples, squares = of_examples + own, squares + own**2 / (count - 1)
        below = below + np.where(own > 0, total**2 / (count - 1) + rest**2 / df_rest, 0.0)
    df_examples = np.where(squares > 0, of_examples**2 / np.where(squares > 0, squares, 1.0), 1.0)
    both = of_seeds**2 / (seeds - 1) + below
    satterthwaite_df = np.where(both > 0, (of_seeds + of_examples) ** 2 / np.where(both > 0, both, 1.0),
                                seeds - 1.0)
    return Spread(of_seeds, of_examples, seeds - 1, df_examples, satterthwaite_df)


def detectable(se: np.ndarray, df: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """The true difference that a two-sided t test at level `alpha` would find 4 times in 5: (K,) each, NaN
    for NaN and where it is beyond FAR (two seeds at a corrected level).

    Source: noncentral t (Cohen, Statistical Power Analysis, 1988, chapter 2), by statsmodels' TTestPower,
    between whose values at DEGREES it is interpolated (to within 0.5 % from 3 degrees of freedom on).

    Example:
        >>> detectable(np.array([1.0, 2.0]), np.array([4.0, 1e6])).round(2).tolist()
        [3.76, 5.6]
    """
    return se * np.exp(np.interp(1 / np.maximum(df, 1.0), 1 / DEGREES[::-1], _errors(alpha)[::-1]))


@lru_cache(maxsize=16)
def _errors(alpha: float) -> np.ndarray:
    """Logarithms of the detectable difference in standard errors, at DEGREES."""
    power = TTestPower()

    def lacking(errors: float, df: float) -> float:
        """The one tail that counts; scipy gives NaN from FAR on, where power is 1."""
        found = power.power(errors / np.sqrt(df + 1), df + 1, alpha / 2, alternative="larger")
        return float(np.nan_to_num(found, nan=1.0)) - POWER

    found = np.array([brentq(lacking, 0.0, 1e4, args=(df,)) for df in DEGREES])
    return np.log(np.where(found < FAR, found, np.nan))


def jackknife(number: Callable[[np.ndarray], float], seeds: int) -> tuple[float, float, float]:
    """A number of all seeds that is no mean of theirs, with its 95 % interval of new seeds: each is left out
    in turn, t with S - 1 degrees of freedom; no interval with one seed.

    Args:
        number: of the places (K,) of some of the S seeds.

    Source: Efron & Stein, Ann. Stat. 9, 1981. Of a mean it is the t interval.

    Example:
        >>> values = np.array([1.0, 2.0, 3.0])
        >>> [round(end, 3) for end in jackknife(lambda seeds: float(values[seeds].mean()), 3)]
        [2.0, -0.484, 4.484]
    """
    every = np.arange(seeds)
    middle = number(every)
    if seeds < 2:
        return middle, math.nan, math.nan
    others = np.array([number(np.delete(every, seed)) for seed in every])
    error = math.sqrt((seeds - 1) / seeds * float(np.square(others - others.mean()).sum()))
    half = float(stats.t.ppf((1 + LEVEL) / 2, seeds - 1)) * error
    return middle, middle - half, middle + half


def jeffreys(share: np.ndarray, trials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Jeffreys' 95 % interval of a probability, from the share of successes in [0, 1] and the number of
    trials, each (K,).

    Source: Brown, Cai & DasGupta, Stat. Sci. 16, 2001; by statsmodels.

    Example:
        >>> low, high = jeffreys(np.array([1.0, 0.5]), np.array([5.0, 10.0]))
        >>> low.round(2).tolist(), high.round(2).tolist()
        ([0.62, 0.22], [1.0, 0.78])
    """
    wins = np.where(np.isnan(share), 0.0, share) * trials
    low, high = proportion_confint(wins, np.maximum(trials, 1), alpha=1 - LEVEL, method="jeffreys")
    low, high = np.where(wins < 1e-9, 0.0, low), np.where(trials - wins < 1e-9, 1.0, high)
    empty = np.isnan(share) | (trials == 0)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


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
