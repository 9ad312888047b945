"""How numbers are written: with units, intervals, marks and counts."""

import math

import pandas as pd

from portability.analysis.metrics import UNITS, Unit

NOTHING = "–"
STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))  # p after Holm's correction, and the mark


def number(value: float, unit: Unit) -> str:
    """A number in its unit, with a true minus sign."""
    return f"{unit.scale * value:{'+' if unit.signed else ''}.{unit.digits}f}".replace("-", "−")


def interval(low: float, high: float, unit: Unit, p: float = math.nan) -> str:
    """Both ends of an interval, and the mark of a p value, which never stands where the interval as it is
    printed holds 0.

    Example:
        >>> interval(0.2, 3.0, UNITS["pp"], 0.02), interval(0.02, 3.0, UNITS["pp"], 0.04)
        ('[+0.2, +3.0]*', '[+0.0, +3.0]')
    """
    ends = [round(unit.scale * end, unit.digits) for end in (low, high)]
    mark = next((mark for limit, mark in STARS if p <= limit), "") if ends[0] > 0 or ends[1] < 0 else ""
    return f"[{number(low, unit)}, {number(high, unit)}]{mark}"


def with_interval(
    value: float, low: float, high: float, unit: Unit, p: float = math.nan, none: str = "none",
    alone: str = " (no interval)"
) -> str:
    """A number and its interval with the mark of a p value; `none` where there is no number, `alone` behind
    it where there is no interval."""
    if pd.isna(value):
        return none
    return number(value, unit) + (alone if pd.isna(low) else f" {interval(low, high, unit, p)}")


def plain(value: float, form: str = ",.0f") -> str:
    """A number without a unit, NOTHING for none."""
    return NOTHING if pd.isna(value) else f"{value:{form}}".replace("-", "−")


def p_text(p: float) -> str:
    """A p value.

    Example:
        >>> p_text(0.0625), p_text(0.00005), p_text(float("nan"))
        ('0.0625', '<0.0001', '–')
    """
    return "<0.0001" if p < 0.0001 else plain(p, ".3g")


def done_of(row: pd.Series) -> str:
    """Done of asked for, and what failed.

    Example:
        >>> done_of(pd.Series({"n": 3, "expected": 5, "failed": 1}))
        '3/5, 1 failed'
    """
    return f"{row['n']}/{row['expected']}" + (f", {row['failed']} failed" if row["failed"] else "")


def no_number(row: pd.Series, otherwise: str = "no whole seed") -> str:
    """Why a comparison has no number: the grid leaves cells of it out, and all else is there; or `otherwise`.

    Example:
        >>> no_number(pd.Series({"n": 2, "expected": 4, "unpaired": 2}))
        'left out by the grid'
        >>> no_number(pd.Series({"n": 1, "expected": 4, "unpaired": 2}))
        'no whole seed'
    """
    left_out = row["unpaired"] > 0 and row["n"] + row["unpaired"] == row["expected"]
    return "left out by the grid" if left_out else otherwise


def mean_entry(row: pd.Series) -> str:
    """A mean with its standard deviation, or a gain with its 95 % interval and the mark of its test.

    Example:
        >>> mean_entry(pd.Series({"mean": 0.8125, "std": 0.01, "n": 4, "runs": 2, "expected": 5,
        ...                       "status": "incomplete", "unit": "fraction"}))
        '81.2 ± 1.0† (4/5, 2)'
        >>> mean_entry(pd.Series({"mean": 7.0, "std": 3.0, "n": 5, "runs": 5, "blocks": 5, "expected": 5,
        ...                       "low": 3.28, "high": 10.7, "p_holm": 0.0625, "status": "complete",
        ...                       "unit": "pp"}))
        '+7.0 [+3.3, +10.7] (5/5, 5)'
    """
    gain, unit = pd.notna(row.get("low")), UNITS[row["unit"]]
    counts = f"({row['n']}/{row['expected']}, {int(row['blocks']) if gain else row['runs']})"
    if pd.isna(row["mean"]):
        return f"{'no whole seed' if row['n'] else row['status']}† {counts}"
    spread = "" if pd.isna(row["std"]) else f" ± {unit.scale * row['std']:.{unit.digits}f}"
    if gain:
        spread = f" {interval(row['low'], row['high'], unit, row['p_holm'])}"
    return f"{number(row['mean'], unit)}{spread}{'' if row['status'] == 'complete' else '†'} {counts}"
