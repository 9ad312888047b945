"""What stands under a table: what its numbers are, what varies between replicates, and what is not whole."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.stats import FAULTS, varying

COUNTS = "In brackets: cells done/asked for, distinct runs (or baselines, for a gain)."
SPREAD = "Mean ± standard deviation (ddof 1) over distinct runs; one run has no ±."
GAIN = (
    "Gains pair runs of one seed; gains that share a baseline are averaged first, and ± is over distinct baselines. "
    "Arms are means over different sets of runs (a shared scratch run counts once), so compare arms by the gain, "
    "not by subtracting means."
)
DAGGER = "† computed from fewer cells than were asked for, or not computed: {faults}."
BEST = "Bold is the best mean of a column's block, underlined the second, whole entries only; no test of significance."


def caption(
    lead: str, frame: pd.DataFrame, cells: pd.DataFrame, keys: Sequence[str], facts: list[dict[str, Any]]
) -> str:
    """The caption of a table of means: lead, counts, replicates, marks, and the leak guard."""
    parts = [lead, SPREAD, COUNTS, replicates(cells, list(keys))]
    if frame["quantity"].astype(str).str.startswith("gain").any():
        parts.append(GAIN)
    if (mark := faults(frame)) is not None:
        parts.append(mark)
    return " ".join([*parts, *ahead(cells), *leak_guard(facts)])


def replicates(cells: pd.DataFrame, keys: list[str]) -> str:
    """What differs between the cells behind one mean.

    Example:
        >>> replicates(pd.DataFrame(columns=["method", "seed"]), ["method"])
        'Replicates: one cell each.'
    """
    differing = varying(cells, [key for key in keys if key in cells])
    if not differing:
        return "Replicates: one cell each."
    words = ", ".join(f"{name.replace('_', ' ')} (up to {count})" for name, count in differing.items())
    return f"Replicates behind one mean differ in: {words}."


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
