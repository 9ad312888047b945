"""Ports that train, at equal cost: held against scratch with as many updates more."""

import numpy as np
import pandas as pd

from portability.analysis.context import StudyContext, once
from portability.analysis.measures.curves import POINT
from portability.analysis.measures.summaries import joined, labelled
from portability.analysis.stats.blocks import POOLED, correct_family, estimate_groups
from portability.analysis.stats.pairing import Answers, pairs_of, with_tasks
from portability.core.contrasts import PAIRS

WIDEST = 3  # between marks of which one is at most so many times the other is interpolated (our choice)
OWN = ("port_updates", "port_batch", "batch")  # of records.FACTS


@once
def spent(context: StudyContext) -> pd.DataFrame:
    """By the name of each port that trained its module: its own updates, their examples, and those of a run's
    updates (NaN where the records do not say)."""
    facts = context.study.runs.set_index("run_id")[list(OWN)].apply(pd.to_numeric, errors="coerce")
    arm = context.arms[context.arms["init"] == context.arm]
    found = arm[["port", "run_id"]].join(facts, on="run_id").groupby("port", sort=False)[list(OWN)].max()
    return found[found["port_updates"] > 0]


def has_trained(context: StudyContext) -> bool:
    """Whether a port of the study made updates of its own, and there is scratch to hold it against."""
    return len(spent(context)) > 0 and "scratch" in set(context.arms["init"])


def equal_compute(context: StudyContext) -> pd.DataFrame:
    """The arm by a port that made updates of its own, minus scratch with as many more, in
    `metric.difference`.

    A port of u updates is held at budget b against scratch after b + u: at that mark, or linearly between the
    two marks around it, where the upper is at most `WIDEST` times the lower; else the pair lacks its
    baseline. Test examples' answers are interpolated likewise.

    Returns:
        By port, method, budget, and kind of pairs (`pairs`, POOLED over them and each, where there are
        several): `more`, the port's own updates; `at`, scratch's updates, from marks `below` and `above`
        (NaN: none); the means `own` and `scratch`; the columns of blocks.estimate_groups and
        blocks.correct_family; one family of tests.

    Source: our choice (D-133).
    """
    parts, answers = [], dict[tuple[str, int], np.ndarray]()
    for port, updates in spent(context)["port_updates"].items():
        own = context.arms[(context.arms["init"] == context.arm) & (context.arms["port"] == port)]
        for budget in own["budget"].unique():
            twins, made = _twins(context, str(port), int(budget), int(updates))
            cells = pd.concat([own[own["budget"] == budget], twins], ignore_index=True)
            pairs = pairs_of(cells, "init", (context.arm, "scratch"), context.metric.scale)
            parts.append(pairs.assign(own=_values(pairs, cells), more=updates, at=budget + updates,
                                      below=twins["below"].max(), above=twins["above"].max()))
            answers |= made
    rows = with_tasks(_by_kind(context, pd.concat(parts, ignore_index=True)))
    keys = [*(key for key in context.strata if key != "port"), "port", "method", PAIRS, "budget"]
    known = None if context.answers is None else {**context.answers, **answers}
    frame = correct_family(estimate_groups(rows, keys, known, context.metric.scale))
    rows["scratch"] = rows["own"] - rows["value"] / context.metric.scale
    facts = rows.assign(own=rows["own"].where(rows["value"].notna())).groupby(keys, sort=False).agg(
        more=("more", "max"), at=("at", "max"), below=("below", "max"), above=("above", "max"),
        own=("own", "mean"), scratch=("scratch", "mean"))
    frame = frame.join(facts, on=keys).assign(init=context.arm, unit_of_means=context.metric.unit)
    return joined([labelled(frame, "gain over scratch at equal updates", context.metric.difference)])


def around(marks: list[int], at: int) -> tuple[int, int] | None:
    """The marks between which scratch is read after so many updates: one of them twice, or the two around it,
    or None where there are none near enough.

    Example:
        >>> around([0, 20, 50], 50), around([0, 20, 50], 40), around([0, 20, 50], 70), around([0, 20], 9)
        ((50, 50), (20, 50), None, None)
    """
    if at in marks:
        return at, at
    below, above = [mark for mark in marks if mark < at], [mark for mark in marks if mark > at]
    if not below or not above or min(above) > WIDEST * max(below):
        return None
    return max(below), min(above)


def _twins(context: StudyContext, port: str, budget: int, more: int) -> tuple[pd.DataFrame, Answers]:
    """Cells of scratch after `more` updates than a budget, as if they were of this budget and port, and what
    test examples contribute to those between marks."""
    scratch = context.arms[context.arms["init"] == "scratch"]
    scratch = scratch[scratch["port"] == port] if port in set(scratch["port"]) else scratch.assign(port=port)
    scratch = scratch.drop_duplicates([*POINT, "budget"])
    places = around(sorted(scratch["budget"].unique().tolist()), budget + more)
    if places is None:
        return scratch.iloc[:0].assign(below=np.nan, above=np.nan), {}
    low, high = (scratch[scratch["budget"] == place] for place in places)
    both = low.merge(high[[*POINT, "run_id", "mark", "value", "status"]], on=POINT, how="left",
                     suffixes=("", "_above"))
    share = 0.0 if places[0] == places[1] else (budget + more - places[0]) / (places[1] - places[0])
    answers, known = {}, context.answers or {}
    for _, row in both.iterrows() if share else ():
        ends = (row["run_id"], int(row["mark"])), (row["run_id_above"], row["mark_above"])
        if all(end in known for end in ends):
            answers[row["run_id"], budget + more] = (1 - share) * known[ends[0]] + share * known[ends[1]]
    value = (1 - share) * both["value"] + share * both["value_above"]
    status = both["status"].where(both["status"] != "done", both["status_above"].fillna("missing"))
    return both[low.columns].assign(value=value, status=status, budget=budget, mark=budget + more,
                                    below=places[0], above=places[1]), answers


def _values(pairs: pd.DataFrame, cells: pd.DataFrame) -> np.ndarray:
    """The arm's own value of each pair."""
    own = cells.drop_duplicates(["run_id", "mark"]).set_index(["run_id", "mark"])["value"]
    return own.reindex(pd.MultiIndex.from_frame(pairs[["arm_id", "arm_mark"]])).to_numpy(float)


def _by_kind(context: StudyContext, pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs, all of them and, of those that have a baseline, once more by the kind of their hosts, where
    there are several kinds."""
    kinds = [context.kinds.get(two, "") for two in zip(pairs["origin"], pairs["receiving"], strict=True)]
    own = pairs.assign(**{PAIRS: kinds})
    whole = pairs.assign(**{PAIRS: POOLED})
    return pd.concat([whole, own.dropna(subset="below")], ignore_index=True) if len(set(kinds)) > 1 else whole
