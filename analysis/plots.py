"""The charts of a study: the evidence in, charts out; what is not whole is hollow, and what has no number is not drawn."""

import math
from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from analysis.arms import ARMS, WORDS
from analysis.charts import Chart, Line, curves, forest, span_of
from analysis.contrasts import with_interval
from analysis.curves import take_off
from analysis.evidence import Evidence
from analysis.inference import TASK
from analysis.judging import counted, judged
from analysis.look import REFERENCES, budget_words, groups
from analysis.metrics import UNITS
from analysis.primary import primary
from analysis.stats import apart

MOST = 120  # panels of a chart; a study of more has one a receiving host, over all origins
CHIEF = (*ARMS, "sampled", "scratch")  # starts that the first chart shows; the others are in the next
LINES = 60  # of a forest; more directions and relations stand in the tables only
CURVES = (
    "Lines: means in which every cell weighs alike; bands: 95 % of new seeds; hollow: seeds lack cells and are left out; "
    "dashed: native (trained on the receiving host itself), dotted: the bare host."
)
FOREST = "Bars: 95 % of new seeds{examples}. {stars}Hollow: some cells lack."
STARS = (
    "Stars: p ≤ 0.05, 0.01, 0.001 (*, **, ***) of the t test, after Holm's correction within a level over all budgets and "
    "starts: exploratory. "
)


# ---- curves


def headline(found: Evidence) -> list[Chart]:
    """The metric against updates of the arm and its first baselines, kinds of pairs of hosts apart."""
    title = "{metric} by updates on the receiving host, over all methods, directions and relations"
    return _charts(found, "headline", title, ["kind"], lambda kind: KINDS.get(kind, kind), inits=CHIEF)


KINDS = {
    "lineage": "Hosts of one lineage", "size": "Hosts of other sizes", "apart": "Hosts of one size, not of one lineage",
    "self": "From a host to itself", "": "Hosts of one size",
}


def by_method(found: Evidence) -> list[Chart]:
    """The metric against updates by start, a panel a method."""
    return _charts(found, "curves_by_method", "{metric} by updates, method by method", ["method"], str)


def by_direction(found: Evidence) -> list[Chart]:
    """The metric against updates by start, a panel a direction."""
    title = "{metric} by updates, direction by direction"
    return _charts(found, "curves_by_direction", title, ["origin", "receiving"], lambda *ends: " → ".join(ends))


def every_curve(found: Evidence) -> list[Chart]:
    """The metric against updates by start, a panel a method and direction, a chart a relation; folded."""
    charts = []
    for relation in map(str, found.arms["relation"].unique()):
        title = f"{{metric}} by updates, every method and direction; {WORDS[found.arm].of_origin}: {relation}"
        charts += _charts(found, f"curves-{relation}", title, ["method", "origin", "receiving"],
                          lambda method, *ends: f"{method}: {' → '.join(ends)}", relation)
    return charts


def _charts(found: Evidence, name: str, title: str, keys: list[str], words: Callable[..., str],
            relation: str | None = None, inits: Sequence[str] = ()) -> list[Chart]:
    """A chart for every data set and port that a study has several of; of the named `inits` alone, where two of them are there;
    folded where it is of one relation."""
    unit, charts = UNITS[found.metric.unit], []
    for labels, arms in found.parts():
        arms = arms if relation is None else arms[arms["relation"] == relation]
        some = arms[arms["init"].isin(inits)]
        arms = some if some["init"].nunique() > 1 else arms
        hosts = zip(arms["origin"], arms["receiving"], strict=True)
        arms = arms.assign(kind=[found.kinds[pair] for pair in hosts], init=arms["init"].astype(str))
        if "origin" in keys and len(arms.groupby(keys)) > MOST:
            arms = arms.assign(origin="all origins")
        points = _means(arms, [*keys, "init", "budget"])
        points[["mean", "low", "high"]] *= unit.scale
        levels = unit.scale * arms.groupby(keys, sort=False)[list(REFERENCES)].mean()
        span = span_of([*points["mean"], *points["low"], *points["high"], *levels.to_numpy().ravel()],
                       found.metric.unit == "fraction")
        across = {names if len(keys) > 1 else (names,): dict(own) for names, own in levels.iterrows()}
        panels = [curves(words(*map(str, names)), part, across[names], span, unit.symbol)
                  for names, part in points.groupby(keys, sort=False) if part["mean"].notna().any()]
        if panels:
            whole = ", ".join([title.format(metric=found.metric.title), *map(str, labels.values())])
            charts.append(Chart("-".join([name, *map(str, labels.values())]), f"{whole}.", panels,
                                [*arms["init"].unique(), *REFERENCES], CURVES, relation is not None))
    return charts


def _means(cells: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The mean of every group with its interval over seeds, which shares are cut to."""
    tasks = cells.groupby(TASK, dropna=False, observed=True).ngroup()
    frame = counted(judged(cells.assign(arm_id=cells["run_id"], arm_mark=cells["mark"], task=tasks), keys, None, 1.0))
    return frame[[*keys, "mean", "low", "high", "mark"]]


def flights(found: Evidence) -> list[Chart]:
    """The share of runs that have taken off by updates, a panel a method."""
    frame = take_off(found)
    if frame.empty or frame["mean"].isna().all():
        return []
    points = frame.assign(init=frame["init"].astype(str), **{name: 100 * frame[name] for name in ("mean", "low", "high")})
    nothing = dict.fromkeys(REFERENCES, math.nan)
    panels = [curves(", ".join(labels), part, nothing, (0.0, 100.0), "%")
              for labels, part in groups(points, [*apart(found.cells), "method"])]
    title = "Share of runs at least halfway from the bare host to native, by updates, method by method."
    note = "Scores are bimodal: a mean may be that of no run. Bands: 95 % of new seeds; hollow: seeds lack cells."
    return [Chart("take_off", title, panels, list(points["init"].unique()), note)]


# ---- differences


def decided(found: Evidence) -> list[Chart]:
    """The primary contrasts with their intervals and verdicts."""
    rows = primary(found)
    if rows["mean"].isna().all():
        return []
    lines = [Line(row["name"], row["mean"], row["low"], row["high"],
                  _words(row, found), row["verdict"], not row["mark"])
             for _, row in rows.iterrows()]
    unit = UNITS[found.metric.difference].symbol
    title = f"What was declared before the runs: differences in {found.metric.label}."
    panel = forest("Primary contrasts", lines, unit, _span(rows))
    note = FOREST.format(examples=_examples(found), stars="The verdict is that of the t test after Holm's correction. ")
    return [Chart("primary", title, [panel], [], note)]


def differences(found: Evidence) -> list[Chart]:
    """The arm minus every other start at the largest budget: over all, by direction, by method, and by method and relation; one
    panel for each other start."""
    levels = {name: frame[frame["budget"] == frame["budget"].max()] for name, frame in found.levels.items()}
    whole = levels["all"]
    keys = [*(key for key in ("data", "port") if key in whole), "baseline"]
    shown = pd.concat([levels[name] for name in HEADINGS], ignore_index=True)
    unit, panels = UNITS[found.metric.difference].symbol, []
    for labels, _ in groups(whole, keys) if shown["mean"].notna().any() else ():
        own = {name: _of(frame, dict(zip(keys, labels, strict=True))) for name, frame in levels.items()}
        panels.append(forest(f"{found.arm} − {', '.join(reversed(labels))}", list(_lines(own, found)), unit, _span(shown)))
    if not panels:
        return []
    title = f"{found.metric.title} of {found.arm} minus every other start, {budget_words(int(whole['budget'].max()))}."
    return [Chart("differences", title, panels, [], FOREST.format(examples=_examples(found), stars=STARS))]


def _of(frame: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    for key, name in names.items():
        frame = frame[frame[key].astype(str) == name]
    return frame


HEADINGS = {"all": "", "pair": "By direction", "method": "By method", "relation": "By method and relation"}


def _lines(levels: dict[str, pd.DataFrame], found: Evidence) -> Iterator[Line]:
    for name, heading in HEADINGS.items():
        rows = levels[name]
        if name != "all" and not 1 < len(rows) <= LINES:
            continue
        if heading:
            yield Line(heading)
        for _, row in rows.iterrows():
            words = "no whole seed†" if math.isnan(row["mean"]) else _words(row, found, row["p_holm"]) + row["mark"]
            yield Line(_label(row), row["mean"], row["low"], row["high"], words, whole=not row["mark"])


def _label(row: pd.Series) -> str:
    direction = f"{row['origin']} → {row['receiving']}" if "origin" in row else ""
    parts = (row.get("method"), direction, row.get("relation"))
    return ", ".join(part for part in parts if isinstance(part, str) and part) or "All methods, directions and relations"


def _words(row: pd.Series, found: Evidence, p: float = math.nan) -> str:
    return with_interval(row["mean"], row["low"], row["high"], UNITS[found.metric.difference], p)


def _span(rows: pd.DataFrame) -> tuple[float, float]:
    return span_of([0.0, *rows["mean"], *rows["low"], *rows["high"]], False)


def _examples(found: Evidence) -> str:
    return " only" if found.why else " and new test examples"
