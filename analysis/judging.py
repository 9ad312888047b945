"""Groups of paired differences with counts, interval and sign-flip test: what every quantity over blocks shares."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import pandas as pd

from analysis.answers import Right
from analysis.inference import Design, designs, tested
from analysis.intervals import Estimate
from analysis.permutation import holm
from analysis.stats import summarise

LEVELS: dict[str, tuple[str, ...]] = {"method": (), "direction": ("origin", "receiving", "relation")}  # besides the method
POOLED = "(all)"  # in place of a coordinate that a row is pooled over
TESTED = [*(item.name for item in fields(Estimate)), "p", "smallest_p"]


def judged(pairs: pd.DataFrame, keys: Sequence[str], answers: Right | None, scale: float) -> pd.DataFrame:
    """One row per group: the counts of stats.summarise, and the estimate and the test over blocks.

    Args:
        pairs: as of inference.pairs_of: COORDINATES, run_id, mark, arm_id, arm_mark, task, value, status.
        answers, scale: as of inference.compare.

    Returns:
        The keys; `std`, `n`, `runs`, `expected`, the faults, `status`; the fields of intervals.Estimate; `p`, `smallest_p`.
    """
    counts = summarise(pairs, list(keys)).drop(columns="mean")
    rows = tested(blocks_of(pairs, keys, answers, scale))
    return pd.concat([counts, pd.DataFrame(rows, columns=TESTED)], axis=1)


def blocks_of(pairs: pd.DataFrame, keys: Sequence[str], answers: Right | None = None, scale: float = 1.0) -> list[Design]:
    """inference.designs of every group, by shared runs; none where there is no group."""
    return [] if pairs.empty else list(designs(pairs, keys, answers, scale, "run"))


def corrected(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows as one family of tests: `p_holm`, `family`, and the counts of `counted`."""
    return counted(frame.assign(p_holm=holm(frame["p"].to_numpy(float)), family=int(frame["p"].notna().sum())))


def counted(frame: pd.DataFrame) -> pd.DataFrame:
    """With `missing` (all that is not there and did not fail) and `mark`, "†" where numbers are not there."""
    missing = frame["expected"] - frame["n"] - frame["failed"]
    return frame.assign(missing=missing, mark=np.where(frame["n"] < frame["expected"], "†", ""))


def by_level(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Frames of several LEVELS as one: `level` first, POOLED in the coordinates that only some of them have."""
    frame = pd.concat([part.assign(level=level) for level, part in parts.items()], ignore_index=True)
    names = [name for name in ("origin", "receiving", "relation") if name in frame]
    frame[names] = frame[names].astype(object).fillna(POOLED)
    return frame[["level", *(name for name in frame if name != "level")]]
