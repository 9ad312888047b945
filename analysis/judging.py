"""Groups of paired differences with counts, interval and test: what every quantity over seeds shares."""

from collections.abc import Iterator, Sequence
from dataclasses import fields

import numpy as np
import pandas as pd

from analysis.answers import Right
from analysis.inference import Design, designs, tested
from analysis.intervals import Estimate
from analysis.permutation import holm
from analysis.stats import summarise

LEVELS: dict[str, tuple[str, ...]] = {  # besides the method
    "method": (), "receiving": ("receiving",), "direction": ("origin", "receiving", "relation"),
}
POOLED = "(all)"  # in place of a coordinate that a row is pooled over
TESTED = [*(item.name for item in fields(Estimate)), "mark"]


def judged(pairs: pd.DataFrame, keys: Sequence[str], answers: Right | None, scale: float) -> pd.DataFrame:
    """One row per group: the counts of stats.summarise, and the estimate and the test over seeds.

    Args:
        pairs: as of inference.pairs_of: COORDINATES, run_id, mark, arm_id, arm_mark, task, value, status.
        answers, scale: as of inference.compare.

    Returns:
        The keys; `std`, `n`, `runs`, `expected`, the faults, `status`; the fields of intervals.Estimate; `mark`, `note`.
    """
    counts = summarise(pairs, list(keys)).drop(columns="mean")
    rows = tested(seeds_of(pairs, keys, answers, scale))
    return pd.concat([counts, pd.DataFrame(rows, columns=TESTED)], axis=1)


def seeds_of(pairs: pd.DataFrame, keys: Sequence[str], answers: Right | None = None, scale: float = 1.0) -> Iterator[Design]:
    """inference.designs of every group; none where there is no group."""
    return iter(()) if pairs.empty else designs(pairs, keys, answers, scale)


def corrected(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows as one family of tests: `p_holm`, `family`, and the counts of `counted`."""
    return counted(frame.assign(p_holm=holm(frame["p"].to_numpy(float)), family=int(frame["p"].notna().sum())))


def counted(frame: pd.DataFrame) -> pd.DataFrame:
    """With `missing` (all that is not there and did not fail) and `mark`, "†" where numbers are not there."""
    lacks = (frame["n"] < frame["expected"]) | (frame["mark"] == "†" if "mark" in frame else False)
    return frame.assign(missing=frame["expected"] - frame["n"] - frame["failed"], mark=np.where(lacks, "†", ""))


def by_level(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Frames of several LEVELS as one: `level` first, POOLED in the coordinates that only some of them have."""
    frame = pd.concat([part.assign(level=level) for level, part in parts.items()], ignore_index=True)
    names = [name for name in ("origin", "receiving", "relation") if name in frame]
    frame[names] = frame[names].astype(object).fillna(POOLED)
    return frame[["level", *(name for name in frame if name != "level")]]
