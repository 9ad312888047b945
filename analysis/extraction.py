"""Weights cut out of a larger host: every start by student and task, and seed examples of the task against another's."""

import pandas as pd

from analysis import captions
from analysis.arms import EXTRACTED
from analysis.entries import joined, labelled
from analysis.evidence import Evidence, once
from analysis.inference import pairs_of
from analysis.judging import corrected, judged
from analysis.means import gains
from analysis.recipe import Recipe
from analysis.stats import apart, summarise

SAME = "same"  # the relation of seed examples that are the task's own
CONTRAST = "seed examples: "  # begins the name of a quantity that compares two relations


# ---- frames


def extraction(found: Evidence) -> pd.DataFrame:
    """Every init by method, student, task, relation and budget; extracted minus each other init from the first update on; and
    extracted with seed examples of the task minus that with seed examples of another (see `seeds`).

    Before any update extracted is the bare host by construction, so nothing is compared there. Starts that use no seed
    examples have one run for all relations. Pooled over origins (teachers); by origin see the comparisons.

    Returns:
        The columns of stats.summarise, and of a difference means.INFERENCE: `p_holm` of the gains is over one family, that
        of the relations over another.
    """
    keys = _keys(found)
    cells = found.arms
    means = labelled(summarise(cells, [*keys, "init"]), found.metric.name, found.metric.unit)
    return joined([means, *gains(found, cells[cells["budget"] > 0], keys), seeds(found)])


@once
def seeds(found: Evidence) -> pd.DataFrame:
    """Extracted with seed examples of the task minus extracted with those of another task, paired by seed and test examples.

    Returns:
        One row per method, student, task, budget from the first update on, and other relation (`relation` "same − other",
        `other`): the columns of judging.judged and judging.corrected; one family of tests. Empty with one relation.
    """
    keys, arms = [key for key in _keys(found) if key != "relation"], found.arms
    own = arms[(arms["init"] == found.arm) & (arms["budget"] > 0)]
    named, scale = own["relation"].unique(), found.metric.scale
    parts = []
    for other in [name for name in named if name != SAME and SAME in named]:
        both = own[own["relation"].isin([SAME, other])].assign(origin_data="")  # these differ, and are no part of a match
        frame = judged(pairs_of(both, "relation", (SAME, other), scale), keys, found.answers, scale)
        parts.append(labelled(frame, f"{CONTRAST}{SAME} − {other}", found.metric.difference).assign(
            relation=f"{SAME} − {other}", other=other, init=found.arm))
    if not parts:
        return labelled(summarise(own.iloc[:0], [*keys, "relation", "init"]), CONTRAST, found.metric.difference)
    return joined([corrected(pd.concat(parts, ignore_index=True))])


def _keys(found: Evidence) -> list[str]:
    return list(dict.fromkeys(["data", *apart(found.cells), "method", "receiving", "relation", "budget"]))


# ---- captions


def words(found: Evidence, frame: pd.DataFrame) -> str:
    """Under the table."""
    over = frame[frame["quantity"].astype(str).str.startswith("gain")]
    own = frame[frame["quantity"].astype(str).str.startswith(CONTRAST)]
    parts = [captions.SPREAD, captions.COUNTS, captions.replicates(found.arms, [*_keys(found), "init"])]
    parts += [captions.gain_words(over, found.why)] if len(over) else []
    if len(own) and own["p"].notna().any():
        parts.append(TASK.format(family=int(own["family"].max())))
    faults = captions.faults(frame)
    return " ".join([*parts, BEGIN, *([faults] if faults else []), *captions.ahead(found.arms)])


BEGIN = (
    "Relation same: seed examples of the task itself; any other: those of another task. A start that uses no seed examples has "
    "one run for all relations. Before any update extracted is the bare host by construction, so differences begin with the "
    "first budget."
)
TASK = (
    "Seed examples, same − other: pairs of one seed and the same test examples; this decides whether a gain is knowledge of "
    "the task or comes of any cut. Holm's correction is for the {family} of these alone."
)
RECIPES: dict[str, Recipe] = {
    "extraction": Recipe(
        extraction, "Extraction", "{label} of every start by student, task and relation of the seed examples, at every budget, "
        "with {arm} minus each other start.", ("method", "receiving", "relation", "quantity", "init"), "budget", best=True,
        behind=lambda found: found.arms, words=words, of=lambda found: found.arm == EXTRACTED,
    ),
}
