"""Weights cut out of a larger host: every init by student and task, and seed examples of the task against
another's."""

import pandas as pd

from portability.analysis.context import StudyContext, once
from portability.analysis.measures.rows import joined, labelled
from portability.analysis.measures.summaries import gains
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
