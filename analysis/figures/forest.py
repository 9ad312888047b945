"""Forest plots: the primary contrasts, and the arm minus every other init, with their intervals."""

import math
from collections.abc import Iterator

import pandas as pd

from portability.analysis.context import StudyContext
from portability.analysis.figures.style import budget_words
from portability.analysis.figures.svg import Chart, Line, forest_panel, span_of
from portability.analysis.formatting import with_interval
from portability.analysis.measures.primary_contrasts import primary
from portability.analysis.metrics import UNITS

LINES = 60  # of a forest; more directions and relations stand in the tables only
HEADINGS = {"all": "", "pair": "By direction", "method": "By method", "relation": "By method and relation"}
NOTE = "Bars: 95 % of new seeds{examples}. {test}Hollow: some cells lack."
STARS = (
    "Stars: p ≤ 0.05, 0.01, 0.001 (*, **, ***) of the t test, after Holm's correction within a level over "
    "all budgets and starts: exploratory. "
)


def contrasts(context: StudyContext) -> list[Chart]:
    """The primary contrasts with their intervals and verdicts."""
    rows = primary(context)
    if rows["mean"].isna().all():
        return []
    lines = [Line(row["name"], row["mean"], row["low"], row["high"], _words(row, context), row["verdict"],
                  not row["mark"])
             for _, row in rows.iterrows()]
    title = f"What was declared before the runs: differences in {context.metric.label}."
    panel = forest_panel("Primary contrasts", lines, UNITS[context.metric.difference].symbol, _span(rows))
    return [Chart("primary", title, [panel], [],
                  _note(context, "The verdict is that of the t test after Holm's correction. "))]


def differences(context: StudyContext) -> list[Chart]:
    """The arm minus every other init at the largest budget: over all, by direction, by method, and by method
    and relation; one panel for each other init."""
    levels = {name: frame[frame["budget"] == frame["budget"].max()] for name, frame in context.levels.items()}
    whole, shown = levels["all"], pd.concat([levels[name] for name in HEADINGS], ignore_index=True)
    if shown["mean"].isna().all():
        return []
    keys = [*(key for key in ("data", "port") if key in whole), "baseline"]
    unit, panels = UNITS[context.metric.difference].symbol, []
    for names, _ in whole.groupby(keys, sort=False):
        own = {level: frame[(frame[keys] == list(names)).all(axis=1)] for level, frame in levels.items()}
        title = f"{context.arm} − {', '.join(map(str, reversed(names)))}"
        panels.append(forest_panel(title, list(_lines(own, context)), unit, _span(shown)))
    budget = budget_words(int(whole["budget"].max()))
    title = f"{context.metric.title} of {context.arm} minus every other start, {budget}."
    return [Chart("differences", title, panels, [], _note(context, STARS))]


def _lines(levels: dict[str, pd.DataFrame], context: StudyContext) -> Iterator[Line]:
    for name, heading in HEADINGS.items():
        rows = levels[name]
        if name != "all" and not 1 < len(rows) <= LINES:
            continue
        if heading:
            yield Line(heading)
        for _, row in rows.iterrows():
            words = _words(row, context, row["p_holm"]) + row["mark"]
            words = "no whole seed†" if math.isnan(row["mean"]) else words
            yield Line(_label(row), row["mean"], row["low"], row["high"], words, whole=not row["mark"])


def _label(row: pd.Series) -> str:
    direction = f"{row['origin']} → {row['receiving']}" if "origin" in row else ""
    parts = (row.get("method"), direction, row.get("relation"))
    return ", ".join(part for part in parts if isinstance(part, str)
                     and part) or "All methods, directions and relations"


def _words(row: pd.Series, context: StudyContext, p: float = math.nan) -> str:
    return with_interval(row["mean"], row["low"], row["high"], UNITS[context.metric.difference], p)


def _span(rows: pd.DataFrame) -> tuple[float, float]:
    return span_of([0.0, *rows["mean"], *rows["low"], *rows["high"]], False)


def _note(context: StudyContext, test: str) -> str:
    return NOTE.format(examples=" only" if context.why else " and new test examples", test=test)
