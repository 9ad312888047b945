"""The notes under a table: what its numbers are, what varies between replicates, and what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from portability.analysis.context import StudyContext
from portability.analysis.contrast_arm import say
from portability.analysis.metrics import UNITS
from portability.analysis.stats.blocks import POOLED
from portability.analysis.stats.pairing import COORDINATES, FAULTS, varying
from portability.analysis.tables.spec import TableSpec
from portability.core.specs import PROTOCOLS, SCHEMA, too_long_words

STARS = ("* p ≤ 0.05, ** p ≤ 0.01, *** p ≤ 0.001 (t test that goes with the interval, exploratory), after "
         "Holm's "
         "correction")
PAIRED = ("pair runs of one seed; a seed's is the plain mean over its cells, and a seed that lacks one of "
          "them is left out.")
NO_PAIR = "No gain has two seeds, so there is no test."
BEST = ("Bold is the best mean of a column's block, underlined the second, whole entries only; no test of "
        "significance.")


def notes(spec: TableSpec, context: StudyContext, frame: pd.DataFrame) -> str:
    """The notes of a table by its specification."""
    if spec.needs_better and context.metric.better is None:
        return f"Not defined for this metric: neither a high nor a low {context.metric.label} is better."
    if spec.needs_tests and ("p" not in frame or frame["p"].isna().all()):
        return NO_PAIR
    shown = [key for key in (*spec.rows, spec.column) if key not in (None, "quantity")]
    keys = [*context.strata, *(spec.keys or shown)]
    sentences = Sentences(context, frame, spec.cells(context), keys)
    return " ".join(say(spec.notes, context.arm, s=sentences, **spec.values(context, frame)).split())


@dataclass(frozen=True)
class Sentences:
    """The sentences that the notes of a table may have, "" where one does not apply.

    Args:
        frame: all numbers of the table.
        cells, keys: the cells behind them, and the coordinates that tell the numbers apart.
    """

    context: StudyContext
    frame: pd.DataFrame
    cells: pd.DataFrame
    keys: list[str]
    spread = "Mean ± standard deviation (ddof 1) over distinct runs; one run has no ±."
    counts = "In brackets: cells done/asked for, distinct runs (for a gain: seeds that have all its cells)."
    stars = STARS

    @property
    def examples(self) -> str:
        """Behind "new seeds": whether intervals cover new test examples."""
        return " only" if self.context.why else " and new test examples"

    @property
    def covers(self) -> str:
        """The same, with the reason where they do not."""
        seeds_only = "examples" in self.frame and (self.frame["examples"] == 0).all()
        why = self.context.why or ("predictions of bare runs are not there" if seeds_only else "")
        return f" (not of new test examples: {why})" if why else " and new test examples"

    @property
    def interval(self) -> str:
        """What the interval covers."""
        return f"In square brackets: 95 % of new seeds{self.covers}, on these hosts and data sets."

    @property
    def symbol(self) -> str:
        """The unit of the metric."""
        return UNITS[self.context.metric.unit].symbol

    @property
    def family(self) -> int:
        """How many tests Holm's correction is for."""
        return int(self.frame["family"].max()) if len(self.frame) else 0

    @property
    def gains(self) -> str:
        """What the gains of a table of means are, their interval and their test."""
        gains = self.frame[self.frame["quantity"].astype(str).str.startswith("gain")]
        if gains.empty or gains["p"].isna().all():
            return NO_PAIR if len(gains) else ""
        family = int(gains["family"].max())
        return f"Gains {PAIRED} {self.interval} {STARS} for the {family} gains of this table."

    @property
    def levels(self) -> str:
        """What the differences of a table of levels are, their intervals, their tests, and what varies within
        a row."""
        if self.frame.empty:
            return NO_PAIR
        groups = list(self.frame.groupby("level", sort=False))
        tests = "; ".join(f"{level}: {int(rows['family'].max())} tests" for level, rows in groups)
        said = []
        for level, rows in groups:
            keys = [name for name in COORDINATES if name in rows and not (rows[name] == POOLED).all()]
            said.append(f"level {level}: " + (_varying(self.cells, [*keys, "init"]) or "one pair each"))
        return (f"Differences are in {self.frame['unit'].iloc[0]} and {PAIRED} {self.interval} {STARS} "
                f"within a level "
                f"({tests}). Pairs behind one row differ in: {'; '.join(said)}. {self.lacking_pairs} "
                f"{self.ahead}")

    @property
    def replicates(self) -> str:
        """What differs between the cells behind one mean."""
        differing = _varying(self.cells, [key for key in self.keys if key in self.cells])
        return f"Replicates{f' behind one mean differ in: {differing}' if differing else ': one cell each'}."

    @property
    def faults(self) -> str:
        """The sentence on the mark † in a frame with the columns of pairing.summarise."""
        if "unpaired" not in self.frame or (self.frame["status"] == "complete").all():
            return ""
        touched = {name: int((self.frame[name] > 0).sum()) for name in FAULTS}
        words = [f"{name} cells behind {count} of the numbers" for name, count in touched.items() if count]
        return ("† computed from fewer cells than were asked for, or not computed: "
                f"{', '.join(words) or 'no finite number in the record'}.")

    @property
    def lacking_pairs(self) -> str:
        """The sentence on the mark † where rows with n, expected and failed lack pairs."""
        return self._lacking("pairs")

    @property
    def lacking_cells(self) -> str:
        """The same of cells."""
        return self._lacking("cells")

    def _lacking(self, what: str) -> str:
        frame = self.frame[self.frame["term"] == "overall"] if "term" in self.frame else self.frame
        rows = frame[frame["n"] < frame["expected"]]
        failed, other = (rows["failed"] > 0).sum(), (rows["n"] + rows["failed"] < rows["expected"]).sum()
        return "" if rows.empty else (
            f"† computed from fewer {what} than were asked for, or not computed: {len(rows)} of {len(frame)} "
            f"rows (failed behind {failed}, other reasons behind {other}).")

    @property
    def ahead(self) -> str:
        """Every init whose runs had more updates than their budget says (compute-matched arms)."""
        extra = (self.cells["mark"] - self.cells["budget"]).groupby(self.cells["init"], sort=False).max()
        return " ".join(f"Init {name} had {more} updates more than its budget says."
                        for name, more in extra.items() if more > 0)


def _varying(cells: pd.DataFrame, keys: list[str]) -> str:
    differing = varying(cells, keys)
    return ", ".join(f"{name.replace('_', ' ')} (up to {count})" for name, count in differing.items())


# ---- sentences on a study


def protocol(schema: int) -> list[str]:
    """A sentence that names the protocol of records that are not of the present one.

    Example:
        >>> protocol(SCHEMA), protocol(1)
        ([], ['Old protocol (schema 1): marks evaluate a moving average that still holds the start.'])
    """
    words = PROTOCOLS[schema]
    return [] if schema == SCHEMA else [f"{words[0].upper()}{words[1:]}."]


def decontamination(facts: list[dict[str, Any]]) -> list[str]:
    """Sentences on the data sets: examples after the leak guard, what it dropped, and whether overlap was
    kept.

    Example:
        >>> decontamination([{"data": [{"name": "a", "train": 9, "eval": 3, "dropped": 0}]}])[0]
        'Data after the leak guard: a 9 train, 3 eval, 0 dropped.'
    """
    data: dict[str, None] = {}
    for entry in [entry for item in facts for entry in item.get("data", [])]:
        words = ", ".join(f"{entry[key]:,} {key}" for key in ("train", "eval", "dropped"))
        data[f"{entry['name']} {words}"] = None
    sentences = [f"Data after the leak guard: {'; '.join(data)}."] if data else []
    kept = {item.get("overlap") for item in facts}
    if "keep" in kept:
        some = " in some of the study's commands" if len(kept) > 1 else ""
        sentences.append(f"Sentences shared between data sets were kept{some} (overlap: keep).")
    return sentences


def too_long(found: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence on answers that were too long for a host, where the study let them be.

    Args:
        found: Study.parts["too_long"].
    """
    words = [f"{one['data']} on {one['host']} {too_long_words(one)}" for one in found]
    return [f"Answers too long for a host: {'; '.join(words)}."] if words else []
