"""What goes with a large gain: the similarity of the two hosts, and how much of the module was carried."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import permutations

import numpy as np
import pandas as pd
from scipy import stats

from analysis.entries import joined
from analysis.evidence import Evidence, once
from analysis.intervals import ALPHA
from analysis.judging import POOLED
from analysis.permutation import holm
from analysis.stats import apart

SIMILARITIES = ("cka", "weight_distance", "shape_distance")  # of two hosts, the same in both directions
CARRIED = ("carried", "carried_norm")  # of a method's port in one direction
FEWEST = 4  # units below which no correlation is given (our choice)
EXACT = 8  # hosts up to which all their orders are looked at
DRAWS = 9_999  # random orders beyond that
DIGITS = 9  # numbers that are equal in so many decimals share a rank
SLACK = 1e-9
Unit = tuple[str, str]


@dataclass(frozen=True)
class Correlation:
    """`spearman` and `pearson` in [-1, 1], two-sided `p` of the former, the `smallest_p` these hosts could give; NaN and a
    `note` where there is none. `n` units with both numbers, `hosts` in them, `points` (units x methods)."""

    spearman: float
    pearson: float
    p: float
    smallest_p: float
    n: int
    hosts: int
    points: int
    note: str


def gain_and_similarity(found: Evidence) -> pd.DataFrame:
    """The arm's gain over every other init in every direction, beside what could predict it: the points of a plot.

    Returns:
        One row per method, direction, relation, budget and baseline: `gain` with `low`, `high` (inference.compare), the counts;
        SIMILARITIES of the two hosts (mean over what is recorded of them, NaN where nothing is), and CARRIED (mean over the
        direction's runs of the arm).
    """
    gains = found.levels["direction"].rename(columns={"mean": "gain"})
    gains = gains.assign(quantity="gain over " + gains["baseline"], unit=found.metric.difference)
    pairs = found.study.pairs
    hosts = pd.DataFrame({"pair": _pair(pairs["one"], pairs["other"])})
    for name in SIMILARITIES:
        hosts[name] = pd.to_numeric(pairs[name], errors="coerce")
    facts = found.study.runs[["run_id", *CARRIED]]
    facts = facts.assign(**{name: pd.to_numeric(facts[name], errors="coerce") for name in CARRIED})
    keys = [*apart(found.cells), "method", "origin", "receiving", "relation"]
    own = found.arms[found.arms["init"] == found.arm][[*keys, "run_id"]].drop_duplicates()
    carried = own.merge(facts, on="run_id", how="left").groupby(keys, sort=False, dropna=False)[[*CARRIED]].mean()
    gains["pair"] = _pair(gains["origin"], gains["receiving"])
    gains = gains.join(hosts.groupby("pair").mean(), on="pair").join(carried, on=keys).drop(columns="pair")
    columns = ["arm", "baseline", "gain", "low", "high", "expected", "n", "failed", "missing", "blocks", "mark"]
    return joined([gains[[*keys, "budget", "quantity", "unit", *columns, *SIMILARITIES, *CARRIED]]])


def _pair(one: pd.Series, other: pd.Series) -> pd.Series:
    """The names of two hosts in one order."""
    names = [tuple(sorted(both)) for both in zip(one.astype(str), other.astype(str), strict=True)]
    return pd.Series(names, index=one.index, dtype=object)


def telling(found: Evidence) -> bool:
    """Whether the study has hosts enough for a correlation to tell anything: exchanges of hosts that could give p ≤ 0.05."""
    return _least(found)[0] <= ALPHA


def why_not(found: Evidence) -> list[str]:
    """Why no correlation is shown, in a sentence; nothing where some are."""
    least, hosts, pairs = _least(found)
    return [] if least <= ALPHA or not pairs else [
        f"Nothing is said of what goes with a gain: the study has {hosts} hosts in {pairs} pairs, and exchanging hosts could "
        f"give no p below {least:.2g}, however close the relation."]


def _least(found: Evidence) -> tuple[float, int, int]:
    """The least p that exchanges of the study's hosts could give, how many hosts there are, and how many pairs of them."""
    own = found.arms[found.arms["init"] == found.arm]
    directed = tuple(dict.fromkeys(zip(own["origin"], own["receiving"], strict=True)))
    pairs = tuple(dict.fromkeys(tuple(sorted(unit)) for unit in directed))
    both = ((pairs, True), (directed, False))
    orders = [len(arrangements(units, symmetric)) for units, symmetric in both if len(units) >= FEWEST]
    return 1 / max(orders, default=1), len({host for unit in pairs for host in unit}), len(pairs)


@once
def predictors(found: Evidence) -> pd.DataFrame:
    """Correlation of the arm's mean gain with each predictor, by method and over all of them, budget and baseline.

    The units are pairs of hosts (similarity, which has no direction; gains are averaged over both) or directions (carried),
    never runs; relations are averaged. Over all methods, ranks and values are centred within each method. Gains are in the
    metric's own direction (a loss that falls is negative).

    The test exchanges whole hosts, for pairs that share a host are alike: all orders of the hosts that lay every unit on
    a unit (all directions asked for: every order; few directions: few orders, so `smallest_p` is large). Without a link every
    such order is as likely.

    Returns:
        One row per method (or POOLED), budget, baseline and predictor: the fields of Correlation, `p_holm` over the
        `family` of this frame, `expected` units asked for, `missing`, `mark`, `status`. No number but a note with less
        than FEWEST units, where a predictor is not recorded, or where it is the same for all.

    Source: permutation of hosts: Mantel, Cancer Research 27, 1967; Krackhardt, Social Networks 10, 1988. Our choice.
    """
    points = gain_and_similarity(found)
    keys = [*apart(found.cells), "budget", "baseline"]
    rows = [row for names in (SIMILARITIES, CARRIED) for row in _rows(points, keys, names)]
    columns = [*keys, "method", "predictor", *(item.name for item in fields(Correlation)), "expected"]
    frame = pd.DataFrame(rows, columns=columns)
    frame = frame.assign(p_holm=holm(frame["p"].to_numpy(float)), family=int(frame["p"].notna().sum()), arm=found.arm,
                         quantity="correlation with the gain", unit="correlation")
    missing = frame["expected"] - frame["n"]
    state = np.where(missing == 0, "complete", np.where(frame["n"] > 0, "incomplete", "missing"))
    return joined([frame.assign(missing=missing, mark=np.where(missing > 0, "†", ""), status=state)])


def _rows(points: pd.DataFrame, keys: list[str], names: Sequence[str]) -> Iterator[dict[str, object]]:
    """One row per group of keys, method (and all of them, where there are several) and predictor, all of one kind."""
    symmetric = names is SIMILARITIES
    units = pd.Series(list(zip(points["origin"], points["receiving"], strict=True)), index=points.index, dtype=object)
    points = points.assign(one_unit=_pair(points["origin"], points["receiving"]) if symmetric else units)
    for group, own in points.groupby(keys, sort=False, dropna=False):
        means = own.groupby(["method", "one_unit"], sort=False)[["gain", *names]].mean().unstack("one_unit")
        subsets = {name: means.loc[[name]] for name in means.index} | ({POOLED: means} if len(means) > 1 else {})
        for method, table in subsets.items():
            asked = own if method == POOLED else own[own["method"] == method]
            for name in names:
                found = correlate(table[name].to_numpy(float), table["gain"].to_numpy(float), list(table["gain"]), symmetric)
                yield {**dict(zip(keys, group, strict=True)), "method": method, "predictor": name, **asdict(found),
                       "expected": asked["one_unit"].nunique()}


def correlate(values: np.ndarray, gains: np.ndarray, units: Sequence[Unit], symmetric: bool) -> Correlation:
    """Correlation within methods of a predictor and gains, each (methods, U), tested by exchanging hosts.

    Args:
        units: (U,) names of two hosts; sorted, each once, where `symmetric`. One without all its numbers is left out.
    """
    whole = ~(np.isnan(values) | np.isnan(gains)).any(axis=0)
    units = [unit for unit, here in zip(units, whole, strict=True) if here]
    values, gains = (table[:, whole].round(DIGITS) for table in (values, gains))
    hosts, nan = len({host for unit in units for host in unit}), float("nan")

    def none(note: str) -> Correlation:
        return Correlation(nan, nan, nan, nan, len(units), hosts, values.size, note)

    kind = "pairs of hosts" if symmetric else "directions"
    if not len(units):
        return none("not recorded")
    if len(units) < FEWEST:
        return none(f"{len(units)} {kind}: too few for a correlation")
    scores = [_standard(stats.rankdata(table, axis=1)) for table in (values, gains)]
    if np.abs(scores[0]).max() < SLACK or np.abs(scores[1]).max() < SLACK:
        return none("the predictor is the same for all" if np.abs(scores[0]).max() < SLACK else "the gain is the same for all")
    orders = arrangements(tuple(units), symmetric)
    turned = np.abs(np.einsum("mu,mpu->p", scores[0], scores[1][:, orders]))
    spearman, pearson = float((scores[0] * scores[1]).sum()), float((_standard(values) * _standard(gains)).sum())
    p, smallest = (float(np.mean(turned >= limit - SLACK)) for limit in (abs(spearman), turned.max()))
    return Correlation(spearman, pearson, p, smallest, len(units), hosts, values.size, "")


def _standard(table: np.ndarray) -> np.ndarray:
    """Centred within each row, and of length 1 over all."""
    table = table - table.mean(axis=1, keepdims=True)
    length = np.sqrt(np.square(table).sum())
    return table / length if length > SLACK else np.zeros_like(table)


@lru_cache(maxsize=16)
def arrangements(units: tuple[Unit, ...], symmetric: bool) -> np.ndarray:
    """The orders of the hosts that lay all units on units: (P, U) places, the first of them as they are.

    All orders of up to EXACT hosts are looked at, else DRAWS random ones; of those found, at most DRAWS are taken.

    Example:
        >>> arrangements((("a", "b"), ("b", "a")), False).tolist()
        [[0, 1], [1, 0]]
    """
    hosts = sorted({host for unit in units for host in unit})
    number = {host: i for i, host in enumerate(hosts)}
    ends = np.array([[number[host] for host in unit] for unit in units])
    random = np.random.default_rng(0)
    if len(hosts) <= EXACT:
        orders = np.array(list(permutations(range(len(hosts)))))
    else:
        orders = np.array([np.arange(len(hosts)), *(random.permutation(len(hosts)) for _ in range(DRAWS))])
    place = np.full((len(hosts), len(hosts)), -1)
    place[ends[:, 0], ends[:, 1]] = np.arange(len(units))
    if symmetric:
        place[ends[:, 1], ends[:, 0]] = np.arange(len(units))
    found = place[orders[:, ends[:, 0]], orders[:, ends[:, 1]]]
    found = found[(found >= 0).all(axis=1)]
    return found if len(found) <= DRAWS else np.vstack([found[:1], random.permutation(found[1:])[: DRAWS - 1]])
