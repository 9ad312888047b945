"""Is one start, or one method, better than another? Paired differences with intervals, tests and tie groups.

Every number is over blocks. A block is all pairs that share a run: one scratch run is the baseline of several origins
and relations, so these rise and fall together. Blocks are made within each group, so a direction alone has one a seed.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from analysis.answers import Right
from analysis.arms import arm_of
from analysis.intervals import estimate, noncentrality
from analysis.load import COORDINATES
from analysis.permutation import Flips, holm, letters, sign_flips
from analysis.stats import apart, paired, summarise
from portability.errors import UserError, choose
from portability.spec import BARE

LEVELS: dict[str, list[str]] = {  # what a comparison is told apart by; the rest is pooled
    "direction": ["method", "origin", "receiving", "relation", "budget"],
    "relation": ["method", "relation", "budget"],
    "method": ["method", "budget"],
    "pair": ["origin", "receiving", "budget"],
    "all": ["budget"],
}
AXES = ("init", "method")
BLOCKS = ("run", "seed")
PLACES = [name for name in COORDINATES if name not in (*AXES, "seed", "budget")]
ALPHA = 0.05


@dataclass(frozen=True)
class Design:
    """The pairs of one comparison as blocks: `differences` (B,) points, `strata` (B,), `examples` (B, M) or None."""

    differences: np.ndarray
    strata: np.ndarray
    examples: np.ndarray | None


def compare(
    cells: pd.DataFrame, keys: Sequence[str], answers: Right | None = None, scale: float = 100.0, blocks: str = "run",
    pairs: Mapping[str, pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """The arm against every other start, in every group of `keys`: one row per group and baseline.

    Args:
        cells: a tidy frame (load.tidy).
        keys: LEVELS[...], or other coordinates, the budget among them: runs of one budget after the other are no
            independent replicates. Several data sets or ports are told apart besides.
        answers: `right(...)` adds the test examples to the interval (metrics.OVER_EXAMPLES only); None: over seeds only.
        scale: 100 for points.
        blocks: "run" (pairs that share a run) or "seed" (all of a seed: safe where these share more, but they are few).
        pairs: what `init_pairs(cells, scale)` gives, where several calls share it.

    Returns:
        The keys; `arm`, `baseline`; `expected`, `n`, `failed`, `missing` pairs (missing: all that is not there and did
        not fail); `mean`, `low`, `high`, 95 % of new seeds and new test examples; `p` (sign flips; of these test
        examples), `p_holm` over the `family` of tests in this frame, `smallest_p` these blocks could give; `effect`
        d_z; `mdd` at 80 % power; `blocks`, `df`, `examples`; `mark` "†" where pairs are not there; `note` in words.
        `mean` is that of stats.summarise, so it equals the gain in the tables (by seed: unless pairs are missing).

    Raises:
        UserError: no budget among the keys, an unknown kind of blocks, or runs of one group with other test examples.
    """
    keys = _keys(cells, keys, blocks)
    pairs = init_pairs(cells, scale) if pairs is None else pairs
    rows = [_rows(own, (arm_of(cells), name), keys, answers, scale, blocks) for name, own in pairs.items()]
    return _finish(rows, keys).astype({name: cells[name].dtype for name in keys})


def _keys(cells: pd.DataFrame, keys: Sequence[str], blocks: str) -> list[str]:
    choose(blocks, BLOCKS, "kind of blocks")
    if "budget" not in keys or not set(keys) <= set(COORDINATES) - {"init", "seed"}:
        raise UserError(f"comparisons by {', '.join(keys)}: name the budget and no init or seed among the keys")
    return list(dict.fromkeys([*apart(cells), *keys]))


def _coded(cells: pd.DataFrame) -> pd.DataFrame:
    """What comparisons need of the cells, names as categories: groups and pairs of a large study are found much faster."""
    names = [name for name in PLACES if not pd.api.types.is_numeric_dtype(cells[name])]
    return cells[[*COORDINATES, "run_id", "mark", "value", "status"]].astype(dict.fromkeys(names, "category"))


def _rows(
    pairs: pd.DataFrame, sides: tuple[str, str], keys: list[str], answers: Right | None, scale: float, blocks: str
) -> pd.DataFrame:
    """One row per group: counts, estimate and test of the first side minus the second."""
    counts, rows = summarise(pairs, keys), tested(list(designs(pairs, keys, answers, scale, blocks)))
    counts["missing"] = counts["expected"] - counts["n"] - counts["failed"]
    counts = counts[[*keys, "expected", "n", "failed", "missing"]].assign(arm=sides[0], baseline=sides[1])
    return pd.concat([counts, pd.DataFrame(rows)], axis=1)


def tested(parts: Sequence[Design]) -> list[dict[str, float | int | str]]:
    """Of each design the fields of intervals.Estimate, `p` and `smallest_p` of the sign flips, and the notes of both."""
    rows = []
    for part, flips in zip(parts, sign_flips([part.differences for part in parts]), strict=True):
        found = estimate(part.differences, part.strata, part.examples)
        note = "; ".join(filter(None, (found.note, flips.note)))
        rows.append(vars(found) | {"p": flips.p, "smallest_p": flips.smallest, "note": note})
    return rows


def _finish(rows: list[pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    """All comparisons of a family, with what depends on the whole of it."""
    columns = [*keys, "arm", "baseline", "expected", "n", "failed", "missing", "mean", "low", "high", "p", "p_holm",
               "smallest_p", "family", "effect", "mdd", "blocks", "df", "examples", "mark", "note"]
    if not rows:
        return pd.DataFrame(columns=columns)
    frame = pd.concat(rows, ignore_index=True)
    frame["p_holm"] = holm(frame["p"].to_numpy(float))
    frame["family"] = int(frame["p"].notna().sum())
    freedoms, place = np.unique(frame["df"].to_numpy(float), return_inverse=True)
    frame["mdd"] = frame["se"] * noncentrality(freedoms)[place]
    frame["mark"] = np.where(frame["n"] < frame["expected"], "†", "")
    return frame[columns]


# ---- pairs and blocks


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
    return pairs.assign(task=pairs.groupby([name for name in COORDINATES if name != "seed"], dropna=False).ngroup())


def design_of(pairs: pd.DataFrame, answers: Right | None, scale: float, blocks: str) -> Design:
    """The blocks of one group of pairs (see `designs`)."""
    nothing = Design(np.zeros(0), np.zeros(0, int), None)
    return next(designs(pairs.assign(one=0), ["one"], answers, scale, blocks), nothing)


def designs(
    pairs: pd.DataFrame, keys: Sequence[str], answers: Right | None, scale: float, blocks: str
) -> Iterator[Design]:
    """Blocks of every group of pairs, in the order of first appearance: means over the pairs of a block, and what of the
    grid is fixed as strata.

    Strata are the tasks (all coordinates but the seed) that share a block with each other at some seed.
    """
    groups = pairs.groupby(list(keys), sort=False, dropna=False)
    done = pairs["value"].notna().to_numpy()
    group, count = groups.ngroup().to_numpy()[done], groups.ngroups
    pairs = pairs[done]
    run = _connected(_within(group, pairs["run_id"]), _within(group, pairs["arm_id"]))
    block = run if blocks == "run" else _within(group, pairs["seed"])
    weight = 1 / np.bincount(run)[run]  # pairs that share a run count once, also within a seed
    weight = weight / np.bincount(block, weight)[block]
    differences = np.bincount(block, weight * pairs["value"])
    strata = np.zeros(len(differences), int)
    strata[block] = _connected(_within(group, pairs["task"]), block)
    owner = np.zeros(len(differences), int)
    owner[block] = group
    parts = zip(_split(owner, count), _split(group, count), strict=True)
    for own, rows in parts:
        each = None if answers is None or not len(rows) else _examples(pairs.iloc[rows], answers)
        if each is not None:
            here = np.unique(block[rows], return_inverse=True)[1]
            each = coo_array((scale * weight[rows], (here, np.arange(len(rows))))) @ each
        yield Design(differences[own], strata[own], each)


def _within(group: np.ndarray, names: pd.Series) -> np.ndarray:
    """(K,) number of every name, other in every group."""
    codes = pd.factorize(names, use_na_sentinel=False)[0]
    return pd.factorize(group * (codes.max(initial=0) + 1) + codes)[0]


def _split(owner: np.ndarray, count: int) -> list[np.ndarray]:
    """The places of each of `count` owners, in order."""
    return np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner, minlength=count)))[:count]


def _examples(pairs: pd.DataFrame, answers: Right) -> np.ndarray:
    """(pairs, M) the difference per test example."""
    return _stack(pairs, "arm_id", "arm_mark", answers) - _stack(pairs, "run_id", "mark", answers)


def _stack(pairs: pd.DataFrame, run: str, mark: str, answers: Right) -> np.ndarray:
    """(pairs, M) whether each test example is right, or its score, as float32."""
    rows = [answers[key] for key in zip(pairs[run], pairs[mark].astype(int), strict=True)]
    if len({len(row) for row in rows}) > 1:
        raise UserError("runs that are compared were tested on different numbers of examples; tell their data sets apart")
    return np.stack(rows).astype(np.float32)


def _connected(left: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(K,) number of the component that each of K links between two kinds of numbered nodes belongs to."""
    other = other + left.max(initial=-1) + 1
    size = int(other.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(left)), (left, other)), shape=(size, size))
    return np.unique(connected_components(graph, directed=False)[1][left], return_inverse=True)[1]


# ---- ties


def ties(cells: pd.DataFrame, axis: str, keys: Sequence[str], blocks: str = "run", better: str = "higher") -> pd.DataFrame:
    """Methods, or starts, in tie groups: what shares a letter is not told apart by the sign-flip test after Holm.

    Args:
        axis: "method" or "init": what is compared; with "method", name the init among the keys.
        keys: the groups within which they are compared, the budget among them.
        better: which mean is the best, the "higher" or the "lower".

    Returns:
        One row per group and item, best first: the keys, the axis, `mean` (of stats.summarise), `expected`, `n`, `failed`,
        `letters` ("" without a number), `smallest_p` and `family` of its group's tests, `mark`.

    Raises:
        UserError: an unknown axis, or no budget among the keys.
    """
    choose(axis, AXES, "axis of ties")
    _keys(cells, [key for key in keys if key != "init"], blocks)
    cells = cells[cells["init"] != BARE]
    keys = list(dict.fromkeys([*apart(cells), *keys]))
    columns = [*keys, axis, "mean", "expected", "n", "failed", "letters", "smallest_p", "family", "mark"]
    if cells.empty:
        return pd.DataFrame(columns=columns)
    tests = _pairwise(_coded(cells), axis, keys, blocks)
    frame = summarise(cells, [*keys, axis])
    parts = [_tied(group.sort_values("mean", ascending=better == "lower", kind="stable"), axis, tests.get(name, {}))
             for name, group in frame.groupby(keys, sort=False)]
    return pd.concat(parts, ignore_index=True)[columns]


def _pairwise(
    cells: pd.DataFrame, axis: str, keys: list[str], blocks: str
) -> dict[tuple[Hashable, ...], dict[frozenset[Hashable], Flips]]:
    """The test of every two items in every group that has pairs of them."""
    found: dict[tuple[Hashable, ...], dict[frozenset[Hashable], Flips]] = {}
    for two in combinations(cells[axis].unique(), 2):
        pairs = pairs_of(cells[cells[axis].isin(two)], axis, two, 1.0)
        names = pairs[keys].drop_duplicates().itertuples(index=False, name=None)
        flips = sign_flips([design.differences for design in designs(pairs, keys, None, 1.0, blocks)])
        for name, flip in zip(names, flips, strict=True):
            found.setdefault(name, {})[frozenset(two)] = flip
    return found


def _tied(frame: pd.DataFrame, axis: str, tests: dict[frozenset[Hashable], Flips]) -> pd.DataFrame:
    """One group, best first, with its letters."""
    items = frame.loc[frame["n"] > 0, axis].tolist()
    sides = [side for two in combinations(items, 2) if (side := frozenset(two)) in tests and tests[side].p >= 0]
    p = holm(np.array([tests[side].p for side in sides], float))
    named = letters(items, [side for side, value in zip(sides, p, strict=True) if value <= ALPHA])
    smallest = min((tests[side].smallest for side in sides), default=np.nan)
    return frame.assign(
        letters=[named.get(item, "") for item in frame[axis]], smallest_p=smallest, family=len(sides),
        mark=np.where(frame["n"] < frame["expected"], "†", ""),
    )
