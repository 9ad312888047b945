"""One function per plot: the tidy frame in, figures out; what is missing is hatched or crossed, never drawn as zero."""

import math
from collections.abc import Callable, Sequence

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from analysis.arms import WORDS
from analysis.evidence import Evidence
from analysis.look import DIVERGING, GREY, STYLE, Figures, foot, head, hollow, looks, sample
from analysis.metrics import UNITS, Metric, Unit
from analysis.stats import apart, paired, reference, summarise

MOST = 120  # panels of a figure of curves
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1}
HEAT_NOTE = "Hatched: no number; grey: not asked for; †: some cells lack; in brackets: distinct baselines."
REFERENCES = {"native": "--", "bare": ":"}
CURVE_NOTE = (
    "Lines: means over distinct runs; grey: native and bare of the receiving host; bands: one standard deviation, drawn to the "
    "ends of the scale; hollow: fewer runs than were asked for; a cross at the foot: nothing done."
)


def learning_curves(found: Evidence) -> Figures:
    """The metric against updates by init, one panel per method (across) and pair (down), one figure per relation.

    Lines are means over distinct runs, bands one standard deviation (none with one run). A hollow marker is computed
    from fewer cells than asked for, a cross at the foot stands where nothing is done. Dashed: native; dotted: bare. A study
    of more than MOST panels has one a receiving host, over all origins.
    """
    arms, keys = found.arms, apart(found.cells)
    if "port" in keys:  # one line per port
        arms = arms.assign(init=arms["init"] + ", " + arms["port"].astype(str))
    by = ["relation", *(key for key in keys if key != "port")]
    if len(arms.groupby(["method", "origin", "receiving"])) > MOST:
        arms = arms.assign(origin="all origins")
    return {
        "-".join(["learning_curves", *map(str, names)]): _curves(part, found.metric, which(found, names))
        for names, part in arms.groupby(by, sort=False)
    }


def which(found: Evidence, names: Sequence[object]) -> str:
    """A relation, and the data set and port where there are several, in words for a title."""
    relation, *others = map(str, names)
    return "; ".join([f"{WORDS[found.arm].of_origin}: {relation}", *others])


def _curves(cells: pd.DataFrame, metric: Metric, words: str) -> Figure:
    methods = list(cells["method"].unique())
    pairs = list(cells[["origin", "receiving"]].drop_duplicates().itertuples(index=False, name=None))
    inits, place = looks(cells["init"]), ["method", "origin", "receiving"]
    cells = cells.astype(dict.fromkeys([*place, "init"], "category"))  # groups of a large study are found much faster
    points = summarise(cells, [*place, "init", "budget"]).sort_values("budget", kind="stable")
    points = points.astype({"mean": float, "std": float})
    parts = dict(list(points.groupby(place)))
    levels = {name: summarise(reference(cells, name, place), place).set_index(place)["mean"] for name in REFERENCES}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(5.5, 1.0 + 2.3 * len(methods)), 1.6 + 1.7 * len(pairs)), layout="constrained")
        axes = figure.subplots(len(pairs), len(methods), sharex=True, sharey=True, squeeze=False)
        for panel in axes.flat:
            panel.set_autoscale_on(False)  # else each band scales all panels anew
        for row, (origin, receiving) in enumerate(pairs):
            for column, method in enumerate(methods):
                panel = axes[row][column]
                here = (method, origin, receiving)
                _panel(panel, parts.get(here), {name: means.get(here) for name, means in levels.items()}, metric, inits)
                panel.set_title(f"{method}: {origin} → {receiving}", fontsize=7)
        for panel in axes.flat:
            panel.set_autoscale_on(True)
            panel.autoscale_view()
        _axis(axes[0][0], sorted(cells["budget"].unique()))
        if metric.unit == "fraction":  # a deviation may reach past what can be; the scale does not
            low, high = axes[0][0].get_ylim()
            axes[0][0].set_ylim(max(low, -2.0), min(high, 102.0))
        figure.supylabel(f"{metric.label}, {UNITS[metric.unit].symbol}", fontsize=8)
        head(figure, f"{metric.title} by updates ({words})", _legend(inits))
        foot(figure, CURVE_NOTE, "updates on the receiving host")
    return figure


def _axis(panel: Axes, budgets: list[int]) -> None:
    """Budgets grow by factors but start at zero: linear up to the smallest, logarithmic past it."""
    positive = [budget for budget in budgets if budget > 0]
    if positive:
        panel.set_xscale("symlog", linthresh=positive[0])
        panel.set_xlim(-0.15 * positive[0], positive[-1] * 1.3)
    panel.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    panel.minorticks_off()


def _panel(panel: Axes, points: pd.DataFrame | None, levels: dict[str, float | None], metric: Metric,
           inits: dict[str, tuple[str, str]]) -> None:
    if points is None:
        panel.text(0.5, 0.5, "not asked for", transform=panel.transAxes, ha="center", va="center", color=GREY)
        return
    scale = UNITS[metric.unit].scale
    for init, own in points.groupby("init", sort=False):
        colour, marker = inits[str(init)]
        done = own[own["n"] > 0]
        x, y, spread = done["budget"], scale * done["mean"], scale * done["std"]
        panel.plot(x, y, color=colour, linewidth=1.2)
        panel.fill_between(x, y - spread, y + spread, where=spread.notna(), color=colour, alpha=0.18, linewidth=0)
        for whole in (True, False):
            part = done[(done["status"] == "complete") == whole]
            face = colour if whole else "white"
            panel.plot(part["budget"], scale * part["mean"], marker, color=colour, markerfacecolor=face, markersize=4)
        lost = own[own["n"] == 0]["budget"]
        height = 0.03 + 0.05 * list(inits).index(str(init))
        if len(lost):
            panel.plot(lost, [height] * len(lost), "x", color=colour, transform=panel.get_xaxis_transform())
    for name, level in levels.items():
        if pd.notna(level):
            panel.axhline(scale * level, color=GREY, linestyle=REFERENCES[name], linewidth=0.9, zorder=0)


def _legend(inits: dict[str, tuple[str, str]]) -> list[Line2D]:
    handles = [sample(*look, name, line="-") for name, look in inits.items()]
    handles += [sample(GREY, "", name, line=dashes) for name, dashes in REFERENCES.items()]
    return [*handles, hollow(), sample("0.2", "x", "nothing done")]


def gain_heat_map(found: Evidence) -> Figures:
    """Gain of the arm over scratch by origin (down) and receiving host (across), one panel per method, one figure per
    relation, at the largest budget. Hatched: no number; grey: not asked for; † incomplete; in brackets: baselines."""
    top = found.largest
    pairs = paired(top, found.arm, "scratch", found.metric.scale)
    by = ["relation", *apart(found.cells)]
    gains = summarise(pairs, [*by, "method", "origin", "receiving"])
    hosts = list(dict.fromkeys([*top["origin"], *top["receiving"]]))
    highest = gains["mean"].abs().max()
    limit = 1.0 if pd.isna(highest) or highest == 0 else float(highest)
    unit, updates = UNITS[found.metric.difference], top["budget"].max()
    figures = {}
    for names, part in gains.groupby(by, sort=False):
        figure = _heat(part, hosts, limit, unit)
        title = f"Gain of {found.arm} over scratch, {unit.symbol}, after {updates:,} updates ({which(found, names)})"
        figure.suptitle(title, fontsize=9)
        figures["-".join(["gain_heat_map", *map(str, names)])] = figure
    return figures


def _heat(gains: pd.DataFrame, hosts: list[str], limit: float, unit: Unit) -> Figure:
    methods = list(gains["method"].unique())
    wide = min(4, len(methods))
    tall = math.ceil(len(methods) / wide)
    side = 0.6 * len(hosts)
    labels = 0.075 * max(map(len, hosts))  # inches
    with matplotlib.rc_context({**STYLE, "hatch.linewidth": 0.6}):
        size = (max(5.5, labels + 1.2 + (side + 0.2) * wide), 0.85 + 0.65 * labels + (side + 0.25) * tall)
        figure = Figure(figsize=size, layout="compressed")
        axes = figure.subplots(tall, wide, squeeze=False, sharex=True, sharey=True)
        shades = ScalarMappable(Normalize(-limit, limit), DIVERGING)
        for panel, method in zip(axes.flat, methods, strict=False):
            _matrix(panel, gains[gains["method"] == method], hosts, shades, unit.digits)
            panel.set_title(method)
        for panel in axes.flat[len(methods):]:
            panel.set_axis_off()
        figure.colorbar(shades, ax=axes, shrink=0.9, pad=0.02).set_label(unit.symbol, fontsize=7)
        foot(figure, HEAT_NOTE, "receiving host")
        figure.supylabel("origin", fontsize=8)
    return figure


def _matrix(
    panel: Axes, gains: pd.DataFrame, hosts: list[str], shades: ScalarMappable, digits: int
) -> None:
    panel.set_facecolor("0.93")
    for _, row in gains.iterrows():
        x, y = hosts.index(row["receiving"]), hosts.index(row["origin"])
        if row["n"] == 0:
            panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="white", edgecolor="0.6", hatch="////"))
            panel.text(x, y, row["status"].replace("+", "\n"), ha="center", va="center", fontsize=7, bbox=PAPER)
            continue
        red, green, blue, _ = shades.to_rgba(row["mean"])
        panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=(red, green, blue)))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        mark = "" if row["status"] == "complete" else "†"
        number = f"{row['mean']:+.{digits}f}".replace("-", "−")
        panel.text(x, y, f"{number}{mark}\n({row['runs']})", ha="center", va="center", fontsize=7,
                   color="white" if dark else "black")
    panel.set(xlim=(-0.5, len(hosts) - 0.5), ylim=(len(hosts) - 0.5, -0.5), aspect="equal")
    panel.set_xticks(range(len(hosts)), hosts, rotation=40, ha="right", fontsize=7)
    panel.set_yticks(range(len(hosts)), hosts, fontsize=7)
    panel.tick_params(length=0)


PLOTS: dict[str, Callable[[Evidence], Figures]] = {
    "learning_curves": learning_curves,
    "gain_heat_map": gain_heat_map,
}
