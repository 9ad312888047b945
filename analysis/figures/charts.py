"""Curves over updates, and forests of differences with their intervals.

A point that lacks seeds is hollow, and what has no number is not drawn.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from portability.analysis.context import StudyContext
from portability.analysis.contrast_arm import WORDS
from portability.analysis.figures.svg import (
    REFERENCES,
    Chart,
    Line,
    budget_words,
    curve_panel,
    forest_panel,
    span_of,
)
from portability.analysis.formatting import no_number, with_interval
from portability.analysis.measures.curves import take_off
from portability.analysis.measures.primary_contrasts import primary
from portability.analysis.metrics import UNITS
from portability.analysis.stats.blocks import estimate_groups, mark_missing
from portability.analysis.stats.pairing import ARMS, alone

MOST = 120  # panels of a chart; a study of more has one a receiving host, over all origins
HEADLINE = (*ARMS, "sampled", "scratch")  # inits that the first chart shows; the others are in the next
NOTE = (
    "Lines: means in which every cell weighs alike; bands: 95 % of new seeds; hollow: seeds lack cells and "
    "are left out; dashed: native (trained on the receiving host itself), dotted: the bare host."
)
KINDS = {
    "lineage": "Hosts of one lineage", "size": "Hosts of other sizes",
    "apart": "Hosts of one size, not of one lineage", "self": "From a host to itself",
    "": "All pairs of hosts",
}


def headline(context: StudyContext) -> list[Chart]:
    """The metric against updates of the arm and its first baselines, a panel a kind of pairs of hosts."""
    title = "{metric} by updates on the receiving host, over all methods, directions and relations"
    return _charts(context, "headline", title, ["kind"], lambda kind: KINDS.get(kind, str(kind)),
                   inits=HEADLINE)


def by_method(context: StudyContext) -> list[Chart]:
    """The metric against updates by init, a panel a method."""
    return _charts(context, "curves_by_method", "{metric} by updates, method by method", ["method"], str)


def by_direction(context: StudyContext) -> list[Chart]:
    """The metric against updates by init, a panel a direction."""
    title = "{metric} by updates, direction by direction"
    return _charts(context, "curves_by_direction", title, ["origin", "receiving"],
                   lambda *ends: " → ".join(ends))


def every_curve(context: StudyContext) -> list[Chart]:
    """The metric against updates by init, a panel a method and direction, a chart a relation; folded."""
    title = "{metric} by updates, every method and direction; " + WORDS[context.arm]["of_origin"]
    return [chart for relation in map(str, context.arms["relation"].unique())
            for chart in _charts(context, f"curves-{relation}", f"{title}: {relation}",
                                 ["method", "origin", "receiving"],
                                 lambda method, *ends: f"{method}: {' → '.join(ends)}", relation)]


def _charts(context: StudyContext, name: str, title: str, keys: list[str], words: Callable[..., str],
            relation: str | None = None, inits: Sequence[str] = ()) -> list[Chart]:
    """A chart for every data set and port that a study has several of; of the named `inits` alone, where two
    of them are there; folded where it is of one relation."""
    unit, charts = UNITS[context.metric.unit], []
    for labels, arms in context.parts():
        arms = arms if relation is None else arms[arms["relation"] == relation]
        some = arms[arms["init"].isin(inits)]
        arms = some if some["init"].nunique() > 1 else arms
        hosts = zip(arms["origin"], arms["receiving"], strict=True)
        arms = arms.assign(kind=[context.kinds.get(two, "") for two in hosts], init=arms["init"].astype(str))
        if "origin" in keys and len(arms.groupby(keys)) > MOST:
            arms = arms.assign(origin="all origins")
        points = mark_missing(estimate_groups(alone(arms), [*keys, "init", "budget"]))
        points[["mean", "low", "high"]] *= unit.scale
        levels = unit.scale * arms.groupby(keys, sort=False)[list(REFERENCES)].mean()
        values = [*points["mean"], *points["low"], *points["high"], *levels.to_numpy().ravel()]
        span = span_of(values, context.metric.unit == "fraction")
        across = {names if len(keys) > 1 else (names,): dict(own) for names, own in levels.iterrows()}
        panels = [curve_panel(words(*map(str, names)), part, across[names], span, unit.symbol)
                  for names, part in points.groupby(keys, sort=False) if part["mean"].notna().any()]
        if panels:
            parts = list(map(str, labels.values()))
            whole = ", ".join([title.format(metric=context.metric.title), *parts])
            legend = [*arms["init"].unique(), *REFERENCES]
            charts.append(Chart("-".join([name, *parts]), f"{whole}.", panels, legend, NOTE,
                                relation is not None))
    return charts


def take_offs(context: StudyContext) -> list[Chart]:
    """The share of runs that have taken off by updates, a panel a method."""
    frame = take_off(context)
    if frame.empty or frame["mean"].isna().all():
        return []
    points = frame.assign(init=frame["init"].astype(str),
                          **{key: 100 * frame[key] for key in ("mean", "low", "high")})
    nothing = dict.fromkeys(REFERENCES, math.nan)
    panels = [curve_panel(", ".join(map(str, names)), part, nothing, (0.0, 100.0), "%")
              for names, part in points.groupby([*context.strata, "method"], sort=False)]
    title = "Share of runs at least halfway from the bare host to native, by updates, method by method."
    note = ("Scores are bimodal: a mean may be that of no run. Bands: 95 % of new seeds; hollow: seeds lack "
            "cells.")
    return [Chart("take_off", title, panels, list(points["init"].unique()), note)]


LINES = 60  # of a forest; more directions and relations stand in the tables only
HEADINGS = {"all": "", "pair": "By direction", "method": "By method", "relation": "By method and relation"}
BARS = "Bars: 95 % of new seeds{examples}. {test}Hollow: some cells lack."
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
                  not row["mark"]) for _, row in rows.iterrows()]
    title = f"What was declared before the runs: differences in {context.metric.label}."
    panel = forest_panel("Primary contrasts", lines, UNITS[context.metric.difference].symbol, _span(rows))
    note = BARS.format(examples=context.examples,
                       test="The verdict is that of the t test after Holm's correction. ")
    return [Chart("primary", title, [panel], [], note)]


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
    return [Chart("differences", title, panels, [], BARS.format(examples=context.examples, test=STARS))]


def _lines(levels: dict[str, pd.DataFrame], context: StudyContext) -> Iterator[Line]:
    for name, heading in HEADINGS.items():
        rows = levels[name]
        if name != "all" and not 1 < len(rows) <= LINES:
            continue
        if heading:
            yield Line(heading)
        for _, row in rows.iterrows():
            words = _words(row, context, row["p_holm"]) + row["mark"]
            yield Line(_label(row), row["mean"], row["low"], row["high"], words, whole=not row["mark"])


def _label(row: pd.Series) -> str:
    direction = f"{row['origin']} → {row['receiving']}" if "origin" in row else ""
    parts = (row.get("method"), direction, row.get("relation"))
    return ", ".join(part for part in parts if isinstance(part, str)
                     and part) or "All methods, directions and relations"


def _words(row: pd.Series, context: StudyContext, p: float = math.nan) -> str:
    unit = UNITS[context.metric.difference]
    return with_interval(row["mean"], row["low"], row["high"], unit, p, no_number(row))


def _span(rows: pd.DataFrame) -> tuple[float, float]:
    return span_of([0.0, *rows["mean"], *rows["low"], *rows["high"]], False)


