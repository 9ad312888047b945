"""What stands under a table: what its numbers are, what varies between replicates, and what is not whole."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.judging import POOLED
from analysis.load import COORDINATES
from analysis.stats import FAULTS, varying
from portability.core.specs import PROTOCOLS, SCHEMA, too_long_words

COUNTS = "In brackets: cells done/asked for, distinct runs (for a gain: seeds that have all its cells)."
SPREAD = "Mean ± standard deviation (ddof 1) over distinct runs; one run has no ±."
STARS = "* p ≤ 0.05, ** p ≤ 0.01, *** p ≤ 0.001 (t test that goes with the interval, exploratory), after Holm's correction"
INTERVAL = "In square brackets: 95 % of new seeds{examples}, on these hosts and data sets."
SEEDS = "pair runs of one seed; a seed's is the plain mean over its cells, and a seed that lacks one of them is left out."
GAIN = (
    f"Gains {SEEDS} {INTERVAL} {STARS} for the {{family}} gains of this table."
)
NO_PAIR = "No gain has two seeds, so there is no test."
DAGGER = "† computed from fewer cells than were asked for, or not computed: {faults}."
BEST = "Bold is the best mean of a column's block, underlined the second, whole entries only; no test of significance."


def caption(frame: pd.DataFrame, cells: pd.DataFrame, keys: Sequence[str], why: str = "") -> str:
    """What stands under a table of means: counts, replicates and marks.

    Args:
        why: why intervals do not cover test examples; "" where they do.
    """
    parts = [SPREAD, COUNTS, replicates(cells, list(keys))]
    gains = frame[frame["quantity"].astype(str).str.startswith("gain")]
    if len(gains):
        parts.append(gain_words(gains, why))
    if (mark := faults(frame)) is not None:
        parts.append(mark)
    return " ".join([*parts, *ahead(cells)])


def gain_words(gains: pd.DataFrame, why: str) -> str:
    """What the gains of a table are, their interval and their test."""
    return GAIN.format(examples=_examples(why), family=int(gains["family"].max())) if gains["p"].notna().any() else NO_PAIR


def _examples(why: str) -> str:
    return f" (not of new test examples: {why})" if why else " and new test examples"


def comparison_words(frame: pd.DataFrame, cells: pd.DataFrame, why: str) -> str:
    """What the rows of inference.compare at several levels are: difference, interval, test, replicates.

    Args:
        frame: one or more levels of comparisons, `level` and `unit` among the columns.
        cells: the arms that were compared.
        why: as of `caption`.
    """
    if frame.empty:
        return NO_PAIR
    parts = [f"Differences are in {frame['unit'].iloc[0]} and {SEEDS}", INTERVAL.format(examples=_examples(why)),
             f"{STARS} within a level ({'; '.join(_families(frame))})."]
    return " ".join([*parts, _level_replicates(frame, cells), *lacking(frame, "pairs"), *ahead(cells)])


def _families(frame: pd.DataFrame) -> list[str]:
    """Per level the number of tests."""
    return [f"{level}: {int(rows['family'].max())} tests" for level, rows in frame.groupby("level", sort=False)]


def _level_replicates(frame: pd.DataFrame, cells: pd.DataFrame) -> str:
    """What the pairs behind one row of each level differ in."""
    said = []
    for level, rows in frame.groupby("level", sort=False):
        keys = [name for name in COORDINATES if name in rows and not (rows[name] == POOLED).all()]
        differing = varying(cells, [*keys, "init"]) if len(cells) else {}
        said.append(f"level {level}: " + (_counted(differing) or "one pair each"))
    return f"Pairs behind one row differ in: {'; '.join(said)}."


def lacking(frame: pd.DataFrame, what: str) -> list[str]:
    """A sentence on the mark † where rows of a frame with n, expected and failed lack numbers.

    Example:
        >>> lacking(pd.DataFrame({"n": [3, 1], "expected": [3, 3], "failed": [0, 2]}), "pairs")
        ['† computed from fewer pairs than were asked for, or not computed: 1 of 2 rows (failed behind 1, other reasons \
behind 0).']
    """
    rows = frame[frame["n"] < frame["expected"]]
    if rows.empty:
        return []
    failed, other = (rows["failed"] > 0).sum(), (rows["n"] + rows["failed"] < rows["expected"]).sum()
    return [f"† computed from fewer {what} than were asked for, or not computed: {len(rows)} of {len(frame)} rows "
            f"(failed behind {failed}, other reasons behind {other})."]


def _counted(differing: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} (up to {count})" for name, count in differing.items())


def replicates(cells: pd.DataFrame, keys: list[str]) -> str:
    """What differs between the cells behind one mean.

    Example:
        >>> replicates(pd.DataFrame(columns=["method", "seed"]), ["method"])
        'Replicates: one cell each.'
    """
    differing = varying(cells, [key for key in keys if key in cells])
    if not differing:
        return "Replicates: one cell each."
    return f"Replicates behind one mean differ in: {_counted(differing)}."


def ahead(cells: pd.DataFrame) -> list[str]:
    """A sentence for every init whose runs had more updates than their budget says (compute-matched arms).

    Example:
        >>> ahead(pd.DataFrame({"init": ["matched"], "mark": [600], "budget": [100]}))
        ['Init matched had 500 updates more than its budget says.']
    """
    extra = (cells["mark"] - cells["budget"]).groupby(cells["init"], sort=False).max()
    return [f"Init {name} had {more} updates more than its budget says." for name, more in extra.items() if more > 0]


def faults(frame: pd.DataFrame) -> str | None:
    """The sentence on the mark †, or None where every entry is whole."""
    if (frame["status"] == "complete").all():
        return None
    touched = {name: int((frame[name] > 0).sum()) for name in FAULTS}
    words = [f"{name} cells behind {count} of the numbers" for name, count in touched.items() if count]
    return DAGGER.format(faults=", ".join(words) or "no finite number in the record")


def protocol(schema: int) -> list[str]:
    """A sentence that names the protocol of records that are not of the present one.

    Example:
        >>> protocol(SCHEMA), protocol(1)
        ([], ['Old protocol (schema 1): marks evaluate a moving average that still holds the start.'])
    """
    words = PROTOCOLS[schema]
    return [] if schema == SCHEMA else [f"{words[0].upper()}{words[1:]}."]


def leak_guard(facts: list[dict[str, Any]]) -> list[str]:
    """Sentences on the data sets: examples after the guard, what it dropped, and whether overlap was kept.

    Example:
        >>> leak_guard([{"overlap": "keep", "data": [{"name": "a", "train": 9, "eval": 3, "dropped": 0}]}])
        ['Data after the leak guard: a 9 train, 3 eval, 0 dropped.', 'Sentences shared between data sets were kept \
(overlap: keep).']
    """
    data: dict[str, None] = {}
    for item in facts:
        for entry in item.get("data", []):
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

    Example:
        >>> too_long([{"host": "h", "data": "d", "train_dropped": 1, "train_truncated": 0, "test_truncated": 0}])
        ['Answers too long for a host: d on h 1 training example left out, 0 training answers cut, 0 test answers cut in \
the likelihood.']
    """
    words = [f"{one['data']} on {one['host']} {too_long_words(one)}" for one in found]
    return [f"Answers too long for a host: {'; '.join(words)}."] if words else []
