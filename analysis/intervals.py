"""The mean of paired differences with an interval that holds at few seeds and covers new seeds and new test examples."""

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

LEVEL = 0.95
POWER = 0.80


@dataclass(frozen=True)
class Estimate:
    """A mean over blocks. All but `blocks`, `examples` and `mean` are NaN where the data cannot give them.

    mean, low, high, se and sd are in the unit of the differences; `df` are the interval's degrees of freedom, `sd` is
    the spread of blocks within a stratum, `effect` = mean / sd, `examples` the test examples behind the interval (0:
    over seeds only), `note` what is out of the ordinary, in words.
    """

    mean: float
    low: float
    high: float
    se: float
    df: float
    sd: float
    effect: float
    blocks: int
    examples: int
    note: str


def estimate(blocks: np.ndarray, strata: np.ndarray | None = None, examples: np.ndarray | None = None) -> Estimate:
    """Mean over blocks with a t interval whose variance adds what seeds and what test examples contribute.

    The model is crossed: difference[block, example] = stratum's mean + block + example + rest, blocks and examples
    random, strata fixed. The variance of the mean is the blocks' (within strata) plus the examples' (variance of
    the per-example means less what the rest puts into it, never below 0). One stratum and no examples: the paired t.

    Args:
        blocks: (B,) the difference of each block, points; blocks are independent of each other.
        strata: (B,) labels of what is fixed and not drawn anew with a seed (method, receiving host, ...); by default one.
            A stratum of one block has no spread of its own, so such strata are joined.
        examples: (B, M) the differences per test example, whose row means are `blocks`; None: over seeds only.

    Source: stratified mean: Cochran, Sampling Techniques, 1977, section 5.4, joined strata 5A.12; crossed variance:
    Owen, The pigeonhole bootstrap, Ann. Appl. Stat. 2007, section 3, unbiased form; degrees of freedom as in `freedom`;
    effect: Cohen's d_z (Lakens, Front. Psychol. 4, 2013), not corrected for few blocks. Our choices: the width with
    examples is the mean of Satterthwaite's (covers 91 to 94 % at three seeds) and Howe's (t intervals of both parts in
    quadrature; J. Am. Stat. Assoc. 69, 1974; up to 98 %), and an interval without any spread is NaN, not of width 0.

    Example:
        >>> found = estimate(np.array([1.0, 2.0, 3.0]))
        >>> round(found.mean, 2), round(found.low, 2), round(found.high, 2), round(found.effect, 2)
        (2.0, -0.48, 4.48, 2.0)
    """
    count = len(blocks)
    used = 0 if examples is None else examples.shape[1]
    nan = float("nan")
    if count == 0:
        return Estimate(nan, nan, nan, nan, nan, nan, nan, 0, 0, "no pair")
    mean = float(np.mean(blocks))
    if count == 1:
        return Estimate(mean, nan, nan, nan, nan, nan, nan, 1, used, "one block: no interval")
    labels, sizes = joined(np.zeros(count, int) if strata is None else strata)
    sums = np.bincount(labels, (blocks - (np.bincount(labels, blocks) / sizes)[labels]) ** 2)
    parts, freedoms = sizes * (sums / (sizes - 1)) / count**2, sizes - 1.0
    of_examples = _of_examples(examples, labels, sizes) if used > 1 else 0.0
    variance, sd = float(parts.sum()) + of_examples, float(np.sqrt(sums.sum() / (count - len(sizes))))
    if variance < 1e-18:
        return Estimate(mean, nan, nan, nan, nan, 0.0, nan, count, used, "no spread between blocks: no interval")
    half = _half(parts, freedoms, of_examples, used - 1.0)
    df = freedom(np.append(parts, of_examples), np.append(freedoms, used - 1.0))
    effect = mean / sd if sd > 1e-9 else nan
    return Estimate(mean, mean - half, mean + half, float(np.sqrt(variance)), df, sd, effect, count, used, "")


def _half(parts: np.ndarray, freedoms: np.ndarray, of_examples: float, others: float) -> float:
    """Half the width of the interval; with examples the mean of two forms, of which one is short and one is long."""
    share = 0.5 + LEVEL / 2
    blocks = special.stdtrit(freedom(parts, freedoms), share) * np.sqrt(parts.sum()) if parts.sum() > 0 else 0.0
    if of_examples == 0:
        return float(blocks)
    together = freedom(np.append(parts, of_examples), np.append(freedoms, others))
    short = special.stdtrit(together, share) * np.sqrt(parts.sum() + of_examples)
    return float(short + np.hypot(blocks, special.stdtrit(others, share) * np.sqrt(of_examples))) / 2


def joined(strata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B,) stratum numbers and their sizes, strata of one block joined with each other, a last one with the smallest.

    Example:
        >>> joined(np.array(["a", "a", "b", "c"]))[0].tolist()
        [0, 0, 1, 1]
    """
    labels = np.unique(strata, return_inverse=True)[1]
    sizes = np.bincount(labels)
    single = np.flatnonzero(sizes == 1)
    if len(single) == 1 and len(sizes) > 1:
        others = np.flatnonzero(sizes > 1)
        single = np.append(single, others[np.argmin(sizes[others])])
    if len(single):
        labels = np.unique(np.where(np.isin(labels, single), single[0], labels), return_inverse=True)[1]
    return labels, np.bincount(labels)


def _of_examples(examples: np.ndarray, labels: np.ndarray, sizes: np.ndarray) -> float:
    """The test examples' share of the mean's variance: (B, M) differences, (B,) strata."""
    count, used = examples.shape
    total = examples.mean(axis=0).var(ddof=1) / used
    rest = 0.0
    for stratum, size in enumerate(sizes):
        own = examples[labels == stratum]
        own = own - own.mean(axis=1, keepdims=True)
        own = own - own.mean(axis=0)
        rest += size**2 / count**2 * np.square(own).sum() / ((size - 1) * (used - 1)) / (size * used)
    return max(0.0, float(total - rest))


def freedom(parts: np.ndarray, freedoms: np.ndarray) -> float:
    """Degrees of freedom of a sum of independent variance estimates, parts of 0 left out.

    Args:
        parts: (K,) the estimates, not all 0. freedoms: (K,) the degrees of freedom of each.

    Source: the harmonic mean (our choice) of Satterthwaite's (Biometrics Bulletin 2, 1946), too few where the parts are
    alike, and of Welch's nearly unbiased form (Biometrika 34, 1947), too many where one part has most of the variance.
    At three seeds a stratum: coverage 93 to 96.5 % between them; from five seeds on all three agree.

    Example:
        >>> freedom(np.array([4.0]), np.array([2.0])), round(freedom(np.array([3.0, 1.0]), np.array([2.0, 2.0])), 1)
        (2.0, 3.6)
    """
    parts, freedoms = parts[parts > 0], freedoms[parts > 0]
    short = parts.sum() ** 2 / (parts**2 / freedoms).sum()
    long = np.clip(parts.sum() ** 2 / (parts**2 / (freedoms + 2)).sum() - 2, freedoms.min(), freedoms.sum())
    return float(2 / (1 / short + 1 / long))


def noncentrality(df: np.ndarray) -> np.ndarray:
    """How many standard errors a true difference must measure for a two-sided t test at 5 % to find it 4 times in 5.

    Times the standard error it is the minimal detectable difference of a study like this one. (K,) to (K,), NaN for NaN.

    Source: noncentral t (Cohen, Statistical Power Analysis, 1988, chapter 2), solved by bisection.

    Example:
        >>> noncentrality(np.array([4.0, 1e6])).round(2).tolist()
        [3.76, 2.8]
    """
    limit = special.stdtrit(df, 0.5 + LEVEL / 2)
    low, high = np.zeros(len(df)), 2 * limit + 10.0
    for _ in range(50):
        middle = (low + high) / 2
        other = np.nan_to_num(stats.nct.cdf(-limit, df, middle))  # scipy gives NaN far out, where this is 0
        enough = stats.nct.sf(limit, df, middle) + other >= POWER
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(np.isnan(df), np.nan, (low + high) / 2)
