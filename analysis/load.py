"""Records and manifests of a study to one tidy frame: one row per cell, with its status and its numbers."""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from analysis.answers import marks_of
from analysis.arms import ARMS
from analysis.metrics import OF_LABELS, PARTS, SCORE, names_of, value_of
from portability.core.errors import choose
from portability.core.specs import PROTOCOLS, Cell
from portability.core.wording import counted
from portability.store import Store

log = logging.getLogger(__name__)

COLUMNS = [item.name for item in fields(Cell)]
COORDINATES = COLUMNS[: COLUMNS.index("run_id")]
STATUSES = ("done", "failed", "missing", "duplicate", "foreign")
FACTS = ("run_id", "host", "updates", "seconds", "tokens", "trainable", "bytes", "port_seconds", "calibration_examples",
         "carried", "carried_norm", "effect", "origin")  # of a run; seconds and tokens of the whole run, trainable and bytes of
# its module, effect on the logits over its port's, origin the run whose module it started from
PAIR = ("one", "other", "cka", "weight_distance", "compared_fraction", "shape_distance")  # of two hosts
INITS = (*ARMS, "sampled", "scratch")  # these first, in this order; other inits follow as they come


@dataclass(frozen=True)
class Problem:
    """Something wrong with a study: its kind, the run or cell it is about, and what happened, in words."""

    kind: str  # a status other than "done", "broken", or "unmeasured"
    where: str
    message: str
    cells: int = 0  # how many cells read this run

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.message} ({counted(self.cells, 'cell')})"


@dataclass(frozen=True)
class Runs:
    """What the run folders of a store hold, each record read once.

    `marks` has one row per run and mark (run_id, mark, and the metrics); `facts` one row per run; `held` names the metrics that
    all marks of a used record hold; `state` names what each known run is, `parts` the distinct hosts and data sets behind the
    used records, `reason` why it is not done, `records` the parts of each used record that say where it comes from,
    `unmeasured` why a metric has no number, by run, metric and mark.
    """

    marks: pd.DataFrame
    facts: pd.DataFrame
    held: dict[str, set[str]]
    parts: dict[str, list[dict[str, Any]]]
    state: dict[str, str]
    reason: dict[str, str]
    broken: dict[str, str]
    records: list[dict[str, Any]]
    schema: int
    unmeasured: dict[str, dict[str, dict[int, str]]]

    @property
    def names(self) -> list[str]:
        """The metrics that are known, and the study's own."""
        return names_of(self.marks.columns)

    def hole(self, run_id: str, metric: str, mark: int | None = None) -> str:
        """Why a run that is done has no number at a mark, or at one of its marks."""
        reasons = self.unmeasured.get(run_id, {}).get(metric, {})
        if mark is None:
            mark = next(iter(reasons), -1)
        return f"no {metric}: " + reasons.get(
            mark, "the run was stored without it, and its predictions do not give it (see eval.metrics)")


@dataclass(frozen=True)
class Study:
    """A study, read: its cells (see `tidy`), what is wrong with it, its manifests' facts, and its runs' origin."""

    name: str
    metric: str  # that of its cells
    cells: pd.DataFrame
    problems: list[Problem]
    facts: list[dict[str, Any]]  # the manifests without their cells
    records: list[dict[str, Any]]  # run_id, run_info, meta_info of every record that is used
    runs: pd.DataFrame  # the columns of FACTS, one row per record that is used
    pairs: pd.DataFrame  # the columns of PAIR, one row per two hosts whose similarity is recorded
    parts: dict[str, list[dict[str, Any]]]  # "host", "data": the distinct ones behind the records that are used, as in specs;
    # "too_long": of hosts (their names) and data sets for which answers were, how many
    schema: int  # of the records that are used, a key of spec.PROTOCOLS


def tidy(store: Store, metric: str = "eval_accuracy") -> pd.DataFrame:
    """One row per cell of the study, the union of all its manifests.

    Returns:
        The columns of `spec.Cell`; `status`, one of STATUSES, and `reason` where it is not "done"; every metric at the
        cell's mark (NaN unless done); and of the chosen metric `value` (the cell's), `native` (its native run at
        the run's largest mark), `bare` (its host without a module), each with `native_status` and `bare_status`; and
        `lift` = value - bare at budget 0, NaN elsewhere. Accuracies are fractions in [0, 1].

    Raises:
        UserError: no study there, or the metric is unknown.
    """
    return read(store, metric).cells


def problems(store: Store) -> list[Problem]:
    """Everything wrong with a study: failed, missing, broken, duplicate and foreign."""
    return read(store).problems


def read(store: Store, metric: str | None = "eval_accuracy") -> Study:
    """Read a study once: its cells, problems and provenance.

    Args:
        metric: one of METRICS, or of the study's own, computed from predictions where a record lacks it and these give it;
            None: accuracy where all runs behind the cells have it, else ROUGE-L where all have that, else the score, which is
            either, else what else all have (our choice).

    Raises:
        UserError: no study there, or the metric is unknown.
    """
    manifests = store.manifests()
    runs = _runs(store, metric)
    if metric is not None:
        choose(metric, runs.names, "metric")
    asked = _union(manifests)
    metric = _metric(asked, runs) if metric is None else metric
    cells = _resolve(asked, runs, metric)
    facts = [{key: value for key, value in item.items() if key != "cells"} for item in manifests]
    done = int((cells["status"] == "done").sum())
    log.info("%s: %d cells, %d done, %d records", store.root.name, len(cells), done, len(runs.records))
    pairs = pd.DataFrame(store.host_pairs(), columns=list(PAIR))
    name, wrong = store.root.resolve().name, _problems(cells, runs, metric)
    return Study(name, metric, cells, wrong, facts, runs.records, runs.facts, pairs, runs.parts, runs.schema)


def _metric(cells: pd.DataFrame, runs: Runs) -> str:
    """The metric of a study for which none was chosen."""
    held = [runs.held[run_id] for run_id in cells["run_id"].unique() if run_id in runs.held]
    others = [name for name in runs.names if name not in (*OF_LABELS, *PARTS)]
    return next((name for name in (*PARTS, SCORE, "eval_f1", *others) if all(name in names for names in held)), SCORE)


# ---- manifests


def _union(manifests: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per cell; `others` holds the run ids where equal coordinates name several runs, `native_id` and
    `bare_id` are empty where they contradict each other."""
    rows = [row for manifest in manifests for row in manifest["cells"]]
    cells = pd.DataFrame(rows, columns=COLUMNS).drop_duplicates(ignore_index=True)
    cells["others"] = ""
    doubled = cells.duplicated(COORDINATES, keep=False)
    if doubled.any():
        for _, group in cells[doubled].groupby(COORDINATES, dropna=False, sort=False):
            first = group.index[0]
            if len(group[["run_id", "mark"]].drop_duplicates()) > 1:
                marks = group["run_id"] + " at " + group["mark"].astype(str)
                cells.loc[first, "others"] = ", ".join(sorted(set(marks)))
            for name in ("native_id", "bare_id"):
                if group[name].nunique(dropna=False) > 1:
                    cells.loc[first, name] = None
    cells = cells.drop_duplicates(COORDINATES, ignore_index=True)
    rank = cells["init"].map({name: i for i, name in enumerate(INITS)}).fillna(len(INITS))
    order = pd.DataFrame({"rank": rank, "budget": cells["budget"]}).sort_values(["rank", "budget"], kind="stable").index
    return cells.loc[order].reset_index(drop=True)


# ---- runs


def _runs(store: Store, metric: str | None) -> Runs:
    rows: list[dict[str, Any]] = []
    facts: list[tuple[Any, ...]] = []
    held: dict[str, set[str]] = {}
    parts: dict[str, dict[str, Any]] = {"host": {}, "data": {}, "too_long": {}}
    records: list[dict[str, Any]] = []
    broken: dict[str, str] = {}
    state: dict[str, str] = {}
    reason: dict[str, str] = {}
    unmeasured: dict[str, dict[str, dict[int, str]]] = {}
    entries = list(store.entries())
    schema = protocol(record for _, record, _ in entries)
    for run_id, record, fault in entries:
        if record is None:
            broken[run_id] = str(fault)
        elif foreign := fault or other_protocol(record, schema):
            state[run_id], reason[run_id] = "foreign", foreign
        elif fault := _fault(record, run_id):
            broken[run_id] = fault
        else:
            state[run_id] = "done"
            marks = [{**mark, SCORE: value_of(mark, SCORE)} for mark in marks_of(store, record, metric)]
            marks = [{name: value for name, value in mark.items() if value is not None} for mark in marks]
            rows.extend({"run_id": run_id, **mark} for mark in marks)
            for hole in record["train_info"].get("unmeasured") or []:
                unmeasured.setdefault(run_id, {}).setdefault(hole["metric"], {})[hole["updates"]] = hole["reason"]
            held[run_id] = set.intersection(*map(set, marks)) if marks else set()
            facts.append(_facts(run_id, record))
            for name, part in _parts(record).items():
                parts[name].setdefault(json.dumps(part, sort_keys=True), part)
            records.append({key: record.get(key) or {} for key in ("run_info", "meta_info")} | {"run_id": run_id})
    for run_id, failure in store.failures().items():
        if run_id not in state:
            state[run_id] = "failed"
            reason[run_id] = f"{failure.get('error', 'no message')} (attempt {failure.get('attempt', '?')})"
    for run_id, fault in broken.items():
        reason.setdefault(run_id, fault)
    distinct = {name: list(known.values()) for name, known in parts.items()}
    return Runs(_marks(rows), pd.DataFrame(facts, columns=list(FACTS)), held, distinct, state, reason, broken, records, schema,
                unmeasured)


def protocol(records: Iterable[dict[str, Any] | None]) -> int:
    """The schema of the records that are used: the newest one there that can be read."""
    return max((own for record in records if record and (own := record.get("schema")) in PROTOCOLS), default=max(PROTOCOLS))


def other_protocol(record: dict[str, Any], schema: int) -> str | None:
    """Why a record of another schema is not pooled with those of this one, or None."""
    if (own := record.get("schema")) == schema:
        return None
    return f"schema {own}, and the study's others are of schema {schema}" if own in PROTOCOLS else (
        f"schema {own}, this version reads {', '.join(map(str, PROTOCOLS))}")


def _parts(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a record adds to `Study.parts`."""
    spec, counts = record.get("spec") or {}, record["train_info"].get("too_long") or {}
    found = {name: spec[name] for name in ("host", "data") if spec.get(name)}
    if "train_dropped" not in counts:  # a bare host is not trained
        return found
    return found | {"too_long": {"host": record["cell"]["host"], "data": record["cell"]["data"], **counts}}


def _fault(record: dict[str, Any], run_id: str) -> str | None:
    """What keeps a record that parses from being used, or None."""
    if record.get("run_id") != run_id:
        return f"its record is that of run {record.get('run_id')}"
    if record["train_info"].get("status") != "success":
        return f"its record says status {record['train_info'].get('status')!r}"
    return None


def _facts(run_id: str, record: dict[str, Any]) -> tuple[Any, ...]:
    """A run's row of FACTS; None where its record does not say."""
    train, port, cell = record["train_info"], record.get("port_info") or {}, record.get("cell") or {}
    spec = record.get("spec") or {}
    updates = (spec.get("train") or {}).get("updates")
    seconds = (record.get("run_info") or {}).get("total_time")
    return (run_id, cell.get("host"), updates, seconds, train.get("tokens"), train.get("num_trainable_params"),
            train.get("file_size"), port.get("seconds"), port.get("calibration_examples"), port.get("carried_fraction"),
            port.get("carried_norm_fraction"), port.get("effect_fraction"), spec.get("origin"))


def _marks(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per run and mark; what is absent, or no finite number, is NaN."""
    names = names_of({name for row in rows for name in row})
    frame = pd.DataFrame(rows, columns=["run_id", "updates", *names]).rename(columns={"updates": "mark"})
    frame[names] = frame[names].apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan)
    frame["mark"] = frame["mark"].astype("int64")
    return frame.drop_duplicates(["run_id", "mark"], keep="last", ignore_index=True)


# ---- cells


def _resolve(cells: pd.DataFrame, runs: Runs, metric: str) -> pd.DataFrame:
    """Put each cell's status and numbers beside it."""
    marks = runs.marks
    cells = cells.merge(marks, on=["run_id", "mark"], how="left", validate="m:1", indicator="found")
    cells["status"] = [runs.state.get(run_id, "missing") for run_id in cells["run_id"].to_numpy(object)]
    cells["reason"] = [runs.reason.get(run_id, "") for run_id in cells["run_id"].to_numpy(object)]
    unread = (cells["status"] == "done") & (cells["found"] != "both")
    cells.loc[unread, "status"] = "missing"
    cells.loc[unread, "reason"] = "the run was not evaluated at " + cells["mark"].astype(str) + " updates"
    doubled = cells["others"] != ""
    cells.loc[doubled, "status"] = "duplicate"
    cells.loc[doubled, "reason"] = "several runs claim this cell: " + cells["others"]
    cells.loc[cells["status"] != "done", runs.names] = np.nan
    cells["value"] = cells[metric]
    empty = (cells["status"] == "done") & cells["value"].isna()
    holes = [runs.hole(run_id, metric, mark) for run_id, mark in cells.loc[empty, ["run_id", "mark"]].to_numpy(object)]
    cells.loc[empty, "reason"] = pd.Series(holes, index=cells.index[empty], dtype=object)
    cells.loc[empty, "status"] = "missing"

    last = marks.sort_values("mark").drop_duplicates("run_id", keep="last").set_index("run_id")[metric]
    start = marks[marks["mark"] == 0].set_index("run_id")[metric]
    for name, numbers in (("native", last), ("bare", start)):
        ids = cells[f"{name}_id"]
        cells[name] = ids.map(numbers).astype(float)
        found = [runs.state.get(run_id, "missing") for run_id in ids.to_numpy(object)]
        state = pd.Series(found, index=cells.index, dtype=object)
        state = state.mask(ids.isna(), "duplicate")  # the manifests contradict each other
        cells[f"{name}_status"] = state.mask((state == "done") & cells[name].isna(), "missing")
    cells["lift"] = (cells["value"] - cells["bare"]).where(cells["budget"] == 0)
    cells = cells.drop(columns=["found", "others"])
    return cells.astype(dict.fromkeys(cells.select_dtypes("str"), object))  # texts in Arrow take twice as long everywhere


def _problems(cells: pd.DataFrame, runs: Runs, metric: str) -> list[Problem]:
    """Failed, missing and foreign runs, duplicate cells, broken records, and metrics without a number, in that order, each
    named. Of the chosen metric each such cell is missing."""
    found: list[Problem] = []
    if cells["data"].nunique() > 1:
        cells = cells.assign(receiving=cells["receiving"] + " (" + cells["data"] + ")")
    open_cells = cells[~cells["status"].isin(["done", "duplicate"])]
    for (status, run_id, reason), group in open_cells.groupby(["status", "run_id", "reason"], sort=False):
        message = reason or "no record and no failure: not run yet"
        found.append(Problem(str(status), f"run {run_id} ({describe(group.iloc[0])})", message, len(group)))
    for _, row in cells[cells["status"] == "duplicate"].iterrows():
        found.append(Problem("duplicate", f"cell {describe(row)}, {row['budget']} updates", row["reason"], 1))
    for name in ("native", "bare"):
        found.extend(_reference_problems(cells, name, runs, metric))
    named = set(cells["run_id"]) | set(cells["native_id"]) | set(cells["bare_id"])
    for run_id in sorted(set(runs.state) - named):
        if runs.state[run_id] != "done":
            message = f"{runs.reason[run_id]}; no cell reads it (an origin's training, or left over)"
            found.append(Problem(runs.state[run_id], f"run {run_id}", message))
    count = cells["run_id"].value_counts()
    found.extend(Problem("broken", f"run {i}", text, int(count.get(i, 0))) for i, text in runs.broken.items())
    found.extend(Problem("unmeasured", f"run {i}", runs.hole(i, name, mark) + f" at {mark} updates", int(count.get(i, 0)))
                 for i, names in runs.unmeasured.items() for name, marks in names.items() if name != metric for mark in marks)
    order = {kind: i for i, kind in enumerate((*STATUSES[1:], "broken", "unmeasured"))}
    return sorted(found, key=lambda problem: order[problem.kind])


def _reference_problems(cells: pd.DataFrame, name: str, runs: Runs, metric: str) -> list[Problem]:
    """Native or bare runs that are not done and that no cell reads as its own result."""
    ids, status = cells[f"{name}_id"], cells[f"{name}_status"]
    found = []
    for (run_id, state), group in cells[(status != "done") & ~ids.isin(cells["run_id"])].groupby(
        [ids, status], sort=False, dropna=False
    ):
        where, message = f"{name} run {run_id}", runs.reason.get(str(run_id), "not run yet")
        if runs.state.get(str(run_id)) == "done":
            message = runs.hole(str(run_id), metric)
        if state == "duplicate":
            where, message = f"{name} of {describe(group.iloc[0])}", "the study's commands name different runs"
        found.append(Problem(str(state), where, message, len(group)))
    return found


def describe(row: pd.Series) -> str:
    """A cell's coordinates in words, without its budget."""
    seed = "no seed" if pd.isna(row["seed"]) else f"seed {row['seed']}"
    return f"{row['method']}, {row['origin']} -> {row['receiving']}, {row['relation']}, {row['init']}, {seed}"
