"""What a module is still worth on hosts that were made from its own by a recipe, and what could have told so
before the port."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
from scipy import stats

from portability.analysis.context import StudyContext, once
from portability.analysis.measures.port_measures import lift
from portability.analysis.measures.predictors import host_pair
from portability.analysis.measures.summaries import joined, labelled
from portability.analysis.stats.intervals import jackknife
from portability.analysis.stats.pairing import bare_pairs
from portability.core.specs import BARE

MEASURED = ("cka", "rotation", "bare_loss")  # before any port; all but the last one of two hosts
TRIVIAL = ("changed_updates", "weight_distance")  # what anybody would look at first
NOTHING_KNOWN = "mean of the others"  # what a predictor must beat
KINDS = 3  # kinds of change from which on one of them can be left out (our choice)


def changes(context: StudyContext) -> pd.DataFrame:
    """By receiving host, what the manifests say of how it came to be: `changes` in words, `kind` (the first
    of them), `changed_updates`; hosts that are not derived from the origin, or that modules of other origins
    are ported to as well, are not there."""
    said = {name: value for facts in context.study.facts for name, value in facts.get("derived", {}).items()}
    own = context.arms[context.arms["init"] == context.arm]
    rows = [(one, other, ", then ".join(said[other]["changes"]), said[other]["changes"][0],
             said[other]["updates"])
            for one, other in dict.fromkeys(zip(own["origin"], own["receiving"], strict=True))
            if other in said and said[other]["from"] == one]
    frame = pd.DataFrame(rows, columns=["origin", "receiving", "changes", "kind", "changed_updates"])
    return frame[frame["receiving"].map(own.groupby("receiving")["origin"].nunique()) == 1]


def has_changes(context: StudyContext) -> bool:
    """Whether the study's receiving hosts were made from its origins by changes of several kinds."""
    return context.metric.better is not None and changes(context)["kind"].nunique() >= KINDS


@once
def changed_hosts(context: StudyContext) -> pd.DataFrame:
    """The arm's lift over each bare host before any update, beside how that host was changed and what can be
    measured of it.

    Returns:
        The rows of `lift` that are of the arm and of a derived host, with the columns of `changes`, TRIVIAL
        and MEASURED (NaN where it is not recorded, or not defined for such hosts), and `bare`, the bare
        host's own value.
    """
    rows = lift(context)
    rows = rows[rows["init"] == context.arm].drop(columns=["quantity", "unit"])
    rows = rows.merge(changes(context), on="receiving")
    pairs = context.study.pairs
    hosts = pairs[["cka", "rotation", "weight_distance"]].apply(pd.to_numeric, errors="coerce")
    hosts = hosts.groupby(host_pair(pairs["one"], pairs["other"])).mean()
    loss = context.cells[context.cells["init"] == BARE].groupby("receiving")["eval_loss"].mean()
    bare = context.start.groupby("receiving")["bare"].mean()
    rows = rows.assign(pair=host_pair(rows["origin"], rows["receiving"])).join(hosts, on="pair").drop(
        columns="pair").join(bare, on="receiving").join(loss.rename("bare_loss"), on="receiving")
    order = rows.groupby("kind")["mean"].transform("max")
    rows = rows.assign(order=order).sort_values(["order", "mean"], ascending=False).drop(columns="order")
    return joined([labelled(rows, "lift over bare", context.metric.difference)])


def left_out(context: StudyContext) -> pd.DataFrame:
    """How far off a lift is that each predictor gives for hosts of a kind of change that it was not fitted
    on.

    Of every kind in turn, lifts are predicted by a straight line through the rank of the predictor, fitted on
    the hosts of the other kinds; where a host has no such number, and by the predictor NOTHING_KNOWN, it is
    the mean lift of the other kinds. The error is the mean over hosts of |predicted - observed|.

    Returns:
        By method and predictor, the smallest error first: `mean`, the error in `metric.difference`, and
        `less`, how much smaller it is than that of NOTHING_KNOWN, both with 95 % intervals of new seeds
        (jackknife, t with S - 1 degrees of freedom; NaN with one seed); `known`, hosts that have the number,
        of `hosts`, in `kinds` kinds. Nothing of a method whose finished runs are of one kind alone.

    Source: leave-one-group-out cross-validation; jackknife: Efron & Stein, Ann. Stat. 9, 1981; the rest is
    our choice (D-138).
    """
    pairs = bare_pairs(context.start[context.start["init"] == context.arm], context.metric.scale)
    rows, keys = [], [*context.strata, "method"]
    for names, own in changed_hosts(context).groupby(keys, sort=False, dropna=False):
        place = dict(zip(keys, names, strict=True))
        part = pairs[(pairs[keys] == pd.Series(place)).all(axis=1)]
        part = part[part["receiving"].isin(own["receiving"])]
        lifts = part.pivot_table(index="receiving", columns="seed", values="value").dropna(axis=1)
        hosts = own[own["receiving"].isin(lifts.index)].set_index("receiving")
        if lifts.empty or hosts["kind"].nunique() < 2:
            continue
        rows += sorted(({**place, **row} for row in _errors(hosts, lifts.loc[hosts.index])),
                       key=lambda row: row["mean"])
    columns = [*keys, "predictor", "mean", "low", "high", "less", "less_low", "less_high", "known", "hosts",
               "kinds", "seeds"]
    frame = pd.DataFrame(rows, columns=columns).assign(arm=context.arm)
    return joined([labelled(frame, "error of the predicted lift", context.metric.difference)])


def _errors(hosts: pd.DataFrame, lifts: pd.DataFrame) -> Iterator[dict[str, object]]:
    """A row for each predictor; hosts and lifts (hosts, seeds) have the same index."""
    kinds = hosts["kind"].to_numpy()
    values = {name: pd.to_numeric(hosts[name], errors="coerce").to_numpy(float) for name in
              (*TRIVIAL, *MEASURED)} | {NOTHING_KNOWN: np.full(len(hosts), np.nan)}

    def error(seeds: np.ndarray, name: str) -> float:
        gains = lifts.to_numpy(float)[:, seeds].mean(axis=1)
        return float(np.abs(predicted(values[name], gains, kinds) - gains).mean())

    def saved(seeds: np.ndarray, name: str) -> float:
        return error(seeds, NOTHING_KNOWN) - error(seeds, name)

    for name, known in values.items():
        own, less = (jackknife(partial(number, name=name), lifts.shape[1]) for number in (error, saved))
        yield {"predictor": name, **dict(zip(("mean", "low", "high"), own, strict=True)),
               **dict(zip(("less", "less_low", "less_high"), less, strict=True)),
               "known": int(np.isfinite(known).sum()), "hosts": len(hosts), "kinds": len(set(kinds)),
               "seeds": lifts.shape[1]}


def predicted(values: np.ndarray, gains: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """The gain of each host (H,), by a line through the ranks of `values` on the hosts of the other kinds;
    their mean gain where the host has no value, or the others have no two different ones.

    Example:
        >>> predicted(np.array([1.0, 2.0, 5.0]), np.array([3.0, 5.0, 7.0]), np.array(list("abc"))).round(9)
        array([3., 5., 7.])
    """
    ranks = stats.rankdata(values, nan_policy="omit")
    found = np.empty(len(gains))
    for kind in dict.fromkeys(kinds):
        inside = kinds == kind
        fitted = ~inside & np.isfinite(ranks)
        found[inside] = gains[~inside].mean()
        if len(set(ranks[fitted])) > 1:
            slope, start = np.polyfit(ranks[fitted], gains[fitted], 1)
            known = inside & np.isfinite(ranks)
            found[known] = start + slope * ranks[known]
    return found
