"""Tables of contrasts: the arm against every other start at every level, directions told apart, and tie groups."""

import pandas as pd

from analysis import captions
from analysis.entries import interval, joined, labelled, number
from analysis.evidence import Evidence, once
from analysis.inference import LEVELS, ties
from analysis.judging import POOLED
from analysis.load import COORDINATES
from analysis.means import gains
from analysis.metrics import UNITS, Unit
from analysis.recipe import Recipe
from analysis.stats import apart, summarise

SHOWN = ("all", "method")  # levels that a reader sees; the CSV files hold all


# ---- frames


def comparisons(found: Evidence) -> pd.DataFrame:
    """The arm against every other init at every budget, by each of inference.LEVELS: the columns of inference.compare behind
    `level`, with `unit`; "(all)" in a coordinate that a row is pooled over."""
    return by_level(found, found.levels)


def by_direction(found: Evidence) -> pd.DataFrame:
    """Gains by direction at every budget, pooled over methods and relations."""
    keys = [*apart(found.cells), "origin", "receiving", "budget"]
    nothing = labelled(summarise(found.arms.iloc[:0], keys), "gain", found.metric.difference)
    return joined(gains(found, found.arms, keys) or [nothing])


@once
def tie_groups(found: Evidence) -> pd.DataFrame:
    """Inits within every method and over all, and methods within every init, at every budget, best first (inference.ties)."""
    parts = []
    for compared, keys in (("init", ["budget"]), ("init", ["method", "budget"]), ("method", ["init", "budget"])):
        frame = ties(found.cells, compared, keys, found.answers, found.metric.better or "higher")
        within = next((key for key in keys if key != "budget"), None)
        names = frame[within] if within else POOLED
        frame = frame.rename(columns={compared: "item"}).assign(compared=compared, within=names)
        parts.append(frame.drop(columns=[within] if within else []))
    frame = pd.concat(parts, ignore_index=True)
    first = [*apart(found.cells), "compared", "within", "budget", "item"]
    return frame[first + [name for name in frame if name not in first]].assign(unit=found.metric.unit)


# ---- parts of frames


def by_level(found: Evidence, levels: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Levels of comparisons as one frame, the widest pool first."""
    names = [name for name in (*reversed(LEVELS),) if name in levels]
    frame = pd.concat([levels[name].assign(level=name) for name in names], ignore_index=True)
    keys = [name for name in COORDINATES if name in frame and name not in ("init", "budget")]
    frame[keys] = frame[keys].astype(object).fillna(POOLED)
    numbers = [name for name in levels[names[0]] if name not in (*COORDINATES, "arm", "baseline")]
    return frame.assign(unit=found.metric.difference)[["level", *keys, "budget", "arm", "baseline", "unit", *numbers]]


# ---- what a reader sees


def difference(row: pd.Series, prefix: str = "") -> str:
    """A difference with its interval and marks."""
    unit, mean = UNITS[row["unit"]], row[f"{prefix}mean"]
    if pd.isna(mean):
        return "no pair†"
    return with_interval(mean, row[f"{prefix}low"], row[f"{prefix}high"], unit, row[f"{prefix}p_holm"]) + row["mark"]


def with_interval(value: float, low: float, high: float, unit: Unit, p: float = float("nan")) -> str:
    """A number and its interval with the mark of a p value, or words where there is none."""
    if pd.isna(value):
        return "none"
    return f"{number(value, unit)} {'(no interval)' if pd.isna(low) else interval(low, high, unit, p)}"


def counted(row: pd.Series) -> str:
    """Done of asked for, and what failed.

    Example:
        >>> counted(pd.Series({"n": 3, "expected": 5, "failed": 1}))
        '3/5, 1 failed'
    """
    return f"{row['n']}/{row['expected']}" + (f", {row['failed']} failed" if row["failed"] else "")


def short(value: float, form: str) -> str:
    """A plain number, "–" for none."""
    return "–" if pd.isna(value) else f"{value:{form}}".replace("-", "−")


def chance(p: float) -> str:
    """A p value.

    Example:
        >>> chance(0.0625), chance(0.00005), chance(float("nan"))
        ('0.0625', '<0.0001', '–')
    """
    return "<0.0001" if p < 0.0001 else short(p, ".3g")


def view(rows: pd.DataFrame, keys: list[str], **columns: object) -> pd.DataFrame:
    """The keys, several data sets and ports first, and columns: a function of a row each, or the name of a column."""
    keys = [*(key for key in ("data", "port") if key in rows), *keys]
    made = {
        name.replace("_", " "): rows[make] if isinstance(make, str) else [make(row) for _, row in rows.iterrows()]
        for name, make in columns.items()
    }
    return rows[keys].assign(**made)


def shown_comparisons(frame: pd.DataFrame) -> pd.DataFrame:
    """Levels all and method."""
    rows = frame[frame["level"].isin(SHOWN)]
    unit = UNITS[frame["unit"].iloc[0]] if len(frame) else UNITS["pp"]
    return view(
        rows, ["method", "budget"], against="baseline", difference=difference, p=lambda row: chance(row["p"]),
        p_Holm=lambda row: chance(row["p_holm"]),
        d=lambda row: short(row["effect"], ".2f"), detectable=lambda row: short(row["mdd"], f".{unit.digits}f"),
        pairs=counted, seeds="blocks",
    )


def shown_ties(frame: pd.DataFrame) -> pd.DataFrame:
    """One line per group, best first."""
    keys = [*(key for key in ("data", "port") if key in frame), "compared", "within", "budget"]
    rows = []
    for names, group in frame.groupby(keys, sort=False):
        words = [_item(row) for _, row in group.iterrows()]
        rows.append((*names, "; ".join(words), counted(group[["n", "expected", "failed"]].sum())))
    return pd.DataFrame(rows, columns=[*keys, "best first", "cells"])


def _item(row: pd.Series) -> str:
    """One item of a group: its mean, and the letters that say what it is not told apart from."""
    mean = "none" if pd.isna(row["mean"]) else number(row["mean"], UNITS[row["unit"]])
    return f"{row['item']} {mean}{row['mark']} {row['letters']}".rstrip()


# ---- captions


def comparison_words(found: Evidence, frame: pd.DataFrame) -> str:
    """Under the comparisons."""
    more = f"Shown are the levels {' and '.join(SHOWN)}; relations and directions stand in the CSV file."
    return f"{captions.comparison_words(frame, found.arms, found.why)} {SIZES} {more}"


def tie_words(found: Evidence, frame: pd.DataFrame) -> str:
    """Under the tie groups."""
    better = {"lower": "lowest", None: "highest (neither is better)"}.get(found.metric.better, "highest")
    keys = [*apart(found.cells), "method", "init", "budget"]
    return " ".join([TIES.format(symbol=UNITS[found.metric.unit].symbol, best=better), captions.replicates(found.arms, keys),
                     *captions.lacking(frame, "cells"), *captions.ahead(found.arms)])


SIZES = (
    "d: mean by spread of seeds. Detectable: the true difference "
    "that a study like this one would find 4 times in 5."
)
TIES = (
    "Means in {symbol}, the {best} first. What shares a letter is not told apart by a paired t test over seeds and test "
    "examples, p ≤ 0.05 after Holm's correction for the tests of its line; that is no proof of equality."
)
RECIPES: dict[str, Recipe] = {
    "comparisons": Recipe(
        comparisons, "Comparisons", "{label}: {arm} minus every other init at every budget.", view=shown_comparisons,
        words=comparison_words,
    ),
    "by_direction": Recipe(
        by_direction, "Gains by direction", "{label}: gain by origin and receiving host at every budget, over all methods and "
        "relations; each method and relation by itself stands in the CSV file of the comparisons.",
        ("quantity", "origin", "receiving"), "budget", behind=lambda found: found.arms,
    ),
    "ties": Recipe(
        tie_groups, "Tie groups", "{label}: inits within every method and over all of them, and methods within every init.",
        view=shown_ties, words=tie_words,
    ),
}
