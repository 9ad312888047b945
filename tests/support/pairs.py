"""Tests over whole registries: every combination, or few in which each pair of values of two axes occurs."""

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import pytest


def pairs(**axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Few combinations of the axes' values, in the order of the axes; the same ones whenever it is asked.

    Greedy: the combination with the most pairs that no earlier one has comes next, the first among equals.

    >>> pairs(a=[1, 2], b="xy", c=[True, False])
    [(1, 'x', True), (1, 'y', False), (2, 'x', False), (2, 'y', True)]
    """
    values = [list(axis) for axis in axes.values()]
    return [tuple(axis[place] for axis, place in zip(values, places, strict=True)) for places in _few(values)]


def over(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """As `pytest.mark.parametrize`, over all combinations: those which are not `pairs` belong to the tier
    `full`."""
    values = [list(axis) for axis in axes.values()]
    few = set(_few(values))
    every = []
    for places in product(*map(range, map(len, values))):
        given = [axis[place] for axis, place in zip(values, places, strict=True)]
        every.append(pytest.param(*given, id="-".join(map(_name, given)),
                                  marks=() if places in few else pytest.mark.full))
    return pytest.mark.parametrize(list(axes), every)


def representatives(values: Iterable[Any], *chosen: Any) -> list[Any]:
    """Values of one axis as parameters: those which are not chosen belong to the tier `full`."""
    values = list(values)
    if unknown := [one for one in chosen if one not in values]:
        raise ValueError(f"{unknown} are no values of this axis: {values}")
    return [value if value in chosen else pytest.param(value, marks=pytest.mark.full) for value in values]


def _few(values: list[list[Any]]) -> list[tuple[int, ...]]:
    """Places of the values of each chosen combination."""
    axes = list(combinations(range(len(values)), 2))
    left = {places: {(i, j, places[i], places[j]) for i, j in axes}
            for places in product(*map(range, map(len, values)))}
    chosen, seen = [], set()
    while left:
        best = max(left, key=lambda places: len(left[places] - seen))  # the first of those with most
        if not left[best] - seen:
            break
        chosen.append(best)
        seen |= left.pop(best)
    return chosen


def _name(value: Any) -> str:
    """What stands for a value in a test's id."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(getattr(value, "name", value))
