"""A study of learning rates: every start at its own best rate beside the common one."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.contrasts import view
from analysis.entries import number
from analysis.evidence import Evidence
from analysis.metrics import UNITS
from analysis.recipe import Recipe
from analysis.stats import apart, summarise

EDGE = "at the edge"


def _factors(found: Evidence) -> dict[str, tuple[str, float]]:
    """Name of a method at a rate -> the method and the factor on its rate, as the manifests say."""
    rows: Mapping[str, list] = {name: row for facts in found.study.facts for name, row in (facts.get("rates") or {}).items()}
    return {name: (str(method), float(factor)) for name, (method, factor) in rows.items()}


def several(found: Evidence) -> bool:
    """Whether the study has a method at several rates, one of them the common one."""
    return len({factor for _, factor in _factors(found).values()} | {1.0}) > 1


def rates(found: Evidence) -> pd.DataFrame:
    """Every start at each factor on its method's learning rate: means over cells, which weigh alike.

    Returns:
        By method, budget and init: `mean` at the `common` rate (factor 1; NaN without), `best` of the factors all of whose
        cells are done and its `factor`, whether that lies at the `edge` of the factors that were tried, and `gain_common`,
        `gain_best`: the arm minus this start, both at the common rate, and each at its own best; counts of stats.summarise over
        all rates. Empty where no metric value is better.
    """
    known, keys = _factors(found), [*apart(found.cells), "method", "budget", "init"]
    cells = found.arms[found.arms["method"].isin(known) & (found.arms["budget"] > 0)]
    cells = cells if found.metric.better else cells.iloc[:0]
    named = [known[name] for name in cells["method"]]
    cells = cells.assign(method=[method for method, _ in named], factor=np.array([factor for _, factor in named], float))
    each = summarise(cells, [*keys, "factor"])  # a mean over cells that happened to survive is none of the others'
    each["mean"] = each["mean"].where(each["status"] == "complete")
    means = each.pivot(index=keys, columns="factor", values="mean")
    sign = -1.0 if found.metric.better == "lower" else 1.0
    frame = summarise(cells, keys)[[*keys, "n", "expected", "failed", "status"]].set_index(keys)
    there = means.notna().any(axis=1)
    best = (sign * means[there]).idxmax(axis=1).reindex(means.index).astype(float)
    frame = frame.assign(common=means.get(1.0, np.nan), best=sign * (sign * means).max(axis=1), factor=best)
    frame["edge"] = frame["factor"].isin([means.columns.min(), means.columns.max()]) if len(means.columns) else False
    for name in ("common", "best"):
        arm = frame[name].xs(found.arm, level="init") if found.arm in frame.index.get_level_values("init") else frame[name][:0]
        frame[f"gain_{name}"] = found.metric.scale * (frame.join(arm.rename("own"), on=keys[:-1])["own"] - frame[name])
    frame = frame.join(means.add_prefix("x")).reset_index()
    return frame.assign(unit=found.metric.unit, difference=found.metric.difference)


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    factors = {f"at ×{name[1:]}": (lambda row, name=name: _value(row[name], row["unit"]))
               for name in frame.columns if name[0] == "x" and name[1:].replace(".", "").isdigit()}
    return view(
        frame, ["method", "budget", "init"], **factors,
        best=lambda row: "–" if pd.isna(row["factor"]) else f"×{row['factor']:g}{f', {EDGE}' if row['edge'] else ''}",
        common_gain=lambda row: _value(row["gain_common"], row["difference"]),
        gain_of_bests=lambda row: _value(row["gain_best"], row["difference"]),
        cells=lambda row: f"{row['n']}/{row['expected']}")


def _value(value: float, unit: str) -> str:
    return "–" if pd.isna(value) else number(value, UNITS[unit])


def words(found: Evidence, frame: pd.DataFrame) -> str:
    """Under the table."""
    edges = frame[frame["edge"]] if len(frame) else frame
    more = "No best rate lies at the edge of those that were tried."
    if len(edges):
        names = dict.fromkeys(f"{row['init']} of {row['method']}" for _, row in edges.iterrows())
        more = f"A best rate {EDGE} of those that were tried, so a better one may lie beyond: {', '.join(names)}."
    lacking = frame[[name for name in frame if name.startswith("x")]].isna().any(axis=1) if len(frame) else frame.index < 0
    if lacking.any():
        more += " – : some of these cells are not done, so the rate has no number and cannot be the best."
    return (f"Means in {UNITS[found.metric.unit].symbol}, over directions, relations and seeds. Common gain: {found.arm} minus "
            "this start, both at the method's own rate; gain of bests: each at its best factor. The best of several is chosen "
            f"on the same runs, which flatters whatever scatters most. {more}")


RECIPES: dict[str, Recipe] = {
    "rates": Recipe(rates, "Learning rates", "{label} of every start at its own best learning rate, beside the common one.",
                    view=_shown, words=words, of=several),
}
