"""Many tests at once: Holm's correction, and letters for what is not told apart."""

from collections.abc import Collection, Hashable, Sequence

import numpy as np
from statsmodels.stats.multitest import multipletests


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values, (K,) to (K,), by statsmodels; NaN stays NaN and does not count among the
    tests.

    Source: Holm, Scand. J. Statist. 6, 1979.

    Example:
        >>> holm(np.array([0.01, 0.04, np.nan, 0.03])).round(3).tolist()
        [0.03, 0.06, nan, 0.06]
    """
    found, there = np.full(len(p), np.nan), np.isfinite(p)
    if there.any():
        found[there] = multipletests(p[there], method="holm")[1]
    return found


def compact_letter_display(
    items: Sequence[Hashable], differing: Collection[frozenset[Hashable]]
) -> dict[Hashable, str]:
    """Letters for tie groups: two items share a letter exactly when they are not told apart.

    Args:
        items: best first; the best gets an "a".
        differing: the pairs of items that differ significantly.

    Source: Piepho, J. Comput. Graph. Stat. 13, 2004, insert and absorb.

    Example:
        >>> compact_letter_display(["x", "y", "z"], [frozenset("xz")])
        {'x': 'a', 'y': 'ab', 'z': 'b'}
    """
    place = {item: i for i, item in enumerate(items)}
    groups = [frozenset(items)]
    for pair in differing:
        split = [part for group in groups
                 for part in ([group - {item} for item in pair] if pair <= group else [group])]
        groups = [one for one in dict.fromkeys(split) if not any(one < other for other in split)]
    groups = sorted((one for one in groups if one), key=lambda group: sorted(place[item] for item in group))
    return {item: "".join(chr(97 + i) for i, group in enumerate(groups) if item in group) for item in items}
