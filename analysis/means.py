"""Tables of means: the evidence in, a tidy frame of entries out, one row per number with all its counts."""

import pandas as pd

from analysis.entries import joined, labelled
from analysis.evidence import Evidence
from analysis.load import COORDINATES, STATUSES
from analysis.metrics import metric_of, shown
from analysis.stats import apart, paired, reference, summarise

INFERENCE = ("mean", "low", "high", "p", "p_holm", "family", "effect", "mdd", "blocks", "note")  # of a gain


def init_by_method(found: Evidence) -> pd.DataFrame:
    """Every init by method at the largest budget, pooled over pairs and relations, with the arm's gains."""
    return _arms_and_gains(found, found.largest, ["method"])


def origin_by_receiving(found: Evidence) -> pd.DataFrame:
    """The arm, and its gain over scratch, for every ordered pair at the largest budget; the diagonal is native."""
    metric = found.metric
    top = found.largest[found.largest["init"].isin([found.arm, "scratch"])]
    keys = [*apart(found.cells), "method", "relation", "origin", "receiving"]
    arm = top[top["init"] == found.arm]
    parts = [labelled(summarise(arm, keys), metric.name, metric.unit), *gains(found, top, keys)]
    block = [key for key in keys if key != "origin"]
    native = labelled(summarise(reference(arm, "native", block), block), metric.name, metric.unit)
    selves = (arm["origin"] == arm["receiving"]).any()
    return joined([native.assign(origin="(native)" if selves else native["receiving"]), *parts])


def zero_shot(found: Evidence) -> pd.DataFrame:
    """Every init before any update on the receiving host, the bare host, and the lift over it."""
    metric, before = found.metric, start(found)
    keys = [*apart(found.cells), "method", "receiving"]
    bare = labelled(summarise(reference(before, "bare", keys), keys), metric.name, metric.unit)
    state = before["status"].where(before["status"] != "done", before["bare_status"])
    lift = before.assign(value=metric.scale * before["lift"], status=state)
    return joined([
        labelled(summarise(before, [*keys, "init"]), metric.name, metric.unit),
        bare.assign(init="bare"),
        labelled(summarise(lift, [*keys, "init"]), "lift over bare", metric.difference),
    ])


def init_by_budget(found: Evidence) -> pd.DataFrame:
    """Every init by budget, zero-shot included, for each method, with the arm's gains."""
    return _arms_and_gains(found, found.arms, ["method", "budget"])


def by_relation(found: Evidence) -> pd.DataFrame:
    """Every init by relation and origin's data set at the largest budget, with the arm's gains."""
    return _arms_and_gains(found, found.largest, ["relation", "origin_data", "method"])


def all_metrics(found: Evidence) -> pd.DataFrame:
    """Every metric there is of every init, zero-shot and at the largest budget: accuracy alone hides a one-sided host."""
    arms = found.arms[found.arms["budget"].isin({0, found.arms["budget"].max()})]
    keys = [*apart(found.cells), "method", "budget", "init"]
    return joined([
        labelled(summarise(arms.assign(value=arms[name]), keys), name, metric_of(name).unit)
        for name in shown(found.cells, found.metric.name)
    ])


def completeness(found: Evidence) -> pd.DataFrame:
    """Expected, done, failed, missing, duplicate and foreign cells of every point of the grid, with the errors."""
    cells = found.cells
    keys = [name for name in COORDINATES if name != "seed"]
    flags = {name: cells["status"] == name for name in STATUSES}
    grouped = cells.assign(**flags).groupby(keys, sort=False, dropna=False)
    table = grouped.agg(expected=("status", "size"), **{name: (name, "sum") for name in STATUSES})
    errors = cells[cells["status"] != "done"]
    errors = errors.assign(reason=errors["reason"].mask(errors["reason"] == "", "not run yet"))
    words = errors.drop_duplicates([*keys, "reason"]).groupby(keys, dropna=False)["reason"].agg("; ".join)
    return table.join(words.rename("errors")).fillna({"errors": ""}).reset_index()


def start(found: Evidence) -> pd.DataFrame:
    """The arms before any update on the receiving host."""
    return found.arms[found.arms["budget"] == 0]


def not_whole(frame: pd.DataFrame) -> pd.DataFrame:
    """The points of the grid that lack cells, without the coordinates that never differ."""
    part = frame[frame["done"] != frame["expected"]]
    return part.drop(columns=[key for key in ("data", "port") if frame[key].nunique() < 2])


def whole_words(found: Evidence, frame: pd.DataFrame) -> str:
    """How many points of the grid are whole."""
    whole = int((frame["done"] == frame["expected"]).sum())
    return f"{whole} of {len(frame)} points are whole and stand in the CSV file only."


# ---- building blocks


def _arms_and_gains(found: Evidence, cells: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    keys = [*apart(found.cells), *keys]
    means = labelled(summarise(cells, [*keys, "init"]), found.metric.name, found.metric.unit)
    return joined([means, *gains(found, cells, keys)])


def gains(found: Evidence, cells: pd.DataFrame, keys: list[str]) -> list[pd.DataFrame]:
    """The arm minus every other init, with interval and test; one family of tests for all of them."""
    if not (cells["init"] == found.arm).any():
        return []
    with_budget = list(dict.fromkeys([*keys, "budget"]))
    tests = found.compare(cells, with_budget)
    parts = []
    for baseline in tests["baseline"].unique():
        own = tests.loc[tests["baseline"] == baseline, [*keys, *INFERENCE]]
        counts = summarise(paired(cells, found.arm, baseline, found.metric.scale), keys).drop(columns="mean")
        gain = counts.merge(own, on=keys, how="left", validate="1:1")
        parts.append(labelled(gain, f"gain over {baseline}", found.metric.difference).assign(init=found.arm))
    return parts
