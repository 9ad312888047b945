"""One function per table: the tidy frame in, a frame of entries out, one row per number with all its counts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from analysis import captions
from analysis.load import COORDINATES, STATUSES, Study
from analysis.metrics import METRICS, Metric
from analysis.stats import ARM, apart, paired, reference, summarise
from portability.spec import BARE


@dataclass(frozen=True)
class Table:
    """A finished table. `frame` is tidy: the keys, `quantity`, `unit`, then the columns of stats.summarise.

    `rows` and `column` say how a reader sees it (column None: the frame as it is, restricted to `shown`).
    """

    name: str
    title: str
    caption: str
    frame: pd.DataFrame
    rows: tuple[str, ...]
    column: str | None
    best: bool
    metric: Metric
    shown: pd.DataFrame


def init_by_method(cells: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Every init by method at the largest budget, pooled over pairs and relations, with ported's gains."""
    return _arms_and_gains(_largest(cells), ["method"], metric)


def origin_by_receiving(cells: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Ported, and its gain over scratch, for every ordered pair at the largest budget; the diagonal is native."""
    top = _largest(cells)
    top = top[top["init"].isin([ARM, "scratch"])]
    keys = [*apart(cells), "method", "relation", "origin", "receiving"]
    ported = top[top["init"] == ARM]
    parts = [_entries(summarise(ported, keys), metric.name, metric.unit)]
    parts.append(_gain(top, keys, "scratch", metric))
    block = [key for key in keys if key != "origin"]
    native = _entries(summarise(reference(ported, "native", block), block), metric.name, metric.unit)
    selves = (ported["origin"] == ported["receiving"]).any()
    return _join([native.assign(origin="(native)" if selves else native["receiving"]), *parts])


def zero_shot(cells: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Every init before any update on the receiving host, the bare host, and the lift over it."""
    start = _arms(cells)
    start = start[start["budget"] == 0]
    keys = [*apart(cells), "method", "receiving"]
    bare = _entries(summarise(reference(start, "bare", keys), keys), metric.name, metric.unit)
    state = start["status"].where(start["status"] != "done", start["bare_status"])
    lift = start.assign(value=metric.scale * start["lift"], status=state)
    return _join([
        _entries(summarise(start, [*keys, "init"]), metric.name, metric.unit),
        bare.assign(init="bare"),
        _entries(summarise(lift, [*keys, "init"]), "lift over bare", metric.difference),
    ])


def init_by_budget(cells: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Every init by budget, zero-shot included, for each method, with ported's gains."""
    return _arms_and_gains(_arms(cells), ["method", "budget"], metric)


def by_relation(cells: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Every init by relation and origin's data set at the largest budget, with ported's gains."""
    return _arms_and_gains(_largest(cells), ["relation", "origin_data", "method"], metric)


def all_metrics(cells: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Every metric of every init, zero-shot and at the largest budget: accuracy alone hides a one-sided host."""
    arms = _arms(cells)
    arms = arms[arms["budget"].isin({0, arms["budget"].max()})]
    keys = [*apart(cells), "method", "budget", "init"]
    return _join([
        _entries(summarise(arms.assign(value=arms[name]), keys), name, item.unit) for name, item in METRICS.items()
    ])


def completeness(cells: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Expected, done, failed, missing, duplicate and foreign cells of every point of the grid, with the errors."""
    keys = [name for name in COORDINATES if name != "seed"]
    flags = {name: cells["status"] == name for name in STATUSES}
    grouped = cells.assign(**flags).groupby(keys, sort=False, dropna=False)
    table = grouped.agg(expected=("status", "size"), **{name: (name, "sum") for name in STATUSES})
    errors = cells[cells["status"] != "done"]
    errors = errors.assign(reason=errors["reason"].mask(errors["reason"] == "", "not run yet"))
    words = errors.drop_duplicates([*keys, "reason"]).groupby(keys, dropna=False)["reason"].agg("; ".join)
    return table.join(words.rename("errors")).fillna({"errors": ""}).reset_index()


@dataclass(frozen=True)
class Recipe:
    """How a table is made and laid out; `{budget}` in the lead is the study's largest."""

    make: Callable[[pd.DataFrame, Metric], pd.DataFrame]
    title: str
    lead: str
    rows: tuple[str, ...]
    column: str | None
    best: bool = False


TABLES: dict[str, Recipe] = {
    "init_by_method": Recipe(
        init_by_method, "Init by method", "{label} after {budget} updates on the receiving host.",
        ("quantity", "init"), "method", best=True,
    ),
    "zero_shot": Recipe(
        zero_shot, "Zero-shot", "{label} before any update on the receiving host; lift is over the bare host "
        "(with the cell's own head, where the host needs one).", ("receiving", "quantity", "init"), "method", best=True,
    ),
    "origin_by_receiving": Recipe(
        origin_by_receiving, "Origin by receiving host",
        "{label} after {budget} updates: rows are origins, columns "
        "receiving hosts; the diagonal is native, trained on the receiving host itself, at its largest mark.",
        ("method", "relation", "quantity", "origin"), "receiving",
    ),
    "init_by_budget": Recipe(
        init_by_budget, "Init by budget", "{label} by updates on the receiving host (0: zero-shot).",
        ("method", "quantity", "init"), "budget", best=True,
    ),
    "by_relation": Recipe(
        by_relation, "By relation", "{label} after {budget} updates, by whether the origin saw the receiving data set.",
        ("relation", "origin_data", "quantity", "init"), "method", best=True,
    ),
    "all_metrics": Recipe(
        all_metrics, "All metrics", "Every metric, zero-shot and after {budget} updates.",
        ("method", "budget", "init"), "quantity",
    ),
    "completeness": Recipe(
        completeness, "Completeness", "Cells asked for and what became of them; seeds are counted, not listed.",
        (), None,
    ),
}


def build(study: Study, metric: Metric, names: Iterable[str] = tuple(TABLES)) -> list[Table]:
    """The named tables of a study; all of them by default."""
    return [_build(name, TABLES[name], study, metric) for name in names]


def _build(name: str, recipe: Recipe, study: Study, metric: Metric) -> Table:
    frame = recipe.make(study.cells, metric)
    budget = _arms(study.cells)["budget"].max()
    lead = recipe.lead.format(label=metric.label.capitalize(), budget="no" if pd.isna(budget) else budget)
    rows = (*(key for key in ("data", "port") if key in frame and recipe.column), *recipe.rows)
    if recipe.column is None:
        whole = frame["done"] == frame["expected"]
        text = f"{lead} {int(whole.sum())} of {len(frame)} points are whole and stand in the CSV file only."
        shown = frame[~whole].drop(columns=[key for key in ("data", "port") if frame[key].nunique() < 2])
        guard = captions.leak_guard(study.facts)
        return Table(name, recipe.title, " ".join([text, *guard]), frame, rows, None, False, metric, shown)
    keys = [key for key in (*rows, recipe.column) if key != "quantity"]
    text = captions.caption(lead, frame, _behind(name, study.cells), keys, study.facts)
    best = recipe.best and metric.better is not None
    text = f"{text} {captions.BEST}" if best else text
    return Table(name, recipe.title, text, frame, rows, recipe.column, best, metric, frame)


def _behind(name: str, cells: pd.DataFrame) -> pd.DataFrame:
    """The cells a table is made of, for the words on its replicates."""
    arms = _arms(cells)
    if name == "zero_shot":
        return arms[arms["budget"] == 0]
    if name == "init_by_budget":
        return arms
    return arms[arms["budget"] == arms["budget"].max()]


# ---- building blocks


def _arms(cells: pd.DataFrame) -> pd.DataFrame:
    """All cells but those of the bare host, which is a reference and no arm."""
    return cells[cells["init"] != BARE]


def _largest(cells: pd.DataFrame) -> pd.DataFrame:
    arms = _arms(cells)
    return arms[arms["budget"] == arms["budget"].max()]


def _arms_and_gains(cells: pd.DataFrame, keys: list[str], metric: Metric) -> pd.DataFrame:
    keys = [*apart(cells), *keys]
    means = _entries(summarise(cells, [*keys, "init"]), metric.name, metric.unit)
    baselines = [name for name in cells["init"].unique() if name != ARM]
    has_arm = (cells["init"] == ARM).any()
    return _join([means, *(_gain(cells, keys, name, metric) for name in baselines if has_arm)])


def _gain(cells: pd.DataFrame, keys: list[str], baseline: str, metric: Metric) -> pd.DataFrame:
    pairs = paired(cells, ARM, baseline, metric.scale)
    return _entries(summarise(pairs, keys), f"gain over {baseline}", metric.difference).assign(init=ARM)


def _entries(frame: pd.DataFrame, quantity: str, unit: str) -> pd.DataFrame:
    return frame.assign(quantity=quantity, unit=unit)


def _join(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """One frame of entries: keys first, then quantity and unit, then the numbers."""
    frame = pd.concat(parts, ignore_index=True)
    keys = [name for name in COORDINATES if name in frame]
    numbers = [name for name in frame if name not in (*keys, "quantity", "unit")]
    return frame[[*keys, "quantity", "unit", *numbers]]
