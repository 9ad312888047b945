"""The arm against every other init at every level, differences of gains between parts of the grid, and tie
groups."""

from collections.abc import Hashable, Iterator, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from portability.analysis.context import StudyContext, once
from portability.analysis.measures.summaries import by_level, joined, labelled
from portability.analysis.stats import blocks, pairing
from portability.analysis.stats.intervals import ALPHA, estimate
from portability.analysis.stats.multiple_comparisons import compact_letter_display, holm
from portability.core.contrasts import LINEAGE, SIZE
from portability.core.specs import BARE

OTHERS = "mean of all"


def comparisons(context: StudyContext) -> pd.DataFrame:
    """The arm against every other init at every budget, by each of blocks.LEVELS, the widest pool first: the
    columns of blocks.compare behind `level`, with `unit`."""
    frame = by_level({name: context.levels[name] for name in reversed(blocks.LEVELS)})
    first = ["level", *(name for name in pairing.COORDINATES if name in frame and name != "budget"), "budget",
             "arm", "baseline"]
    numbers = [name for name in context.levels["all"] if name not in first]
    return frame.assign(unit=context.metric.difference)[[*first, "unit", *numbers]]


# ---- differences of gains


@once
def interactions(context: StudyContext) -> pd.DataFrame:
    """The arm's gain over each other init in one part of the grid minus that in another, at every budget.

    A direction, and a method, is compared with the mean of all of them (itself included); pairs of one
    lineage with pairs of other sizes, where the manifests say which are which; relation same with each other
    one. In each part cells weigh alike.

    Returns:
        `axis` (direction, method, pairs, relation), `item`, `against`, `baseline`, `budget`; the columns of
        blocks.estimate_groups and blocks.correct_family, one family.

    Source: our choice (D-119).
    """
    parts: list[pd.DataFrame] = []
    for baseline, pairs in context.pairs.items():
        names = pairs[["origin", "receiving", "relation", "method"]].astype(str)
        hosts = list(zip(names["origin"], names["receiving"], strict=True))
        columns = {"direction": pd.Series([" → ".join(two) for two in hosts], pairs.index),
                   "method": names["method"],
                   "pairs": pd.Series([context.kinds.get(two, "") for two in hosts], pairs.index),
                   "relation": names["relation"]}
        for axis, item, against, one, other in _splits(columns):
            own = pairs[one | other].assign(one=one[one | other], other=other[one | other])
            parts.append(own.assign(axis=axis, item=item, against=against, baseline=baseline))
    keys = [*context.strata, "axis", "item", "against", "baseline", "budget"]
    pairs = _two_sided(pd.concat(parts, ignore_index=True), keys) if parts else pd.DataFrame()
    if pairs.empty:
        empty = pd.DataFrame(columns=[*keys, "n", "expected", "failed", "missing", "mark"])
        return joined([labelled(empty, "", "pp")])
    weight = pairs["one"] / pairs["one_size"] - pairs["other"] / pairs["other_size"]
    frame = blocks.estimate_groups(pairs.assign(weight=weight), keys, context.answers, context.metric.scale)
    return labelled(blocks.correct_family(frame), "difference of gains", context.metric.difference)


def _two_sided(pairs: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The pairs of groups in which both sides have cells of their own, with how many (`one_size`,
    `other_size`): a grid may leave all of one side out at a budget."""
    tasks = pairs.drop_duplicates([*keys, "task"]).groupby(keys, sort=False, dropna=False, observed=True)
    pairs = pairs.join(tasks[["one", "other"]].sum().add_suffix("_size"), on=keys)
    apart = (pairs["against"] != OTHERS) | (pairs["one_size"] < pairs["other_size"])
    return pairs[(pairs["one_size"] > 0) & (pairs["other_size"] > 0) & apart]


def _splits(columns: dict[str, pd.Series]) -> Iterator[tuple[str, str, str, pd.Series, pd.Series]]:
    """Axis, item, what it is compared with, and which pairs are on either side."""
    for axis in ("direction", "method"):
        items = columns[axis].unique()
        for item in items if len(items) > 1 else ():
            yield axis, item, OTHERS, columns[axis] == item, pd.Series(True, columns[axis].index)
    for axis, first in (("pairs", LINEAGE), ("relation", "same")):
        items = [SIZE] if axis == "pairs" else [name for name in columns[axis].unique() if name != first]
        for item in items:
            one, other = columns[axis] == first, columns[axis] == item
            if one.any() and other.any():
                yield axis, first, item, one, other


# ---- tie groups


@once
def tie_groups(context: StudyContext) -> pd.DataFrame:
    """Inits within every method and over all, and methods within every init, at every budget, best first
    (`ties`)."""
    parts = []
    for compared, within in (("init", None), ("init", "method"), ("method", "init")):
        keys = ["budget"] if within is None else [within, "budget"]
        frame = ties(context.cells, compared, keys, context.answers, context.metric.better or "higher")
        of_all = {"within": blocks.POOLED} if within is None else {}
        frame = frame.rename(columns={compared: "item", within: "within"})
        parts.append(frame.assign(compared=compared, unit=context.metric.unit, **of_all))
    first = [*context.strata, "compared", "within", "budget", "item"]
    frame = pd.concat(parts, ignore_index=True)
    return frame[[*first, *(name for name in frame if name not in first)]]


def ties(
    cells: pd.DataFrame, axis: str, keys: Sequence[str], answers: pairing.Answers | None = None,
    better: str = "higher"
) -> pd.DataFrame:
    """Methods, or inits, in tie groups: what shares a letter is not told apart by the paired t test after
    Holm.

    Args:
        axis: "method" or "init": what is compared; with "method", name the init among the keys.
        keys: the groups within which they are compared, the budget among them.
        answers: as of blocks.compare.
        better: which mean is the best, the "higher" or the "lower".

    Returns:
        One row per group and item, best first: the keys, the axis, `mean` (of pairing.summarise), `expected`,
        `n`, `failed`, `letters` ("" without a number), `family` of its group's tests, `mark`.

    Raises:
        ValueError: no budget among the keys.

    Source: letters: Piepho, J. Comput. Graph. Stat. 13, 2004.
    """
    blocks.check_keys(cells, [key for key in keys if key != "init"])
    keys, cells = list(dict.fromkeys([*pairing.stratify_keys(cells), *keys])), cells[cells["init"] != BARE]
    columns = [*keys, axis, "mean", "expected", "n", "failed", "letters", "family", "mark"]
    if cells.empty:
        return pd.DataFrame(columns=columns)
    tests = _pairwise(pairing.with_categories(cells), axis, keys, answers)
    order = {"by": "mean", "ascending": better == "lower", "kind": "stable"}
    parts = [_tied(own.sort_values(**order), axis, tests.get(name, {}))
             for name, own in pairing.summarise(cells, [*keys, axis]).groupby(keys, sort=False)]
    return pd.concat(parts, ignore_index=True)[columns]


Tests = dict[frozenset[Hashable], float]  # two items to their p


def _pairwise(
    cells: pd.DataFrame, axis: str, keys: list[str], answers: pairing.Answers | None
) -> dict[tuple[Hashable, ...], Tests]:
    """The p of every two items in every group that has pairs of them."""
    found: dict[tuple[Hashable, ...], Tests] = {}
    for two in combinations(cells[axis].unique(), 2):
        pairs = pairing.pairs_of(cells[cells[axis].isin(two)], axis, two, 1.0)
        names = pairs[keys].drop_duplicates().itertuples(index=False, name=None)
        for name, block in zip(names, blocks.build_blocks(pairs, keys, answers), strict=True):
            found.setdefault(name, {})[frozenset(two)] = estimate(block.differences, block.examples).p
    return found


def _tied(frame: pd.DataFrame, axis: str, tests: Tests) -> pd.DataFrame:
    """One group, best first, with its letters."""
    items = frame.loc[frame["n"] > 0, axis].tolist()
    pairs = [pair for two in combinations(items, 2) if (pair := frozenset(two)) in tests and tests[pair] >= 0]
    p = holm(np.array([tests[pair] for pair in pairs], float))
    letters = compact_letter_display(items, [pair for pair, value in zip(pairs, p, strict=True)
                                             if value <= ALPHA])
    return frame.assign(letters=[letters.get(item, "") for item in frame[axis]], family=len(pairs),
                        mark=np.where(frame["n"] < frame["expected"], "†", ""))
