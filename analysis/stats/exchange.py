"""Tests by exchange: of labels within seeds, and of whole hosts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, permutations

import numpy as np
from scipy import stats

EXACT = 65_536  # arrangements up to which all are taken
DRAWS = 19_999  # random ones beyond that
SEED = 0  # of the random ones
SLACK = 1e-9  # sums closer than this are equal, so that ties do not depend on rounding


@dataclass(frozen=True)
class Exchanged:
    """A test by exchange: two-sided `p`, the `smallest` p that these seeds could give, and in words where not
    all arrangements were taken."""

    p: float
    smallest: float
    note: str = ""


def rotations(differences: np.ndarray, shared: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of one seed under each exchange of its labels: (L,), the first as it is.

    Arms that share a baseline are one set with it: of these m + 1 runs any may be called the baseline. All
    sets of a seed take the next of their runs together, for what a seed does, it does to all of them; L is
    the least number of steps after which every set is back. Where every arm has a baseline of its own this is
    the flip of the seed's sign.

    Args:
        differences: (K,) arm minus baseline of each pair. shared: (K,) the baseline's run. weights: (K,) of
        each pair in the mean.

    Source: our choice: a cyclic group of exchanges (Hemerik & Goeman, Test 27, 2018, theorem 1).

    Example:
        >>> rotations(np.array([1.0, 2.0]), np.array(["b", "b"]), np.array([0.5, 0.5])).tolist()
        [1.5, 0.0, -1.5]
        >>> rotations(np.array([1.0, 2.0]), np.array(["b", "c"]), np.array([0.5, 0.5])).tolist()
        [1.5, -1.5]
    """
    order = np.argsort(shared, kind="stable")
    cuts = [0, *(np.flatnonzero(shared[order][1:] != shared[order][:-1]) + 1), len(order)]
    sets = [order[first:last] for first, last in pairwise(cuts)]
    steps = np.arange(math.lcm(*(len(own) + 1 for own in sets)))
    total = np.zeros(len(steps))
    for own in sets:
        values = np.append(0.0, differences[own])  # above the baseline, which is 0
        total += weights[own].mean() * (values.sum() - len(values) * values[steps % len(values)])
    return total


def exchange(seeds: Sequence[np.ndarray]) -> Exchanged:
    """Is the sum over seeds further from 0 than with labels exchanged within each seed? Two-sided, on the
    absolute sum.

    All arrangements are taken where there are at most EXACT; else DRAWS random ones, the observed one counted
    among them so that p is never 0.

    Args:
        seeds: of each seed (L,) its mean under each exchange, the observed first; (value, -value) flips its
        sign.

    Source: Fisher, The Design of Experiments, 1935, section 21; random arrangements: Phipson & Smyth 2010.

    Example:
        >>> exchange([np.array([value, -value]) for value in (1.0, 2.0, 0.5, 3.0, 1.0)])
        Exchanged(p=0.0625, smallest=0.0625, note='')
    """
    if not len(seeds):
        return Exchanged(float("nan"), float("nan"))
    observed = abs(sum(float(own[0]) for own in seeds)) - SLACK
    if math.prod(len(own) for own in seeds) > EXACT:
        random = np.random.default_rng(SEED)
        sums = np.abs(sum(own[random.integers(0, len(own), DRAWS)] for own in seeds))
        p = (1 + int((sums >= observed).sum())) / (DRAWS + 1)
        return Exchanged(p, 1 / (DRAWS + 1), "random exchanges")
    sums = np.zeros(1)
    for own in seeds:
        sums = (sums[:, None] + own).ravel()
    sums = np.abs(sums)
    return Exchanged(float(np.mean(sums >= observed)), float(np.mean(sums >= sums.max() - SLACK)))


FEWEST = 4  # units below which no correlation is given (our choice)
HOSTS = 8  # hosts up to which all their orders are looked at
ORDERS = 9_999  # random orders beyond that
DIGITS = 9  # numbers that are equal in so many decimals share a rank
Unit = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """`spearman` and `pearson` in [-1, 1], two-sided `p` of the former, the `smallest_p` these hosts could
    give; NaN and a `note` where there is none. `n` units with both numbers, `hosts` in them, `points` (units
    x methods)."""

    spearman: float = math.nan
    pearson: float = math.nan
    p: float = math.nan
    smallest_p: float = math.nan
    n: int
    hosts: int
    points: int
    note: str = ""


def correlate(
    values: np.ndarray, gains: np.ndarray, units: Sequence[Unit], symmetric: bool
) -> Correlation:
    """Correlation within methods of a predictor and gains, each (methods, U), tested by exchanging hosts.

    Pairs that share a host are alike, so whole hosts are exchanged: all orders of the hosts that lay every
    unit on a unit (all directions asked for: every order; few directions: few orders, so `smallest_p` is
    large). Without a relation every such order is as likely.

    Args:
        units: (U,) names of two hosts; sorted, each once, where `symmetric`. One without all its numbers is
        left out.

    Source: Mantel, Cancer Research 27, 1967; Krackhardt, Social Networks 10, 1988. Our choice.
    """
    whole = ~(np.isnan(values) | np.isnan(gains)).any(axis=0)
    units = [unit for unit, here in zip(units, whole, strict=True) if here]
    values, gains = (table[:, whole].round(DIGITS) for table in (values, gains))
    hosts = len({host for unit in units for host in unit})
    none = Correlation(n=len(units), hosts=hosts, points=values.size)
    if not len(units):
        return replace(none, note="not recorded")
    if len(units) < FEWEST:
        kind = "pairs of hosts" if symmetric else "directions"
        return replace(none, note=f"{len(units)} {kind}: too few for a correlation")
    scores = [_standard(stats.rankdata(table, axis=1)) for table in (values, gains)]
    for table, name in zip(scores, ("predictor", "gain"), strict=True):
        if np.abs(table).max() < SLACK:
            return replace(none, note=f"the {name} is the same for all")
    orders = arrangements(tuple(units), symmetric)
    turned = np.abs(np.einsum("mu,mpu->p", scores[0], scores[1][:, orders]))
    spearman = float((scores[0] * scores[1]).sum())
    pearson = float((_standard(values) * _standard(gains)).sum())
    p, smallest = (float(np.mean(turned >= limit - SLACK)) for limit in (abs(spearman), turned.max()))
    return replace(none, spearman=spearman, pearson=pearson, p=p, smallest_p=smallest)


def _standard(table: np.ndarray) -> np.ndarray:
    """Centred within each row, and of length 1 over all."""
    table = table - table.mean(axis=1, keepdims=True)
    length = np.sqrt(np.square(table).sum())
    return table / length if length > SLACK else np.zeros_like(table)


@lru_cache(maxsize=16)
def arrangements(units: tuple[Unit, ...], symmetric: bool) -> np.ndarray:
    """The orders of the hosts that lay all units on units: (P, U) places, the first of them as they are.

    All orders of up to HOSTS hosts are looked at, else ORDERS random ones; of those found, at most ORDERS are
    taken.

    Example:
        >>> arrangements((("a", "b"), ("b", "a")), False).tolist()
        [[0, 1], [1, 0]]
    """
    hosts = sorted({host for unit in units for host in unit})
    number = {host: i for i, host in enumerate(hosts)}
    ends = np.array([[number[host] for host in unit] for unit in units])
    random = np.random.default_rng(0)
    if len(hosts) <= HOSTS:
        orders = np.array(list(permutations(range(len(hosts)))))
    else:
        orders = np.array([np.arange(len(hosts)), *(random.permutation(len(hosts)) for _ in range(ORDERS))])
    place = np.full((len(hosts), len(hosts)), -1)
    place[ends[:, 0], ends[:, 1]] = np.arange(len(units))
    if symmetric:
        place[ends[:, 1], ends[:, 0]] = np.arange(len(units))
    found = place[orders[:, ends[:, 0]], orders[:, ends[:, 1]]]
    found = found[(found >= 0).all(axis=1)]
    return found if len(found) <= ORDERS else np.vstack([found[:1],
                                                        random.permutation(found[1:])[: ORDERS - 1]])
