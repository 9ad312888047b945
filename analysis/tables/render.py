"""One table as CSV, Markdown and LaTeX; all but the CSV show the same grid of entries."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd

from portability.analysis.formatting import NOTHING
from portability.analysis.metrics import PREFIX, UNITS, metric_of
from portability.analysis.tables.captions import Table
from portability.core.specs import BARE


class Entry(NamedTuple):
    """One field of a grid; `style` is "", "best" or "second"."""

    text: str
    style: str = ""


class Grid(NamedTuple):
    """What a reader sees: a header and rows of entries, the first `labels` columns naming the row."""

    header: list[str]
    rows: list[list[Entry]]
    labels: int


def grid(table: Table) -> Grid:
    """Lay a table out: its row keys to the left, one column per value of its column key."""
    frame, keys = table.shown, list(table.rows)
    if table.column is None:
        rows = [[Entry(_label(name, row[name])) for name in frame] for _, row in frame.iterrows()]
        return Grid([name.replace("_", " ") for name in frame], rows, len(frame.columns))
    styles, entries = _styles(table) if table.best else {}, {}
    for index, row in frame.iterrows():
        place = tuple(row[key] for key in keys), row[table.column]
        entries[place] = Entry(table.show(row), styles.get(index, ""))
    columns = sorted(set(frame[table.column]), key=_order(frame, table.column))
    orders = [_order(frame, key) for key in keys]
    names = sorted({name for name, _ in entries},
                   key=lambda name: [rank(x) for rank, x in zip(orders, name, strict=True)])
    units = frame.drop_duplicates("quantity").set_index("quantity")["unit"]
    rows = [[Entry(_label(key, x, units)) for key, x in zip(keys, name, strict=True)]
            + [entries.get((name, column), Entry(NOTHING)) for column in columns] for name in names]
    header = [key.replace("_", " ") for key in keys]
    return Grid(header + [_label(table.column, column, units) for column in columns], rows, len(keys))


def _order(frame: pd.DataFrame, key: str) -> Callable[[Any], float]:
    """Rank of a value: numbers by size, names by first appearance; origins and receiving hosts share one
    order."""
    if pd.api.types.is_numeric_dtype(frame[key]):
        return float
    hosts = [name for name in ("receiving", "origin") if name in frame]
    values = pd.concat([frame[name] for name in (hosts if key in hosts else [key])])
    ranks = {value: float(i) for i, value in enumerate(values.unique())}
    return ranks.__getitem__


def _label(key: str, value: object, units: pd.Series | None = None) -> str:
    if key == "budget":
        return "zero-shot" if value == 0 else f"{value} updates"
    if key == "quantity" and units is not None:
        name = metric_of(str(value)).label if str(value).startswith(PREFIX) else value
        return f"{name}, {UNITS[units[value]].symbol}"
    return _clean(str(value))


def _styles(table: Table) -> dict[int, str]:
    """Best and second of every block: same column and rows, different init; only whole entries compete."""
    frame = table.frame
    arms = frame[(frame["quantity"] == table.metric.name) & (frame["init"] != BARE)]
    whole = arms[arms["status"] == "complete"]
    block = [key for key in (*table.rows, table.column) if key != "init"]
    digits = UNITS[table.metric.unit].digits + (2 if table.metric.unit == "fraction" else 0)
    shown = whole.assign(shown=whole["mean"].round(digits))  # equal in print is equal in rank
    blocks = shown.groupby(block, sort=False, dropna=False)["shown"]
    ranks = blocks.rank("dense", ascending=table.metric.better == "lower")
    alone = blocks.transform("nunique") < 2
    return {i: {1.0: "best", 2.0: "second"}.get(rank, "") for i, rank in ranks[~alone].items()}


def _clean(text: str) -> str:
    """One line of printable characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


# ---- the three forms


def csv(table: Table) -> str:
    """Tidy and numeric: mean and std in the row's `unit` (a fraction is no percentage), n, runs, expected,
    status."""
    return table.frame.to_csv(index=False, lineterminator="\n")


def markdown(table: Table) -> str:
    """A pipe table; best bold, second underlined."""
    marks = {"best": "**{}**", "second": "<u>{}</u>"}
    header, *rows = _lines(table, lambda text: re.sub(r"([\\|*_`<])", r"\\\1", text), marks)
    header = [text.replace("\\", "") for text in header]
    body = ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)]
    return "\n".join([f"### {table.lead}", "", *body, "", table.notes, ""])


def latex(table: Table) -> str:
    """A booktabs table (needs \\usepackage{booktabs}); best bold, second underlined."""
    lines = _lines(table, escape, {"best": "\\textbf{{{}}}", "second": "\\underline{{{}}}"})
    header, *rows = [" & ".join(line) + " \\\\" for line in lines]
    return "\n".join([
        "\\begin{table}", "\\centering", "\\small",
        f"\\caption{{{escape(table.title)}. {escape(table.caption)}}}",
        f"\\label{{tab:{table.name.replace('_', '-')}}}",
        f"\\begin{{tabular}}{{{'l' * len(lines[0])}}}", "\\toprule", header, "\\midrule", *rows,
        "\\bottomrule", "\\end{tabular}", "\\end{table}", "",
    ])


def _lines(table: Table, safe: Callable[[str], str], marks: dict[str, str]) -> list[list[str]]:
    """The header and the rows of a table, its texts made safe, and the best and the second marked."""
    view = grid(table)
    return [[safe(text) for text in view.header], *(
        [marks.get(entry.style, "{}").format(safe(entry.text)) for entry in row] for row in view.rows)]


LATEX = {
    "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "_": "\\_", "%": "\\%", "&": "\\&", "#": "\\#",
    "$": "\\$", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}",
    ">": "\\textgreater{}", "±": "$\\pm$", "−": "$-$", "–": "--", "†": "$^{\\dagger}$", "→": "$\\rightarrow$",
    "…": "\\dots{}",
}


def escape(text: str) -> str:
    """Text safe in LaTeX.

    Example:
        >>> print(escape("50 % of a_b & c"))
        50 \\% of a\\_b \\& c
    """
    return text.translate({ord(character): safe for character, safe in LATEX.items()})


FORMS: dict[str, Callable[[Table], str]] = {"csv": csv, "md": markdown, "tex": latex}
