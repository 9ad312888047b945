"""Critical-difference diagrams: mean ranks of inits and of methods, joined where a test does not tell them apart."""

from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.contrasts import tie_groups
from analysis.evidence import Evidence
from analysis.judging import POOLED
from analysis.look import GREY, STYLE, Figures, budget_words, foot, groups, head, hollow, looks, points, sample, sign_of
from analysis.stats import apart

TASK = ["method", "origin", "receiving", "relation"]
AXES = {"init": "method", "method": "init"}  # what is ranked, and within what
NOTE = (
    "Place: mean rank over tasks ({task}), each by its mean over seeds; 1 is the best. A bar joins the items at its ticks, "
    "which a t test over seeds does not tell apart (5 %, Holm's correction within a line): it tests paired differences, not "
    "ranks, for the runs of a seed are not independent. That is no proof of equality.{dropped}"
)
DROPPED = " Tasks that lack one of the items are left out."


def critical_difference(found: Evidence) -> Figures:
    """Inits within every method and over all, and methods within every init, at the largest budget: one figure each.

    None where neither a high nor a low value is better, or where there are not two to compare.
    """
    figures: Figures = {}
    if not sign_of(found.metric) or found.largest.empty:
        return figures
    tied, keys = tie_groups(found), apart(found.largest)
    tied = tied[tied["budget"] == found.largest["budget"].max()]
    for names, cells in groups(found.largest, keys):
        mine = _same(tied, dict(zip(keys, names, strict=True)))
        for axis, within in AXES.items():
            parts = {POOLED: cells} if axis == "init" and cells["method"].nunique() > 1 else {}
            parts |= {str(name): part for name, part in cells.groupby(within, sort=False)}
            panels = [
                _Panel(name, _same(mine, {"compared": axis, "within": name}), *ranks(part, axis, sign_of(found.metric)))
                for name, part in parts.items() if part[axis].nunique() > 1
            ]
            if panels:
                figures["-".join([f"critical_difference_{axis}s", *names])] = _figure(panels, axis, found, ", ".join(names))
    return figures


def _same(frame: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    for key, name in names.items():
        frame = frame[frame[key].astype(str) == name]
    return frame


def ranks(cells: pd.DataFrame, axis: str, sign: int) -> tuple[pd.Series, int, int]:
    """Mean rank of every item of an axis over the tasks that have all of them.

    Returns:
        The ranks (1 is the best; equal values share a rank), the number of tasks used, and of all tasks.
    """
    task = [name for name in TASK if name != axis]
    table = cells.pivot_table(index=task, columns=axis, values="value", aggfunc="mean", dropna=False, sort=False)
    tasks = len(cells[task].drop_duplicates())
    table = table.loc[table.notna().all(axis=1)]
    return (-sign * table).rank(axis=1).mean(), len(table), tasks


@dataclass(frozen=True)
class _Panel:
    """One diagram: its name, tie groups, mean ranks, and tasks used of all."""

    name: str
    tied: pd.DataFrame
    means: pd.Series
    used: int
    tasks: int

    @property
    def frame(self) -> pd.DataFrame:
        """The items with `rank` and `letters`, best rank first; those without a rank are last."""
        ranked = self.tied.assign(item=self.tied["item"].astype(str), rank=self.tied["item"].map(self.means).astype(float))
        return ranked.sort_values("rank", kind="stable", ignore_index=True)

    @property
    def title(self) -> str:
        """The name, and how many tasks were ranked."""
        of = f" of {self.tasks}" if self.used < self.tasks else ""
        return f"{'all methods' if self.name == POOLED else self.name}: {self.used}{of} tasks"


def _figure(panels: list[_Panel], axis: str, found: Evidence, words: str) -> Figure:
    items, frames = looks(found.arms[axis]), [panel.frame for panel in panels]
    heights = [0.95 + 0.13 * len(frame) for frame in frames]
    most = max(map(len, frames))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 1.3 + 0.62 * sum(heights)), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights})
        for one, panel, frame in zip(axes.flat, panels, frames, strict=True):
            _diagram(one, frame, items, panel.title)
        axes.flat[0].set_xlim(0.75, most + 0.25)
        axes.flat[-1].set_xticks(range(1, most + 1))
        words = f" ({words})" if words else ""
        title = f"Mean ranks of {axis}s by {found.metric.label}, {budget_words(int(found.largest['budget'].max()))}{words}"
        lacks = any((frame["mark"] != "").any() for frame in frames)
        head(figure, title, [sample("0.2", "o", "complete"), hollow()] if lacks else [])
        task = ", ".join(key for key in TASK if key != axis).replace("origin, receiving", "direction")
        short = any(panel.used < panel.tasks for panel in panels)
        foot(figure, NOTE.format(task=task, dropped=DROPPED if short else ""), "mean rank")
    return figure


def _diagram(axes: Axes, frame: pd.DataFrame, items: dict[str, tuple[str, str]], words: str) -> None:
    """Items on a line at their ranks, their names above, bars of ties below."""
    axes.axhline(0, color="0.2", linewidth=0.9, zorder=1)
    half = (len(frame) + 1) // 2
    for place, row in enumerate(frame.itertuples()):
        colour, marker = items[row.item]
        if np.isnan(row.rank):
            axes.text(1.0, 0.98 - 0.16 * (len(frame) - 1 - place), f"× {row.item}: no rank{row.mark}", color=colour, ha="right",
                      va="top", fontsize=7, transform=axes.transAxes)
            continue
        left = place < half
        height = 0.55 + 0.62 * (place if left else len(frame) - 1 - place)
        end = axes.get_yaxis_transform()
        side = 0.0 if left else 1.0
        axes.plot([row.rank, row.rank], [0, height], color=colour, linewidth=0.8, zorder=1)
        axes.annotate("", (row.rank, height), (side, height), xycoords="data", textcoords=end,
                      arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0})
        axes.annotate(f"{row.item} {row.rank:.2f}{row.mark}", (side, height), (-3 if left else 3, 0), xycoords=end, va="center",
                      textcoords="offset points", ha="right" if left else "left", fontsize=7, annotation_clip=False)
        points(axes, [row.rank], [0], colour, marker, [row.mark == ""])
    bars = _bars(frame)
    for level, members in enumerate(bars):
        axes.plot(members, [-0.5 - 0.32 * level] * len(members), color="0.2", linewidth=2.2, marker="|", markersize=6,
                  markeredgewidth=1.4, solid_capstyle="butt", gid="tie")
    axes.set_ylim(-0.7 - 0.32 * max(1, len(bars)), 0.9 + 0.62 * max(0, half - 1))
    axes.set_title(words, fontsize=7.5, color=GREY)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0, labelsize=7)


def _bars(frame: pd.DataFrame) -> list[list[float]]:
    """The ranks of every group of items that share a letter."""
    ranked = frame[frame["rank"].notna()]
    own = [ranked.loc[ranked["letters"].str.contains(letter, regex=False), "rank"].tolist()
           for letter in sorted(set("".join(ranked["letters"])))]
    return [members for members in own if len(members) > 1]
