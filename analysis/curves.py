"""What a whole curve over budgets says: the area under it, and the updates it takes to match scratch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.answers import Right
from analysis.arms import arm_of
from analysis.entries import joined, labelled
from analysis.evidence import Evidence
from analysis.inference import pairs_of
from analysis.judging import LEVELS, by_level, corrected, counted, judged
from analysis.load import COORDINATES, STATUSES
from analysis.quantities import SLACK, direction
from analysis.stats import apart, summarise

POINT = [name for name in COORDINATES if name != "budget"]
UPDATES = "updates"


@dataclass(frozen=True)
class Curves:
    """The runs of one method over its B budgets: those at which its arm was asked for (without it, any init).

    `frame` has one row per curve (the columns of load.tidy at the largest budget; `status` is "done" where all budgets
    are, else the first fault in the order of STATUSES); `values` (G, B) in the metric, `runs` and `marks` (G, B) where each
    stands. A curve that was not asked for at all budgets is none of them: `left_out` names its inits.
    """

    budgets: np.ndarray
    frame: pd.DataFrame
    values: np.ndarray
    runs: np.ndarray
    marks: np.ndarray
    left_out: tuple[str, ...]


def curves(arms: pd.DataFrame) -> list[Curves]:
    """The curves of each method, from Evidence.arms."""
    return [_curves(own) for _, own in arms.groupby("method", sort=False)]


def _curves(cells: pd.DataFrame) -> Curves:
    own = cells["init"] == arm_of(cells)
    asked = cells[own] if own.any() else cells
    budgets = np.sort(asked["budget"].unique())
    cells = cells[cells["budget"].isin(budgets)]
    point = cells.groupby(POINT, sort=False, dropna=False).ngroup()
    whole = point.map(point.value_counts()) == len(budgets)
    left_out = tuple(cells.loc[~whole, "init"].unique())
    cells = cells[whole].assign(point=point[whole]).sort_values(["point", "budget"], ignore_index=True)
    shape = (-1, len(budgets))
    worst = cells["status"].map({name: i for i, name in enumerate(STATUSES)}).to_numpy().reshape(shape)
    fault = np.where(worst > 0, worst, len(STATUSES)).min(axis=1)
    frame = cells.iloc[len(budgets) - 1 :: len(budgets)].drop(columns="point").reset_index(drop=True)
    values = cells["value"].to_numpy(float).reshape(shape)
    status = np.append(STATUSES, STATUSES[0])[fault]  # no fault: done
    frame = frame.assign(status=status, value=np.nan)
    runs, marks = (cells[name].to_numpy().reshape(shape) for name in ("run_id", "mark"))
    return Curves(budgets, frame, values, runs, marks, left_out)


# ---- area


def area(found: Evidence) -> pd.DataFrame:
    """The area under the budget curve of every init by method, and the arm's gain in it over every other init.

    The mean height of the curve from its first budget (zero-shot) to its largest, linear in updates between marks, so in
    the unit of the metric (Source: trapezoid rule; our choice: linear in updates, not in their logarithm). A curve
    that lacks a mark has no area and counts as failed or missing; intervals as for gains, test examples included.

    Returns:
        The means (stats.summarise) and the gains (judging.judged, judging.corrected; one family). A method with one budget,
        and an init not asked for at all budgets of its method (say, without zero-shot), have no rows.
    """
    metric = found.metric
    whole = [item for item in curves(found.arms) if len(item.budgets) > 1]
    heights = [item.values @ _weights(item.budgets) for item in whole]
    frames = [item.frame.assign(value=height) for item, height in zip(whole, heights, strict=True)]
    cells = pd.concat(frames, ignore_index=True) if frames else found.arms[:0]
    answers = None if found.answers is None else _areas_of_answers(whole, found.answers)
    keys = [*apart(found.cells), "method"]
    means = labelled(counted(summarise(cells, [*keys, "init"])), f"area under {metric.label}", metric.unit)
    baselines = [name for name in cells["init"].unique() if name != found.arm] if (cells["init"] == found.arm).any() else []
    gains = [judged(pairs_of(cells, "init", (found.arm, name), metric.scale), keys, answers, metric.scale)
             .assign(init=found.arm, quantity=f"gain over {name}", unit=metric.difference) for name in baselines]
    return joined([means, *([corrected(pd.concat(gains, ignore_index=True))] if gains else [])])


def _weights(budgets: np.ndarray) -> np.ndarray:
    """(B,) weight of each mark in the mean height of the curve; they add up to 1."""
    steps = np.diff(budgets) / (budgets[-1] - budgets[0])
    return (np.append(steps, 0.0) + np.append(0.0, steps)) / 2


def _areas_of_answers(whole: Sequence[Curves], answers: Right) -> Right:
    """The area under "this test example is right", by run and its largest mark: (M,) in [0, 1]."""
    found = {}
    for item in whole:
        weights = _weights(item.budgets)
        done = item.frame["status"] == "done"  # of rows that share a run, one that can be used
        done = np.flatnonzero(done & ~item.frame[done].duplicated(["run_id", "mark"]).reindex(done.index, fill_value=True))
        for row in done:
            places = zip(item.runs[row], map(int, item.marks[row]), strict=True)
            rights = np.stack([answers[place] for place in places])
            found[item.runs[row, -1], int(item.marks[row, -1])] = weights @ rights
    return found


# ---- updates to match scratch


def updates_to_match(found: Evidence, levels: Sequence[str] = tuple(LEVELS)) -> pd.DataFrame:
    """Updates until a run is at least as good as its scratch twin (same seed) is at the largest budget.

    The first mark at which it is, zero-shot included; marks only, nothing is interpolated between them (our choice: curves
    jump). A run that is never as good is censored at the largest budget. Scratch stands beside the others as its own
    twin: noisy curves pass their own last value earlier.

    Returns:
        By method and init, and by direction (`level`): `mean` and `std` over distinct runs with the censored at the largest
        budget (restricted mean, a lower bound where there are any); `median` (Kaplan & Meier 1958; NaN where more than half
        are censored); `reached`, `censored` of `runs`; `largest`; `saved`, scratch's own updates minus these, over blocks
        with `low`, `high`, `p`, `p_holm` (one family a level; where runs are censored an upper bound); the counts. Empty
        where no metric value is better.
    """
    sign = direction(found.metric)
    parts = [] if np.isnan(sign) else [pairs for item in curves(found.arms) for pairs in _matches(item, sign)]
    columns = [*COORDINATES, "run_id", "mark", "arm_id", "arm_mark", "task", "value", "status", UPDATES, "largest"]
    pairs = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns).astype(
        {"value": float, UPDATES: float, "largest": float})
    own = pairs["init"] == "scratch"
    frames = {}
    for level in levels:
        keys = [*apart(found.cells), "method", *LEVELS[level], "init"]
        saved = judged(pairs[~own], keys, None, 1.0).drop(columns=["std", "runs"]).rename(columns={"mean": "saved"})
        twins = summarise(pairs[own], keys).drop(columns=["mean", "std"]).rename(columns={"runs": "blocks"})
        frame = corrected(pd.concat([saved, twins.assign(note="its own twin")], ignore_index=True) if len(twins) else saved)
        frames[level] = frame.merge(_times(pairs, keys), on=keys, how="left", validate="1:1")
    return joined([labelled(by_level(frames), "updates to match scratch", UPDATES)])


def _matches(item: Curves, sign: float) -> Iterator[pd.DataFrame]:
    """Every init in pairs with scratch: `updates` to match (inf: censored), `value` what is saved, `largest` budget."""
    frame = item.frame.assign(value=np.where(item.frame["status"] == "done", 0.0, np.nan))
    done = np.flatnonzero(frame["value"].notna())
    place = dict(zip(frame["run_id"].iloc[done], done, strict=True))
    heights, largest = sign * item.values, float(item.budgets[-1])
    for name in frame["init"].unique() if (frame["init"] == "scratch").any() else ():
        pairs = pairs_of(frame, "init", (name, "scratch"), 1.0)
        there = pairs["value"].notna().to_numpy()
        arm, twin = (heights[[place[run] for run in pairs.loc[there, key]]] for key in ("arm_id", "run_id"))
        target = twin[:, -1:] - SLACK
        own, other = (_first(rows >= target, item.budgets) for rows in (twin, arm))
        times, saved = np.full((2, len(pairs)), np.nan)
        times[there], saved[there] = other, own - np.minimum(other, largest)
        yield pairs.assign(updates=times, value=saved, largest=largest)


def _first(reached: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """(G,) the budget of the first True in each row of (G, B), inf where there is none."""
    return np.where(reached.any(axis=1), budgets[reached.argmax(axis=1)], np.inf)


def _times(pairs: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Distinct runs of each group: how many reach the target, and when."""
    runs = pairs.drop_duplicates([*keys, "arm_id", "run_id", UPDATES])
    times = runs[UPDATES]
    limited = times.clip(upper=runs["largest"])
    flags = runs.assign(reached=np.isfinite(times), censored=np.isinf(times), limited=limited)
    grouped = flags.groupby(keys, sort=False, dropna=False)
    table = grouped.agg(mean=("limited", "mean"), std=("limited", "std"), median=(UPDATES, _median), runs=("limited", "count"),
                        reached=("reached", "sum"), censored=("censored", "sum"), largest=("largest", "max"))
    return table.reset_index()


def _median(times: pd.Series) -> float:
    """The first time by which at least half have reached the target; NaN where that is beyond what was observed."""
    known = np.sort(times.dropna().to_numpy())
    middle = known[(len(known) - 1) // 2] if len(known) else np.inf
    return float(middle) if np.isfinite(middle) else float("nan")
