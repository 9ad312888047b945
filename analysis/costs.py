"""What a run, a port and an origin cost, and after how many ports an origin has paid for itself."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from analysis.arms import PORTED, WORDS, Words
from analysis.curves import UPDATES, updates_to_match
from analysis.entries import joined, labelled
from analysis.evidence import Evidence, once
from analysis.judging import by_level
from analysis.stats import apart

OWN = {  # column of load.FACTS -> quantity and unit
    "seconds": ("seconds", "s"), "tokens": ("tokens", "tokens"), "updates": ("updates", UPDATES),
    "trainable": ("trainable parameters", "parameters"), "bytes": ("module", "bytes"), "port_seconds": ("seconds to port", "s"),
    "calibration_examples": ("calibration examples", "examples"),
}
PORTING = ("port_seconds", "calibration_examples")  # of these, what only a port costs
OF_ORIGIN = {name: (f"origin's {OWN[name][0]}", OWN[name][1]) for name in ("seconds", "tokens", "updates")}
PORTS = {"ports": "saved", "ports_low": "high", "ports_high": "low"}  # which saving each comes of
LEVELS: dict[str, tuple[str, ...]] = {"method": (), "receiving": ("receiving",)}


def cost(found: Evidence, levels: Sequence[str] = tuple(LEVELS)) -> pd.DataFrame:
    """What runs cost: medians over distinct runs, by method and init, and by receiving host too (`level`).

    Seconds are a run's share of its stack's wall time: they depend on how many runs were stacked and on the machine, so
    compare tokens and updates across machines. Beside the arm stand the distinct runs that it starts from.

    Returns:
        One row per quantity: `median`, `mean`, `least`, `most`, `n` runs with a number,
        `expected` distinct runs, `failed`, `missing`, `status`, `mark`. A run without a port has no port seconds: n is 0
        and `status` "none recorded".
    """
    keys = [*apart(found.cells), "method", "init", "receiving"]
    facts = found.study.runs.set_index("run_id")
    facts = facts.assign(**{name: pd.to_numeric(facts[name], errors="coerce") for name in OWN})
    runs = found.arms[[*keys, "run_id", "status"]].drop_duplicates([*keys, "run_id"]).join(facts[[*OWN, "origin"]], on="run_id")
    runs["state"] = np.where(runs["run_id"].isin(facts.index), "done", runs["status"])
    started = runs[runs["origin"].notna() & (runs["init"] == found.arm)]
    origins = started[keys].assign(run_id=started["origin"]).drop_duplicates().join(facts[[*OF_ORIGIN]], on="run_id")
    origins["state"] = np.where(origins["run_id"].isin(facts.index), "done", "missing")
    own = {name: item for name, item in OWN.items() if found.arm == PORTED or name not in PORTING}
    frames = {}
    for level in levels:
        names = [key for key in keys if key != "receiving" or key in LEVELS[level]]
        parts = [*_medians(runs, names, own), *_medians(origins, names, OF_ORIGIN)]
        frames[level] = pd.concat(parts, ignore_index=True)
    return joined([by_level(frames)])


def _medians(runs: pd.DataFrame, keys: list[str], quantities: dict[str, tuple[str, str]]) -> Iterator[pd.DataFrame]:
    runs = runs.drop_duplicates([*keys, "run_id"])
    grouped = runs.groupby(keys, sort=False, dropna=False)
    states = runs.assign(failed=runs["state"] == "failed", done=runs["state"] == "done")
    counts = states.groupby(keys, sort=False, dropna=False).agg(
        expected=("state", "size"), failed=("failed", "sum"), done=("done", "sum"))
    counts["missing"] = counts["expected"] - counts["done"] - counts["failed"]
    for name, (quantity, unit) in quantities.items():
        table = grouped[name].agg(median="median", mean="mean", least="min", most="max", n="count")
        table = table.join(counts.drop(columns="done"))
        whole = np.where(counts["done"] == counts["expected"], "complete", "incomplete")
        table["status"] = np.where(table["n"] > 0, whole, np.where(counts["done"] > 0, "none recorded", "missing"))
        table["mark"] = np.where(counts["done"] < counts["expected"], "†", "")
        yield labelled(table.reset_index(), quantity, unit)


# ---- break-even


@once
def break_even(found: Evidence) -> pd.DataFrame:
    """What a run of the arm saves against scratch when what it starts from is there already, and how many pay that back.

    Saved are scratch's own updates to match itself minus the arm's (curves.updates_to_match), tokens by the arm's runs'
    tokens per update; `origin_cost` is the median cost of an origin's training, and `ports` the origin over what is saved,
    rounded up; inf: never. `ports_low` and `ports_high` come of the interval's ends. Where runs are `censored`, they save
    less than stands here, so `ports` is at least so many. Porting itself and the trials of tuning are not counted.

    Returns:
        By method, one row in updates and one in tokens: `saved`, `low`, `high`, `origin_cost`, `ports`, `ports_low`,
        `ports_high`, `reached`, `censored`, `median_by`, `largest`, counts, `status`, `mark`. Empty where arm or scratch, or a
        better metric value, does not exist.
    """
    matches, costs = updates_to_match(found, ["method"]), cost(found, ["method"])
    matches, costs = matches[matches["init"] == found.arm], costs[costs["init"] == found.arm]
    keys = [*apart(found.cells), "method"]
    wide = costs.pivot(index=keys, columns="quantity", values="median").reindex(
        columns=[quantity for quantity, _ in (*OWN.values(), *OF_ORIGIN.values())])
    kept = [*keys, "init", "saved", "low", "high", "median_by", "largest", "reached", "censored", "blocks", "n",
            "expected", "failed", "missing", "status", "mark"]
    rows = matches[kept].join(wide, on=keys)
    per_update = rows["tokens"] / rows["updates"].where(rows["updates"] > 0)
    parts = []
    for quantity, scale in (("updates", 1.0), ("tokens", per_update)):
        scaled = {name: rows[name] * scale for name in ("saved", "low", "high")}
        own = rows[kept].assign(origin_cost=rows[f"origin's {quantity}"], **scaled)
        ports = {name: _ports(own["origin_cost"], own[end]) for name, end in PORTS.items()}
        parts.append(labelled(own.assign(**ports), f"saved by {WORDS[found.arm].start}, {quantity}", quantity))
    return joined(parts)


def _ports(origin: pd.Series, saved: pd.Series) -> np.ndarray:
    """How many ports pay an origin back: (K,), inf for never, NaN where one of the two is not known."""
    ports = np.ceil(origin.to_numpy(float) / saved.where(saved > 0).to_numpy(float) - 1e-9) + 0.0  # never -0
    return np.where((saved <= 0) & origin.notna(), np.inf, ports)


def break_even_words(found: Evidence) -> list[str]:
    """One plain sentence a method: what a run of the arm saves, and how many pay back what it starts from."""
    frame = break_even(found)
    names = [name for name in ("data", "port", "method") if name in frame]
    updates, tokens = (frame[frame["unit"] == unit].set_index(names) for unit in ("updates", "tokens"))
    return [_sentence(name, row, tokens.loc[name, "saved"], WORDS[found.arm]) for name, row in updates.iterrows()]


def _sentence(name: object, row: pd.Series, tokens: float, words: Words) -> str:
    where = ", ".join(name) if isinstance(name, tuple) else str(name)
    if row["n"] == 0:
        return f"{where}: {words.start} and its scratch twin are nowhere both there, so nothing is known of what it saves."
    runs = int(row["reached"] + row["censored"])
    late = ""
    if row["censored"]:
        late = f"; {int(row['censored'])} of {runs} {words.starts} do not get there within {row['largest']:,.0f}"
    if row["saved"] <= 0:
        head = f"{where}: to match scratch's last score {words.start} saves"
        if row["reached"] == 0 or row["high"] <= 0:
            return f"{head} nothing{late}, so {words.origin} never pays back{_dagger(row)}."
        between = "" if math.isnan(row["low"]) else f" [{row['low']:,.0f}, {row['high']:,.0f}]"
        size = f"{row['saved']:,.0f} updates{between}".replace("-", "−")
        return f"{head} {size}{late}, which is not told apart from saving something{_dagger(row)}."
    most, least = ("at most ", "at least ") if row["censored"] else ("", "")
    some = "" if math.isnan(tokens) else f" ({tokens:,.0f} tokens)"
    between = "" if math.isnan(row["low"]) else f" [{row['low']:,.0f}, {row['high']:,.0f}]".replace("-", "−")
    saves = f"saves {most}{row['saved']:,.0f} updates{between}{some}{_doubt(row)}"
    said = f"{where}: to match scratch's last score {words.start} {saves}{late}"
    if math.isnan(row["origin_cost"]):
        return f"{said}; what {words.origin} costs is not recorded{_dagger(row)}."
    if row["origin_cost"] == 0:
        return f"{said}; {words.origin} takes no update{_dagger(row)}."
    pay = f"{words.origin} of {row['origin_cost']:,.0f} updates pays back after {least}{_count(row['ports'], words)}"
    return f"{said}; {pay}{_range(row)}{_dagger(row)}."


def _doubt(row: pd.Series) -> str:
    """Said where the interval leaves open whether anything is saved."""
    if row["low"] > 0:
        return ""
    return ", without an interval" if math.isnan(row["low"]) else ", not told apart from nothing"


def _range(row: pd.Series) -> str:
    if math.isnan(row["low"]):
        return ""
    if math.isinf(row["ports_high"]):
        return f" (from {row['ports_low']:,.0f} to never)"
    return f" (from {row['ports_low']:,.0f} to {row['ports_high']:,.0f})"


def _count(ports: float, words: Words) -> str:
    return words.start.replace("a ", "1 ", 1) if ports == 1 else f"{ports:,.0f} {words.starts}"


def _dagger(row: pd.Series) -> str:
    return f" († {row['n']} of {row['expected']} pairs)" if row["mark"] else ""
