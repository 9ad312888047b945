"""Permutation tests: labels exchanged within seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import lcm, prod

import numpy as np

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
    steps = np.arange(lcm(*(len(own) + 1 for own in sets)))
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
    if prod(len(own) for own in seeds) > EXACT:
        random = np.random.default_rng(SEED)
        sums = np.abs(sum(own[random.integers(0, len(own), DRAWS)] for own in seeds))
        p = (1 + int((sums >= observed).sum())) / (DRAWS + 1)
        return Exchanged(p, 1 / (DRAWS + 1), "random exchanges")
    sums = np.zeros(1)
    for own in seeds:
        sums = (sums[:, None] + own).ravel()
    sums = np.abs(sums)
    return Exchanged(float(np.mean(sums >= observed)), float(np.mean(sums >= sums.max() - SLACK)))
