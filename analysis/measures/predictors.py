"""What goes with a large gain: the similarity of the two hosts, and how much of the module was carried."""

from collections.abc import Iterator, Sequence
from dataclasses import fields

import numpy as np
import pandas as pd

from portability.analysis.context import StudyContext, once
from portability.analysis.measures.summaries import joined, labelled
from portability.analysis.stats.blocks import POOLED
from portability.analysis.stats.exchange import FEWEST, Correlation, arrangements, correlate
from portability.analysis.stats.intervals import ALPHA
from portability.analysis.stats.multiple_comparisons import holm

SIMILARITIES = ("cka", "weight_distance", "shape_distance")  # of two hosts, the same in both directions
CARRIED = ("carried", "carried_norm")  # of a method's port in one direction


def gain_and_similarity(context: StudyContext) -> pd.DataFrame:
    """The arm's gain over every other init in every direction, beside what could predict it: the points of a
    plot.

    Returns:
        One row per method, direction, relation, budget and baseline: `gain` with `low`, `high`
        (blocks.compare), the counts; SIMILARITIES of the two hosts (mean over what is recorded of them, NaN
        where nothing is), and CARRIED (mean over the direction's runs of the arm).
    """
    gains = context.levels["direction"].rename(columns={"mean": "gain"})
    gains = gains.assign(quantity="gain over " + gains["baseline"], unit=context.metric.difference,
                         pair=host_pair(gains["origin"], gains["receiving"]))
    pairs, facts = context.study.pairs, context.study.runs[["run_id", *CARRIED]]
    hosts = pairs[[*SIMILARITIES]].apply(pd.to_numeric, errors="coerce")
    hosts = hosts.groupby(host_pair(pairs["one"], pairs["other"])).mean()
    facts[[*CARRIED]] = facts[[*CARRIED]].apply(pd.to_numeric, errors="coerce")
    keys = [*context.strata, "method", "origin", "receiving", "relation"]
    own = context.arms[context.arms["init"] == context.arm][[*keys, "run_id"]].drop_duplicates()
    own = own.merge(facts, on="run_id", how="left")
    carried = own.groupby(keys, sort=False, dropna=False)[[*CARRIED]].mean()
    columns = ["arm", "baseline", "gain", "low", "high", "expected", "n", "failed", "missing", "blocks",
               "mark"]
    gains = gains.join(hosts, on="pair").join(carried, on=keys)
    return joined([gains[[*keys, "budget", "quantity", "unit", *columns, *SIMILARITIES, *CARRIED]]])


def host_pair(one: pd.Series, other: pd.Series, symmetric: bool = True) -> pd.Series:
    """The names of two hosts, in one order where that does not matter."""
    pairs = zip(one.astype(str), other.astype(str), strict=True)
    names = [tuple(sorted(pair)) if symmetric else pair for pair in pairs]
    return pd.Series(names, index=one.index, dtype=object)


def can_correlate(context: StudyContext) -> bool:
    """Whether the study has hosts enough for a correlation to tell anything: exchanges of hosts that could
    give p ≤ 0.05."""
    return _least(context)[0] <= ALPHA


def why_no_correlation(context: StudyContext) -> list[str]:
    """Why no correlation is shown, in a sentence; nothing where some are."""
    least, hosts, pairs = _least(context)
    return [] if least <= ALPHA or not pairs else [
        f"Nothing is said of what goes with a gain: the study has {hosts} hosts in {pairs} pairs, and "
        f"exchanging hosts could give no p below {least:.2g}, however close the relation."]


def _least(context: StudyContext) -> tuple[float, int, int]:
    """The least p that exchanges of the study's hosts could give, how many hosts there are, and how many
    pairs of them."""
    own = context.arms[context.arms["init"] == context.arm]
    directed = tuple(dict.fromkeys(zip(own["origin"], own["receiving"], strict=True)))
    pairs = tuple(dict.fromkeys(tuple(sorted(unit)) for unit in directed))
    both = ((pairs, True), (directed, False))
    orders = [len(arrangements(units, symmetric)) for units, symmetric in both if len(units) >= FEWEST]
    return 1 / max(orders, default=1), len({host for unit in pairs for host in unit}), len(pairs)


@once
def predictors(context: StudyContext) -> pd.DataFrame:
    """Correlation of the arm's mean gain with each predictor, by method and over all of them, budget and
    baseline.

    The units are pairs of hosts (similarity, which has no direction; gains are averaged over both) or
    directions (carried), never runs; relations are averaged. Over all methods, ranks and values are centred
    within each method. Gains are in the metric's own direction (a loss that falls is negative).

    Returns:
        One row per method (or POOLED), budget, baseline and predictor: the fields of Correlation, `p_holm`
        over the `family` of this frame, `expected` units asked for, `missing`, `mark`, `status`. No number
        but a note with less than FEWEST units, where a predictor is not recorded, or where it is the same for
        all.

    Source: stats.exchange.correlate.
    """
    points = gain_and_similarity(context)
    keys = [*context.strata, "budget", "baseline"]
    rows = [row for names in (SIMILARITIES, CARRIED) for row in _rows(points, keys, names)]
    columns = [*keys, "method", "predictor", *(item.name for item in fields(Correlation)), "expected"]
    frame = pd.DataFrame(rows, columns=columns)
    missing = frame["expected"] - frame["n"]
    state = np.where(missing == 0, "complete", np.where(frame["n"] > 0, "incomplete", "missing"))
    return joined([labelled(frame, "correlation with the gain", "correlation").assign(
        p_holm=holm(frame["p"].to_numpy(float)), family=int(frame["p"].notna().sum()), arm=context.arm,
        missing=missing, mark=np.where(missing > 0, "†", ""), status=state)])


def _rows(points: pd.DataFrame, keys: list[str], names: Sequence[str]) -> Iterator[dict[str, object]]:
    """One row per group of keys, method (and all of them, where there are several) and predictor, all of one
    kind."""
    symmetric = names is SIMILARITIES
    units = host_pair(points["origin"], points["receiving"], symmetric)
    points = points.assign(one_unit=units)
    for group, own in points.groupby(keys, sort=False, dropna=False):
        means = own.groupby(["method", "one_unit"], sort=False)[["gain", *names]].mean().unstack("one_unit")
        subsets = {name: means.loc[[name]] for name in means.index}
        subsets |= {POOLED: means} if len(means) > 1 else {}
        for method, table in subsets.items():
            asked = own if method == POOLED else own[own["method"] == method]
            for name in names:
                found = correlate(table[name].to_numpy(float), table["gain"].to_numpy(float),
                                  list(table["gain"]), symmetric)
                yield {**dict(zip(keys, group, strict=True)), "method": method, "predictor": name,
                       **vars(found), "expected": asked["one_unit"].nunique()}
