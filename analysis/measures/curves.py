"""What a whole curve over budgets says: the area under it, the updates it takes to match scratch, and when it
takes off."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from portability.analysis.context import StudyContext, once
from portability.analysis.measures.port_measures import SLACK
from portability.analysis.measures.summaries import HOST_LEVELS, by_level, joined, labelled
from portability.analysis.stats import pairing
from portability.analysis.stats.blocks import correct_family, estimate_groups, mark_missing

POINT = [name for name in pairing.COORDINATES if name != "budget"]
UPDATES = "updates"
TOLERANCE = 0.01  # one point (of a loss 0.01 nats) that nobody would call a difference (our choice)
ENDS = ("after", "by")  # of a time that lies between two marks
SAVED = ("saved_least", "saved_most")  # of what it saves


@dataclass(frozen=True)
class Curves:
    """The runs of one method over its B budgets: those at which its arm was asked for (without it, any init).

    `frame` has one row per curve (the columns of load.tidy at the largest budget; `status` is "done" where
    all budgets are, else the first fault in the order of STATUSES); `values` (G, B) in the metric, `runs` and
    `marks` (G, B) where each stands. A curve that was not asked for at all budgets is none of them:
    `left_out` names its inits.
    """

    budgets: np.ndarray
    frame: pd.DataFrame
    values: np.ndarray
    runs: np.ndarray
    marks: np.ndarray
    left_out: tuple[str, ...]


def curves(arms: pd.DataFrame) -> list[Curves]:
    """The curves of each method, from StudyContext.arms."""
    return [_curves(own) for _, own in arms.groupby("method", sort=False)]


def _curves(cells: pd.DataFrame) -> Curves:
    own = cells["init"] == pairing.arm_of(cells)
    asked = cells[own] if own.any() else cells
    budgets = np.sort(asked["budget"].unique())
    cells = cells[cells["budget"].isin(budgets)]
    point = cells.groupby(POINT, sort=False, dropna=False).ngroup()
    whole = point.map(point.value_counts()) == len(budgets)
    left_out = tuple(cells.loc[~whole, "init"].unique())
    cells = cells[whole].assign(point=point[whole]).sort_values(["point", "budget"], ignore_index=True)
    shape = (-1, len(budgets))
    values, runs, marks = (cells[name].to_numpy().reshape(shape) for name in ("value", "run_id", "mark"))
    rank = {name: i for i, name in enumerate(pairing.STATUSES)}
    worst = cells["status"].map(rank).to_numpy().reshape(shape)
    fault = np.where(worst > 0, worst, len(pairing.STATUSES)).min(axis=1)
    status = np.append(pairing.STATUSES, pairing.STATUSES[0])[fault]  # no fault: done
    frame = cells.iloc[len(budgets) - 1 :: len(budgets)].drop(columns="point").reset_index(drop=True)
    frame = frame.assign(status=status, value=np.nan)
    return Curves(budgets, frame, values.astype(float), runs, marks, left_out)


# ---- area


def area(context: StudyContext) -> pd.DataFrame:
    """The area under the budget curve of every init by method, and the arm's gain in it over every other
    init.

    The mean height of the curve from its first budget (zero-shot) to its largest, linear in updates between
    marks, so in the unit of the metric (Source: trapezoid rule; our choice: linear in updates, not in their
    logarithm). A curve that lacks a mark has no area and counts as failed or missing; intervals as for gains,
    test examples included.

    Returns:
        The means (pairing.summarise) and the gains (blocks.estimate_groups, blocks.correct_family; one
        family). A method with one budget, and an init not asked for at all budgets of its method (say,
        without zero-shot), have no rows.
    """
    metric = context.metric
    whole = [item for item in curves(context.arms) if len(item.budgets) > 1]
    frames = [item.frame.assign(value=item.values @ _weights(item.budgets)) for item in whole]
    cells = pd.concat(frames, ignore_index=True) if frames else context.arms[:0]
    answers = None if context.answers is None else _areas_of_answers(whole, context.answers)
    keys = [*context.strata, "method"]
    means = labelled(mark_missing(pairing.summarise(cells, [*keys, "init"])), f"area under {metric.label}",
                     metric.unit)
    inits = cells["init"].unique()
    gains = [estimate_groups(pairing.pairs_of(cells, "init", (context.arm, name), metric.scale), keys,
                             answers, metric.scale)
             .assign(init=context.arm, quantity=f"gain over {name}", unit=metric.difference)
             for name in inits if name != context.arm and context.arm in inits]
    return joined([means, *([correct_family(pd.concat(gains, ignore_index=True))] if gains else [])])


def _weights(budgets: np.ndarray) -> np.ndarray:
    """(B,) weight of each mark in the mean height of the curve; they add up to 1."""
    steps = np.diff(budgets) / (budgets[-1] - budgets[0])
    return (np.append(steps, 0.0) + np.append(0.0, steps)) / 2


def _areas_of_answers(whole: Sequence[Curves], answers: pairing.Answers) -> pairing.Answers:
    """The area under what each test example contributes, by run and its largest mark: (M,)."""
    found = {}
    for item in whole:
        done = item.frame[item.frame["status"] == "done"]  # of rows that share a run, one that can be used
        for row in done.drop_duplicates(["run_id", "mark"]).index:
            places = zip(item.runs[row], map(int, item.marks[row]), strict=True)
            rights = np.stack([answers[place] for place in places])
            found[item.runs[row, -1], int(item.marks[row, -1])] = _weights(item.budgets) @ rights
    return found


# ---- updates to match scratch


@once
def updates_to_match(context: StudyContext) -> pd.DataFrame:
    """Updates until a run is as good as its scratch twin (same seed) is at the largest budget, to within
    TOLERANCE.

    Runs are seen at marks only, so the crossing lies after the last mark at which a run was not yet as good
    and no later than the first at which it was; both ends are carried along. A run that is never as good is
    censored at the largest budget: times, and what is saved, are those within it (restricted means). Scratch
    stands beside the others as its own twin: noisy curves pass their own last value earlier.

    Returns:
        By method and init, by receiving host, and by direction (`level`): `after` and `by`, the mean ends of
        the time (cells weigh alike); `median_after` and `median_by`, between which half of the runs have got
        there (NaN where more than half are censored); `reached`, `censored` of `runs`; `largest`;
        `saved_least` and `saved_most`, between which scratch's own updates minus these lie on average,
        `saved` their middle, `low` and `high`, which hold it for 95 % of new seeds wherever within the marks
        the crossings are (the lower end of the interval of `saved_least`, the upper of `saved_most`);
        `blocks`, the seeds; the counts. Empty where no metric value is better.

    Source: the interval of a mean that is known to lie between two: Horowitz & Manski, J. Am. Stat. Assoc.
    95, 2000, section 3.
    """
    sign = context.metric.sign
    items = [] if np.isnan(sign) else curves(context.arms)
    nothing = pairing.alone(context.arms[:0]).assign(**dict.fromkeys((*ENDS, *SAVED, "largest"), 0.0))
    parts = [pairs for item in items for pairs in _matches(item, sign)] or [nothing]
    pairs = pd.concat(parts, ignore_index=True)
    frames = {}
    for level, more in HOST_LEVELS.items():
        keys = [*context.strata, "method", *more, "init"]
        least, most = (estimate_groups(pairs.assign(value=pairs[name]), keys, None, 1.0) for name in SAVED)
        ends = least["mean"].where(least["blocks"] > 1), most["mean"].where(most["blocks"] > 1)
        middle = {"saved": (least["mean"] + most["mean"]) / 2, "saved_least": least["mean"],
                  "saved_most": most["mean"], "low": least["low"].fillna(ends[0]),
                  "high": most["high"].fillna(ends[1])}
        middle = {name: values.mask(least["init"] == "scratch") for name, values in middle.items()}
        frame = least.drop(columns=["mean", "std", "runs", "p", "se", "df", "sd", "effect"]).assign(**middle)
        frames[level] = mark_missing(frame).merge(_times(pairs, keys), on=keys, how="left", validate="1:1")
    return joined([labelled(by_level(frames), "updates to match scratch", UPDATES)])


def _matches(item: Curves, sign: float) -> Iterator[pd.DataFrame]:
    """Every init in pairs with scratch: ENDS of its time to match (inf: censored), SAVED, and the `largest`
    budget."""
    frame = item.frame.assign(value=np.where(item.frame["status"] == "done", 0.0, np.nan))
    done = np.flatnonzero(frame["value"].notna())
    place = dict(zip(frame["run_id"].iloc[done], done, strict=True))
    heights, largest = sign * item.values, float(item.budgets[-1])
    for name in frame["init"].unique() if (frame["init"] == "scratch").any() else ():
        pairs = pairing.pairs_of(frame, "init", (name, "scratch"), 1.0)
        there = pairs["value"].notna().to_numpy()
        arm, twin = (heights[[place[run] for run in pairs.loc[there, key]]] for key in ("arm_id", "run_id"))
        target = twin[:, -1:] - TOLERANCE - SLACK
        (after, by), (own_after, own_by) = (crossing(rows >= target, item.budgets) for rows in (arm, twin))
        ends = np.full((len(pairs), 4), np.nan)
        ends[there] = np.stack([after, by, own_after - np.minimum(by, largest),
                                own_by - np.minimum(after, largest)], axis=1)
        yield pairs.assign(largest=largest, **dict(zip((*ENDS, *SAVED), ends.T, strict=True)))


def crossing(reached: np.ndarray, budgets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Between which marks a level is first reached: (G, B) whether it is at each of (B,) budgets, to (G,)
    after and by.

    What is reached at the first budget is reached by then and not after it: both are that budget. What never
    is: both are inf.

    Example:
        >>> after, by = crossing(np.array([[True, True], [False, True], [False, False]]), np.array([0, 50]))
        >>> after.tolist(), by.tolist()
        ([0.0, 0.0, inf], [0.0, 50.0, inf])
    """
    first, ever = reached.argmax(axis=1), reached.any(axis=1)
    after, by = budgets[np.maximum(first - 1, 0)], budgets[first]
    return np.where(ever, after, np.inf), np.where(ever, by, np.inf)


def _times(pairs: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """How many distinct runs of each group reach the target, and between which marks."""
    cells = pairs.assign(**{name: pairs[name].clip(upper=pairs["largest"]) for name in ENDS})
    means = cells.groupby(keys, sort=False, dropna=False).agg(
        after=("after", "mean"), by=("by", "mean"), largest=("largest", "max"))
    runs = pairs.dropna(subset="by").drop_duplicates([*keys, "arm_id", "run_id"])
    flags = runs.assign(reached=np.isfinite(runs["by"]), censored=np.isinf(runs["by"]))
    counts = flags.groupby(keys, sort=False, dropna=False).agg(
        runs=("by", "count"), reached=("reached", "sum"), censored=("censored", "sum"),
        median_after=("after", _median), median_by=("by", _median))
    table = means.join(counts)
    names = ["runs", "reached", "censored"]
    return table.assign(**table[names].fillna(0).astype(int)).reset_index()


def _median(times: pd.Series) -> float:
    """The first time by which at least half have got there; NaN where that is beyond what was observed."""
    known = np.sort(times.dropna().to_numpy())
    middle = known[(len(known) - 1) // 2] if len(known) else np.inf
    return float(middle) if np.isfinite(middle) else float("nan")


# ---- take-off


@once
def take_off(context: StudyContext) -> pd.DataFrame:
    """How many runs of each init have taken off by each budget, and when: scores are bimodal, so a mean may
    be of nobody.

    A run has taken off at the first mark at which it is at least halfway from its bare host to the best of
    the native runs of all seeds (the method trained on the receiving host itself, at its largest mark); our
    choice. So no run is held against itself, and a seed whose native run stayed where it was counts. Where no
    native is better than the bare host by more than TOLERANCE there is no halfway, and the cell has no
    number.

    Returns:
        By method, init and budget: `mean`, the share of cells (fraction; methods, directions and relations
        weigh alike) with its 95 % interval over new seeds; `median_after` and `median_by`, between which half
        of the runs have taken off (NaN where less than half do within the largest budget); the columns of
        blocks.estimate_groups and blocks.mark_missing. Empty where no metric value is better.

    Source: our choice.
    """
    sign = context.metric.sign
    keys = [*context.strata, "method", "init"]
    items = [] if np.isnan(sign) else curves(context.arms)
    nothing = pairing.alone(context.arms[:0]).assign(after=0.0, by=0.0)
    flown = pd.concat([_take_offs(item, sign) for item in items] or [nothing], ignore_index=True)
    frame = mark_missing(estimate_groups(flown, [*keys, "budget"], None, 1.0))
    runs = flown.dropna(subset="value").drop_duplicates([*keys, "run_id", "budget"])
    runs = runs[runs["budget"] == runs.groupby("method")["budget"].transform("max")]
    medians = runs.groupby(keys, sort=False, dropna=False).agg(
        median_after=("after", _median), median_by=("by", _median))
    frame = frame.join(medians, on=keys)
    low, high = frame["low"].clip(lower=0.0), frame["high"].clip(upper=1.0)
    return joined([labelled(frame.assign(low=low, high=high), "share that took off", "fraction")])


def _take_offs(item: Curves, sign: float) -> pd.DataFrame:
    """Of every curve and budget: `value` 1.0 where it has taken off by then, with the ends of when; as of
    pairing.alone."""
    frame = item.frame
    bare = sign * frame["bare"].to_numpy(float)
    natives = sign * frame["native"].where(frame["native_status"] == "done")
    by_host = [frame[name] for name in ("method", "receiving", "data")]
    native = natives.groupby(by_host).transform("max").to_numpy(float)
    known = (frame[["status", "bare_status"]] == "done").all(axis=1).to_numpy() & (native - bare > TOLERANCE)
    after, by = crossing(sign * item.values >= ((bare + native) / 2)[:, None] - SLACK, item.budgets)
    state = frame["status"].mask((frame["status"] == "done") & ~known, "unpaired")
    frame = pairing.alone(frame.assign(after=after, by=by, status=state))
    parts = [frame.assign(budget=budget, value=np.where(known, by <= budget, np.nan))
             for budget in item.budgets]
    return pd.concat(parts, ignore_index=True)
