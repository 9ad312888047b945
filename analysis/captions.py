"""What stands under a table: what its numbers are, what varies between replicates, and what is not whole."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.stats import FAULTS, varying

COUNTS = "In brackets: cells done/asked for, distinct runs (for a gain: blocks)."
SPREAD = "Mean ± standard deviation (ddof 1) over distinct runs; one run has no ±."
GAIN = (
    "Gains pair runs of one seed; gains that share a run are averaged first, into one block. In square brackets: 95 % of "
    "new seeds{examples}, on these hosts and data sets. * p ≤ 0.05, ** p ≤ 0.01, *** p ≤ 0.001: sign-flip test over blocks, "
    "after Holm's correction for the {family} gains of this table; the smallest p that any of them could have is {smallest}"
    "{never}. Arms are means over different sets of runs (a shared scratch run counts once), so compare arms by the gain, "
    "not by subtracting means."
)
DAGGER = "† computed from fewer cells than were asked for, or not computed: {faults}."
BEST = "Bold is the best mean of a column's block, underlined the second, whole entries only; no test of significance."


def caption(
    lead: str, frame: pd.DataFrame, cells: pd.DataFrame, keys: Sequence[str], facts: list[dict[str, Any]], why: str = ""
) -> str:
    """The caption of a table of means: lead, counts, replicates, marks, and the leak guard.

    Args:
        why: why intervals do not cover test examples; "" where they do.
    """
    parts = [lead, SPREAD, COUNTS, replicates(cells, list(keys))]
    gains = frame[frame["quantity"].astype(str).str.startswith("gain")]
    if len(gains):
        parts.append(gain_words(gains, why))
    if (mark := faults(frame)) is not None:
        parts.append(mark)
    return " ".join([*parts, *ahead(cells), *leak_guard(facts)])


def gain_words(gains: pd.DataFrame, why: str) -> str:
    """What the gains of a table are, their interval, and what their test can show."""
    family, smallest = gains["family"].max(), gains["smallest_p"].min()
    if pd.isna(smallest):
        return "No gain has a pair, so there is no test."
    never = ", so no mark is possible" if min(1.0, smallest * family) > 0.05 else f" ({smallest * family:.2g} after correction)"
    examples = f" (not of new test examples: {why})" if why else " and new test examples"
    return GAIN.format(examples=examples, family=int(family), smallest=f"{smallest:.2g}", never=never)


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
