"""Is one init, or one method, better than another? Paired differences of seeds with intervals and tests.

The blocks are seeds: whatever the runs of a seed share (batches, scratch runs, an origin that is another
direction's baseline), seeds share nothing. The difference of a seed is the plain mean over its cells, so
methods, directions and relations weigh alike for every baseline. A seed that lacks one of its cells is left
out and counted; no cell is reweighted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from scipy.sparse import coo_array

from portability.analysis.stats import pairing
from portability.analysis.stats.intervals import Estimate, detectable, estimate
from portability.analysis.stats.multiple_comparisons import holm
from portability.core.errors import UserError

LEVELS: dict[str, list[str]] = {  # the coordinates that a comparison keeps; the rest is pooled
    "direction": ["method", "origin", "receiving", "relation", "budget"],
    "relation": ["method", "relation", "budget"], "method": ["method", "budget"],
    "pair": ["origin", "receiving", "budget"], "all": ["budget"],
}
POOLED = "(all)"  # in place of a coordinate that a row is pooled over
TESTED = [*(item.name for item in fields(Estimate)), "mark"]
COMPARED = ["arm", "baseline", "expected", "n", "failed", "missing", "unpaired", "mean", "low", "high", "p",
            "p_holm", "family", "effect", "mdd", "blocks", "df", "examples", "mark", "note"]


@dataclass(frozen=True)
class Block:
    """One comparison: `differences` (S,) of the seeds that have all its cells, points; `examples`, for each
    test set (S, M); how many seeds are `lacking` cells and left out."""

    differences: np.ndarray
    examples: list[np.ndarray]
    lacking: int


# ---- estimates of groups


def estimate_groups(
    pairs: pd.DataFrame, keys: Sequence[str], answers: pairing.Answers | None = None, scale: float = 1.0
) -> pd.DataFrame:
    """One row per group of pairs: the counts of pairing.summarise, and the estimate and the test over seeds.

    Args:
        pairs: as of pairing.pairs_of: COORDINATES, run_id, mark, arm_id, arm_mark, task, value, status.
        answers: adds the test examples to the intervals; None: over seeds only.
        scale: 100 for points.

    Returns:
        The keys; `std`, `n`, `runs`, `expected`, the faults, `status`; the fields of intervals.Estimate;
        `mark`, `note`.
    """
    counts = pairing.summarise(pairs, list(keys)).drop(columns="mean")
    rows = [estimate_block(block) for block in build_blocks(pairs, keys, answers, scale)]
    return pd.concat([counts, pd.DataFrame(rows, columns=TESTED)], axis=1)


def estimate_block(block: Block) -> dict[str, float | int | str]:
    """The fields of intervals.Estimate, and the `mark` "†" with a note where seeds are left out."""
    found, seeds = estimate(block.differences, block.examples), len(block.differences) + block.lacking
    left = f"{block.lacking} of {seeds} seeds lack cells and are left out" if block.lacking else ""
    note = found.note if len(block.differences) or not left else ""
    return vars(found) | {"mark": "†" if left else "", "note": "; ".join(filter(None, (note, left)))}


def correct_family(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows as one family of tests: `p_holm`, `family`, and the counts of `mark_missing`."""
    frame = frame.assign(p_holm=holm(frame["p"].to_numpy(float)), family=int(frame["p"].notna().sum()))
    return mark_missing(frame)


def mark_missing(frame: pd.DataFrame) -> pd.DataFrame:
    """With `missing` (all that is not there and did not fail) and `mark`, "†" where numbers are not there."""
    lacks = (frame["n"] < frame["expected"]) | (frame["mark"] == "†" if "mark" in frame else False)
    missing = frame["expected"] - frame["n"] - frame["failed"]
    return frame.assign(missing=missing, mark=np.where(lacks, "†", ""))


def compare(
    cells: pd.DataFrame, keys: Sequence[str], answers: pairing.Answers | None = None, scale: float = 100.0,
    pairs: Mapping[str, pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """The arm against every other init, in every group of `keys`: one row per group and baseline.

    Args:
        cells: a tidy frame (load.tidy).
        keys: LEVELS[...], or other coordinates, the budget among them: runs of one budget after the other are
            no independent replicates. Several data sets or ports are kept apart besides.
        answers: `records.by_example(...)` adds the test examples to the interval (metrics.OVER_EXAMPLES
            only).
        scale: 100 for points.
        pairs: what `init_pairs(cells, scale)` gives, where several calls share it.

    Returns:
        The keys; `arm`, `baseline`; `expected`, `n`, `failed`, `missing` pairs, of the latter `unpaired`
        those whose baseline the grid does not have (pairing.paired); `mean`, `low`, `high`, 95 % of new seeds
        and new test examples; `p` of the t test behind them, `p_holm` over the `family` of tests in this
        frame; `effect` d_z; `mdd` at 80 % power; `blocks`, the seeds that have all their pairs; `df`,
        `examples`; `mark` "†" where seeds are left out; `note` in words.

    Raises:
        ValueError: no budget among the keys.
        UserError: runs of one group with other test examples.

    Source: paired t test over seeds and Holm, Scand. J. Statist. 6, 1979; our choice of blocks (D-119).
    """
    keys = check_keys(cells, keys)
    pairs = pairing.init_pairs(cells, scale) if pairs is None else pairs
    rows = [estimate_groups(own, keys, answers, scale).assign(arm=pairing.arm_of(cells), baseline=name)
            for name, own in pairs.items()]
    if not rows:
        return pd.DataFrame(columns=[*keys, *COMPARED]).astype({name: cells[name].dtype for name in keys})
    frame = correct_family(pd.concat(rows, ignore_index=True))
    frame["mdd"] = detectable(frame["se"].to_numpy(float), frame["df"].to_numpy(float))
    return frame[[*keys, *COMPARED]].astype({name: cells[name].dtype for name in keys})


def check_keys(cells: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """The keys of a comparison, behind those that are never pooled over.

    Raises:
        ValueError: no budget among them, or an init or a seed.
    """
    if "budget" not in keys or not set(keys) <= set(pairing.COORDINATES) - {"init", "seed"}:
        raise ValueError(f"comparisons by {', '.join(keys)}: name the budget, and no init or seed, among "
                         f"the keys")
    return list(dict.fromkeys([*pairing.stratify_keys(cells), *keys]))


# ---- blocks


def build_blocks(
    pairs: pd.DataFrame, keys: Sequence[str], answers: pairing.Answers | None = None, scale: float = 1.0
) -> Iterator[Block]:
    """The seeds of every group of pairs, in the order of first appearance.

    A seed's difference is the mean over the cells (tasks) of its group, or their sum with the weights of a
    column `weight`.
    """
    if pairs.empty:
        return
    groups = pairs.groupby(list(keys), sort=False, dropna=False)
    group, count = groups.ngroup().to_numpy(), groups.ngroups
    block, task = _within(group, pairs["seed"]), _within(group, pairs["task"])
    tasks = np.bincount(_owner(task, group), minlength=count)
    weight = pairs["weight"].to_numpy(float) if "weight" in pairs else 1 / tasks[group]
    value = pairs["value"].to_numpy(float)
    there = ~np.isnan(value)
    differences = np.bincount(block, weight * np.where(there, value, 0.0))
    owner = _owner(block, group)
    whole = np.bincount(block, there) == tasks[owner]
    for own, rows in zip(_split(owner, count), _split(group, count), strict=True):
        seeds, rows = own[whole[own]], rows[whole[block[rows]]]
        each = []
        if answers is not None and len(rows):
            each = _examples(pairs.iloc[rows], block[rows], scale * weight[rows], answers)
        yield Block(differences[seeds], each, len(own) - len(seeds))


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


def _examples(
    pairs: pd.DataFrame, block: np.ndarray, weight: np.ndarray, answers: pairing.Answers
) -> list[np.ndarray]:
    """For each test set (S, M) what its examples contribute to the difference of each seed, seeds in
    order."""
    seeds = np.unique(block, return_inverse=True)[1]
    found = []
    for rows in pairs.groupby("data", sort=False, observed=True).indices.values():
        own = pairs.iloc[rows]
        each = _stack(own, "arm_id", "arm_mark", answers) - _stack(own, "run_id", "mark", answers)
        place, shape = (seeds[rows], np.arange(len(rows))), (seeds.max() + 1, len(rows))
        found.append(coo_array((weight[rows].astype(np.float32), place), shape=shape) @ each)
    return found


def _stack(pairs: pd.DataFrame, run: str, mark: str, answers: pairing.Answers) -> np.ndarray:
    """(pairs, M) the score of each test example, as float32."""
    rows = [answers[key] for key in zip(pairs[run], pairs[mark].astype(int), strict=True)]
    if len({len(row) for row in rows}) > 1:
        raise UserError("runs that are compared were tested on different numbers of examples; name their "
                        "data sets apart")
    return np.stack(rows).astype(np.float32)
