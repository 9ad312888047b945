"""Cells in groups and in pairs: means in which every cell weighs alike, spreads over distinct runs, paired
differences."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from portability.core.specs import BARE, Cell

COLUMNS = list(Cell.__dataclass_fields__)
COORDINATES = COLUMNS[: COLUMNS.index("run_id")]
TASK = [name for name in COORDINATES if name != "seed"]
STATUSES = ("done", "failed", "missing", "duplicate", "foreign")
FAULTS = (*STATUSES[1:], "unpaired")  # statuses of cells, and of pairs, without a number
PORTED, EXTRACTED = "ported", "extracted"
ARMS = (PORTED, EXTRACTED)  # the first that a study has is its arm; every other init is a baseline of a gain
Answers = Mapping[tuple[str, int], np.ndarray]  # (run id, mark) to (M,) what each test example contributes


def arm_of(cells: pd.DataFrame) -> str:
    """The arm of a study: ported where it is there, else extracted; without either, ported, which then has no
    gain.

    Args:
        cells: all cells of a study, or those of some of its methods, data sets, ports or budgets: column
        init.

    Example:
        >>> arm_of(pd.DataFrame({"init": ["scratch", "extracted"]}))
        'extracted'
    """
    there = set(cells["init"].unique())
    return next((name for name in ARMS if name in there), PORTED)


def stratify_keys(cells: pd.DataFrame) -> list[str]:
    """Which of receiving data and port a study has several of: results are given for each and never pooled
    over them."""
    sides = {"data": cells[cells["init"] != BARE], "port": cells[cells["init"] == arm_of(cells)]}
    return [key for key, rows in sides.items() if rows[key].nunique() > 1]


# ---- groups


def summarise(cells: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean of `value` in every group of cells, and its spread over distinct runs.

    The mean is over cells, so methods, directions and relations weigh alike, whatever runs they share. For
    the spread the cells that read the same run at the same mark become one number, their mean (for plain
    cells these are equal: a scratch run has no origin, so it stands behind one cell per origin), so it does
    not shrink when one more origin shares a baseline.

    Args:
        cells: columns `keys`, run_id, mark, value (NaN unless the status is "done"), status.
        keys: the columns that make a group.

    Returns:
        One row per group in the order of first appearance: `keys`; `mean`; `std` (ddof 1, NaN with one run);
        `n` cells with a number; `runs`, the distinct runs behind them; `expected` cells asked for; one count
        per fault;
        `status`: "complete" (n = expected), "incomplete", or, where n is 0, the faults joined by "+".

    Source: our choice (D-21): std, not the standard error, because the spread of runs is what a user
    meets.

    Example:
        >>> cells = pd.DataFrame({"init": "scratch", "origin": ["a", "b", "a"], "run_id": ["r", "r", "s"],
        ...                       "mark": 5, "value": [0.5, 0.5, 0.7], "status": "done"})
        >>> summarise(cells, ["init"])[["mean", "n", "runs", "expected"]].round(2).values.tolist()
        [[0.57, 3.0, 2.0, 3.0]]
    """
    flags = {name: cells["status"] == name for name in FAULTS}
    grouped = cells.assign(**flags).groupby(keys, sort=False, dropna=False)
    table = grouped.agg(expected=("status", "size"), n=("value", "count"), mean=("value", "mean"),
                        **{name: (name, "sum") for name in FAULTS})
    runs = cells.dropna(subset="value").groupby([*keys, "run_id", "mark"], sort=False, dropna=False)
    levels = list(range(len(keys)))
    spread = runs["value"].mean().groupby(level=levels, sort=False, dropna=False).agg(["std", "count"])
    table = table.join(spread.rename(columns={"count": "runs"}))
    table["runs"] = table["runs"].fillna(0).astype(int)
    table["status"] = _status(table)
    return table.reset_index()[[*keys, "mean", "std", "n", "runs", "expected", *FAULTS, "status"]]


def _status(table: pd.DataFrame) -> np.ndarray:
    words = pd.Series("", index=table.index)
    for name in FAULTS:
        words = words + np.where(table[name] > 0, f"+{name}", "")
    words = words.str.removeprefix("+").mask(words == "", "no value")
    return np.select([table["n"] == table["expected"], table["n"] > 0], ["complete", "incomplete"], words)


def reference(cells: pd.DataFrame, name: str, keys: list[str]) -> pd.DataFrame:
    """The native or bare runs of a group of cells, one row per distinct run, ready for `summarise`.

    Args:
        name: "native" or "bare".
    """
    columns = {f"{name}_id": "run_id", name: "value", f"{name}_status": "status"}
    rows = cells[[*keys, *columns]].rename(columns=columns)
    rows = rows.drop_duplicates([*keys, "run_id"], ignore_index=True)
    return rows.assign(mark=0, run_id=rows["run_id"].fillna(""))


def varying(cells: pd.DataFrame, keys: list[str]) -> dict[str, int]:
    """What differs between the replicates of one group: coordinate -> most distinct values within any group.

    Example:
        >>> row = {"method": "m", "origin": "a", "receiving": "b", "relation": "same", "origin_data": "d",
        ...        "data": "d", "init": "ported", "port": "pad", "budget": 5}
        >>> varying(pd.DataFrame([{**row, "seed": 0}, {**row, "seed": 1}]), ["method"])
        {'seed': 2}
    """
    others = [name for name in COORDINATES if name not in keys]
    if cells.empty or not others:
        return {}
    grouped = cells.groupby(keys, sort=False, dropna=False)[others] if keys else None
    most = cells[others].nunique() if grouped is None else grouped.nunique().max()
    return {name: int(count) for name, count in most.items() if count > 1}


# ---- pairs


def paired(cells: pd.DataFrame, arm: str, baseline: str, scale: float = 100.0) -> pd.DataFrame:
    """Every cell of `arm` minus the cell of `baseline` with the same other coordinates, seed included.

    Paired are cells equal in method, origin, receiving, relation, both data sets, port, seed and budget, so a
    gain is always between two runs of one seed. Where no baseline carries a port of the arm's (a scratch run
    needs no port), the port is left out of the match.

    `run_id` and `mark` of the result are those of the *baseline*, so `summarise(paired(...), keys)` counts
    pairs in `n` and distinct baselines in `runs`, over which `std` is taken.

    Args:
        cells: a tidy frame (load.tidy).
        scale: 100 turns a difference of fractions into percentage points.

    Returns:
        One row per cell of `arm`, the coordinates and `value`, the gain (NaN unless both cells are done);
        `status` is that of the arm's cell, or the baseline's where only that one is not done; "unpaired"
        where no baseline, or no single one, was asked for.

    Source: our choice (D-119).
    """
    treated, base = cells[cells["init"] == arm], cells[cells["init"] == baseline]
    on = [name for name in COORDINATES if name != "init"]
    if not set(base["port"].unique()) & set(treated["port"].unique()):
        on.remove("port")
    base = base[[*on, "run_id", "mark", "value", "status"]].drop_duplicates([*on, "run_id", "mark"])
    base = base[~base.duplicated(on, keep=False)]  # two baselines for one cell: neither is taken
    columns = [*COORDINATES, "value", "status"]
    pairs = treated[columns].merge(base, on=on, how="left", suffixes=("_arm", "_base"), validate="m:1")
    pairs["value"] = scale * (pairs["value_arm"] - pairs["value_base"])
    of_base = pairs["status_base"].fillna("unpaired")
    pairs["status"] = pairs["status_arm"].where(pairs["status_arm"] != "done", of_base)
    return pairs[[*COORDINATES, "run_id", "mark", "value", "status"]]


def pairs_of(cells: pd.DataFrame, axis: str, sides: tuple[str, str], scale: float) -> pd.DataFrame:
    """`paired` along an axis ("init", "method" or "relation"), with the arm's run beside the baseline's.

    Returns:
        The columns of `paired`, `run_id` and `mark` of the baseline; `arm_id`, `arm_mark`; `task`, the number
        of the coordinates without the seed.
    """
    swap = {} if axis == "init" else {axis: "init", "init": axis}
    turned = cells.rename(columns=swap)
    runs = turned[turned["init"] == sides[0]][[*COORDINATES, "run_id", "mark"]]
    runs = runs.rename(columns={"run_id": "arm_id", "mark": "arm_mark"})
    pairs = paired(turned, *sides, scale).merge(runs, on=COORDINATES, how="left", validate="1:1")
    return with_tasks(pairs.rename(columns=swap))


def init_pairs(cells: pd.DataFrame, scale: float) -> dict[str, pd.DataFrame]:
    """The arm paired with every other init: baseline to the frame of `pairs_of`; empty where nothing is of
    the arm."""
    arms = with_categories(cells[cells["init"] != BARE])
    arm, inits = arm_of(cells), arms["init"].unique()
    others = [str(name) for name in inits if name != arm and arm in inits]
    return {name: pairs_of(arms, "init", (arm, name), scale) for name in others}


def with_categories(cells: pd.DataFrame) -> pd.DataFrame:
    """What comparisons need of the cells, names as categories: groups of a large study are found much
    faster."""
    places = [name for name in COORDINATES if name not in ("init", "method", "seed", "budget")]
    texts = [name for name in places if not pd.api.types.is_numeric_dtype(cells[name])]
    return cells[[*COORDINATES, "run_id", "mark", "value", "status"]].astype(dict.fromkeys(texts, "category"))


def bare_pairs(arms: pd.DataFrame, scale: float) -> pd.DataFrame:
    """Cells paired with their bare host, which has no seed and no update: the columns of `pairs_of`."""
    state = arms["status"].where(arms["status"] != "done", arms["bare_status"])
    value = (scale * (arms["value"] - arms["bare"])).where(state == "done")
    return with_tasks(arms[COORDINATES].assign(
        run_id=arms["bare_id"].fillna(""), mark=0, arm_id=arms["run_id"], arm_mark=arms["mark"], value=value,
        status=state))


def alone(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells as pairs without a baseline, so that their means have the intervals of differences."""
    return with_tasks(cells.assign(arm_id=cells["run_id"], arm_mark=cells["mark"]))


def with_tasks(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `task`, the number of their coordinates without the seed."""
    return rows.assign(task=rows.groupby(TASK, dropna=False, observed=True).ngroup())


def with_bare(pairs: pd.DataFrame, answers: Answers | None) -> Answers | None:
    """The answers, if they are there for every bare run of these pairs; else None."""
    done = pairs.loc[pairs["value"].notna(), "run_id"].unique()
    return None if answers is None or any((name, 0) not in answers for name in done) else answers
