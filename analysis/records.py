"""The run records of a study, each read once: marks, facts and provenance of those that are used, why others
are not, and what each test example contributes to a run's metric."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors import SafetensorError

from portability.analysis.metrics import AUC, PREFIX, SCORE, names_of, value_of
from portability.core.errors import UserError
from portability.core.measures import MEASURES, Measure, Undefined, auc_by_example, said
from portability.core.specs import PROTOCOLS
from portability.core.versions import major_of
from portability.store import Store

FACTS = {  # a run's facts, and where its record has them; seconds and tokens are of the whole run
    "host": ("cell", "host"), "updates": ("spec", "train", "updates"), "seconds": ("run_info", "total_time"),
    "tokens": ("train_info", "tokens"), "trainable": ("train_info", "num_trainable_params"),
    "bytes": ("train_info", "file_size"), "port_seconds": ("port_info", "seconds"),
    "calibration_examples": ("port_info", "calibration_examples"),
    "calibration_tokens": ("port_info", "calibration_tokens"),
    "carried": ("port_info", "carried_fraction"), "carried_norm": ("port_info", "carried_norm_fraction"),
    "effect": ("port_info", "effect_fraction"), "origin": ("spec", "origin"),
    "port_updates": ("port_info", "updates"), "port_batch": ("spec", "port", "options", "batch_size"),
    "batch": ("spec", "train", "batch_size"),
}


class Protocol(NamedTuple):
    """What records must share to be read as one study.

    Attributes:
        schema: theirs, a key of PROTOCOLS.
        majors: major version of transformers -> how many records of that schema were made with it; theirs
            comes first.
    """

    schema: int
    majors: dict[str, int]

    @property
    def major(self) -> str | None:
        """The version of the records that are used; None without records."""
        return next(iter(self.majors), None)


@dataclass
class Runs:
    """What the run folders of a store hold.

    `marks` has one row per run and mark (run_id, mark, and the metrics); `facts` one row per run, the columns
    of FACTS; `held` names the metrics that all marks of a used record hold; `state` names what each known run
    is, `reason` why it is not done, `broken` why a record cannot be used; `distinct` the hosts, data
    sets and protocols of training behind the used records by their JSON, `records` the parts of each used
    record that say where it comes from, `unmeasured` why a metric has no number, by run, metric and mark.
    """

    protocol: Protocol
    marks: pd.DataFrame = field(default_factory=pd.DataFrame)
    facts: pd.DataFrame = field(default_factory=pd.DataFrame)
    held: dict[str, set[str]] = field(default_factory=dict)
    distinct: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {name: {} for name in ("host", "data", "train", "too_long")})
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
        state, why = state_of(run_id, record, fault, runs.protocol)
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
            words = f"{failure.get('error', 'no message')} (attempt {failure.get('attempt', '?')})"
            runs.state[run_id], runs.reason[run_id] = "failed", words
    runs.reason = runs.broken | runs.reason
    runs.marks, runs.facts = _marks(rows), pd.DataFrame(facts, columns=["run_id", *FACTS])
    return runs


def protocol(records: Iterable[dict[str, Any] | None]) -> Protocol:
    """What the records that are used share: the newest schema there that can be read, and of its records the
    major version of transformers that most were made with, or the newer one of two with equally many (our
    choice)."""
    found = Counter((record["schema"], major_of(record)) for record in records
                    if record and record.get("schema") in PROTOCOLS)
    schema = max((own for own, _ in found), default=max(PROTOCOLS))
    majors = {major: count for (own, major), count in found.items() if own == schema}
    return Protocol(schema, dict(sorted(majors.items(), key=lambda item: (item[1], item[0]), reverse=True)))


def state_of(
    run_id: str, record: dict[str, Any] | None, fault: str | None, wanted: Protocol
) -> tuple[str, str]:
    """What a record is, "done", "broken" or "foreign" (of another protocol, or another major version of
    transformers), and why it is not done."""
    if record is None:
        return "broken", str(fault)
    own, major = record.get("schema"), major_of(record)
    if fault is None and own != wanted.schema:
        others = f"and the study's others are of schema {wanted.schema}"
        fault = (f"schema {own}, {others}" if own in PROTOCOLS else
                 f"schema {own}, this version reads {', '.join(map(str, PROTOCOLS))}")
    if fault is None and major != wanted.major:
        fault = f"made with transformers {major}, and the study's others with transformers {wanted.major}"
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
    parts = {name: spec[name] for name in ("host", "data", "train") if spec.get(name)}
    if "train" in parts:  # but for how long
        parts["train"] = {key: value for key, value in parts["train"].items() if key != "updates"}
    if "train_dropped" in (counts := train.get("too_long") or {}):  # a bare host is not trained
        parts["too_long"] = {"host": record["cell"]["host"], "data": record["cell"]["data"], **counts}
    for name, part in parts.items():
        runs.distinct[name].setdefault(json.dumps(part, sort_keys=True), part)
    for hole in train.get("unmeasured") or []:
        metrics = runs.unmeasured.setdefault(run_id, {})
        metrics.setdefault(hole["metric"], {})[hole["updates"]] = hole["reason"]
    runs.records.append({key: record.get(key) or {} for key in ("run_info", "meta_info")}
                        | {"run_id": run_id})


def _marks(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per run and mark; what is absent, or no finite number, is NaN."""
    names = names_of({name for row in rows for name in row})
    frame = pd.DataFrame(rows, columns=["run_id", "updates", *names]).rename(columns={"updates": "mark"})
    frame[names] = frame[names].apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan)
    frame["mark"] = frame["mark"].astype("int64")
    return frame.drop_duplicates(["run_id", "mark"], keep="last", ignore_index=True)


def by_example(store: Store, cells: pd.DataFrame, metric: str) -> dict[tuple[str, int], np.ndarray]:
    """Of each done cell, by (run id, mark), what each of M test examples contributes to a metric, which is
    the mean of these: (M,).

    Args:
        metric: one of metrics.OVER_EXAMPLES: of accuracy whether it is right (bool; of a tie the first label
            counts), of answers its score in [0, 1], of AUC as measures.auc_by_example.

    Raises:
        UserError: a run has no predictions, none at a mark of its record, or other labels or another number
        of answers.
    """
    found: dict[tuple[str, int], np.ndarray] = {}
    tested: dict[str, np.ndarray] = {}
    done = cells[cells["status"] == "done"]
    for (run_id, data), marks in done.groupby(["run_id", "data"], sort=True)["mark"]:
        saved = store.predictions(str(run_id))
        examples = saved.get("label")
        if examples is None:
            examples = _questions(store, str(run_id), saved["score"].shape[1])
        if not np.array_equal(tested.setdefault(data, examples), examples):
            raise UserError(f"run {run_id} was tested on other examples of {data} than other runs; runs on "
                            "changed data belong in another study=NAME")
        places = {int(mark): i for i, mark in enumerate(saved["updates"])}
        for mark in map(int, marks.unique()):
            if mark not in places:
                remedy = "fetch the published study again" if store.published else (
                    f"remove {store.folder(str(run_id))} and repeat the command that ran it")
                raise UserError(f"run {run_id} has no predictions at {mark} updates; {remedy}")
            at = places[mark]
            found[str(run_id), mark] = saved["score"][at] if "score" in saved else (
                auc_by_example(saved["margin"][at].astype(float), examples) if metric == AUC
                else said(saved["margin"][at]) == examples)
    return found


def predictions_of(store: Store, run_id: str) -> pd.DataFrame:
    """What a run answered: a row for each mark and test example, in their order.

    Returns:
        `updates`, `example` (from 0), and of texts with labels `label` and `right` (bool; of a tie the first
        label counts), of prompts `score` in [0, 1]; `margin` (nats) where the store has it, of more than two
        labels `margin_1`, `margin_2`, ... (log-odds against label 0); `invalid` (bool).

    Raises:
        UserError: the run has no predictions, or damaged ones.
    """
    saved = store.predictions(run_id)
    marks, count = saved["invalid"].shape
    found = {"updates": np.repeat(saved["updates"], count), "example": np.tile(np.arange(count), marks)}
    if "label" in saved:
        found["label"] = np.tile(saved["label"], marks)
        found["right"] = np.concatenate([said(margin) == saved["label"] for margin in saved["margin"]])
    for name in ("margin", "score", "invalid"):
        if (values := saved.get(name)) is not None and values.ndim == 3:
            found |= {f"{name}_{label}": values[..., label - 1].reshape(-1)
                      for label in range(1, values.shape[2] + 1)}
        elif values is not None:
            found[name] = values.reshape(-1)
    return pd.DataFrame(found)


def marks_of(store: Store, record: Mapping[str, Any], metric: str | None) -> list[dict[str, Any]]:
    """The marks of a record; a shipped metric of margins that they lack is computed where margins and labels
    are stored.

    Args:
        metric: the one that is looked at, if any.
    """
    train = record["train_info"]
    marks, measure = train["metrics"], MEASURES.get(str(metric).removeprefix(PREFIX))
    if measure is None or measure.column != "margin" or all(metric in mark for mark in marks):
        return marks
    try:
        saved = store.predictions(record["run_id"])
    except (UserError, SafetensorError, OSError):
        return marks
    if "label" not in saved:
        return marks
    margins = dict(zip(saved["updates"].tolist(), saved["margin"].astype(float), strict=True))
    return [mark | _computed(str(metric), measure, margins.get(mark["updates"]), saved["label"])
            for mark in marks]


def _computed(name: str, measure: Measure, margin: np.ndarray | None, labels: np.ndarray) -> dict[str, float]:
    """The metric of one mark, nothing where it is not defined or the mark has no predictions."""
    with suppress(Undefined):
        return {} if margin is None else {name: float(measure.value(margin, labels))}
    return {}


def _questions(store: Store, run_id: str, count: int) -> np.ndarray:
    """What tells one test set of prompts from another: how many there are, and the digest that a run was
    planned with."""
    spec = (store.read(run_id) or {}).get("spec", {})
    return np.array([str(count), str(spec.get("data", {}).get("eval_digest"))])
