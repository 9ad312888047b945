"""Every table by name: the function that makes it, how it is laid out, and what stands under it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from analysis import captions, means
from analysis.entries import mean_entry
from analysis.evidence import Evidence
from analysis.metrics import Metric


@dataclass(frozen=True)
class Table:
    """A finished table. `frame` is tidy: the keys, `quantity`, `unit`, then the columns of stats.summarise.

    `rows` and `column` say how a reader sees it (column None: the frame as it is, restricted to `shown`), `show` how one
    row of the frame is written.
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
    show: Callable[[pd.Series], str] = mean_entry


@dataclass(frozen=True)
class Recipe:
    """How a table is made and laid out; `{budget}` in the lead is the study's largest."""

    make: Callable[[Evidence], pd.DataFrame]
    title: str
    lead: str
    rows: tuple[str, ...]
    column: str | None
    best: bool = False
    show: Callable[[pd.Series], str] = mean_entry


TABLES: dict[str, Recipe] = {
    "init_by_method": Recipe(
        means.init_by_method, "Init by method", "{label} after {budget} updates on the receiving host.",
        ("quantity", "init"), "method", best=True,
    ),
    "zero_shot": Recipe(
        means.zero_shot, "Zero-shot", "{label} before any update on the receiving host; lift is over the bare host "
        "(with the cell's own head, where the host needs one).", ("receiving", "quantity", "init"), "method", best=True,
    ),
    "origin_by_receiving": Recipe(
        means.origin_by_receiving, "Origin by receiving host",
        "{label} after {budget} updates: rows are origins, columns "
        "receiving hosts; the diagonal is native, trained on the receiving host itself, at its largest mark.",
        ("method", "relation", "quantity", "origin"), "receiving",
    ),
    "init_by_budget": Recipe(
        means.init_by_budget, "Init by budget", "{label} by updates on the receiving host (0: zero-shot).",
        ("method", "quantity", "init"), "budget", best=True,
    ),
    "by_relation": Recipe(
        means.by_relation, "By relation", "{label} after {budget} updates, by whether the origin saw the receiving data set.",
        ("relation", "origin_data", "quantity", "init"), "method", best=True,
    ),
    "all_metrics": Recipe(
        means.all_metrics, "All metrics", "Every metric, zero-shot and after {budget} updates.",
        ("method", "budget", "init"), "quantity",
    ),
    "completeness": Recipe(
        means.completeness, "Completeness", "Cells asked for and what became of them; seeds are counted, not listed.",
        (), None,
    ),
}


def build(found: Evidence, names: Iterable[str] = tuple(TABLES)) -> list[Table]:
    """The named tables of a study; all of them by default."""
    return [_build(name, TABLES[name], found) for name in names]


def _build(name: str, recipe: Recipe, found: Evidence) -> Table:
    frame, metric, facts = recipe.make(found), found.metric, found.study.facts
    budget = found.arms["budget"].max()
    lead = recipe.lead.format(label=metric.label.capitalize(), budget="no" if pd.isna(budget) else budget)
    rows = (*(key for key in ("data", "port") if key in frame and recipe.column), *recipe.rows)
    if recipe.column is None:
        whole = frame["done"] == frame["expected"]
        text = f"{lead} {int(whole.sum())} of {len(frame)} points are whole and stand in the CSV file only."
        shown = frame[~whole].drop(columns=[key for key in ("data", "port") if frame[key].nunique() < 2])
        guard = captions.leak_guard(facts)
        return Table(name, recipe.title, " ".join([text, *guard]), frame, rows, None, False, metric, shown, recipe.show)
    keys = [key for key in (*rows, recipe.column) if key != "quantity"]
    text = captions.caption(lead, frame, _behind(name, found), keys, facts, found.why)
    best = recipe.best and metric.better is not None
    text = f"{text} {captions.BEST}" if best else text
    return Table(name, recipe.title, text, frame, rows, recipe.column, best, metric, frame, recipe.show)


def _behind(name: str, found: Evidence) -> pd.DataFrame:
    """The cells a table is made of, for the words on its replicates."""
    if name == "zero_shot":
        return found.arms[found.arms["budget"] == 0]
    return found.arms if name == "init_by_budget" else found.largest
