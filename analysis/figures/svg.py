"""Charts as SVG whose colours are those of charts.css: panels that stand beside each other as far as
the screen is wide.

Written here and not by a library, because every mark needs a class instead of a colour of its own (light and
dark, and a page whose policy allows no style attribute), and because panels of one width flow on a phone.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SLOTS = {  # init -> its place in charts.css; those of one kind share it, for no study has both
    "ported": 0, "extracted": 0, "sampled": 1, "scratch": 2, "sampled_permute": 3, "extracted_shuffled": 3,
    "sampled_norm": 4, "extracted_noise": 4, "shuffled": 5, "extracted_random": 5, "compute_matched": 6,
    "pissa": 6, "extracted_aligned": 7,
}
OTHER = 7  # of an init that is not named here
REFERENCES = ("native", "bare")
MARKERS = ("M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z", "M-3-3h6v6h-6z", "M0-4L4 3H-4z",
           "M0-4.5L4.5 0L0 4.5L-4.5 0z")


def css_class(name: str) -> str:
    """The class of an init, or of a reference, in charts.css.

    Example:
        >>> css_class("ported"), css_class("native"), css_class("mine")
        ('s0', 'native', 's7')
    """
    return name if name in REFERENCES else f"s{SLOTS.get(name.partition(', ')[0], OTHER)}"


def marker(name: str) -> str:
    """The outline of an init's marker around (0, 0)."""
    return MARKERS[SLOTS.get(name.partition(", ")[0], OTHER) % len(MARKERS)]


def budget_words(budget: int) -> str:
    """A budget in words.

    Example:
        >>> budget_words(0), budget_words(1000)
        ('before any update', 'after 1,000 updates')
    """
    return "before any update" if budget == 0 else f"after {budget:,} updates"


STYLE = (Path(__file__).with_name("charts.css")).read_text(encoding="utf-8")
WIDE, HIGH = 360, 216  # of a panel; one unit is one CSS pixel at that width
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 32, 34
ROW, BAR = 33, 222  # of a forest: height of a line, and where its numbers begin
COLUMNS = 4  # panels beside each other in a file
TICKS = 5
LETTERS = {"": 62, "title": 52, "head": 200}  # that fit into a panel, or a file


@dataclass(frozen=True)
class Panel:
    """One picture: what it is of, and its SVG, `high` units high."""

    title: str
    svg: str
    high: int = HIGH


@dataclass(frozen=True)
class Chart:
    """Panels under one heading, a sentence; `names` is the legend, `note` says what is drawn; `folded` where
    it is not shown at once."""

    name: str
    title: str
    panels: list[Panel]
    names: list[str]
    note: str
    folded: bool = False


@dataclass(frozen=True)
class Line:
    """One line of a forest; without a `mean` a heading, or what has no number."""

    label: str
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    words: str = ""
    verdict: str = ""
    whole: bool = True


# ---- curves


def curve_panel(title: str, points: pd.DataFrame, levels: dict[str, float], span: tuple[float, float],
           unit: str) -> Panel:
    """The values of every init against updates, which are spaced evenly, with bands.

    Args:
        points: init, budget, mean, low, high (NaN: no band), mark ("" where it is whole), in the unit that is
        shown.
        levels: native and bare, drawn across.
        span: lowest and highest value of the axis.
    """
    budgets = sorted(points["budget"].unique())
    across = dict(zip(budgets, np.linspace(LEFT + 10, WIDE - RIGHT - 10, max(2, len(budgets))), strict=False))
    low, high = span

    def down(value: float) -> float:
        return HIGH - BOTTOM - (HIGH - TOP - BOTTOM) * (min(max(value, low), high) - low) / (high - low)

    parts = []
    for value in ticks(low, high):
        y = down(value)
        parts += [f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDE - RIGHT}"/>',
                  text(LEFT - 6, y + 4, f"{value:g}", "end")]
    every = math.ceil(len(budgets) / TICKS)
    parts += [text(across[budget], HIGH - BOTTOM + 16, f"{budget:,}", "middle")
              for budget in budgets[::every]]
    parts.append(text((LEFT + WIDE - RIGHT) / 2, HIGH - 5, "updates on the receiving host", "middle"))
    parts.append(text(LEFT - 34, 17, unit, "start"))
    levels = {name: value for name, value in levels.items() if not math.isnan(value)}
    across_all = {name: f"M{LEFT} {down(value):.1f}H{WIDE - RIGHT}" for name, value in levels.items()}
    parts += [f'<g class="{css_class(name)}"><path class="line" d="{path}"/></g>'
              for name, path in across_all.items()]
    said = [f"{name} {value:.1f}" for name, value in levels.items()]
    rows = {str(name): [(across[row.budget], row)
                        for row in own.sort_values("budget").dropna(subset="mean").itertuples()]
            for name, own in points.groupby("init", sort=False)}
    for make in (_band, _curve):  # bands lie under all lines
        parts += [f'<g class="{css_class(name)}">{"".join(make(own, down, marker(name)))}</g>'
                  for name, own in rows.items()]
    numbers = {name: ", ".join(f"{row.mean:.1f} at {row.budget}" for _, row in own)
               for name, own in rows.items()}
    said += [f"{name} {words or 'no number'}" for name, words in numbers.items()]
    return Panel(title, _picture(title, parts, HIGH, "; ".join(said)))


def _band(rows: Sequence[tuple[float, Any]], down: Callable[[float], float], _: str) -> Iterator[str]:
    """The intervals of one init."""
    banded = [(x, row) for x, row in rows if not math.isnan(row.low)]
    if len(banded) > 1:
        ends = [*((x, row.high) for x, row in banded), *((x, row.low) for x, row in reversed(banded))]
        yield f'<path class="band" d="{_path(ends, down)}z"/>'


def _curve(rows: Sequence[tuple[float, Any]], down: Callable[[float], float], shape: str) -> Iterator[str]:
    """Line and markers of one init."""
    if len(rows) > 1:
        yield f'<path class="line" d="{_path([(x, row.mean) for x, row in rows], down)}"/>'
    for x, row in rows:
        hollow = " hollow" if row.mark else ""
        yield f'<path class="dot{hollow}" transform="translate({x:.1f} {down(row.mean):.1f})" d="{shape}"/>'


def _path(points: Iterable[tuple[float, float]], down: Callable[[float], float]) -> str:
    return "".join(f"{'L' if i else 'M'}{x:.1f} {down(y):.1f}" for i, (x, y) in enumerate(points))


def span_of(values: Iterable[float], fraction: bool) -> tuple[float, float]:
    """An axis that holds all values; shares of a hundred stay within 0 and 100.

    Example:
        >>> span_of([52.0, 99.0], True), span_of([0.2, 0.2], False)
        ((40.0, 100.0), (0.0, 1.0))
    """
    known = [value for value in values if not math.isnan(value)] or [0.0]
    low, high = round(min(known), 9), round(max(known), 9)
    marks = ticks(low, high)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    low, high = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
    low, high = (low, high) if high > low else (low, low + step)
    return (max(low, 0.0), min(high, 100.0)) if fraction else (low, high)


def ticks(low: float, high: float) -> list[float]:
    """Some four round values from low to high.

    Example:
        >>> ticks(52.0, 99.0), ticks(-0.3, 0.4)
        ([60.0, 80.0], [-0.2, 0.0, 0.2, 0.4])
    """
    raw = (high - low) / 4 or 1.0
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw - 1e-12)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * i, 10) + 0.0 for i in range(first, last + 1)]


# ---- differences


def forest_panel(title: str, lines: Sequence[Line], unit: str, span: tuple[float, float]) -> Panel:
    """Differences with their intervals, from the top down, the words of each beside it.

    Args:
        span: of the axis, with 0 in it.
    """
    low, high = span
    height = TOP + ROW * len(lines) + BOTTOM - 8
    foot = height - BOTTOM + 8

    def across(value: float) -> float:
        return 18 + (BAR - 36) * (min(max(value, low), high) - low) / (high - low)

    parts = [f'<path class="{"rule" if value else "zero"}" d="M{across(value):.1f} {TOP - 4}V{foot}"/>'
             for value in {*ticks(low, high), 0.0}]
    parts += [text(across(value), foot + 13, f"{value:+g}".replace("-", "−") if value else "0", "middle")
              for value in ticks(low, high)]
    parts.append(text(WIDE - 8, foot + 13, unit, "end"))
    for i, line in enumerate(lines):
        y = TOP + ROW * i
        parts.append(text(4, y + 9 if line.words else y + 24, line.label, "start", "" if line.words
                          else "title"))
        parts.append(text(BAR, y + 9, line.verdict, "start"))
        parts.append(text(BAR, y + 23, line.words, "start"))
        if not math.isnan(line.low):
            parts.append(f'<path class="line" d="M{across(line.low):.1f} {y + 19}H{across(line.high):.1f}"/>')
        if not math.isnan(line.mean):
            place = f"translate({across(line.mean):.1f} {y + 19})"
            hollow = "" if line.whole else " hollow"
            parts.append(f'<path class="dot{hollow}" transform="{place}" d="{marker("ported")}"/>')
    said = "; ".join(f"{line.label} {line.words}" for line in lines if line.words)
    return Panel(title, _picture(title, parts, height, said), height)


# ---- pictures


def text(x: float, y: float, words: str, side: str, kind: str = "") -> str:
    """Words that begin, or end, or have their middle at x; cut where a panel has no room."""
    if not words:
        return ""
    most = LETTERS[kind]
    words = words if len(words) <= most else f"{words[: most - 1]}…"
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{f"{kind} {side}".strip()}">{escape(words)}</text>'


def _picture(title: str, parts: Sequence[str], high: int, said: str) -> str:
    label = escape(f"{title}: {said}", quote=True)
    return (f'<svg class="plot s0" viewBox="0 0 {WIDE} {high}" role="img" aria-label="{label}">'
            f'{text(LEFT if high == HIGH else 4, 17, title, "start", "title")}{"".join(parts)}</svg>')


def key(name: str) -> str:
    """The sample of a legend."""
    dot = f'<path class="dot" transform="translate(13 6)" d="{marker(name)}"/>'
    shape = "" if name in REFERENCES else dot
    return (f'<svg class="plot key" viewBox="0 0 26 12" aria-hidden="true"><g class="{css_class(name)}">'
            f'<path class="line" d="M0 6H26"/>{shape}</g></svg>')


def svg_file(chart: Chart) -> str:
    """A chart as a file of its own, with its style: panels in rows of up to COLUMNS, the legend above."""
    columns = min(COLUMNS, len(chart.panels))
    rows = [chart.panels[i : i + columns] for i in range(0, len(chart.panels), columns)]
    parts, y = [text(8, 18, chart.title, "start", "head")], 30
    x = 8.0
    for name in chart.names:
        parts += [f'<svg x="{x:.0f}" y="{y}" width="26" height="12">{key(name)}</svg>',
                  text(x + 32, y + 10, name, "start")]
        x += 32 + 7 * len(name) + 18
    y += 24 if chart.names else 0
    for row in rows:
        for i, panel in enumerate(row):
            place = f'x="{i * (WIDE + 12)}" y="{y}" width="{WIDE}" height="{panel.high}"'
            parts.append(f"<svg {place}>{panel.svg}</svg>")
        y += max(panel.high for panel in row) + 12
    wide = columns * (WIDE + 12)
    label = escape(chart.title, quote=True)
    space = 'xmlns="http://www.w3.org/2000/svg"'
    return (f'<svg {space} viewBox="0 0 {wide} {y}" role="img" aria-label="{label}">'
            f"<style>{STYLE}</style>"
            '<rect width="100%" height="100%" fill="var(--sheet)"/>'
            f'<g class="plot">{"".join(parts)}</g></svg>\n')
