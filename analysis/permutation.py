"""Sign-flip tests over blocks, Holm's correction, and groups of things that are not distinguishable."""

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

EXACT = 16  # blocks up to which all 2^B patterns of signs are taken
DRAWS = 19_999  # random patterns beyond that
MANY = 500  # blocks beyond which the sum under random signs is taken as normal
AT_ONCE = 64  # tests whose random signs are taken together: 10 MB of sums
SEED = 0  # of the random patterns
SLACK = 1e-9  # sums closer than this are equal, so that ties do not depend on rounding


@dataclass(frozen=True)
class Flips:
    """A sign-flip test: two-sided `p`, the `smallest` p these blocks could give, and in words where not all patterns were
    taken."""

    p: float
    smallest: float
    note: str = ""


def sign_flip(blocks: np.ndarray) -> Flips:
    """Is the mean over blocks further from 0 than with random signs? Two-sided, on the absolute sum.

    If an arm does nothing, arm and baseline of a block can be exchanged, which flips the block's sign. All 2^B patterns
    are taken up to EXACT blocks; beyond, DRAWS random ones, the observed one counted among them so that p is never 0; beyond
    MANY blocks the sum under random signs is normal with variance sum(blocks^2) to within what the draws would err by.
    Blocks that are 0 carry no sign: `smallest` is 2 / 2^(blocks that are not 0), or 1 / (DRAWS + 1) if that is larger.

    Args:
        blocks: (B,) the difference of each block (pairs that share a run are one block: they flip together).

    Source: Fisher, The Design of Experiments, 1935, section 21; random patterns: Phipson & Smyth 2010.

    Example:
        >>> sign_flip(np.array([1.0, 2.0, 0.5, 3.0, 1.0]))
        Flips(p=0.0625, smallest=0.0625, note='')
    """
    return sign_flips([blocks])[0]


def sign_flips(tests: Sequence[np.ndarray]) -> list[Flips]:
    """`sign_flip` of each of many tests; those of as many blocks take their random signs together, by one product."""
    found = [_settled(blocks) for blocks in tests]
    alike: dict[int, list[int]] = {}
    for place, flips in enumerate(found):
        if flips is None:
            alike.setdefault(len(tests[place]), []).append(place)
    for count, places in alike.items():
        for first in range(0, len(places), AT_ONCE):
            part = places[first : first + AT_ONCE]
            blocks = np.sort(np.stack([tests[place] for place in part]), axis=1)  # the order of blocks moves nothing
            reached = np.abs(_signs(count) @ blocks.T) >= np.array([_observed(tests[place]) for place in part])
            for place, beyond in zip(part, reached.sum(0).tolist(), strict=True):
                smallest = max(_smallest(tests[place]), 1 / (DRAWS + 1))
                found[place] = Flips((1 + beyond) / (DRAWS + 1), smallest, "random signs")
    return found  # type: ignore[return-value]  # none is left


def _settled(blocks: np.ndarray) -> Flips | None:
    """The test, unless it takes random signs."""
    count = len(blocks)
    if count == 0:
        return Flips(float("nan"), float("nan"))
    observed, smallest = _observed(blocks), _smallest(blocks)
    if count <= EXACT:
        return Flips(float(np.mean(np.abs(_sums(blocks)) >= observed)), smallest)
    if count > MANY:
        spread = math.sqrt(2 * float(np.square(blocks).sum()))
        return Flips(math.erfc(max(0.0, observed) / spread) if spread else 1.0, smallest, "signs taken as normal")
    return None


def _observed(blocks: np.ndarray) -> float:
    return abs(float(blocks.sum())) - SLACK


def _smallest(blocks: np.ndarray) -> float:
    return min(1.0, 2.0 ** (1 - int((np.abs(blocks) > SLACK).sum())))


def _sums(blocks: np.ndarray) -> np.ndarray:
    """Sums under all patterns of signs, the first block's held at + (the other half mirrors it): (2^(B - 1),)."""
    sums = blocks[:1]
    for value in blocks[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return sums


@lru_cache(maxsize=2)
def _signs(count: int) -> np.ndarray:
    """(DRAWS, count) random signs."""
    drawn = np.random.default_rng(SEED).integers(0, 2, size=(DRAWS, count), dtype=np.int8)
    return drawn.astype(np.float64) * 2 - 1


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values, (K,) to (K,); NaN stays NaN and does not count among the tests.

    Source: Holm, Scand. J. Statist. 6, 1979.

    Example:
        >>> holm(np.array([0.01, 0.04, np.nan, 0.03])).round(3).tolist()
        [0.03, 0.06, nan, 0.06]
    """
    found = np.full(len(p), np.nan)
    order = np.argsort(p, kind="stable")[: int(np.isfinite(p).sum())]
    factors = len(order) - np.arange(len(order))
    found[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
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
