"""One row of a table as a reader sees it: the number with its interval or spread, its marks, and all it rests on."""

import math

import pandas as pd

from analysis.load import COORDINATES
from analysis.metrics import UNITS, Unit

STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))  # p after Holm's correction, and the mark


def mean_entry(row: pd.Series) -> str:
    """A mean with its standard deviation, or a gain with its 95 % interval and the mark of its test.

    Example:
        >>> mean_entry(pd.Series({"mean": 0.8125, "std": 0.01, "n": 4, "runs": 2, "expected": 5, "status": "incomplete",
        ...                       "unit": "fraction"}))
        '81.2 ± 1.0† (4/5, 2)'
        >>> mean_entry(pd.Series({"mean": 7.0, "std": 3.0, "n": 5, "runs": 5, "blocks": 5, "expected": 5, "low": 3.28,
        ...                       "high": 10.7, "p_holm": 0.0625, "status": "complete", "unit": "pp"}))
        '+7.0 [+3.3, +10.7] (5/5, 5)'
    """
    gain = pd.notna(row.get("low"))
    counts = f"({row['n']}/{row['expected']}, {int(row['blocks']) if gain else row['runs']})"
    if row["n"] == 0:
        return f"{row['status']}† {counts}"
    if pd.isna(row["mean"]):
        return f"no whole seed† {counts}"
    unit = UNITS[row["unit"]]
    spread = "" if gain or pd.isna(row["std"]) else f" ± {unit.scale * row['std']:.{unit.digits}f}"
    if gain:
        spread = f" {interval(row['low'], row['high'], unit, row['p_holm'])}"
    return f"{number(row['mean'], unit)}{spread}{'' if row['status'] == 'complete' else '†'} {counts}"


def number(value: float, unit: Unit) -> str:
    """A number in its unit, with a true minus sign."""
    return f"{unit.scale * value:{'+' if unit.signed else ''}.{unit.digits}f}".replace("-", "−")


def interval(low: float, high: float, unit: Unit, p: float = math.nan) -> str:
    """Both ends of an interval, and the mark of a p value, which never stands where the interval as it is printed holds 0.

    Example:
        >>> interval(0.2, 3.0, UNITS["pp"], 0.02), interval(0.02, 3.0, UNITS["pp"], 0.04), interval(0.2, 3.0, UNITS["pp"], 0.2)
        ('[+0.2, +3.0]*', '[+0.0, +3.0]', '[+0.2, +3.0]')
    """
    ends = [round(unit.scale * end, unit.digits) for end in (low, high)]
    apart = ends[0] > 0 or ends[1] < 0
    return f"[{number(low, unit)}, {number(high, unit)}]{stars(p) if apart else ''}"


def stars(p: float) -> str:
    """The mark of a p value, "" where it is above 0.05 or there is none."""
    return next((mark for limit, mark in STARS if p <= limit), "")


# ---- frames of entries


def labelled(frame: pd.DataFrame, quantity: str, unit: str) -> pd.DataFrame:
    """The same rows, all of them this quantity in this unit."""
    return frame.assign(quantity=quantity, unit=unit)


def joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """One frame of entries: keys first, then quantity and unit, then the numbers."""
    frame = pd.concat(parts, ignore_index=True)
    keys = [name for name in COORDINATES if name in frame]
    numbers = [name for name in frame if name not in (*keys, "quantity", "unit")]
    return frame[[*keys, "quantity", "unit", *numbers]]
