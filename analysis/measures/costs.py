"""What a run, a port and an origin cost, and after how many ports an origin has paid for itself."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from portability.analysis.context import StudyContext, once
from portability.analysis.contrast_arm import WORDS
from portability.analysis.measures.curves import UPDATES, updates_to_match
from portability.analysis.measures.summaries import joined, labelled
from portability.analysis.stats.pairing import PORTED

OWN = {  # column of records.FACTS -> quantity and unit
    "seconds": ("seconds", "s"), "tokens": ("tokens", "tokens"), "updates": ("updates", UPDATES),
    "trainable": ("trainable parameters", "parameters"), "bytes": ("module", "bytes"),
    "port_seconds": ("seconds to port", "s"), "calibration_examples": ("calibration examples", "examples"),
}
PORTING = ("port_seconds", "calibration_examples")  # of these, what only a port costs
OF_ORIGIN = {name: (f"origin's {OWN[name][0]}", OWN[name][1]) for name in ("seconds", "tokens", "updates")}
PORTS = {"ports": "saved", "ports_low": "high", "ports_high": "low"}  # which saving each comes of
HOST = "receiving"  # the level of costs: seconds and parameters of two hosts have no common mean


@once
def cost(context: StudyContext) -> pd.DataFrame:
    """What runs cost: medians over distinct runs, by method, receiving host and init.

    Seconds are a run's share of its stack's wall time: they depend on how many runs were stacked and on the
    machine, so compare tokens and updates across machines. Beside the arm stand the distinct runs that it
    starts from.

    Returns:
        One row per quantity: `median`, `mean`, `least`, `most`, `n` runs with a number, `expected` distinct
        runs, `failed`, `missing`, `status`, `mark`. A run without a port has no port seconds: n is 0 and
        `status` "none recorded".

    Source: our choice (D-80).
    """
    keys = [*context.strata, "method", "init", "receiving"]
    facts = context.study.runs.set_index("run_id")
    facts = facts.assign(**{name: pd.to_numeric(facts[name], errors="coerce") for name in OWN})
    runs = context.arms[[*keys, "run_id", "status"]].drop_duplicates([*keys, "run_id"])
    runs = runs.join(facts[[*OWN, "origin"]], on="run_id")
    runs["state"] = np.where(runs["run_id"].isin(facts.index), "done", runs["status"])
    started = runs[runs["origin"].notna() & (runs["init"] == context.arm)]
    origins = started[keys].assign(run_id=started["origin"]).drop_duplicates()
    origins = origins.join(facts[[*OF_ORIGIN]], on="run_id")
    origins["state"] = np.where(origins["run_id"].isin(facts.index), "done", "missing")
    own = {name: item for name, item in OWN.items() if context.arm == PORTED or name not in PORTING}
    return joined([*_medians(runs, keys, own), *_medians(origins, keys, OF_ORIGIN)])


def _medians(runs: pd.DataFrame, keys: list[str],
             quantities: dict[str, tuple[str, str]]) -> Iterator[pd.DataFrame]:
    runs = runs.drop_duplicates([*keys, "run_id"])
    runs = runs.assign(failed=runs["state"] == "failed", done=runs["state"] == "done")
    grouped = runs.groupby(keys, sort=False, dropna=False)
    counts = grouped.agg(expected=("state", "size"), failed=("failed", "sum"), done=("done", "sum"))
    counts["missing"] = counts["expected"] - counts["done"] - counts["failed"]
    for name, (quantity, unit) in quantities.items():
        table = grouped[name].agg(median="median", mean="mean", least="min", most="max", n="count")
        table = table.join(counts.drop(columns="done"))
        whole = np.where(counts["done"] == counts["expected"], "complete", "incomplete")
        without = np.where(counts["done"] > 0, "none recorded", "missing")
        table["status"] = np.where(table["n"] > 0, whole, without)
        table["mark"] = np.where(counts["done"] < counts["expected"], "†", "")
        yield labelled(table.reset_index(), quantity, unit)


# ---- break-even


@once
def break_even(context: StudyContext) -> pd.DataFrame:
    """What a run of the arm saves against scratch when what it starts from is there already, and how many pay
    that back.

    Saved are scratch's own updates to match itself minus the arm's (curves.updates_to_match), tokens by the
    arm's runs' tokens per update; `origin_cost` is the median cost of an origin's training, and `ports` the
    origin over what is saved, rounded up; inf: never. `ports_low` and `ports_high` come of the interval's
    ends. Where runs are `censored`, they save less than stands here, so `ports` is at least so many. Porting
    itself and the trials of tuning are not counted.

    Returns:
        By method and receiving host, one row in updates and one in tokens: `saved`, `low`, `high`,
        `origin_cost`, `ports`, `ports_low`, `ports_high`, `reached`, `censored`, `median_by`, `largest`,
        counts, `status`, `mark`. Empty where arm or scratch, or a better metric value, does not exist.

    Source: our choice (D-80).
    """
    matches, costs = updates_to_match(context), cost(context)
    matches = matches[(matches["init"] == context.arm) & (matches["level"] == HOST)]
    costs = costs[costs["init"] == context.arm]
    keys = [*context.strata, "method", HOST]
    wide = costs.pivot(index=keys, columns="quantity", values="median").reindex(
        columns=[quantity for quantity, _ in (*OWN.values(), *OF_ORIGIN.values())])
    kept = [*keys, "init", "saved", "low", "high", "median_by", "largest", "reached", "censored", "blocks",
            "n", "expected", "failed", "missing", "status", "mark"]
    rows = matches[kept].join(wide, on=keys)
    per_update = rows["tokens"] / rows["updates"].where(rows["updates"] > 0)
    parts, start = [], WORDS[context.arm]["start"]
    for quantity, scale in (("updates", 1.0), ("tokens", per_update)):
        own = rows[kept].assign(origin_cost=rows[f"origin's {quantity}"])
        own[["saved", "low", "high"]] = own[["saved", "low", "high"]].mul(scale, axis=0)
        ports = {name: _ports(own["origin_cost"], own[end]) for name, end in PORTS.items()}
        parts.append(labelled(own.assign(**ports), f"saved by {start}, {quantity}", quantity))
    return joined(parts)


def _ports(origin: pd.Series, saved: pd.Series) -> np.ndarray:
    """How many ports pay an origin back: (K,), inf for never, NaN where one of the two is not known."""
    ports = np.ceil(origin.to_numpy(float) / saved.where(saved > 0).to_numpy(float) - 1e-9) + 0.0  # never -0
    return np.where((saved <= 0) & origin.notna(), np.inf, ports)
