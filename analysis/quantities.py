"""How good a port is: its lift before any update, the part of native it recovers, and how often it wins."""

from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import combinations

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from analysis.entries import joined, labelled
from analysis.evidence import Evidence, once
from analysis.inference import bare_pairs, pairs_of, with_bare
from analysis.intervals import LEVEL
from analysis.judging import LEVELS, by_level, corrected, counted, judged, seeds_of
from analysis.load import COORDINATES
from analysis.metrics import Metric
from analysis.ratios import Ratio, ratio
from analysis.stats import apart, summarise

SAME = "native is the scratch run itself at the same mark"
SLACK = 1e-9  # numbers closer than this are equal, so that ties do not depend on rounding


def direction(metric: Metric) -> float:
    """1.0 where higher is better, -1.0 where lower is; NaN where neither is."""
    return {"higher": 1.0, "lower": -1.0}.get(metric.better or "", float("nan"))


# ---- lift


@once
def lift(found: Evidence) -> pd.DataFrame:
    """Every init's value before any update minus the bare host's, by method and receiving host, in `metric.difference`.

    A bare run has no seed, so it is the same at all of them. The interval covers new seeds and, where `found.answers` holds the
    bare runs too, new test examples (`examples`).

    Returns:
        The columns of judging.judged and judging.corrected; one family of tests.
    """
    start = found.arms[found.arms["budget"] == 0]
    keys = [*apart(found.cells), "method", "receiving", "init"]
    pairs = bare_pairs(start, found.metric.scale)
    frame = corrected(judged(pairs, keys, with_bare(pairs, found.answers), found.metric.scale))
    own = summarise(pairs.assign(run_id=pairs["arm_id"]), keys)  # spreads and runs are the arms'
    frame = frame.assign(std=own["std"], runs=own["runs"])
    return joined([labelled(frame, "lift over bare", found.metric.difference)])


# ---- recovered fraction


def recovered(found: Evidence) -> pd.DataFrame:
    """The part of what native has over scratch that the arm has at each budget: (arm - scratch) / (native - scratch).

    A ratio of means over seeds, with Fieller's 95 % interval over new seeds; 1.0 is all of it. Native is the receiving host's
    own training at its largest mark.

    Returns:
        By method and budget, and by direction (`level`): the fields of ratios.Ratio (`mean` is the ratio; `numerator` and
        `denominator` in `unit_of_means`), `n`, `runs`, `expected`, faults, `status`, `missing`, `mark`. `note` says why
        there is no ratio: SAME, ratios.NOISE, ratios.WORSE, or that seeds are too few. Empty where no metric value is better.
    """
    pairs = _native_pairs(found)
    parts = {}
    for level, more in LEVELS.items():
        keys = [*apart(found.cells), "method", *more, "budget"]
        counts = summarise(pairs, keys).drop(columns=["mean", "std"])
        rows = [asdict(item) for item in _ratios(pairs, keys, direction(found.metric))]
        ratios = pd.DataFrame(rows, columns=[item.name for item in fields(Ratio)])
        parts[level] = counted(pd.concat([counts, ratios], axis=1))
    frame = by_level(parts).assign(init=found.arm, unit_of_means=found.metric.difference)
    return joined([labelled(frame, "recovered fraction", "fraction")])


def _native_pairs(found: Evidence) -> pd.DataFrame:
    """The arm and scratch in pairs, `value` their gain, with `lead`, native minus scratch, and `same`."""
    arms = found.arms if found.metric.better else found.arms[:0]
    pairs = pairs_of(arms, "init", (found.arm, "scratch"), 1.0)
    native = arms[arms["init"] == found.arm][[*COORDINATES, "value", "native", "native_id", "native_status"]]
    native = native.rename(columns={"value": "own"})
    pairs = pairs.merge(native, on=COORDINATES, how="left", validate="1:1")
    updates = pd.to_numeric(found.study.runs.set_index("run_id")["updates"], errors="coerce")
    same = (pairs["native_id"] == pairs["run_id"]) & (pairs["mark"] == pairs["native_id"].map(updates))
    lead = found.metric.scale * (pairs["native"] - (pairs["own"] - pairs["value"]))
    value = found.metric.scale * pairs["value"].mask(lead.isna())
    status = pairs["status"].where(pairs["status"] != "done", pairs["native_status"].fillna("missing"))
    return pairs.assign(same=same, lead=lead.mask(value.isna()), value=value, status=status)


def _ratios(pairs: pd.DataFrame, keys: list[str], better: float) -> Iterator[Ratio]:
    tops, bottoms = seeds_of(pairs, keys), seeds_of(pairs.assign(value=pairs["lead"]), keys)
    shared = (pairs["same"] & pairs["value"].notna()).groupby([pairs[key] for key in keys], sort=False, dropna=False).any()
    for top, bottom, same in zip(tops, bottoms, shared, strict=True):
        if same and len(top.differences):
            means, nan = (float(part.differences.mean()) for part in (top, bottom)), float("nan")
            yield Ratio(nan, nan, nan, nan, *means, nan, nan, len(top.differences), SAME)
        else:
            yield ratio(top.differences, bottom.differences, better)


# ---- win rates


def win_rate(found: Evidence, axis: str = "init") -> pd.DataFrame:
    """How often a run beats the run it is paired with at the largest budget, ties half: probabilities in [0, 1].

    Args:
        axis: "init" (every two inits, by method) or "method" (every two methods, by init); pairs are equal in all other
            coordinates, seed included.

    Returns:
        Both directions of every two: the keys, the axis, `against`; `mean` over seeds, `low`, `high`; `ties`, the share of
        pairs; `blocks`, `n`, `runs`, `expected`, faults, `status`, `missing`, `mark`. Empty where no metric value is better.

    Source: Jeffreys' interval with seeds as trials and their mean outcomes as successes (Brown, Cai & DasGupta, Stat. Sci.
    16, 2001). Our choice: t over seeds has no width where all seeds win, and held a rate of 0.9 in 41 % at five.
    """
    other = {"init": "method", "method": "init"}[axis]
    keys = [*apart(found.cells), other]
    cells = found.largest if found.metric.better else found.largest[:0]
    parts = [_wins(found, cells, axis, sides, keys) for sides in combinations(cells[axis].unique(), 2)]
    columns = [*keys, axis, "against", "mean", "low", "high", "ties", "blocks", "n", "runs", "expected", "failed", "status"]
    frame = counted(pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns))
    return joined([labelled(frame, "win rate", "fraction")])


def _wins(found: Evidence, cells: pd.DataFrame, axis: str, sides: tuple[str, str], keys: list[str]) -> pd.DataFrame:
    """Both directions of one comparison."""
    pairs = pairs_of(cells, axis, sides, 1.0)
    gain = pairs["value"] * direction(found.metric)
    won = np.where(gain > SLACK, 1.0, np.where(gain < -SLACK, 0.0, 0.5))
    pairs = pairs.assign(value=np.where(gain.isna(), np.nan, won))
    frame = summarise(pairs, keys).drop(columns="std")
    blocks = [design.differences for design in seeds_of(pairs, keys)]
    frame["blocks"] = [len(own) for own in blocks]
    frame["mean"] = [own.mean() if len(own) else np.nan for own in blocks]
    spread = [own.std(ddof=1) if len(own) > 1 else np.nan for own in blocks]
    ties = pairs["value"].eq(0.5).mask(pairs["value"].isna()).astype(float)
    frame["ties"] = ties.groupby([pairs[key] for key in keys], sort=False, dropna=False).mean().to_numpy()
    frame["low"], frame["high"] = jeffreys(frame["mean"].to_numpy(float), frame["blocks"].to_numpy(float))
    frame = frame.assign(std=spread, **{axis: sides[0], "against": sides[1]})
    turned = frame.assign(mean=1 - frame["mean"], low=1 - frame["high"], high=1 - frame["low"])
    return pd.concat([frame, turned.assign(**{axis: sides[1], "against": sides[0]})], ignore_index=True)


def jeffreys(share: np.ndarray, trials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Jeffreys' 95 % interval of a probability, from the share of successes in [0, 1] and the number of trials, each (K,).

    Example:
        >>> low, high = jeffreys(np.array([1.0, 0.5]), np.array([5.0, 10.0]))
        >>> low.round(2).tolist(), high.round(2).tolist()
        ([0.62, 0.22], [1.0, 0.78])
    """
    wins = np.where(np.isnan(share), 0.0, share) * trials
    low, high = proportion_confint(wins, np.maximum(trials, 1), alpha=1 - LEVEL, method="jeffreys")
    low, high = np.where(wins < SLACK, 0.0, low), np.where(trials - wins < SLACK, 1.0, high)
    empty = np.isnan(share) | (trials == 0)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)
