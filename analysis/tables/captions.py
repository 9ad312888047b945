"""What a table is, and the notes under it: what its numbers are, what varies between replicates, and what
lacks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

import pandas as pd

from portability.analysis.context import StudyContext
from portability.analysis.contrast_arm import say
from portability.analysis.formatting import NOTHING, mean_entry
from portability.analysis.measures.equal_compute import spent
from portability.analysis.measures.primary_contrasts import has_iterates, iterates
from portability.analysis.measures.special_studies import CONTRAST
from portability.analysis.metrics import UNITS, Metric
from portability.analysis.records import Protocol
from portability.analysis.stats.blocks import POOLED
from portability.analysis.stats.pairing import COORDINATES, FAULTS, PORTED, varying
from portability.analysis.tables.views import EDGE
from portability.core.specs import PROTOCOLS, SCHEMA, too_long_words
from portability.core.wording import counted


@dataclass(frozen=True)
class TableSpec:
    """How a table is made and laid out; `{label}` in the lead is the metric, `{budget}` the study's largest,
    and the arm's words (contrast_arm.say) may stand in it, in the notes, and in the names of columns that a
    view gives.

    `rows` and `column` say how a reader sees the numbers, and `show` how one of them is written. Without a
    `column`, `view` gives the rows and columns that a reader sees of the frame; all of it stands in the CSV
    file. `notes` is a template of captions.SENTENCES; `cells` names the cells of the context that are behind
    the numbers, `keys` what these are by. `needs_better`: not defined for a metric of which neither more nor
    less is better; `needs_tests`: the notes are on tests, and say so where there are none. `applies` says
    which studies have the table.
    """

    make: Callable[[StudyContext], pd.DataFrame]
    title: str
    lead: str
    rows: tuple[str, ...] = ()
    column: str | None = None
    notes: str = "{spread} {counts} {replicates} {gains} {faults} {ahead}"
    best: bool = False
    show: Callable[[pd.Series], str] = mean_entry
    view: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame
    cells: str = "largest"
    keys: tuple[str, ...] = ()
    needs_better: bool = False
    needs_tests: bool = False
    applies: Callable[[StudyContext], bool] = lambda context: True


@dataclass(frozen=True, kw_only=True)
class Table(TableSpec):
    """A finished table: `frame` is tidy (the keys, `quantity`, `unit`, then the numbers), `shown` what a
    reader sees of it; `lead` says in a sentence what it shows, `notes` what its numbers rest on."""

    name: str
    frame: pd.DataFrame
    shown: pd.DataFrame
    metric: Metric

    @property
    def caption(self) -> str:
        """What it is, in a sentence, and what it rests on."""
        return f"{self.lead} {self.notes}"


STARS = (
    "* p ≤ 0.05, ** p ≤ 0.01, *** p ≤ 0.001 (t test that goes with the interval, exploratory), after Holm's "
    "correction")
PAIRED = (
    "pair runs of one seed; a seed's is the plain mean over its cells, and a seed that lacks one of them is "
    "left out.")
NO_PAIR = "No gain has two seeds, so there is no test."
BEST = (
    "Bold is the best mean of a column's block, underlined the second, whole entries only; no test of "
    "significance.")
LACKING = "† computed from fewer {} than were asked for, or not computed: "
NOT_PUBLISHED = (
    "None is: what was published is of other hosts and data sets, so nothing here agrees or disagrees with "
    "it.")


@dataclass(frozen=True)
class Behind:
    """What a table rests on: all its numbers, the cells behind them, and the coordinates that tell these
    apart."""

    context: StudyContext
    frame: pd.DataFrame
    cells: pd.DataFrame
    keys: list[str]


def notes(spec: TableSpec, context: StudyContext, frame: pd.DataFrame) -> str:
    """The notes of a table by its specification."""
    if spec.needs_better and context.metric.better is None:
        return f"Not defined for this metric: neither a high nor a low {context.metric.label} is better."
    if spec.needs_tests and ("p" not in frame or frame["p"].isna().all()):
        return NO_PAIR
    keys = spec.keys or [key for key in (*spec.rows, spec.column) if key not in (None, "quantity")]
    behind = Behind(context, frame, getattr(context, spec.cells), [*context.strata, *keys])
    return " ".join(_filled(spec.notes, behind).split())


def _filled(text: str, behind: Behind) -> str:
    """A template with the sentences that it names."""
    names = [name for _, name, _, _ in Formatter().parse(text) if name in SENTENCES]
    values = {name: SENTENCES[name] for name in names}
    made = {name: _filled(own, behind) if isinstance(own, str) else own(behind)
            for name, own in values.items()}
    return say(text, behind.context.arm, **made)


# ---- what intervals cover and tests are


def _covers(behind: Behind) -> str:
    """Behind "new seeds": whether intervals cover test examples, with the reason where they do not."""
    seeds_only = "examples" in behind.frame and (behind.frame["examples"] == 0).all()
    why = behind.context.why or ("predictions of bare runs are not there" if seeds_only else "")
    return f" (not of new test examples: {why})" if why else " and new test examples"


def _gains(behind: Behind) -> str:
    """What the gains of a table of means are, their interval and their test."""
    gains = behind.frame[behind.frame["quantity"].astype(str).str.startswith("gain")]
    if gains.empty or gains["p"].isna().all():
        return NO_PAIR if len(gains) else ""
    family = int(gains["family"].max())
    return _filled(f"Gains {PAIRED} {{interval}} {STARS} for the {family} gains of this table.", behind)


def _levels(behind: Behind) -> str:
    """What the differences of a table of levels are, their intervals, tests, and what varies within a row."""
    if behind.frame.empty:
        return NO_PAIR
    tests, said = [], []
    for level, rows in behind.frame.groupby("level", sort=False):
        keys = [name for name in COORDINATES if name in rows and not (rows[name] == POOLED).all()]
        tests.append(f"{level}: {int(rows['family'].max())} tests")
        said.append(f"level {level}: " + (_varying(behind.cells, [*keys, "init"]) or "one pair each"))
    return _filled(
        f"Differences are in {behind.frame['unit'].iloc[0]} and {PAIRED} {{interval}} {STARS} within a level "
        f"({'; '.join(tests)}). Pairs behind one row differ in: {'; '.join(said)}. {{lacking_pairs}} "
        f"{{ahead}}", behind)


# ---- what varies and what lacks


def _varying(cells: pd.DataFrame, keys: list[str]) -> str:
    differing = varying(cells, keys)
    return ", ".join(f"{name.replace('_', ' ')} (up to {count})" for name, count in differing.items())


def _replicates(behind: Behind) -> str:
    """What differs between the cells behind one mean."""
    differing = _varying(behind.cells, [key for key in behind.keys if key in behind.cells])
    return f"Replicates{f' behind one mean differ in: {differing}' if differing else ': one cell each'}."


def _faults(behind: Behind) -> str:
    """The sentence on the mark † in a frame with the columns of pairing.summarise."""
    frame = behind.frame
    if "unpaired" not in frame or (frame["status"] == "complete").all():
        return ""
    touched = {name: int((frame[name] > 0).sum()) for name in FAULTS}
    words = [f"{name} cells behind {count} of the numbers" for name, count in touched.items() if count]
    return f"{LACKING.format('cells')}{', '.join(words) or 'no finite number in the record'}."


def _lacking(behind: Behind, what: str) -> str:
    """The sentence on the mark † where rows with n, expected and failed lack pairs, or cells."""
    frame = behind.frame
    frame = frame[frame["term"] == "overall"] if "term" in frame else frame
    rows = frame[frame["n"] < frame["expected"]]
    left_out = rows["unpaired"] if "unpaired" in rows else 0 * rows["n"]
    other = rows["n"] + rows["failed"] + left_out < rows["expected"]
    counts = {"failed": (rows["failed"] > 0).sum(), "left out by the grid": (left_out > 0).sum(),
              "other reasons": other.sum()}
    words = ", ".join(f"{name} behind {count}" for name, count in counts.items()
                      if count or name != "left out by the grid")
    return "" if rows.empty else f"{LACKING.format(what)}{len(rows)} of {len(frame)} rows ({words})."


def _ahead(behind: Behind) -> str:
    """Every init whose runs had more updates than their budget says (compute-matched arms)."""
    cells = behind.cells
    extra = (cells["mark"] - cells["budget"]).groupby(cells["init"], sort=False).max()
    return " ".join(f"Init {name} had {more} updates more than its budget says."
                    for name, more in extra.items() if more > 0)


# ---- of one table


def turns(context: StudyContext) -> list[str]:
    """Which verdicts of primary contrasts turn with the iterate that is scored, in a sentence."""
    if not has_iterates(context):
        return []
    frame = iterates(context)
    names = frame.loc[frame["turns"], "name"].tolist()
    verdicts = f"{len(names)} of {len(frame)} verdicts turn: {', '.join(names)}" if names else (
        f"all {len(frame)} verdicts are the same")
    return [f"Under the last iterate alone {verdicts}."]


def _task(behind: Behind) -> int:
    own = behind.frame[behind.frame["quantity"].astype(str).str.startswith(CONTRAST)]
    return int(own["family"].max()) if "family" in own and len(own) else 0


def _gone(behind: Behind) -> str:
    most = behind.frame.groupby("predictor", sort=False)["n"].max()
    gone = [name.replace("_", " ") for name in most.index[most == 0]]
    return f"Not recorded: {', '.join(gone)}." if gone else ""


def _rates(behind: Behind) -> str:
    frame = behind.frame
    edges = frame[frame["edge"]] if len(frame) else frame
    more = "No best rate lies at the edge of those that were tried."
    if len(edges):
        names = dict.fromkeys(edges["init"] + " of " + edges["method"])
        more = (f"A best rate {EDGE} of those that were tried, so a better one may lie beyond: "
                f"{', '.join(names)}.")
    if len(frame) and frame.filter(regex="^x").isna().any(axis=None):
        more += (f" {NOTHING} : some of these cells are not done, so the rate has no number and cannot be "
                 "the best.")
    return more


def _published(behind: Behind) -> str:
    able, budget = int(behind.frame["within"].notna().sum()), behind.context.arms["budget"].max()
    what = "gains are those after {} updates, at the level all" if behind.context.arm == PORTED else (
        "scores are those after {} updates")
    after = "" if pd.isna(budget) else f"This study's {what.format(budget)}."
    return (f"{able} of {len(behind.frame)} published figures are comparable with this study. "
            f"{'' if able else NOT_PUBLISHED} {after}")


def _batches(behind: Behind) -> str:
    """Of how many examples the updates of ports and runs are."""
    sizes = [f"{int(row['port_batch'])} for {port}" for port, row in spent(behind.context).iterrows()
             if row["port_batch"] > 0]
    own = spent(behind.context)["batch"].max()
    return "" if not sizes or pd.isna(own) else (
        f"Examples of an update: {', '.join(sizes)}, {int(own)} in a run, so scratch is given no less.")


def _scores(behind: Behind) -> str:
    most = [f"{int(behind.frame[name].max())} {name}" for name in ("tasks", "seeds") if len(behind.frame)]
    return " and ".join(most) or "none"


# what may stand in the notes: a template, or what makes the words, "" where a sentence does not apply
SENTENCES: dict[str, str | Callable[[Behind], object]] = {
    "spread": "Mean ± standard deviation (ddof 1) over distinct runs; one run has no ±.",
    "counts": "In brackets: cells done/asked for, distinct runs (for a gain: seeds that have all its cells).",
    "interval": "In square brackets: 95 % of new seeds{covers}, on these hosts and data sets.",
    "all_seeds": "Intervals are 95 % of new seeds on these hosts and data sets.",
    "behind": "{replicates} {faults} {ahead}",
    "stars": STARS, "covers": _covers, "gains": _gains, "levels": _levels, "replicates": _replicates,
    "faults": _faults, "ahead": _ahead, "rates": _rates, "gone": _gone, "task": _task, "scores": _scores,
    "published": _published, "batches": _batches,
    "examples": lambda behind: behind.context.examples,
    "symbol": lambda behind: UNITS[behind.context.metric.unit].symbol,
    "points": lambda behind: UNITS[behind.context.metric.difference].symbol,
    "family": lambda behind: int(behind.frame["family"].max()) if len(behind.frame) else 0,
    "lacking_pairs": lambda behind: _lacking(behind, "pairs"),
    "lacking_cells": lambda behind: _lacking(behind, "cells"),
    "turns": lambda behind: " ".join(turns(behind.context)),
    "best": lambda behind: {"lower": "lowest", "higher": "highest"}.get(
        behind.context.metric.better or "", "highest (neither is better)"),
    "whole": lambda behind: int((behind.frame["done"] == behind.frame["expected"]).sum()),
    "count": lambda behind: len(behind.frame),
}


# ---- sentences on a study


def protocol(found: Protocol) -> list[str]:
    """Sentences that name the protocol of records that are not of the present one, and the versions of
    transformers whose records are left out.

    Example:
        >>> protocol(Protocol(SCHEMA, {"4": 9})), protocol(Protocol(1, {"4": 9}))
        ([], ['Old protocol (schema 1): marks evaluate a moving average that still holds the start.'])
        >>> protocol(Protocol(SCHEMA, {"5": 9, "4": 1}))[0]
        'Made with transformers 5; 1 run made with 4 is left out: two major versions are not pooled.'
    """
    words = PROTOCOLS[found.schema]
    lines = [] if found.schema == SCHEMA else [f"{words[0].upper()}{words[1:]}."]
    others = list(found.majors.items())[1:]
    if others:
        left = " and ".join(f"{counted(count, 'run')} made with {major}" for major, count in others)
        verb = "is" if sum(count for _, count in others) == 1 else "are"
        lines.append(f"Made with transformers {found.major}; {left} {verb} left out: two major versions are "
                     "not pooled.")
    return lines


def decontamination(facts: list[dict[str, Any]]) -> list[str]:
    """Sentences on the data sets: examples after the leak guard, what it dropped, and whether overlap was
    kept.

    Example:
        >>> decontamination([{"data": [{"name": "a", "train": 9, "eval": 3, "dropped": 0}]}])[0]
        'Data after the leak guard: a 9 train, 3 eval, 0 dropped.'
    """
    data = dict.fromkeys(
        f"{entry['name']} " + ", ".join(f"{entry[key]:,} {key}" for key in ("train", "eval", "dropped"))
        for item in facts for entry in item.get("data", []))
    sentences = [f"Data after the leak guard: {'; '.join(data)}."] if data else []
    kept = {item.get("overlap") for item in facts}
    if "keep" in kept:
        some = " in some of the study's commands" if len(kept) > 1 else ""
        sentences.append(f"Sentences shared between data sets were kept{some} (overlap: keep).")
    return sentences


def too_long(found: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence on answers that were too long for a host, where the study let them be (of
    Study.parts["too_long"])."""
    words = [f"{one['data']} on {one['host']} {too_long_words(one)}" for one in found]
    return [f"Answers too long for a host: {'; '.join(words)}."] if words else []
