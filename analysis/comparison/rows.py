"""Many studies side by side: what each is, and a row for every gain of theirs, with its cost.

Nothing is pooled over studies, and those whose numbers are not of one kind (`Basis`) never stand in one
table.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from portability.analysis.context import StudyContext, gather
from portability.analysis.load import Study
from portability.analysis.measures.primary_contrasts import primary
from portability.analysis.metrics import UNITS, metric_of
from portability.analysis.report.findings import verdict_words
from portability.analysis.stats.blocks import POOLED, estimate_groups, mark_missing
from portability.analysis.stats.pairing import PORTED, bare_pairs, with_bare
from portability.core.errors import UserError
from portability.core.specs import BARE, PROTOCOLS, SCHEMA
from portability.store import Store

PLACE = ["data", "port", "method"]
LEVELS = {  # what a row keeps besides the budget; one of "strategy" is over all pairs of hosts and relations
    "strategy": PLACE, "pair": [*PLACE, "origin", "receiving", "relation"],
}
COSTS = {  # of a port, medians over its runs, and what they are called
    "own_updates": "its own updates", "calibration_tokens": "tokens it is calibrated on",
    "port_seconds": "seconds to port", "trainable": "trainable parameters",
}
COLUMNS = [
    "study", "schema", "transformers", "iterate", "metric", "level", "method", "strategy", "origin",
    "receiving", "hosts", "relation", "data", "budget", "arm", "against", "gain", "low", "high", "unit",
    "pairs", "seeds", "examples", "n", "expected", "mark", "updates", *COSTS]
UNKNOWN = "not recorded"
UNDECLARED = "No contrast was declared before the runs, so nothing is decided."


class Basis(NamedTuple):
    """What the numbers of two studies share where they stand in one table: the protocol's schema, the major
    version of transformers, the iterate that marks evaluate (in words), and the metric's name."""

    schema: int
    transformers: str
    iterate: str
    metric: str

    def __str__(self) -> str:
        return (f"{metric_of(self.metric).title} in {UNITS[metric_of(self.metric).difference].symbol}; marks "
                f"evaluate {self.iterate}; transformers {self.transformers}")


@dataclass(frozen=True)
class Summary:
    """A study in short.

    Attributes:
        counts: cells asked for and done, runs, seeds.
        axes: its methods, strategies, pairs of hosts, data, starts and budgets.
        training: the distinct protocols of its runs, as specs.TrainSpec without updates.
        declared: its primary contrasts (measures.primary_contrasts).
    """

    name: str
    folder: Path
    published: bool
    basis: Basis
    counts: dict[str, int]
    axes: dict[str, list[Any]]
    training: list[dict[str, Any]]
    verdict: str
    declared: list[dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """Studies in the order in which they are shown, and `rows` (COLUMNS), those of one study together.

    Of the rows `gain`, `low` and `high` (95 %) are the arm minus what it is held `against`, in `unit`, as the
    study's own tables have them; `budget` are updates on the receiving host (0: before any, against the bare
    host too) and `updates` those and the port's own; `pairs` of hosts are behind the row; POOLED stands where
    a row is over all values.
    """

    studies: list[Summary]
    rows: pd.DataFrame

    def bases(self) -> dict[Basis, list[Summary]]:
        """The studies by what their numbers share, in their order."""
        found: dict[Basis, list[Summary]] = {}
        for study in self.studies:
            found.setdefault(study.basis, []).append(study)
        return found


def compared(stores: Iterable[Store], metric: str | None = None) -> Comparison:
    """Read studies, each by itself.

    Args:
        metric: as of load.read.

    Raises:
        UserError: no study, none with an arm, an unknown metric, or two studies of one name.
    """
    summaries, parts = dict[str, Summary](), []
    for store in stores:
        context = gather(store, metric)
        own = summary(store, context)
        if own.name in summaries:
            raise UserError(f"{summaries[own.name].folder} and {store.root} are both called {own.name}; name "
                            "each study once, or rename one of the folders")
        summaries[own.name] = own
        parts.append(rows(context, own.basis).assign(study=own.name))
    order = sorted(summaries.values(), key=lambda one: (-one.basis.schema, one.basis[1:], one.name))
    if not any(map(len, parts)):
        raise UserError("none of these studies has a module that was ported or extracted: "
                        f"{', '.join(summaries) or 'there is none'}")
    table = pd.concat([part for part in parts if len(part)], ignore_index=True).reindex(columns=COLUMNS)
    rank = {one.name: place for place, one in enumerate(order)}
    return Comparison(order, table.sort_values("study", key=lambda names: names.map(rank), kind="stable",
                                               ignore_index=True))


# ---- one study


def basis_of(study: Study) -> Basis:
    """What a study's numbers share with those of others."""
    tails = sorted({float(part["tail"]) for part in study.parts["train"] if "tail" in part})
    iterates = [f"the mean of the last {100 * tail:g} % of their updates" if tail else "the last iterate"
                for tail in tails]
    own = study.protocol.schema == SCHEMA
    words = " or ".join(iterates) or "an iterate that is not recorded"
    return Basis(study.protocol.schema, study.protocol.major or UNKNOWN,
                 words if own else PROTOCOLS[study.protocol.schema].partition("evaluate ")[2], study.metric)


def summary(store: Store, context: StudyContext) -> Summary:
    """A study in short."""
    arms, study, cells = context.arms, context.study, context.cells
    pairs = arms[["origin", "receiving"]].drop_duplicates().itertuples(index=False, name=None)
    axes = {name: sorted(arms[name].unique().tolist()) for name in ("method", "data", "budget", "init")}
    axes["strategy"] = sorted(arms.loc[arms["init"] == context.arm, "port"].unique().tolist())
    axes["pair"] = sorted(f"{origin} → {receiving}" for origin, receiving in pairs)
    counts = {"cells": len(cells), "done": int((cells["status"] == "done").sum()),
              "runs": len(study.runs), "seeds": int(arms["seed"].nunique())}
    declared = primary(context)[["name", "words", "unit", "mean", "low", "high", "p_holm", "verdict"]]
    declared = declared.astype(object).where(declared.notna(), None)
    verdict = verdict_words(context) if len(declared) else UNDECLARED
    return Summary(study.name, store.root, store.published, basis_of(study), counts, axes,
                   study.parts["train"], verdict, declared.to_dict("records"))


def rows(context: StudyContext, basis: Basis) -> pd.DataFrame:
    """A study's rows; none without an arm. The columns of COLUMNS but the study."""
    if not (context.arms["init"] == context.arm).any():
        return pd.DataFrame(columns=COLUMNS[1:])
    frame = pd.concat([_level(context, level, keys) for level, keys in LEVELS.items()], ignore_index=True)
    frame = frame.rename(columns={"port": "strategy", "mean": "gain", "blocks": "seeds"})
    frame = frame.assign(**basis._asdict(), arm=context.arm, unit=context.metric.difference)
    pairs = zip(frame["origin"], frame["receiving"], strict=True)
    frame["hosts"] = [POOLED if POOLED in pair else context.kinds.get(pair, UNKNOWN) for pair in pairs]
    return frame.reindex(columns=COLUMNS[1:])


def _level(context: StudyContext, level: str, keys: list[str]) -> pd.DataFrame:
    """The rows of a level: gains over every other init, and over the bare host before any update."""
    gains = context.compare(context.cells, [*keys, "budget"]).rename(columns={"baseline": "against"})
    parts = [gains, *([_lift(context, keys)] if context.arm == PORTED and len(context.start) else [])]
    frame = pd.concat(parts, ignore_index=True).join(costs(context, keys), on=keys).assign(level=level)
    arm = context.arms[context.arms["init"] == context.arm]
    arm = arm.assign(pair=arm["origin"] + " " + arm["receiving"])
    pairs = arm.groupby([*keys, "budget"])["pair"].nunique().rename("pairs")
    frame = frame.join(pairs, on=[*keys, "budget"])
    frame["updates"] = frame["budget"] + frame["own_updates"]
    for name in ("origin", "receiving", "relation"):
        frame[name] = frame[name] if name in keys else POOLED
    return frame


def _lift(context: StudyContext, keys: list[str]) -> pd.DataFrame:
    """The arm before any update minus the bare host (as of measures.port_measures.lift)."""
    start = context.start[context.start["init"] == context.arm]
    pairs = bare_pairs(start, context.metric.scale)
    frame = estimate_groups(pairs, [*keys, "budget"], with_bare(pairs, context.answers), context.metric.scale)
    return mark_missing(frame).assign(against=BARE)


def costs(context: StudyContext, keys: list[str]) -> pd.DataFrame:
    """Medians over the distinct runs of the arm, by keys: COSTS. Records from before ports made updates of
    their own do not say so: none."""
    facts = context.study.runs.set_index("run_id").rename(columns={"port_updates": "own_updates"})
    facts = facts[[*COSTS]].apply(pd.to_numeric, errors="coerce")
    arm = context.arms[context.arms["init"] == context.arm].drop_duplicates([*keys, "run_id"])
    found = arm[[*keys, "run_id"]].join(facts, on="run_id").groupby(keys, sort=False)[[*COSTS]].median()
    return found.fillna({"own_updates": 0})
