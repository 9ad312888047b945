"""The comparisons by other estimators: interquartile means, and mixed-effects models beside the paired
means."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from portability.analysis.context import StudyContext
from portability.analysis.stats.cross_checks import Mixed, bootstrap, iqm, mixed
from portability.analysis.stats.pairing import with_tasks

IQM = ["init", "budget", "unit", "iqm", "low", "high", "seeds", "tasks", "n", "expected", "failed", "mark"]
FITTED = ["baseline", "budget", "unit", "term", "value", "low", "high", "p", "seed_sd", "run_sd", "rest_sd",
          "n", "expected", "failed", "converged", "words", "paired_mean", "paired_low", "paired_high",
          "agree", "mark"]


def interquartile(context: StudyContext) -> pd.DataFrame:
    """Interquartile mean of every init at every budget over all tasks (method, direction, relation) and
    seeds, with its bootstrap interval over seeds, in the metric's unit (fractions in [0, 1]).

    Source: stats.cross_checks; our choice (D-61).
    """
    rows = []
    for labels, cells in context.parts():
        for (init, budget), own in cells.groupby(["init", "budget"], sort=False):
            scores = with_tasks(own).pivot(index="seed", columns="task", values="value").to_numpy(float)
            (value, low, high), n = bootstrap(iqm, scores), int(np.isfinite(scores).sum())
            rows.append(labels | {
                "init": init, "budget": budget, "unit": context.metric.unit, "iqm": value, "low": low,
                "high": high, "seeds": scores.shape[0], "tasks": scores.shape[1], "n": n,
                "expected": len(own), "failed": int((own["status"] == "failed").sum()),
                "mark": "†" if n < len(own) else "",
            })
    return pd.DataFrame(rows, columns=[*context.strata, *IQM])


def mixed_effects(context: StudyContext) -> pd.DataFrame:
    """The mixed-effects cross-check beside the paired mean: one row per baseline, budget and term, "overall"
    first.

    `value`, `low`, `high` and `p` are of the term; the spreads, counts and `words` of the whole fit; the
    columns that begin with `paired` those of the level "all"; `agree` says whether both means have one sign
    and their intervals overlap.

    Source: stats.cross_checks; our choice (D-62).
    """
    keys = context.strata
    paired = context.levels["all"].set_index([*keys, "baseline", "budget"])
    rows: list[dict[str, object]] = []
    for labels, cells in context.parts():
        for baseline in [name for name in cells["init"].unique() if name != context.arm]:
            for budget in sorted(cells["budget"].unique()):
                place = (*labels.values(), baseline, budget)
                if place in paired.index:
                    fit = mixed(cells, baseline, int(budget), context.metric.scale)
                    head = labels | {"baseline": baseline, "budget": budget,
                                     "unit": context.metric.difference}
                    rows += [head | row for row in _terms(fit, paired.loc[place])]
    return pd.DataFrame(rows, columns=[*keys, *FITTED])


def _terms(fit: Mixed, paired: pd.Series) -> Iterator[dict[str, object]]:
    """The overall gain and every fixed effect of a fit, with what holds for all of it."""
    value, low, high = fit.overall
    whole = {name: item for name, item in vars(fit).items() if name not in ("terms", "overall")}
    whole |= {f"paired_{name}": paired[name] for name in ("mean", "low", "high")}
    whole |= {name: paired[name] for name in ("failed", "mark")}
    whole["agree"] = agreement((value, low, high), (paired["mean"], paired["low"], paired["high"]))
    p = fit.terms["p"].iloc[0] if len(fit.terms) else np.nan
    yield {"term": "overall", "value": value, "low": low, "high": high, "p": p} | whole
    for row in fit.terms.iloc[1:].to_dict("records"):
        factor, _, name = row["term"].partition(", Sum)[S.")
        yield row | {"term": f"{factor.removeprefix('C(')} {name.removesuffix(']')}"} | whole


def agreement(one: tuple[float, float, float], other: tuple[float, float, float]) -> str:
    """Whether two means, each with its low and high, have one sign and overlap, in words."""
    if not np.isfinite([*one, *other]).all():
        return "no interval to compare"
    if one[0] * other[0] < 0:
        return "no: other sign"
    return "yes" if max(one[1], other[1]) <= min(one[2], other[2]) else "no: intervals apart"
