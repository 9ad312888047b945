"""Does the gain depend on the direction, the method, the kind of hosts, the data? Differences of gains, over seeds."""

from collections.abc import Iterator

import pandas as pd

from analysis import captions
from analysis.contrasts import chance, counted, difference, view
from analysis.entries import joined, labelled
from analysis.evidence import Evidence, once
from analysis.judging import corrected, judged
from analysis.recipe import Recipe
from analysis.stats import apart
from portability.core.contrasts import LINEAGE, SIZE, kinds

OTHERS = "mean of all"


@once
def interactions(found: Evidence) -> pd.DataFrame:
    """The arm's gain over each other init in one part of the grid minus that in another, at every budget.

    A direction, and a method, is held against the mean of all of them (itself included); pairs of one lineage against pairs of
    other sizes, where the manifests say which are which; relation same against each other one. In each part cells weigh alike.

    Returns:
        `axis` (direction, method, pairs, relation), `item`, `against`, `baseline`, `budget`; the columns of judging.judged and
        judging.corrected, one family.
    """
    parts = []
    for baseline, pairs in found.pairs.items():
        known = kinds(found.study.facts)
        names = pairs[["origin", "receiving", "relation", "method"]].astype(str)
        hosts = list(zip(names["origin"], names["receiving"], strict=True))
        columns = {"direction": pd.Series([" → ".join(two) for two in hosts], pairs.index), "method": names["method"],
                   "pairs": pd.Series([known.get(two, "") for two in hosts], pairs.index), "relation": names["relation"]}
        for axis, item, against, one, other in _splits(columns):
            own = pairs[one | other].assign(one=one[one | other], other=other[one | other])
            parts.append(own.assign(axis=axis, item=item, against=against, baseline=baseline))
    keys = [*apart(found.cells), "axis", "item", "against", "baseline", "budget"]
    if not parts:
        return joined([labelled(pd.DataFrame(columns=[*keys, "n", "expected", "failed", "missing", "mark"]), "", "pp")])
    pairs = pd.concat(parts, ignore_index=True)
    tasks = pairs.drop_duplicates([*keys, "task"]).groupby(keys, sort=False, dropna=False, observed=True)
    sizes = tasks[["one", "other"]].sum().add_suffix("_size")
    pairs = pairs.join(sizes, on=keys)
    weight = pairs["one"] / pairs["one_size"] - pairs["other"] / pairs["other_size"]
    frame = corrected(judged(pairs.assign(weight=weight), keys, found.answers, found.metric.scale))
    order = [*keys, *(name for name in frame if name not in keys)]
    return labelled(frame[order], "difference of gains", found.metric.difference)


def _splits(columns: dict[str, pd.Series]) -> Iterator[tuple[str, str, str, pd.Series, pd.Series]]:
    """Axis, item, what it is held against, and which pairs are on either side."""
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


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """What a reader sees."""
    if frame.empty:
        return frame
    return view(frame, ["axis", "item", "against", "baseline", "budget"], difference=difference, p=lambda row: chance(row["p"]),
                p_Holm=lambda row: chance(row["p_holm"]), pairs=counted, seeds="blocks")


def words(found: Evidence, frame: pd.DataFrame) -> str:
    """Under the table."""
    if frame.empty or frame["p"].isna().all():
        return captions.NO_PAIR
    return " ".join([captions.INTERVAL.format(examples=" only" if found.why else " and new test examples"),
                     f"{captions.STARS} for the {int(frame['family'].max())} differences of this table. {EXPLAINED}",
                     *captions.lacking(frame, "pairs"), *captions.ahead(found.arms)])


EXPLAINED = (
    "The gain in the item minus the gain in what it is held against, of one seed; cells weigh alike on each side. Pairs: hosts "
    "of one lineage against hosts of other sizes, where the study's manifests say which are which."
)
RECIPES: dict[str, Recipe] = {
    "interactions": Recipe(
        interactions, "Interactions", "{label}: does the gain of {arm} depend on direction, method, kind of hosts or data?",
        view=shown, words=words,
    ),
}
