"""Exchanges of labels within seeds, Holm's correction, and groups of things that are not distinguishable."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import lcm, prod

import numpy as np
from statsmodels.stats.multitest import multipletests

EXACT = 65_536  # arrangements up to which all are taken
DRAWS = 19_999  # random ones beyond that
SEED = 0  # of the random ones
SLACK = 1e-9  # sums closer than this are equal, so that ties do not depend on rounding


@dataclass(frozen=True)
class Exchanged:
    """A test by exchange: two-sided `p`, the `smallest` p that these seeds could give, and in words where not all arrangements
    were taken."""

    p: float
    smallest: float
    note: str = ""


def rotations(differences: np.ndarray, shared: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of one seed under each exchange of its labels: (L,), the first as it is.

    Arms that share a baseline are one set with it: of these m + 1 runs any may be called the baseline. All sets of a seed take
    the next of their runs together, for what a seed does, it does to all of them; L is the least number of steps after which
    every set is back. Where every arm has a baseline of its own this is the flip of the seed's sign.

    Args:
        differences: (K,) arm minus baseline of each pair. shared: (K,) the baseline's run. weights: (K,) of each pair in the
        mean.

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
    steps = np.arange(lcm(*(len(own) + 1 for own in sets)))
    total = np.zeros(len(steps))
    for own in sets:
        values = np.append(0.0, differences[own])  # above the baseline, which is 0
        total += weights[own].mean() * (values.sum() - len(values) * values[steps % len(values)])
    return total


def exchange(seeds: Sequence[np.ndarray]) -> Exchanged:
    """Is the sum over seeds further from 0 than with labels exchanged within each seed? Two-sided, on the absolute sum.

    All arrangements are taken where there are at most EXACT; else DRAWS random ones, the observed one counted among them so
    that p is never 0.

    Args:
        seeds: of each seed (L,) its mean under each exchange, the observed first; (value, -value) flips its sign.

    Source: Fisher, The Design of Experiments, 1935, section 21; random arrangements: Phipson & Smyth 2010.

    Example:
        >>> exchange([np.array([value, -value]) for value in (1.0, 2.0, 0.5, 3.0, 1.0)])
        Exchanged(p=0.0625, smallest=0.0625, note='')
    """
    if not len(seeds):
        return Exchanged(float("nan"), float("nan"))
    observed = abs(sum(float(own[0]) for own in seeds)) - SLACK
    if prod(len(own) for own in seeds) > EXACT:
        random = np.random.default_rng(SEED)
        sums = np.abs(sum(own[random.integers(0, len(own), DRAWS)] for own in seeds))
        return Exchanged((1 + int((sums >= observed).sum())) / (DRAWS + 1), 1 / (DRAWS + 1), "random exchanges")
    sums = np.zeros(1)
    for own in seeds:
        sums = (sums[:, None] + own).ravel()
    sums = np.abs(sums)
    return Exchanged(float(np.mean(sums >= observed)), float(np.mean(sums >= sums.max() - SLACK)))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values, (K,) to (K,), by statsmodels; NaN stays NaN and does not count among the tests.

    Source: Holm, Scand. J. Statist. 6, 1979.

    Example:
        >>> holm(np.array([0.01, 0.04, np.nan, 0.03])).round(3).tolist()
        [0.03, 0.06, nan, 0.06]
    """
    found, there = np.full(len(p), np.nan), np.isfinite(p)
    if there.any():
        found[there] = multipletests(p[there], method="holm")[1]
    return found


def letters(items: Sequence[Hashable], apart: Collection[frozenset[Hashable]]) -> dict[Hashable, str]:
    """Letters for tie groups: two items share a letter exactly when they are not told apart.

    Args:
        items: best first; the best gets an "a". apart: the pairs of items that differ significantly.

    Source: Piepho, J. Comput. Graph. Stat. 13, 2004, insert and absorb.

    Example:
        >>> letters(["x", "y", "z"], [frozenset("xz")])
        {'x': 'a', 'y': 'ab', 'z': 'b'}
    """
    place = {item: i for i, item in enumerate(items)}
    groups = [frozenset(items)]
    for pair in apart:
        split = [part for group in groups for part in ([group - {item} for item in pair] if pair <= group else [group])]
        groups = [one for one in dict.fromkeys(split) if not any(one < other for other in split)]
    groups = sorted((one for one in groups if one), key=lambda group: sorted(place[item] for item in group))
    return {item: "".join(chr(97 + i) for i, group in enumerate(groups) if item in group) for item in items}
