"""The plots of contrasts, and of what goes with them: similarity of hosts, cost, and the spread of all scores."""

import math
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.critical import critical_difference
from analysis.evidence import Evidence
from analysis.forest import forest
from analysis.judging import POOLED
from analysis.look import (
    GREY,
    STYLE,
    Figures,
    aside,
    budget_words,
    foot,
    groups,
    head,
    hollow,
    looks,
    points,
    sample,
    shifts,
    sign_of,
    title,
)
from analysis.metrics import UNITS
from analysis.predictors import CARRIED, SIMILARITIES, gain_and_similarity, predictors
from analysis.robust import Interval, bootstrap, profile, scores_of
from analysis.stats import apart, summarise

PREDICTORS = {
    "cka": "linear CKA of the hosts", "weight_distance": "distance of the hosts' weights", "shape_distance":
    "distance of the hosts' shapes", "carried": "part of the parameters carried", "carried_norm": "part of the norm carried",
}
SCATTER_NOTE = (
    "A point is a method in a direction and relation (methods stand side by side); bars: 95 % of new seeds{examples}. Points "
    "of one pair of hosts are alike, so the test exchanges hosts, not points."
)
COST_NOTE = (
    "Means over distinct runs of a method and init (inits stand side by side): by updates at every budget, else of whole runs "
    "at the largest. Front: no whole point is cheaper and better. Seconds depend on how many runs were trained together and on "
    "the machine; the training of an origin is not counted."
)
COSTS = {"mark": "updates on the receiving host", "seconds": "seconds of a run", "trainable": "trainable parameters"}
PANELS = 4  # budgets in a figure of profiles
STEPS = 101  # thresholds of a profile
PROFILE_NOTE = (
    "Share of all scores (every task and seed) that are better than a threshold; a task is a method in a direction and "
    "relation. Bands: 95 %, whole seeds drawn anew. This describes the runs at hand and is no test.{lacks}"
)


# ---- what goes with a gain


def similarity(found: Evidence) -> Figures:
    """Gain against the similarity of the hosts, and against what was carried, at the largest budget: a figure for every
    other init, where something of the kind is recorded."""
    figures: Figures = {}
    points = gain_and_similarity(found)
    points = points[(points["budget"] == points["budget"].max()) & points["gain"].notna()]
    keys = apart(found.cells)
    told = predictors(found) if len(points) else None
    for kind, names in (("similarity", SIMILARITIES), ("carried", CARRIED)):
        recorded = [name for name in names if points[name].notna().any()]
        for labels, own in groups(points, [*keys, "baseline"]) if recorded else ():
            words = {} if told is None else _correlations(told, dict(zip([*keys, "baseline"], labels, strict=True)), own)
            figures["-".join([f"gain_and_{kind}", *reversed(labels)])] = _scatter(own, recorded, words, found, labels)
    return figures


def _correlations(told: pd.DataFrame, labels: dict[str, str], points: pd.DataFrame) -> dict[str, str]:
    """What is said of each predictor over all methods."""
    rows = told[(told["budget"] == points["budget"].iloc[0])]
    for key, name in labels.items():
        rows = rows[rows[key].astype(str) == name]
    pooled = rows[rows["method"] == POOLED] if (rows["method"] == POOLED).any() else rows
    return {row.predictor: row.note or f"Spearman {row.spearman:+.2f}, p {row.p:.2g} (smallest possible {row.smallest_p:.2g})"
            .replace("-", "−") for row in pooled.itertuples()}


def _scatter(gains: pd.DataFrame, names: Sequence[str], told: dict[str, str], found: Evidence,
             labels: Sequence[str]) -> Figure:
    methods = looks(gains["method"])
    moved = dict(zip(methods, shifts(len(methods)), strict=True))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(5.5, 0.8 + 2.4 * len(names)), 3.6), layout="constrained")
        axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
        for panel, name in zip(axes, names, strict=True):
            panel.axhline(0, color=GREY, linewidth=0.8, zorder=1)
            for method, own in gains[gains[name].notna()].groupby("method", sort=False):
                (colour, marker), shift = methods[str(method)], moved[str(method)]
                known = own[own["low"].notna()]
                panel.vlines(known[name], known["low"], known["high"], color=colour, linewidth=0.9, alpha=0.55, zorder=2,
                             transform=aside(panel, shift))
                panel.update_datalim([(x, y) for end in ("low", "high") for x, y in zip(known[name], known[end], strict=True)])
                points(panel, own[name], own["gain"], colour, marker, own["mark"] == "", size=4.5, shift=shift)
            panel.margins(0.1, 0.06)
            panel.autoscale_view()
            panel.set_xlabel(PREDICTORS[name], fontsize=7.5)
            panel.set_title(told.get(name, ""), fontsize=6.5, color=GREY)
        axes[0].set_ylabel(f"gain in {found.metric.label}, {UNITS[found.metric.difference].symbol}", fontsize=7.5)
        lacks = (gains["mark"] != "").any()
        handles = [sample(*look, name) for name, look in methods.items()] + ([hollow()] if lacks else [])
        head(figure, f"Gain over {title(*reversed(labels))}, {budget_words(int(gains['budget'].max()))}", handles)
        without = int(gains[list(names)].isna().any(axis=1).sum())
        gone = f" {without} points without a recorded number are not in every panel." if without else ""
        examples = " only" if found.why else " and new test examples"
        foot(figure, f"{SCATTER_NOTE.format(examples=examples)}{gone}")
    return figure


# ---- cost


def pareto(found: Evidence) -> Figures:
    """The metric against updates, seconds and trainable parameters by method and init, with what nothing is both cheaper and
    better than. Means over distinct runs; seconds are those of whole runs and depend on what was trained beside them."""
    figures: Figures = {}
    facts = found.study.runs[["run_id", "updates", "seconds", "trainable"]]
    facts = facts.assign(**{name: pd.to_numeric(facts[name], errors="coerce") for name in ("updates", "seconds", "trainable")})
    cells = found.arms.merge(facts, on="run_id", how="left")
    for labels, own in groups(cells, apart(found.cells)):
        panels = {name: points for name in COSTS if len(points := costs(own, name))}
        if panels:
            figures["-".join(["cost", *labels])] = _pareto(panels, found, labels)
    return figures


def costs(cells: pd.DataFrame, name: str) -> pd.DataFrame:
    """Mean metric and mean cost by method, init and budget; of seconds and parameters only where the run ends at the budget.

    Args:
        cells: arms with the columns of load.FACTS.
        name: one of COSTS.

    Returns:
        The columns of stats.summarise and `cost`; rows without a number or a cost are left out.
    """
    if name != "mark":
        cells = cells[(cells["mark"] == cells["updates"]) | cells["updates"].isna()]
        cells = cells[cells["budget"] == cells["budget"].max()]
    keys = ["method", "init", "budget"]
    points = summarise(cells, keys)
    distinct = cells[cells["status"] == "done"].drop_duplicates([*keys, "run_id"])
    price = distinct.groupby(keys, sort=False)[name].mean().rename("cost")
    points = points.join(price, on=keys)
    return points[points["mean"].notna() & points["cost"].notna()].reset_index(drop=True)


def front(points: pd.DataFrame, sign: int) -> pd.DataFrame:
    """The whole points that no other whole point beats in cost and mean, cheapest first; none where neither end is better."""
    whole = points[points["status"] == "complete"] if sign else points.iloc[:0]
    whole = whole.assign(score=sign * whole["mean"]).sort_values(["cost", "score"], ascending=[True, False], kind="stable")
    return whole[whole["score"] > whole["score"].cummax().shift(fill_value=-math.inf)]


def _pareto(panels: dict[str, pd.DataFrame], found: Evidence, labels: Sequence[str]) -> Figure:
    unit, sign = UNITS[found.metric.unit], sign_of(found.metric)
    every = pd.concat(panels.values())
    methods = {name: marker for name, (_, marker) in looks(every["method"]).items()}
    inits = {name: colour for name, (colour, _) in looks(found.arms["init"]).items()}
    moved = dict(zip(inits, shifts(len(inits)), strict=True))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(5.5, 0.8 + 2.5 * len(panels)), 3.7), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for panel, (name, prices) in zip(axes, panels.items(), strict=True):
            best = front(prices, sign)
            if len(best):
                panel.step(best["cost"], unit.scale * best["mean"], where="post", color="0.2", linewidth=0.9, zorder=1,
                           gid="front")
            for row in prices.itertuples():
                points(panel, [row.cost], [unit.scale * row.mean], inits[str(row.init)], methods[str(row.method)],
                       [row.status == "complete"], size=4.5, shift=moved[str(row.init)])
            _cost_axis(panel, name, prices)
        axes[0].set_ylabel(f"{found.metric.label}, {unit.symbol}", fontsize=7.5)
        handles = [sample(inits[name], "o", name) for name in inits if name in set(every["init"].astype(str))]
        handles += [sample("0.35", marker, name) for name, marker in methods.items()]
        handles += [sample("0.2", "", "front", line="-")] if sign else []
        handles += [hollow()] if (every["status"] != "complete").any() else []
        head(figure, title(f"{found.metric.title} against cost", *labels), handles)
        foot(figure, COST_NOTE)
    return figure


def _cost_axis(panel: Axes, name: str, points: pd.DataFrame) -> None:
    panel.margins(0.1, 0.06)
    panel.autoscale_view()
    if name == "mark":
        marks = sorted(points["cost"].unique())
        positive = [mark for mark in marks if mark > 0]
        if positive:
            panel.set_xscale("symlog", linthresh=positive[0])
            panel.set_xlim(-0.25 * positive[0], 1.4 * positive[-1])
        panel.set_xticks(marks, [f"{mark:,.0f}" for mark in marks])
        panel.minorticks_off()
    elif name == "trainable":
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        panel.locator_params(axis="x", nbins=4)
    panel.set_xlabel(COSTS[name], fontsize=7.5)


# ---- all scores


def profiles(found: Evidence) -> Figures:
    """Performance profiles: the share of scores that are better than a threshold, by init, one panel a budget."""
    parts = [(labels, cells) for labels, cells in groups(found.arms, apart(found.cells)) if cells["value"].notna().any()]
    return {"-".join(["profiles", *labels]): _profiles(cells, found, labels) for labels, cells in parts}


def _profiles(cells: pd.DataFrame, found: Evidence, labels: Sequence[str]) -> Figure:
    unit, lower = UNITS[found.metric.unit], sign_of(found.metric) < 0
    every = sorted(cells["budget"].unique())
    budgets = [every[i] for i in sorted(set(np.linspace(0, len(every) - 1, min(PANELS, len(every))).round().astype(int)))]
    limits = np.linspace(cells["value"].min(), cells["value"].max(), STEPS)
    inits = looks(cells["init"])
    lines = {(budget, init): _profile(cells, init, int(budget), limits, lower) for budget in budgets for init in inits}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(5.5, 0.8 + 2.2 * len(budgets)), 3.3), layout="constrained")
        axes = figure.subplots(1, len(budgets), squeeze=False, sharey=True, sharex=True)[0]
        for panel, budget in zip(axes, budgets, strict=True):
            for init, (colour, _) in inits.items():
                line, mark = lines[budget, init]
                panel.plot(unit.scale * limits, line.value, "--" if mark else "-", color=colour, linewidth=1.3, label=init)
                panel.fill_between(unit.scale * limits, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
            panel.set_title(budget_words(int(budget)))
        axes[0].set_ylim(-0.02, 1.02)
        axes[0].set_ylabel(f"share of scores {'below' if lower else 'above'}", fontsize=7.5)
        handles = [sample(colour, "", name, line="-") for name, (colour, _) in inits.items()]
        head(figure, title(f"Performance profiles, {found.metric.label}", *labels), handles)
        words = " Dashed: some scores lack." if any(mark for _, mark in lines.values()) else ""
        words += " No band: a task has one seed only." if any(np.isnan(line.low).all() for line, _ in lines.values()) else ""
        foot(figure, PROFILE_NOTE.format(lacks=words), f"{found.metric.label}, {unit.symbol}")
    return figure


def _profile(cells: pd.DataFrame, init: str, budget: int, limits: np.ndarray, lower: bool) -> tuple[Interval, str]:
    """A profile with its band, NaN without a score, and the mark of what is not whole."""
    scores = scores_of(cells[cells["init"].astype(str) == init], init, budget)
    sign = -1 if lower else 1
    return bootstrap(lambda values: profile(sign * values, sign * limits), scores.values), scores.mark


PLOTS_MORE: dict[str, Callable[[Evidence], Figures]] = {
    "forest": forest,
    "critical_difference": critical_difference,
    "similarity": similarity,
    "cost": pareto,
    "profiles": profiles,
}
