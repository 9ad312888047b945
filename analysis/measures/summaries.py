"""Means of every init, and the arm's gains over the others, at several cuts of the grid."""

import pandas as pd

from portability.analysis.context import StudyContext
from portability.analysis.metrics import metric_of, shown
from portability.analysis.stats.blocks import POOLED
from portability.analysis.stats.pairing import COORDINATES, STATUSES, paired, reference, summarise

HOST_LEVELS: dict[str, tuple[str, ...]] = {  # the coordinates that a row keeps besides the method
    "method": (), "receiving": ("receiving",), "direction": ("origin", "receiving", "relation"),
}


def labelled(frame: pd.DataFrame, quantity: str, unit: str) -> pd.DataFrame:
    """The same rows, all of them this quantity in this unit."""
    return frame.assign(quantity=quantity, unit=unit)


def joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Several frames as one: keys first, then quantity and unit, then the numbers."""
    frame = pd.concat(parts, ignore_index=True)
    keys = [name for name in COORDINATES if name in frame]
    numbers = [name for name in frame if name not in (*keys, "quantity", "unit")]
    return frame[[*keys, "quantity", "unit", *numbers]]


def by_level(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Frames of several levels as one: `level` first, POOLED in the coordinates that only some of them
    have."""
    frame = pd.concat([part.assign(level=level) for level, part in parts.items()], ignore_index=True)
    names = [name for name in ("method", "origin", "receiving", "relation") if name in frame]
    frame[names] = frame[names].astype(object).fillna(POOLED)
    return frame[["level", *(name for name in frame if name != "level")]]


INFERENCE = ("mean", "low", "high", "p", "p_holm", "family", "effect", "mdd", "blocks", "note")  # of a gain


def init_by_method(context: StudyContext) -> pd.DataFrame:
    """Every init by method at the largest budget, pooled over pairs and relations, with the arm's gains."""
    return means_and_gains(context, context.largest, ["method"])


def init_by_budget(context: StudyContext) -> pd.DataFrame:
    """Every init by budget, zero-shot included, for each method, with the arm's gains."""
    return means_and_gains(context, context.arms, ["method", "budget"])


def by_relation(context: StudyContext) -> pd.DataFrame:
    """Every init by relation and origin's data set at the largest budget, with the arm's gains."""
    return means_and_gains(context, context.largest, ["relation", "origin_data", "method"])


def by_direction(context: StudyContext) -> pd.DataFrame:
    """Gains by direction at every budget, pooled over methods and relations."""
    keys = [*context.strata, "origin", "receiving", "budget"]
    nothing = labelled(summarise(context.arms.iloc[:0], keys), "gain", context.metric.difference)
    return joined(gains(context, context.arms, keys) or [nothing])


def origin_by_receiving(context: StudyContext) -> pd.DataFrame:
    """The arm, and its gain over scratch, for every ordered pair at the largest budget; the diagonal is
    native."""
    metric = context.metric
    top = context.largest[context.largest["init"].isin([context.arm, "scratch"])]
    keys = [*context.strata, "method", "relation", "origin", "receiving"]
    arm = top[top["init"] == context.arm]
    parts = [labelled(summarise(arm, keys), metric.name, metric.unit), *gains(context, top, keys)]
    block = [key for key in keys if key != "origin"]
    native = labelled(summarise(reference(arm, "native", block), block), metric.name, metric.unit)
    selves = (arm["origin"] == arm["receiving"]).any()
    return joined([native.assign(origin="(native)" if selves else native["receiving"]), *parts])


def zero_shot(context: StudyContext) -> pd.DataFrame:
    """Every init before any update on the receiving host, the bare host, and the lift over it."""
    metric, before = context.metric, context.start
    keys = [*context.strata, "method", "receiving"]
    bare = labelled(summarise(reference(before, "bare", keys), keys), metric.name, metric.unit)
    state = before["status"].where(before["status"] != "done", before["bare_status"])
    lift = before.assign(value=metric.scale * before["lift"], status=state)
    return joined([
        labelled(summarise(before, [*keys, "init"]), metric.name, metric.unit), bare.assign(init="bare"),
        labelled(summarise(lift, [*keys, "init"]), "lift over bare", metric.difference)])


def all_metrics(context: StudyContext) -> pd.DataFrame:
    """Every metric there is of every init, zero-shot and at the largest budget: accuracy alone hides a
    one-sided host."""
    arms = context.arms[context.arms["budget"].isin({0, context.arms["budget"].max()})]
    keys = [*context.strata, "method", "budget", "init"]
    return joined([labelled(summarise(arms.assign(value=arms[name]), keys), name, metric_of(name).unit)
                   for name in shown(context.cells, context.metric.name)])


def completeness(context: StudyContext) -> pd.DataFrame:
    """Expected, done, failed, missing, duplicate and foreign cells of every point of the grid, with the
    errors."""
    cells = context.cells
    keys = [name for name in COORDINATES if name != "seed"]
    flags = {name: cells["status"] == name for name in STATUSES}
    grouped = cells.assign(**flags).groupby(keys, sort=False, dropna=False)
    table = grouped.agg(expected=("status", "size"), **{name: (name, "sum") for name in STATUSES})
    errors = cells[cells["status"] != "done"]
    errors = errors.assign(reason=errors["reason"].replace("", "not run yet"))
    errors = errors.drop_duplicates([*keys, "reason"])
    words = errors.groupby(keys, dropna=False)["reason"].agg("; ".join)
    return table.join(words.rename("errors")).fillna({"errors": ""}).reset_index()


# ---- building blocks


def means_and_gains(context: StudyContext, cells: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The means of every init, and the arm's gains, over cells of this study."""
    keys = [*context.strata, *keys]
    means = labelled(summarise(cells, [*keys, "init"]), context.metric.name, context.metric.unit)
    return joined([means, *gains(context, cells, keys)])


def gains(context: StudyContext, cells: pd.DataFrame, keys: list[str]) -> list[pd.DataFrame]:
    """The arm minus every other init, with interval and test; one family of tests for all of them."""
    if not (cells["init"] == context.arm).any():
        return []
    tests = context.compare(cells, list(dict.fromkeys([*keys, "budget"])))
    parts = []
    for baseline in tests["baseline"].unique():
        own = tests.loc[tests["baseline"] == baseline, [*keys, *INFERENCE]]
        pairs = paired(cells, context.arm, baseline, context.metric.scale)
        gain = summarise(pairs, keys).drop(columns="mean").merge(own, on=keys, how="left", validate="1:1")
        parts.append(labelled(gain, f"gain over {baseline}",
                              context.metric.difference).assign(init=context.arm))
    return parts
