"""Records and manifests of a study to one tidy frame: one row per cell, with its status and its numbers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from portability.analysis.metrics import OF_LABELS, PARTS, PREFIX, SCORE
from portability.analysis.records import Protocol, Runs, read_runs
from portability.analysis.stats.pairing import ARMS, COLUMNS, COORDINATES, STATUSES
from portability.core.contrasts import declared_metric
from portability.core.errors import validate_choice
from portability.core.wording import counted
from portability.store import Store

HOST_PAIR = ("one", "other", "cka", "weight_distance", "compared_fraction", "shape_distance", "rotation")
NOT_RUN = "no record and no failure: not run yet"
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
class Study:
    """A study, read: its cells (see `tidy`), what is wrong with it, its manifests' facts, and its runs'
    origin."""

    name: str
    metric: str  # that of its cells
    cells: pd.DataFrame
    problems: list[Problem]
    facts: list[dict[str, Any]]  # the manifests without their cells
    records: list[dict[str, Any]]  # run_id, run_info, meta_info of every record that is used
    runs: pd.DataFrame  # run_id and records.FACTS, one row per record that is used
    pairs: pd.DataFrame  # the columns of HOST_PAIR, one row per two hosts whose similarity is recorded
    # "host", "data", "train" (without updates): those behind the records that are used, as in specs;
    # "too_long": of hosts (their names) and data sets for which answers were, how many
    parts: dict[str, list[dict[str, Any]]]
    protocol: Protocol  # of the records that are used

    @property
    def hours(self) -> float:
        """Running time of all records that are used."""
        return sum(float(record["run_info"].get("total_time") or 0) for record in self.records) / 3600


def tidy(store: Store, metric: str = "eval_accuracy") -> pd.DataFrame:
    """One row per cell of the study, the union of all its manifests.

    Returns:
        The columns of `specs.Cell`; `status`, one of STATUSES, and `reason` where it is not "done"; every
        metric at the cell's mark (NaN unless done); and of the chosen metric `value` (the cell's), `native`
        (its native run at the run's largest mark), `bare` (its host without a module), each with
        `native_status` and `bare_status`; and `lift` = value - bare at budget 0, NaN elsewhere. Accuracies
        are fractions in [0, 1].

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
        metric: one of METRICS, or of the study's own, computed from predictions where a record lacks it and
            these give it; None: the one that the study declared, else accuracy where all runs behind the
            cells have it, else ROUGE-L where all have that, else the score, which is either, else what else
            all have (our choice).

    Raises:
        UserError: no study there, or the metric is unknown.
    """
    manifests = store.manifests()
    if metric is None and (name := declared_metric(manifests)) is not None:
        metric = PREFIX + name
    runs = read_runs(store, metric)
    if metric is not None:
        validate_choice(metric, runs.names, "metric")
    asked = _union(manifests)
    metric = _metric(asked, runs) if metric is None else metric
    cells = _resolve(asked, runs, metric)
    return Study(
        name=store.root.resolve().name, metric=metric, cells=cells, problems=_problems(cells, runs, metric),
        facts=[{key: value for key, value in item.items() if key != "cells"} for item in manifests],
        records=runs.records, runs=runs.facts,
        pairs=pd.DataFrame(store.host_pairs(), columns=list(HOST_PAIR)),
        parts={name: list(parts.values()) for name, parts in runs.distinct.items()}, protocol=runs.protocol)


def _metric(cells: pd.DataFrame, runs: Runs) -> str:
    """The metric of a study for which none was chosen."""
    held = [runs.held[run_id] for run_id in cells["run_id"].unique() if run_id in runs.held]
    others = [name for name in runs.names if name not in (*OF_LABELS, *PARTS)]
    names = (*PARTS, SCORE, "eval_f1", *others)
    return next((name for name in names if all(name in of_run for of_run in held)), SCORE)


# ---- cells


def _union(manifests: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per cell; `others` holds the run ids where equal coordinates name several runs, `native_id` and
    `bare_id` are empty where they contradict each other."""
    rows = [row for manifest in manifests for row in manifest["cells"]]
    cells = pd.DataFrame(rows, columns=COLUMNS).drop_duplicates(ignore_index=True).assign(others="")
    doubled = cells[cells.duplicated(COORDINATES, keep=False)]
    for _, group in doubled.groupby(COORDINATES, dropna=False, sort=False):
        if len(group[["run_id", "mark"]].drop_duplicates()) > 1:
            marks = group["run_id"] + " at " + group["mark"].astype(str)
            cells.loc[group.index[0], "others"] = ", ".join(sorted(set(marks)))
        for name in ("native_id", "bare_id"):
            if group[name].nunique(dropna=False) > 1:
                cells.loc[group.index[0], name] = None
    cells = cells.drop_duplicates(COORDINATES, ignore_index=True)
    rank = cells["init"].map({name: i for i, name in enumerate(INITS)}).fillna(len(INITS))
    return cells.assign(rank=rank).sort_values(["rank", "budget"], kind="stable", ignore_index=True).drop(
        columns="rank")


def _resolve(cells: pd.DataFrame, runs: Runs, metric: str) -> pd.DataFrame:
    """Put each cell's status and numbers beside it."""
    cells = cells.merge(runs.marks, on=["run_id", "mark"], how="left", validate="m:1", indicator="found")
    cells["status"] = _states(cells["run_id"], runs)
    cells["reason"] = [runs.reason.get(run_id, "") for run_id in cells["run_id"].to_numpy(object)]
    unread = (cells["status"] == "done") & (cells["found"] != "both")
    cells.loc[unread, "status"] = "missing"
    cells.loc[unread, "reason"] = "the run was not evaluated at " + cells["mark"].astype(str) + " updates"
    doubled = cells["others"] != ""
    cells.loc[doubled, "status"] = "duplicate"
    cells.loc[doubled, "reason"] = "several runs claim this cell: " + cells["others"]
    cells.loc[cells["status"] != "done", runs.names] = float("nan")
    cells["value"] = cells[metric]
    empty = (cells["status"] == "done") & cells["value"].isna()
    for row in cells.index[empty]:
        cells.loc[row, "reason"] = runs.hole(cells.loc[row, "run_id"], metric, cells.loc[row, "mark"])
    cells.loc[empty, "status"] = "missing"
    cells = _with_references(cells.drop(columns=["found", "others"]), runs, metric)
    return cells.astype(dict.fromkeys(cells.select_dtypes("str"), object))  # Arrow texts take twice as long


def _with_references(cells: pd.DataFrame, runs: Runs, metric: str) -> pd.DataFrame:
    """The cells with the numbers of their native runs, at these runs' largest mark, and of their bare
    hosts."""
    marks = runs.marks.sort_values("mark")
    last, start = marks.drop_duplicates("run_id", keep="last"), marks[marks["mark"] == 0]
    for name, rows in (("native", last), ("bare", start)):
        ids = cells[f"{name}_id"]
        cells[name] = ids.map(rows.set_index("run_id")[metric]).astype(float)
        state = _states(ids, runs).mask(ids.isna(), "duplicate")  # the manifests contradict each other
        cells[f"{name}_status"] = state.mask((state == "done") & cells[name].isna(), "missing")
    cells["lift"] = (cells["value"] - cells["bare"]).where(cells["budget"] == 0)
    return cells


def _states(ids: pd.Series, runs: Runs) -> pd.Series:
    return pd.Series([runs.state.get(run_id, "missing") for run_id in ids.to_numpy(object)], ids.index,
                     object)


# ---- problems


def _problems(cells: pd.DataFrame, runs: Runs, metric: str) -> list[Problem]:
    """Failed, missing and foreign runs, duplicate cells, broken records, and metrics without a number, in
    that order, each named. Of the chosen metric each such cell is missing."""
    if cells["data"].nunique() > 1:
        cells = cells.assign(receiving=cells["receiving"] + " (" + cells["data"] + ")")
    doubled, done = (cells[cells["status"] == status] for status in ("duplicate", "done"))
    lacking = cells.drop([*doubled.index, *done.index]).groupby(["status", "run_id", "reason"], sort=False)
    found = [Problem(str(status), f"run {run_id} ({describe(group.iloc[0])})", reason or NOT_RUN, len(group))
             for (status, run_id, reason), group in lacking]
    found += [Problem("duplicate", f"cell {describe(row)}, {row['budget']} updates", row["reason"], 1)
              for _, row in doubled.iterrows()]
    for name in ("native", "bare"):
        found += _reference_problems(cells, name, runs, metric)
    named = set(cells["run_id"]) | set(cells["native_id"]) | set(cells["bare_id"])
    unread = "no cell reads it (an origin's training, or left over)"
    found += [Problem(state, f"run {run_id}", f"{runs.reason[run_id]}; {unread}")
              for run_id, state in sorted(runs.state.items()) if run_id not in named and state != "done"]
    count = cells["run_id"].value_counts()
    found += [Problem("broken", f"run {i}", text, int(count.get(i, 0))) for i, text in runs.broken.items()]
    found += [Problem("unmeasured", f"run {i}", f"{runs.hole(i, name, mark)} at {mark} updates",
                      int(count.get(i, 0)))
              for i, names in runs.unmeasured.items()
              for name, marks in names.items() if name != metric for mark in marks]
    order = (*STATUSES[1:], "broken", "unmeasured")
    return sorted(found, key=lambda problem: order.index(problem.kind))


def _reference_problems(cells: pd.DataFrame, name: str, runs: Runs, metric: str) -> Iterator[Problem]:
    """Native or bare runs that are not done and that no cell reads as its own result."""
    ids, status = cells[f"{name}_id"], cells[f"{name}_status"]
    rows = cells[(status != "done") & (ids != "") & ~ids.isin(cells["run_id"])]
    for (run_id, state), group in rows.groupby([ids, status], sort=False, dropna=False):
        where, message = f"{name} run {run_id}", runs.reason.get(str(run_id), "not run yet")
        if runs.state.get(str(run_id)) == "done":
            message = runs.hole(str(run_id), metric)
        if state == "duplicate":
            where = f"{name} of {describe(group.iloc[0])}"
            message = "the study's commands name different runs"
        yield Problem(str(state), where, message, len(group))


def describe(row: pd.Series) -> str:
    """A cell's coordinates in words, without its budget."""
    seed = "no seed" if pd.isna(row["seed"]) else f"seed {row['seed']}"
    return f"{row['method']}, {row['origin']} -> {row['receiving']}, {row['relation']}, {row['init']}, {seed}"
