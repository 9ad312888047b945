"""The comparison in words: blocks of rows that the terminal, the README of a results folder and the page
share; all rows as CSV and JSON."""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from portability.analysis.comparison.rows import Basis, Comparison, Summary
from portability.analysis.formatting import interval, number, plain
from portability.analysis.metrics import UNITS, metric_of
from portability.core.errors import validate_choice
from portability.core.specs import BARE
from portability.options import AGAINST

NOTES = (
    "Studies stand side by side and are never pooled.",
    "A gain is {arm} less {against} on the same seeds (at 0 updates less the bare host), with its 95 % "
    "interval of new seeds.",
    "All gains are exploratory: what was declared before the runs decides.",
    "Rows over other numbers of pairs are over other pairs of hosts, and are no comparison.",
    "† some cells are lacking. Updates of its own are those that a port made itself; seconds depend on the "
    "machine.")


@dataclass(frozen=True)
class Block:
    """Rows of text under a heading; the first `words` columns are words, the others numbers."""

    title: str
    head: list[str]
    rows: list[list[str]]
    words: int


# ---- gains


def gains(comparison: Comparison, level: str = "strategy", against: str = AGAINST,
          last: bool = False) -> Iterator[Block]:
    """The gains of a level, a block for each `Basis`.

    Args:
        level: a key of rows.LEVELS.
        against: an init.
        last: whether of each study's budgets only 0 and the largest are shown.

    Raises:
        UserError: no study compares with that init.
    """
    rows = comparison.rows[comparison.rows["level"] == level]
    validate_choice(against, set(rows["against"]) - {BARE}, "start")
    rows = rows[rows["against"] == rows["budget"].map(lambda budget: against if budget else BARE)]
    if last:
        largest = rows.groupby("study")["budget"].transform("max")
        rows = rows[rows["budget"].isin({0}) | (rows["budget"] == largest)]
    for basis, studies in comparison.bases().items():
        own = rows[rows["study"].isin([study.name for study in studies])]
        if len(own):
            yield _block(basis, own, level)


def _block(basis: Basis, rows: pd.DataFrame, level: str) -> Block:
    rows = rows.sort_values([*PLACES, "study", "budget"], kind="stable")
    words = [name for name in PLACES if name in ("method", "strategy") or level == "pair" and name != "data"
             or rows.groupby("study")[name].nunique().max() > 1]
    numbers = {name: show for name, show in NUMBERS.items()
               if name != "own updates" or rows["own_updates"].gt(0).any()}
    lines = [[*(str(row[name]) for name in (*words, "study")), *(show(row) for show in numbers.values())]
             for _, row in rows.iterrows()]
    return Block(f"{basis}", [*words, "study", *numbers], lines, len(words) + 1)


def _gain(row: pd.Series) -> str:
    unit = UNITS[row["unit"]]
    between = "" if pd.isna(row["low"]) else f" {interval(row['low'], row['high'], unit)}"
    return "no whole seed" if pd.isna(row["gain"]) else f"{number(row['gain'], unit)}{row['mark']}{between}"


def _seconds(row: pd.Series) -> str:
    return plain(row["port_seconds"], ".2g" if row["port_seconds"] < 10 else ",.0f")


PLACES = ("method", "strategy", "data", "origin", "receiving", "relation")
NUMBERS: dict[str, Callable[[pd.Series], str]] = {
    "updates": lambda row: plain(row["budget"]), "gain [95 %]": _gain,
    "pairs": lambda row: plain(row["pairs"]), "seeds": lambda row: plain(row["seeds"]),
    "own updates": lambda row: plain(row["own_updates"]), "s to port": _seconds,
}


def notes(comparison: Comparison, against: str = AGAINST) -> list[str]:
    """What the gains are, and what they are not."""
    arm = " or ".join(comparison.rows["arm"].unique())
    return [sentence.format(arm=arm, against=against) for sentence in NOTES]


# ---- studies


def studies(comparison: Comparison) -> Block:
    """What each study is."""
    head = ["study", "methods", "strategies", "data", "pairs of hosts", "updates", "seeds", "runs",
            "cells done", "declared"]
    return Block("Studies", head, [_study(one) for one in comparison.studies], 4)


def _study(study: Summary) -> list[str]:
    axes, counts = study.axes, study.counts
    return [study.name, *(", ".join(axes[name]) for name in ("method", "strategy", "data")),
            str(len(axes["pair"])), ", ".join(map(str, axes["budget"])), f"{counts['seeds']:,}",
            f"{counts['runs']:,}", f"{counts['done']:,} of {counts['cells']:,}", verdicts(study)]


def verdicts(study: Summary) -> str:
    """How many of the declared contrasts came out in which way, and by which metric, such as "1 ahead, 2 open
    by AUC"."""
    found = pd.Series([row["verdict"] for row in study.declared], dtype=object).value_counts()
    counts = ", ".join(f"{found[name]} {name}" for name in sorted(found.index))
    return f"{counts} by {metric_of(study.basis.metric).label}" if counts else "none"


# ---- data


def as_csv(comparison: Comparison) -> str:
    """All rows, at both levels and against every start."""
    return comparison.rows.to_csv(index=False, lineterminator="\n")


def as_json(comparison: Comparison) -> str:
    """The studies and all rows; null where there is no number."""
    told = [asdict(one) | {"folder": one.name, "basis": one.basis._asdict()} for one in comparison.studies]
    rows = comparison.rows.astype(object).where(comparison.rows.notna(), None).to_dict("records")
    return json.dumps({"studies": told, "rows": rows}, indent=1, ensure_ascii=False, allow_nan=False)


# ---- the README of a results folder

README = """# Studies

<!-- made by `portability compare results --published --readme results/README.md` -->

One folder per study: `manifests/` (the cells that were asked for), `runs/` (one folder per finished run),
`failures/`, `checkpoints/` and `running/` (while something is in training), `index.parquet` (derived),
`tables/`, `plots/`, `report.md` and `wandb/` (offline files). Runs are named by the hash of everything that
can change their numbers; the docstring of `portability.store` describes the layout.

The studies below are published copies: records, cells and predictions in `published/`, without modules, with
their tables, plots and reports. They are read like any study, and written by none. What they say in words:
{results}. How to send one: {submitting}.
All of them on one page with filters: `portability compare results/ --page results/index.html`.

## Published here

{studies}

{verdicts}

## Gains by method and strategy

{note}

{gains}
"""


def readme(comparison: Comparison, folder: Path, against: str = AGAINST) -> str:
    """The README of a results folder, with links to what is there.

    Raises:
        UserError: as `gains`.
    """
    table = studies(comparison)
    told = [f"- **{_linked(study.name, study.folder / 'README.md', folder)}** "
            f"({_linked('report', study.folder / 'report/index.html', folder)}): {_plain(study.verdict)}"
            for study in comparison.studies]
    parts = [f"### {block.title}\n\n{markdown(block)}"
             for block in gains(comparison, against=against, last=True)]
    return README.format(
        results=_linked("docs/results", folder / "../docs/results/README.md", folder),
        submitting=_linked("docs/submitting.md", folder / "../docs/submitting.md", folder),
        studies=markdown(table), verdicts="\n".join(told), note=_plain(" ".join(notes(comparison, against))),
        gains="\n\n".join(parts))


def markdown(block: Block) -> str:
    """A block as a pipe table."""
    rule = ["---"] * block.words + ["---:"] * (len(block.head) - block.words)
    lines = [block.head, rule, *([_plain(text) for text in row] for row in block.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """A text that stands for itself in Markdown."""
    return re.sub(r"([\\|*`<])", r"\\\1", " ".join(text.split()))


def _linked(words: str, target: Path, folder: Path) -> str:
    return f"[{words}]({address(target, folder)})" if target.exists() else words


def address(target: Path, folder: Path) -> str:
    """A path as seen from a folder."""
    return Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix()
