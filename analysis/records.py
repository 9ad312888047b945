"""The run records of a study, each read once: marks, facts and provenance of those that are used, and why
others are not."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from portability.analysis.correctness import marks_of
from portability.analysis.metrics import SCORE, names_of, value_of
from portability.core.specs import PROTOCOLS
from portability.store import Store

FACTS = {  # a run's facts, and where its record has them; seconds and tokens are of the whole run
    "host": ("cell", "host"), "updates": ("spec", "train", "updates"), "seconds": ("run_info", "total_time"),
    "tokens": ("train_info", "tokens"), "trainable": ("train_info", "num_trainable_params"),
    "bytes": ("train_info", "file_size"), "port_seconds": ("port_info", "seconds"),
    "calibration_examples": ("port_info", "calibration_examples"),
    "carried": ("port_info", "carried_fraction"), "carried_norm": ("port_info", "carried_norm_fraction"),
    "effect": ("port_info", "effect_fraction"), "origin": ("spec", "origin"),
}


@dataclass
class Runs:
    """What the run folders of a store hold.

    `marks` has one row per run and mark (run_id, mark, and the metrics); `facts` one row per run, the columns
    of FACTS; `held` names the metrics that all marks of a used record hold; `state` names what each known run
    is, `reason` why it is not done, `broken` why a record cannot be used; `distinct` the hosts and data sets
    behind the used records by their JSON, `records` the parts of each used record that say where it comes
    from, `unmeasured` why a metric has no number, by run, metric and mark.
    """

    schema: int
    marks: pd.DataFrame = field(default_factory=pd.DataFrame)
    facts: pd.DataFrame = field(default_factory=pd.DataFrame)
    held: dict[str, set[str]] = field(default_factory=dict)
    distinct: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {name: {} for name in ("host", "data", "too_long")})
    state: dict[str, str] = field(default_factory=dict)
    reason: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    unmeasured: dict[str, dict[str, dict[int, str]]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The metrics that are known, and the study's own."""
        return names_of(self.marks.columns)

    def hole(self, run_id: str, metric: str, mark: int | None = None) -> str:
        """Why a run that is done has no number at a mark, or at one of its marks."""
        reasons = self.unmeasured.get(run_id, {}).get(metric, {})
        mark = next(iter(reasons), -1) if mark is None else mark
        default = "the run was stored without it, and its predictions do not give it (see eval.metrics)"
        return f"no {metric}: {reasons.get(mark, default)}"


def read_runs(store: Store, metric: str | None) -> Runs:
    """Every run of a store.

    Args:
        metric: one that is computed from predictions where a record lacks it and these give it.
    """
    entries, rows, facts = list(store.entries()), [], []
    runs = Runs(protocol(record for _, record, _ in entries))
    for run_id, record, fault in entries:
        state, why = state_of(run_id, record, fault, runs.schema)
        if record is None or state == "broken":
            runs.broken[run_id] = why
            continue
        runs.state[run_id] = state
        if state == "foreign":
            runs.reason[run_id] = why
            continue
        marks = [{**mark, SCORE: value_of(mark, SCORE)} for mark in marks_of(store, record, metric)]
        marks = [{name: value for name, value in mark.items() if value is not None} for mark in marks]
        rows += [{"run_id": run_id, **mark} for mark in marks]
        facts.append((run_id, *(_at(record, path) for path in FACTS.values())))
        runs.held[run_id] = set.intersection(*map(set, marks)) if marks else set()
        _add_provenance(runs, run_id, record)
    for run_id, failure in store.failures().items():
        if run_id not in runs.state:
            runs.state[run_id] = "failed"
            attempt = failure.get("attempt", "?")
            runs.reason[run_id] = f"{failure.get('error', 'no message')} (attempt {attempt})"
    runs.reason = runs.broken | runs.reason
    runs.marks, runs.facts = _marks(rows), pd.DataFrame(facts, columns=["run_id", *FACTS])
    return runs


def protocol(records: Iterable[dict[str, Any] | None]) -> int:
    """The schema of the records that are used: the newest one there that can be read."""
    return max((own for record in records if record and (own := record.get("schema")) in PROTOCOLS),
               default=max(PROTOCOLS))


def state_of(run_id: str, record: dict[str, Any] | None, fault: str | None, schema: int) -> tuple[str, str]:
    """What a record is, "done", "broken" or "foreign" (of another protocol), and why it is not done."""
    if record is None:
        return "broken", str(fault)
    own = record.get("schema")
    if fault is None and own != schema:
        fault = (f"schema {own}, and the study's others are of schema {schema}" if own in PROTOCOLS else
                 f"schema {own}, this version reads {', '.join(map(str, PROTOCOLS))}")
    if fault:
        return "foreign", fault
    if record.get("run_id") != run_id:
        return "broken", f"its record is that of run {record.get('run_id')}"
    status = record["train_info"].get("status")
    return ("done", "") if status == "success" else ("broken", f"its record says status {status!r}")


def _at(record: dict[str, Any], path: tuple[str, ...]) -> Any:
    """What a record has at a path, None where it does not say."""
    found: Any = record
    for key in path:
        found = (found or {}).get(key)
    return found


def _add_provenance(runs: Runs, run_id: str, record: dict[str, Any]) -> None:
    """Where a used record comes from, and what it says it could not measure."""
    spec, train = record.get("spec") or {}, record["train_info"]
    parts = {name: spec[name] for name in ("host", "data") if spec.get(name)}
    if "train_dropped" in (counts := train.get("too_long") or {}):  # a bare host is not trained
        parts["too_long"] = {"host": record["cell"]["host"], "data": record["cell"]["data"], **counts}
    for name, part in parts.items():
        runs.distinct[name].setdefault(json.dumps(part, sort_keys=True), part)
    for hole in train.get("unmeasured") or []:
        runs.unmeasured.setdefault(run_id, {}).setdefault(hole["metric"],
                                                          {})[hole["updates"]] = hole["reason"]
    runs.records.append({key: record.get(key) or {} for key in ("run_info", "meta_info")}
                        | {"run_id": run_id})


def _marks(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per run and mark; what is absent, or no finite number, is NaN."""
    names = names_of({name for row in rows for name in row})
    frame = pd.DataFrame(rows, columns=["run_id", "updates", *names]).rename(columns={"updates": "mark"})
    frame[names] = frame[names].apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan)
    frame["mark"] = frame["mark"].astype("int64")
    return frame.drop_duplicates(["run_id", "mark"], keep="last", ignore_index=True)
