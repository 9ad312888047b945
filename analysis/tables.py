"""Every table by name: the function that makes it, how it is laid out, and what stands under it."""

from collections.abc import Iterable

import pandas as pd

from analysis import captions, contrasts, crosschecks, extraction, interactions, means, rates, shows, verdict
from analysis.arms import say
from analysis.evidence import Evidence
from analysis.recipe import Recipe, Table

TABLES: dict[str, Recipe] = {
    "init_by_method": Recipe(
        means.init_by_method, "Init by method", "{label} after {budget} updates on the receiving host.",
        ("quantity", "init"), "method", best=True,
    ),
    "zero_shot": Recipe(
        means.zero_shot, "Zero-shot", "{label} before any update on the receiving host; lift is over the bare host "
        "(with the cell's own head, where the host needs one).", ("receiving", "quantity", "init"), "method", best=True,
        behind=means.start,
    ),
    "origin_by_receiving": Recipe(
        means.origin_by_receiving, "Origin by receiving host",
        "{label} after {budget} updates: rows are origins, columns "
        "receiving hosts; the diagonal is native, trained on the receiving host itself, at its largest mark.",
        ("method", "relation", "quantity", "origin"), "receiving",
    ),
    "init_by_budget": Recipe(
        means.init_by_budget, "Init by budget", "{label} by updates on the receiving host (0: zero-shot).",
        ("method", "quantity", "init"), "budget", best=True, behind=lambda found: found.arms,
    ),
    "by_relation": Recipe(
        means.by_relation, "By relation", "{label} after {budget} updates, by {saw}.",
        ("relation", "origin_data", "quantity", "init"), "method", best=True,
    ),
    "all_metrics": Recipe(
        means.all_metrics, "All metrics", "Every metric, zero-shot and after {budget} updates.",
        ("method", "budget", "init"), "quantity",
    ),
    "completeness": Recipe(
        means.completeness, "Completeness", "Cells asked for and what became of them; seeds are counted, not listed.",
        view=means.not_whole, words=means.whole_words,
    ),
    **verdict.RECIPES,
    **rates.RECIPES,
    **extraction.RECIPES,
    **contrasts.RECIPES,
    **interactions.RECIPES,
    **shows.RECIPES,
    **crosschecks.RECIPES,
}


def build(found: Evidence, names: Iterable[str] | None = None) -> list[Table]:
    """The named tables of a study; by default all that are of such a study."""
    names = [name for name, recipe in TABLES.items() if recipe.of(found)] if names is None else names
    return [_build(name, TABLES[name], found) for name in names]


def _build(name: str, recipe: Recipe, found: Evidence) -> Table:
    frame = recipe.make(found)
    budget = found.arms["budget"].max()
    lead = say(recipe.lead, found.arm).format(label=found.metric.title, budget="no" if pd.isna(budget) else budget)
    lead, _, more = lead.partition(". ")  # one sentence heads a table
    rows = (*(key for key in ("data", "port") if key in frame and recipe.column), *recipe.rows)
    shown = frame if recipe.view is None else recipe.view(frame).rename(columns=lambda name: say(name, found.arm))
    best = recipe.best and found.metric.better is not None
    notes = [more, _notes(recipe, found, frame, rows), *captions.leak_guard(found.study.facts), captions.BEST if best else "",
             *captions.too_long(found.study.parts["too_long"]), *captions.protocol(found.study.schema)]
    return Table(name, recipe.title, f"{lead.rstrip('.')}.", " ".join(filter(None, notes)), frame, rows, recipe.column, best,
                 found.metric, shown, recipe.show)


def _notes(recipe: Recipe, found: Evidence, frame: pd.DataFrame, rows: tuple[str, ...]) -> str:
    if recipe.words is not None:
        return recipe.words(found, frame)
    keys = [key for key in (*rows, recipe.column) if key is not None and key != "quantity"]
    return captions.caption(frame, recipe.behind(found), keys, found.why)
