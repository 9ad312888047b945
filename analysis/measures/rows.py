"""Frames of numbers as the tables take them: keys first, then quantity and unit, then the numbers."""

import pandas as pd

from portability.analysis.stats.blocks import POOLED
from portability.analysis.stats.pairing import COORDINATES

HOST_LEVELS: dict[str, tuple[str, ...]] = {  # the coordinates that a row keeps besides the method
    "method": (), "receiving": ("receiving",), "direction": ("origin", "receiving", "relation"),
}


def labelled(frame: pd.DataFrame, quantity: str, unit: str) -> pd.DataFrame:
    """The same rows, all of them this quantity in this unit."""
    return frame.assign(quantity=quantity, unit=unit)


def joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Several frames as one: keys first, then quantity and unit, then the numbers."""
    frame = pd.concat(parts, ignore_index=True)
    keys = [name for name in COORDINATES if name in frame]
    numbers = [name for name in frame if name not in (*keys, "quantity", "unit")]
    return frame[[*keys, "quantity", "unit", *numbers]]


def by_level(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Frames of several levels as one: `level` first, POOLED in the coordinates that only some of them
    have."""
    frame = pd.concat([part.assign(level=level) for level, part in parts.items()], ignore_index=True)
    names = [name for name in ("method", "origin", "receiving", "relation") if name in frame]
    frame[names] = frame[names].astype(object).fillna(POOLED)
    return frame[["level", *(name for name in frame if name != "level")]]
