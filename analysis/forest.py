"""Forest plots: the arm minus another init with intervals, pooled and by direction, at the largest budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.entries import interval, number, stars
from analysis.evidence import Evidence
from analysis.look import GREY, STYLE, Figures, budget_words, foot, groups, head, hollow, looks, points, sample
from analysis.metrics import UNITS

MOST = 60  # directions and relations that a figure holds; more stand in the tables only
PLACE = ["origin", "receiving", "relation"]
WIDE = 4  # panels in a row
POOLED = ("0.1", "D")  # colour and marker of what is pooled over methods
BAND = "0.88"
NOTE = (
    "Bars: 95 % of new seeds{examples}. Stars: p ≤ 0.05, 0.01, 0.001 (*, **, ***), t test after Holm's correction within a "
    "level over all budgets and inits, exploratory. Grey: less than this study would find four times in five. A cross: no "
    "seed has all pairs."
)
COUNTS = "In brackets: pairs done/asked for, seeds."


@dataclass(frozen=True)
class Line:
    """One line of a forest: a heading (no row), or a row of inference.compare with its label and look."""

    label: str
    row: pd.Series | None = None
    look: tuple[str, str] = POOLED


def forest(found: Evidence) -> Figures:
    """Differences over all, by method, relation and, over all methods, direction: one figure for every other init, and one
    more with every direction and relation by itself, a panel a method."""
    levels = found.levels
    levels = {name: frame[frame["budget"] == frame["budget"].max()] for name, frame in levels.items()}
    figures: Figures = {}
    whole = levels["all"]
    keys = [key for key in ("data", "port") if key in whole]
    methods = looks(found.arms["method"])
    for names, part in groups(whole, keys):
        mine = {level: _same(frame, keys, part) for level, frame in levels.items()}
        for baseline in part["baseline"].unique():
            own = {level: frame[frame["baseline"] == baseline] for level, frame in mine.items()}
            words, name = ", ".join([baseline, *names]), "-".join([baseline, *names])
            figures[f"forest-{name}"] = _pooled(own, found, words, methods)
            if len(own["direction"].groupby(PLACE)) <= MOST:
                figures[f"forest_directions-{name}"] = _directions(own["direction"], found, words, methods)
    return figures


def _same(frame: pd.DataFrame, keys: Sequence[str], part: pd.DataFrame) -> pd.DataFrame:
    """The rows with the names of a part."""
    for key in keys:
        frame = frame[frame[key] == part[key].iloc[0]]
    return frame


# ---- pooled


def _pooled(levels: dict[str, pd.DataFrame], found: Evidence, words: str, methods: dict[str, tuple[str, str]]) -> Figure:
    lines = _lines(levels, methods)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.35 + 0.185 * len(lines)), layout="constrained")
        axes, text = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": [3.0, 1.75], "wspace": 0.0})
        unit = UNITS[found.metric.difference]
        _draw(axes, lines)
        text.set_axis_off()
        for place, line in enumerate(lines):
            if line.row is not None:
                text.text(0.0, place, _words(line.row, found), va="center", fontsize=7, transform=text.get_yaxis_transform())
        _title(figure, found, words, levels["all"], hollow_too=any(_lacks(line.row) for line in lines))
        foot(figure, f"{_note(found)} {COUNTS}", f"{found.metric.label}: {found.arm} − {words}, {unit.symbol}")
    return figure


def _lines(levels: dict[str, pd.DataFrame], methods: dict[str, tuple[str, str]]) -> list[Line]:
    lines = [Line("All methods, directions and relations", row) for _, row in levels["all"].iterrows()]
    for heading, rows in (("By direction, all methods and relations", levels["pair"]), ("By method", levels["method"]),
                          ("By method and relation", levels["relation"])):
        if 1 < len(rows) <= MOST:
            lines.append(Line(heading))
            lines += [Line(_label(row), row, methods.get(str(row.get("method")), POOLED)) for _, row in rows.iterrows()]
    return lines


def _label(row: pd.Series) -> str:
    direction = f"{row['origin']} → {row['receiving']}" if "origin" in row else ""
    return ", ".join(filter(None, [row.get("method", ""), direction, row.get("relation", "")]))


def _words(row: pd.Series, found: Evidence) -> str:
    counts = f"({row['n']}/{row['expected']}, {row['blocks']})"
    if pd.isna(row["mean"]):
        return f"{_none(row)} {counts}"
    unit = UNITS[found.metric.difference]
    between = "no interval" if pd.isna(row["low"]) else interval(row["low"], row["high"], unit)
    return f"{number(row['mean'], unit)} {between}{stars(row['p_holm'])}{row['mark']} {counts}"


def _none(row: pd.Series) -> str:
    return "no whole seed†" if row["n"] else "failed†" if row["failed"] else "no pair†"


# ---- by direction


def _directions(rows: pd.DataFrame, found: Evidence, words: str, methods: dict[str, tuple[str, str]]) -> Figure:
    places = list(rows[PLACE].drop_duplicates().itertuples(index=False, name=None))
    names = list(rows["method"].unique())
    wide = min(WIDE, len(names))
    tall = math.ceil(len(names) / wide)
    with matplotlib.rc_context(STYLE):
        size = (max(5.5, 2.2 + 1.75 * wide), 1.25 + tall * (0.35 + 0.2 * len(places)))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(tall, wide, squeeze=False, sharex=True, sharey=True)
        for axes, name in zip(panels.flat, names, strict=False):
            own = {tuple(row[PLACE]): row for _, row in rows[rows["method"] == name].iterrows()}
            lines = [Line("{} → {}, {}".format(*place), own.get(place), methods[str(name)]) for place in places]
            _draw(axes, lines, marks=True)
            axes.set_title(str(name))
        for axes in panels.flat[len(names):]:
            axes.set_axis_off()
        _title(figure, found, words, rows, hollow_too=any(_lacks(row) for _, row in rows.iterrows()))
        seeds = sorted(set(rows["blocks"]))
        count = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
        unit = UNITS[found.metric.difference].symbol
        label = f"{found.metric.label}: {found.arm} − {words}, {unit}"
        foot(figure, f"{_note(found)} {count} behind a point.", label)
    return figure


# ---- parts


def _draw(axes: Axes, lines: Sequence[Line], *, marks: bool = False) -> None:
    """Points and intervals from the top down; `marks`: with stars and words beside them."""
    for place, line in enumerate(lines):
        if line.row is None:
            continue
        row, (colour, marker) = line.row, line.look
        if pd.isna(row["mean"]):
            side = axes.get_yaxis_transform()
            axes.plot([0.02], [place], "x", color=colour, transform=side, markersize=5)
            if marks:
                axes.text(0.06, place, _none(row), va="center", fontsize=6.5, transform=side)
            continue
        if pd.notna(row["mdd"]):
            axes.barh(place, 2 * row["mdd"], left=-row["mdd"], height=0.72, color=BAND, linewidth=0, zorder=0)
        if pd.notna(row["low"]):
            axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.4, solid_capstyle="butt", zorder=2)
        points(axes, [row["mean"]], [place], colour, marker, [not _lacks(row)])
        if marks:
            words = stars(row["p_holm"]) + row["mark"] + (" no interval" if pd.isna(row["low"]) else "")
            end = row["mean"] if pd.isna(row["high"]) else row["high"]
            axes.annotate(words, (end, place), (3, 0), textcoords="offset points", va="center", fontsize=6.5)
    axes.use_sticky_edges = False
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    axes.set_yticks(range(len(lines)), [line.label for line in lines], fontsize=7)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if not marks:
        for label, line in zip(axes.get_yticklabels(), lines, strict=True):
            label.set_fontweight("bold" if line.row is None else "normal")


def _lacks(row: pd.Series | None) -> bool:
    return row is not None and bool(np.any(row["mark"] != ""))


def _title(figure: Figure, found: Evidence, words: str, rows: pd.DataFrame, *, hollow_too: bool) -> None:
    text = f"{found.metric.title}, {found.arm} against {words}, {budget_words(int(rows['budget'].max()))}"
    head(figure, text, [sample("0.2", "o", "complete"), hollow()] if hollow_too else [])


def _note(found: Evidence) -> str:
    return NOTE.format(examples=" only" if found.why else " and new test examples")
