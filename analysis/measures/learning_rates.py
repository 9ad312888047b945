"""A study of learning rates: every init at its own best rate beside the common one."""


import numpy as np
import pandas as pd

from portability.analysis.context import StudyContext
from portability.analysis.stats.pairing import summarise


def _factors(context: StudyContext) -> dict[str, tuple[str, float]]:
    """Name of a method at a rate -> the method and the factor on its rate, as the manifests say."""
    rows = [item for facts in context.study.facts for item in (facts.get("rates") or {}).items()]
    return {name: (str(method), float(factor)) for name, (method, factor) in rows}


def has_rates(context: StudyContext) -> bool:
    """Whether the study has a method at several rates, one of them the common one."""
    return len({factor for _, factor in _factors(context).values()} | {1.0}) > 1


def rates(context: StudyContext) -> pd.DataFrame:
    """Every init at each factor on its method's learning rate: means over cells, which weigh alike.

    Returns:
        By method, budget and init: `mean` at the `common` rate (factor 1; NaN without), `best` of the factors
        all of whose cells are done and its `factor`, whether that lies at the `edge` of the factors that were
        tried, and `gain_common`,
        `gain_best`: the arm minus this init, both at the common rate, and each at its own best; counts of
        pairing.summarise over all rates. Empty where no metric value is better.

    Source: our choice (D-121).
    """
    known, keys = _factors(context), [*context.strata, "method", "budget", "init"]
    cells = context.arms[context.arms["method"].isin(known) & (context.arms["budget"] > 0)]
    cells = cells if context.metric.better else cells.iloc[:0]
    named = [known[name] for name in cells["method"]]
    cells = cells.assign(method=[method for method, _ in named],
                         factor=np.array([factor for _, factor in named], float))
    each = summarise(cells,
                     [*keys, "factor"])  # a mean over cells that happened to survive is none of the others'
    each["mean"] = each["mean"].where(each["status"] == "complete")
    means = each.pivot(index=keys, columns="factor", values="mean")
    sign = -1.0 if context.metric.better == "lower" else 1.0
    frame = summarise(cells, keys)[[*keys, "n", "expected", "failed", "status"]].set_index(keys)
    there = means.notna().any(axis=1)
    best = (sign * means[there]).idxmax(axis=1).reindex(means.index).astype(float)
    frame = frame.assign(common=means.get(1.0, np.nan), best=sign * (sign * means).max(axis=1), factor=best)
    tried = [means.columns.min(), means.columns.max()] if len(means.columns) else []
    frame["edge"] = frame["factor"].isin(tried)
    for name in ("common", "best"):
        own = frame[frame.index.get_level_values("init") == context.arm][name].droplevel("init").rename("own")
        frame[f"gain_{name}"] = context.metric.scale * (frame.join(own, on=keys[:-1])["own"] - frame[name])
    frame = frame.join(means.add_prefix("x")).reset_index()
    return frame.assign(unit=context.metric.unit, difference=context.metric.difference)
