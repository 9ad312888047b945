"""Studies of a kind of their own: of weights cut out of a larger host, and of learning rates."""

import numpy as np
import pandas as pd

from portability.analysis.context import StudyContext, once
from portability.analysis.measures.summaries import gains, joined, labelled
from portability.analysis.stats.blocks import correct_family, estimate_groups
from portability.analysis.stats.pairing import pairs_of, summarise

SAME = "same"  # the relation of seed examples that are the task's own
CONTRAST = "seed examples: "  # begins the name of a quantity that compares two relations


def extraction_keys(context: StudyContext) -> list[str]:
    """What the rows are by."""
    return list(dict.fromkeys(["data", *context.strata, "method", "receiving", "relation", "budget"]))


def extraction(context: StudyContext) -> pd.DataFrame:
    """Every init by method, student, task, relation and budget; extracted minus each other init from the
    first update on; and extracted with seed examples of the task minus that with seed examples of another
    (see `seeds`).

    Before any update extracted is the bare host by construction, so nothing is compared there. Inits that use
    no seed examples have one run for all relations. Pooled over origins (teachers); by origin see the
    comparisons.

    Returns:
        The columns of pairing.summarise, and of a difference summaries.INFERENCE: `p_holm` of the gains is
        over one family, that of the relations over another.

    Source: our choice (D-101).
    """
    keys, cells = extraction_keys(context), context.arms
    means = labelled(summarise(cells, [*keys, "init"]), context.metric.name, context.metric.unit)
    return joined([means, *gains(context, cells[cells["budget"] > 0], keys), seeds(context)])


@once
def seeds(context: StudyContext) -> pd.DataFrame:
    """Extracted with seed examples of the task minus extracted with those of another task, paired by seed and
    test examples.

    Returns:
        One row per method, student, task, budget from the first update on, and other relation (`relation`
        "same − other", `other`): the columns of blocks.estimate_groups and blocks.correct_family; one family
        of tests. Empty with one relation.
    """
    keys, arms = [key for key in extraction_keys(context) if key != "relation"], context.arms
    own = arms[(arms["init"] == context.arm) & (arms["budget"] > 0)]
    named, scale, unit = own["relation"].unique(), context.metric.scale, context.metric.difference
    parts = []
    for other in [name for name in named if name != SAME and SAME in named]:
        both = own[own["relation"].isin([SAME,
                                         other])].assign(origin_data="")  # differs, and is no part of a match
        frame = estimate_groups(pairs_of(both, "relation", (SAME, other), scale), keys, context.answers,
                                scale)
        name = f"{SAME} − {other}"
        frame = frame.assign(relation=name, other=other, init=context.arm)
        parts.append(labelled(frame, CONTRAST + name, unit))
    if not parts:
        return labelled(summarise(own.iloc[:0], [*keys, "relation", "init"]), CONTRAST, unit)
    return joined([correct_family(pd.concat(parts, ignore_index=True))])


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
