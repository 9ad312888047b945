"""Is one start, or one method, better than another? Paired differences with intervals, tests and tie groups.

Every number is over seeds: whatever the runs of a seed share (batches, scratch runs, an origin that is another direction's
baseline), seeds share nothing. The difference of a seed is the plain mean over its cells, so methods, directions and relations
weigh alike for every baseline. A seed that lacks one of the cells is left out, and said so: nothing is weighted anew.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.sparse import coo_array

from analysis.answers import Right
from analysis.arms import arm_of
from analysis.intervals import ALPHA, detectable, estimate
from analysis.load import COORDINATES
from analysis.permutation import holm, letters
from analysis.stats import apart, paired, summarise
from portability.core.errors import UserError, choose
from portability.core.specs import BARE

LEVELS: dict[str, list[str]] = {  # what a comparison is told apart by; the rest is pooled
    "direction": ["method", "origin", "receiving", "relation", "budget"],
    "relation": ["method", "relation", "budget"],
    "method": ["method", "budget"],
    "pair": ["origin", "receiving", "budget"],
    "all": ["budget"],
}
AXES = ("init", "method")
PLACES = [name for name in COORDINATES if name not in (*AXES, "seed", "budget")]
TASK = [name for name in COORDINATES if name != "seed"]


@dataclass(frozen=True)
class Design:
    """One comparison: `differences` (S,) of the seeds that have all its cells, points; `examples`, for each test set (S, M);
    how many seeds are `lacking` cells and left out."""

    differences: np.ndarray
    examples: list[np.ndarray]
    lacking: int


def compare(
    cells: pd.DataFrame, keys: Sequence[str], answers: Right | None = None, scale: float = 100.0,
    pairs: Mapping[str, pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """The arm against every other start, in every group of `keys`: one row per group and baseline.

    Args:
        cells: a tidy frame (load.tidy).
        keys: LEVELS[...], or other coordinates, the budget among them: runs of one budget after the other are no
            independent replicates. Several data sets or ports are told apart besides.
        answers: `right(...)` adds the test examples to the interval (metrics.OVER_EXAMPLES only); None: over seeds only.
        scale: 100 for points.
        pairs: what `init_pairs(cells, scale)` gives, where several calls share it.

    Returns:
        The keys; `arm`, `baseline`; `expected`, `n`, `failed`, `missing` pairs (missing: all that is not there and did
        not fail); `mean`, `low`, `high`, 95 % of new seeds and new test examples; `p` of the t test behind them, `p_holm` over
        the `family` of tests in this frame; `effect` d_z; `mdd` at 80 % power; `blocks`, the seeds that have all their pairs;
        `df`, `examples`; `mark` "†" where seeds are left out; `note` in words.

    Raises:
        UserError: no budget among the keys, or runs of one group with other test examples.
    """
    keys = _keys(cells, keys)
    pairs = init_pairs(cells, scale) if pairs is None else pairs
    rows = [_rows(own, (arm_of(cells), name), keys, answers, scale) for name, own in pairs.items()]
    return _finish(rows, keys).astype({name: cells[name].dtype for name in keys})


def _keys(cells: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    if "budget" not in keys or not set(keys) <= set(COORDINATES) - {"init", "seed"}:
        raise UserError(f"comparisons by {', '.join(keys)}: name the budget and no init or seed among the keys")
    return list(dict.fromkeys([*apart(cells), *keys]))


def _coded(cells: pd.DataFrame) -> pd.DataFrame:
    """What comparisons need of the cells, names as categories: groups and pairs of a large study are found much faster."""
    names = [name for name in PLACES if not pd.api.types.is_numeric_dtype(cells[name])]
    return cells[[*COORDINATES, "run_id", "mark", "value", "status"]].astype(dict.fromkeys(names, "category"))


def _rows(
    pairs: pd.DataFrame, sides: tuple[str, str], keys: list[str], answers: Right | None, scale: float
) -> pd.DataFrame:
    """One row per group: counts, estimate and test of the first side minus the second."""
    counts, rows = summarise(pairs, keys), tested(designs(pairs, keys, answers, scale))
    counts["missing"] = counts["expected"] - counts["n"] - counts["failed"]
    counts = counts[[*keys, "expected", "n", "failed", "missing"]].assign(arm=sides[0], baseline=sides[1])
    return pd.concat([counts, pd.DataFrame(rows)], axis=1)


def tested(parts: Iterator[Design]) -> list[dict[str, float | int | str]]:
    """Of each design the fields of intervals.Estimate, and the `mark` "†" with a note where seeds are left out."""
    rows = []
    for part in parts:
        found = estimate(part.differences, part.examples)
        seeds = len(part.differences) + part.lacking
        left = f"{part.lacking} of {seeds} seeds lack cells and are left out" if part.lacking else ""
        note = found.note if len(part.differences) or not left else ""
        rows.append(vars(found) | {"mark": "†" if left else "", "note": "; ".join(filter(None, (note, left)))})
    return rows


def _finish(rows: list[pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    """All comparisons of a family, with what depends on the whole of it."""
    columns = [*keys, "arm", "baseline", "expected", "n", "failed", "missing", "mean", "low", "high", "p", "p_holm",
               "family", "effect", "mdd", "blocks", "df", "examples", "mark", "note"]
    if not rows:
        return pd.DataFrame(columns=columns)
    frame = pd.concat(rows, ignore_index=True)
    frame["p_holm"] = holm(frame["p"].to_numpy(float))
    frame["family"] = int(frame["p"].notna().sum())
    frame["mdd"] = detectable(frame["se"].to_numpy(float), frame["df"].to_numpy(float))
    return frame[columns]


# ---- pairs and seeds


def init_pairs(cells: pd.DataFrame, scale: float) -> dict[str, pd.DataFrame]:
    """The arm paired with every other init: baseline to the frame of `pairs_of`; empty where nothing is of the arm."""
    arms = _coded(cells[cells["init"] != BARE])
    arm, inits = arm_of(cells), arms["init"].unique()
    return {str(name): pairs_of(arms, "init", (arm, str(name)), scale) for name in inits if name != arm and arm in inits}


def pairs_of(cells: pd.DataFrame, axis: str, sides: tuple[str, str], scale: float) -> pd.DataFrame:
    """stats.paired along an axis ("init", "method" or "relation"), with the arm's run beside the baseline's.

    Returns:
        The columns of stats.paired, `run_id` and `mark` of the baseline; `arm_id`, `arm_mark`; `task`, the number of
        the coordinates without the seed.
    """
    swap = {} if axis == "init" else {axis: "init", "init": axis}
    turned = cells.rename(columns=swap)
    pairs = paired(turned, *sides, scale)
    runs = turned[turned["init"] == sides[0]][[*COORDINATES, "run_id", "mark"]]
    runs = runs.rename(columns={"run_id": "arm_id", "mark": "arm_mark"})
    pairs = pairs.merge(runs, on=COORDINATES, how="left", validate="1:1").rename(columns=swap)
    return pairs.assign(task=_tasks(pairs))


def bare_pairs(arms: pd.DataFrame, scale: float) -> pd.DataFrame:
    """Cells paired with their bare host, which has no seed and no update: the columns of `pairs_of`."""
    state = arms["status"].where(arms["status"] != "done", arms["bare_status"])
    value = scale * (arms["value"] - arms["bare"])
    pairs = arms[COORDINATES].assign(run_id=arms["bare_id"].fillna(""), mark=0, arm_id=arms["run_id"], arm_mark=arms["mark"])
    return pairs.assign(value=value.where(state == "done"), status=state, task=_tasks(arms))


def with_bare(pairs: pd.DataFrame, answers: Right | None) -> Right | None:
    """The answers, if they are there for every bare run of these pairs; else None."""
    done = pairs.loc[pairs["value"].notna(), "run_id"].unique()
    return None if answers is None or any((name, 0) not in answers for name in done) else answers


def _tasks(rows: pd.DataFrame) -> pd.Series:
    return rows.groupby(TASK, dropna=False, observed=True).ngroup()


def designs(pairs: pd.DataFrame, keys: Sequence[str], answers: Right | None, scale: float) -> Iterator[Design]:
    """The seeds of every group of pairs, in the order of first appearance.

    A seed's difference is the mean over the cells (tasks) of its group, or their sum with the weights of a column `weight`.
    """
    groups = pairs.groupby(list(keys), sort=False, dropna=False)
    group, count = groups.ngroup().to_numpy(), groups.ngroups
    block = _within(group, pairs["seed"])
    task = _within(group, pairs["task"])
    tasks = np.bincount(_owner(task, group), minlength=count)
    weight = pairs["weight"].to_numpy(float) if "weight" in pairs else 1 / tasks[group]
    value = pairs["value"].to_numpy(float)
    there = ~np.isnan(value)
    differences = np.bincount(block, weight * np.where(there, value, 0.0))
    owner = _owner(block, group)
    whole = np.bincount(block, there) == tasks[owner]
    for own, rows in zip(_split(owner, count), _split(group, count), strict=True):
        seeds, rows = own[whole[own]], rows[whole[block[rows]]]
        known = answers is not None and len(rows)
        each = _examples(pairs.iloc[rows], block[rows], scale * weight[rows], answers) if known else []
        yield Design(differences[seeds], each, len(own) - len(seeds))


def _within(group: np.ndarray, names: pd.Series) -> np.ndarray:
    """(K,) number of every name, other in every group."""
    codes = pd.factorize(names, use_na_sentinel=False)[0]
    return pd.factorize(group * (codes.max(initial=0) + 1) + codes)[0]


def _owner(number: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The group of each of the things that (K,) rows are numbered by."""
    owner = np.zeros(number.max(initial=-1) + 1, int)
    owner[number] = group
    return owner


def _split(owner: np.ndarray, count: int) -> list[np.ndarray]:
    """The places of each of `count` owners, in order."""
    return np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner, minlength=count)))[:count]


def _examples(pairs: pd.DataFrame, block: np.ndarray, weight: np.ndarray, answers: Right) -> list[np.ndarray]:
    """For each test set (S, M) what its examples contribute to the difference of each seed, seeds in order."""
    seeds = np.unique(block, return_inverse=True)[1]
    found = []
    for rows in pairs.groupby("data", sort=False, observed=True).indices.values():
        own = pairs.iloc[rows]
        each = _stack(own, "arm_id", "arm_mark", answers) - _stack(own, "run_id", "mark", answers)
        shape = (seeds.max() + 1, len(rows))
        found.append(coo_array((weight[rows].astype(np.float32), (seeds[rows], np.arange(len(rows)))), shape=shape) @ each)
    return found


def _stack(pairs: pd.DataFrame, run: str, mark: str, answers: Right) -> np.ndarray:
    """(pairs, M) whether each test example is right, or its score, as float32."""
    rows = [answers[key] for key in zip(pairs[run], pairs[mark].astype(int), strict=True)]
    if len({len(row) for row in rows}) > 1:
        raise UserError("runs that are compared were tested on different numbers of examples; tell their data sets apart")
    return np.stack(rows).astype(np.float32)


# ---- ties


def ties(
    cells: pd.DataFrame, axis: str, keys: Sequence[str], answers: Right | None = None, better: str = "higher"
) -> pd.DataFrame:
    """Methods, or starts, in tie groups: what shares a letter is not told apart by the paired t test after Holm.

    Args:
        axis: "method" or "init": what is compared; with "method", name the init among the keys.
        keys: the groups within which they are compared, the budget among them.
        answers: as of `compare`.
        better: which mean is the best, the "higher" or the "lower".

    Returns:
        One row per group and item, best first: the keys, the axis, `mean` (of stats.summarise), `expected`, `n`, `failed`,
        `letters` ("" without a number), `family` of its group's tests, `mark`.

    Raises:
        UserError: an unknown axis, or no budget among the keys.
    """
    choose(axis, AXES, "axis of ties")
    _keys(cells, [key for key in keys if key != "init"])
    cells = cells[cells["init"] != BARE]
    keys = list(dict.fromkeys([*apart(cells), *keys]))
    columns = [*keys, axis, "mean", "expected", "n", "failed", "letters", "family", "mark"]
    if cells.empty:
        return pd.DataFrame(columns=columns)
    tests = _pairwise(_coded(cells), axis, keys, answers)
    frame = summarise(cells, [*keys, axis])
    parts = [_tied(group.sort_values("mean", ascending=better == "lower", kind="stable"), axis, tests.get(name, {}))
             for name, group in frame.groupby(keys, sort=False)]
    return pd.concat(parts, ignore_index=True)[columns]


def _pairwise(
    cells: pd.DataFrame, axis: str, keys: list[str], answers: Right | None
) -> dict[tuple[Hashable, ...], dict[frozenset[Hashable], float]]:
    """The p of every two items in every group that has pairs of them."""
    found: dict[tuple[Hashable, ...], dict[frozenset[Hashable], float]] = {}
    for two in combinations(cells[axis].unique(), 2):
        pairs = pairs_of(cells[cells[axis].isin(two)], axis, two, 1.0)
        names = pairs[keys].drop_duplicates().itertuples(index=False, name=None)
        for name, design in zip(names, designs(pairs, keys, answers, 1.0), strict=True):
            found.setdefault(name, {})[frozenset(two)] = estimate(design.differences, design.examples).p
    return found


def _tied(frame: pd.DataFrame, axis: str, tests: dict[frozenset[Hashable], float]) -> pd.DataFrame:
    """One group, best first, with its letters."""
    items = frame.loc[frame["n"] > 0, axis].tolist()
    sides = [side for two in combinations(items, 2) if (side := frozenset(two)) in tests and tests[side] >= 0]
    p = holm(np.array([tests[side] for side in sides], float))
    named = letters(items, [side for side, value in zip(sides, p, strict=True) if value <= ALPHA])
    return frame.assign(
        letters=[named.get(item, "") for item in frame[axis]], family=len(sides),
        mark=np.where(frame["n"] < frame["expected"], "†", ""),
    )
