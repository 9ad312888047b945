"""Correlation of what belongs to pairs of hosts, tested by exchanging whole hosts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
from scipy import stats

FEWEST = 4  # units below which no correlation is given (our choice)
EXACT = 8  # hosts up to which all their orders are looked at
DRAWS = 9_999  # random orders beyond that
DIGITS = 9  # numbers that are equal in so many decimals share a rank
SLACK = 1e-9
Unit = tuple[str, str]


@dataclass(frozen=True)
class Correlation:
    """`spearman` and `pearson` in [-1, 1], two-sided `p` of the former, the `smallest_p` these hosts could
    give; NaN and a `note` where there is none. `n` units with both numbers, `hosts` in them, `points` (units
    x methods)."""

    spearman: float
    pearson: float
    p: float
    smallest_p: float
    n: int
    hosts: int
    points: int
    note: str


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
    hosts, nan = len({host for unit in units for host in unit}), float("nan")

    def none(note: str) -> Correlation:
        return Correlation(nan, nan, nan, nan, len(units), hosts, values.size, note)

    kind = "pairs of hosts" if symmetric else "directions"
    if not len(units):
        return none("not recorded")
    if len(units) < FEWEST:
        return none(f"{len(units)} {kind}: too few for a correlation")
    scores = [_standard(stats.rankdata(table, axis=1)) for table in (values, gains)]
    for table, name in zip(scores, ("predictor", "gain"), strict=True):
        if np.abs(table).max() < SLACK:
            return none(f"the {name} is the same for all")
    orders = arrangements(tuple(units), symmetric)
    turned = np.abs(np.einsum("mu,mpu->p", scores[0], scores[1][:, orders]))
    spearman = float((scores[0] * scores[1]).sum())
    pearson = float((_standard(values) * _standard(gains)).sum())
    p, smallest = (float(np.mean(turned >= limit - SLACK)) for limit in (abs(spearman), turned.max()))
    return Correlation(spearman, pearson, p, smallest, len(units), hosts, values.size, "")


def _standard(table: np.ndarray) -> np.ndarray:
    """Centred within each row, and of length 1 over all."""
    table = table - table.mean(axis=1, keepdims=True)
    length = np.sqrt(np.square(table).sum())
    return table / length if length > SLACK else np.zeros_like(table)


@lru_cache(maxsize=16)
def arrangements(units: tuple[Unit, ...], symmetric: bool) -> np.ndarray:
    """The orders of the hosts that lay all units on units: (P, U) places, the first of them as they are.

    All orders of up to EXACT hosts are looked at, else DRAWS random ones; of those found, at most DRAWS are
    taken.

    Example:
        >>> arrangements((("a", "b"), ("b", "a")), False).tolist()
        [[0, 1], [1, 0]]
    """
    hosts = sorted({host for unit in units for host in unit})
    number = {host: i for i, host in enumerate(hosts)}
    ends = np.array([[number[host] for host in unit] for unit in units])
    random = np.random.default_rng(0)
    if len(hosts) <= EXACT:
        orders = np.array(list(permutations(range(len(hosts)))))
    else:
        orders = np.array([np.arange(len(hosts)), *(random.permutation(len(hosts)) for _ in range(DRAWS))])
    place = np.full((len(hosts), len(hosts)), -1)
    place[ends[:, 0], ends[:, 1]] = np.arange(len(units))
    if symmetric:
        place[ends[:, 1], ends[:, 0]] = np.arange(len(units))
    found = place[orders[:, ends[:, 0]], orders[:, ends[:, 1]]]
    found = found[(found >= 0).all(axis=1)]
    return found if len(found) <= DRAWS else np.vstack([found[:1],
                                                        random.permutation(found[1:])[: DRAWS - 1]])
