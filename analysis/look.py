"""What all figures share: colours, markers, sizes, and the words at their foot."""

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation, Transform

from analysis.metrics import Metric

# Okabe and Ito's palette, told apart under every common colour blindness (jfly.uni-koeln.de/color)
PALETTE = ("#D55E00", "#009E73", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DIVERGING = "PuOr"  # orange below zero, purple above; safe for the colour blind
STYLE = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 8}
GREY = "0.45"
CHARACTERS = 15.5  # of the foot's letters in an inch
Figures = dict[str, Figure]


def looks(names: Iterable[object]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for every name, in the order of first appearance."""
    return {
        str(name): (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(dict.fromkeys(names))
    }


def head(figure: Figure, text: str, handles: Sequence[Line2D] = ()) -> None:
    """The title of a figure, and its legend under it, in as many rows as the width needs."""
    if not handles:
        figure.suptitle(text, fontsize=9)
        return
    width = sum(len(str(handle.get_label())) * 0.058 + 0.5 for handle in handles)  # inches
    columns = math.ceil(len(handles) / math.ceil(width / figure.get_figwidth()))
    figure.legend(handles=list(handles), title=text, loc="outside upper center", ncols=columns, frameon=False, fontsize=7.5,
                  title_fontsize=9, handletextpad=0.5, columnspacing=1.4)


def foot(figure: Figure, text: str, label: str = "") -> None:
    """Small print under a figure, below the label of its x axis."""
    wrapped = textwrap.fill(" ".join(text.split()).replace(" %", "\u00a0%"), max(40, int(figure.get_figwidth() * CHARACTERS)))
    figure.supxlabel(f"{label}\n{wrapped}" if label else wrapped, fontsize=6.5, color="0.25", linespacing=1.35)


def sample(colour: str, marker: str, label: str, *, filled: bool = True, line: str = "") -> Line2D:
    """A line of a legend."""
    face = colour if filled else "white"
    return Line2D([], [], color=colour, marker=marker, markerfacecolor=face, markersize=4.5, linestyle=line, label=label)


def points(
    axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, marker: str, whole: Sequence[bool], *, size: float = 5.0,
    shift: float = 0.0,
) -> None:
    """Numbers: hollow where they come of fewer cells than were asked for; `shift` points aside, where many share a place."""
    x, y, whole = np.asarray(x, float), np.asarray(y, float), np.asarray(whole, bool)
    for here, face in ((whole, colour), (~whole, "white")):
        if here.any():
            axes.plot(x[here], y[here], marker, color=colour, markerfacecolor=face, markersize=size, zorder=3,
                      transform=aside(axes, shift))
    axes.update_datalim(np.column_stack([x, y]))


def aside(axes: Axes, shift: float) -> Transform:
    """Data coordinates moved to the right by so many points; what is drawn in them does not move the limits of the axes."""
    return axes.transData + ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)


def shifts(count: int, step: float = 3.5) -> list[float]:
    """Points by which to move each of several series, so that they stand beside each other.

    Example:
        >>> shifts(3)
        [-3.5, 0.0, 3.5]
    """
    return [step * (i - (count - 1) / 2) for i in range(count)]


def hollow() -> Line2D:
    """The legend of what is not whole."""
    return sample("0.2", "o", "incomplete", filled=False)


def groups(frame: pd.DataFrame, keys: Sequence[str]) -> Iterator[tuple[list[str], pd.DataFrame]]:
    """The parts of a frame that are told apart, each with its names; all of it where nothing is."""
    if not keys:
        yield [], frame
        return
    for names, part in frame.groupby(list(keys), sort=False):
        yield list(map(str, names)), part


def title(*words: str) -> str:
    """Words in a row, empty ones left out."""
    return ", ".join(word for word in words if word)


def budget_words(budget: int) -> str:
    """A budget in words.

    Example:
        >>> budget_words(0), budget_words(1000)
        ('zero-shot', 'after 1,000 updates')
    """
    return "zero-shot" if budget == 0 else f"after {budget:,} updates"


def sign_of(metric: Metric) -> int:
    """1 where higher is better, -1 where lower is, 0 where neither is."""
    return {"higher": 1, "lower": -1}.get(metric.better or "", 0)
