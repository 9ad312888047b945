"""What the page says of each run behind a study's cells: its record without repetition, some predictions, its command."""

import json
import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from safetensors import SafetensorError

from analysis.answers import marks_of
from analysis.load import other_protocol, protocol
from analysis.metrics import shown, value_of
from portability.core.errors import UserError, without_places
from portability.store import Store

EXAMPLES = 10  # test examples whose predictions are shown
POINTS = 60  # of a loss curve, at most; the record has all
DIGITS = 4  # significant ones of losses and margins; metrics are those of the record
COSTS = ("num_trainable_params", "num_total_params", "tokens", "padded_tokens", "file_size", "train_time", "stack")


@dataclass(frozen=True)
class Details:
    """All runs of a study as JSON-able values without paths; what many runs share stands once in `parts`.

    A run's `state` is done, failed, missing, broken or foreign; where it is not done, `error` says why. In a run that is
    done `cell`, `marks`, `spec`, `machine` and the like hold places in `parts`, `metrics` a row per mark in the order of
    metrics.shown, `cost` the numbers of COSTS. `total` counts the runs; where it is larger than was allowed, `runs` is empty.
    """

    runs: dict[str, dict[str, Any]]
    parts: list[Any]
    total: int

    @property
    def left_out(self) -> bool:
        """Whether there are too many runs to describe."""
        return self.total > len(self.runs)


class _Shared:
    """Values by place, equal ones once."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def place(self, value: Any) -> int:
        return self.places.setdefault(json.dumps(value, sort_keys=True), len(self.places))

    def values(self) -> list[Any]:
        return [json.loads(text) for text in self.places]


def details(store: Store, cells: pd.DataFrame, metric: str = "eval_accuracy", most: int = 3000) -> Details:
    """Describe every run that the store holds or that a cell names, in one pass over the records.

    Args:
        cells: a tidy frame (load.tidy).
        metric: the study's.
        most: with more runs than this none is described, because the page would open slowly (our choice).
    """
    named = sorted({run_id for name in ("run_id", "native_id", "bare_id") for run_id in cells[name].dropna()})
    if len(named) > most:
        return Details({}, [], len(named))
    shared, metrics = _Shared(), shown(cells, metric)
    runs: dict[str, dict[str, Any]] = {}
    entries = list(store.entries())
    schema = protocol(record for _, record, _ in entries)
    for run_id, record, fault in entries:
        unusable = _unusable(run_id, record, fault, schema)
        if unusable or record is None:
            runs[run_id] = unusable or {}
            continue
        runs[run_id] = _run(store, run_id, record, metrics, shared, metric) if len(runs) < most else {}
    for run_id, failure in store.failures().items():
        runs.setdefault(run_id, _failed(failure))
    for run_id in named:
        runs.setdefault(run_id, {"state": "missing", "error": "no record and no failure: not run yet"})
    total = len(runs)
    if total > most:
        return Details({}, [], total)
    for run_id, command in _commands(store.manifests(), runs).items():
        runs[run_id]["command"] = command
    return Details(dict(sorted(runs.items())), shared.values(), total)


def _unusable(run_id: str, record: dict[str, Any] | None, fault: str | None, schema: int) -> dict[str, Any] | None:
    """The state and error of a record that no number is read from (see load.read), or None."""
    if record is None:
        return {"state": "broken", "error": without_places(str(fault))}
    if foreign := fault or other_protocol(record, schema):
        return {"state": "foreign", "error": without_places(foreign)}
    if record.get("run_id") != run_id:
        return {"state": "broken", "error": f"its record is that of run {record.get('run_id')}"}
    status = record["train_info"].get("status")
    return None if status == "success" else {"state": "broken", "error": f"its record says status {status!r}"}


def _failed(failure: dict[str, Any]) -> dict[str, Any]:
    texts = [str(failure.get("error", "no message")), failure.get("traceback")]
    error = "\n\n".join(without_places(text) for text in texts if text)
    return {"state": "failed", "error": error, "attempt": failure.get("attempt")}


# ---- one run


def _run(store: Store, run_id: str, record: dict[str, Any], metrics: list[str], shared: _Shared,
         chosen: str) -> dict[str, Any]:
    record = json.loads(json.dumps(record), parse_constant=lambda _: None)  # a number that is not finite is no number
    spec, train = record.get("spec") or {}, record["train_info"]
    info, meta = record.get("run_info") or {}, record.get("meta_info") or {}
    machine = {key: info.get(key) for key in ("git_commit", "worktree_dirty")} | meta
    return {
        "state": "done",
        "cell": shared.place({key: value for key, value in (record.get("cell") or {}).items() if key != "seed"}),
        "seed": spec.get("seed"),
        "origin": spec.get("origin"),
        "spec": {key: shared.place(value) for key, value in spec.items() if key not in ("origin", "seed")},
        "marks": shared.place([mark["updates"] for mark in train["metrics"]]),
        "metrics": [[value_of(mark, name) for name in metrics] for mark in marks_of(store, record, chosen)],
        "loss": _loss(train.get("train_loss") or [], shared),
        "port": _port(record.get("port_info"), shared),
        "cost": [train.get(key) for key in COSTS],
        "seconds": info.get("total_time"),
        "written": info.get("created_at"),
        "machine": shared.place(machine),
        "predictions": _predictions(store, run_id, shared),
    }


def _loss(points: list[list[float]], shared: _Shared) -> dict[str, Any]:
    """The training loss at no more than POINTS evenly chosen updates, the first and the last among them."""
    last = len(points) - 1
    count = min(len(points), POINTS)
    chosen = [points[round(i * last / max(1, count - 1))] for i in range(count)]
    return {"updates": shared.place([update for update, _ in chosen]), "values": [_short(y) for _, y in chosen],
            "of": len(points)}


def _port(report: dict[str, Any] | None, shared: _Shared) -> dict[str, Any] | None:
    if report is None:
        return None
    return {key: shared.place(value) if isinstance(value, dict) else value for key, value in report.items()}


def _predictions(store: Store, run_id: str, shared: _Shared) -> dict[str, Any]:
    """Margins, or scores of answers (of choices both), of the first test examples at every mark, or why there are none."""
    try:
        found = store.predictions(run_id)
    except (UserError, SafetensorError) as error:
        return {"fault": without_places(str(error))}
    first = {name: [[_short(x) for x in row] for row in found[name][:, :EXAMPLES].tolist()]
             for name in ("margin", "score") if name in found}
    return {
        "marks": shared.place(found["updates"].tolist()),
        **({"labels": shared.place(found["label"][:EXAMPLES].tolist())} if "label" in found else {}),
        **{f"{name}s": values for name, values in first.items()},
        "invalid": shared.place(found["invalid"][:, :EXAMPLES].astype(int).tolist()),
        "of": found["invalid"].shape[1],
    }


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")


# ---- commands


def _commands(manifests: Iterable[dict[str, Any]], runs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """For every run a command that carries out this run, and only what it needs or is compared with.

    A run that no cell names is the origin of another, and comes along with that one. A run's name holds all its
    settings, so under other settings than the study's the command finds no such run and is refused.
    """
    found: dict[str, str] = {}
    for manifest in manifests:
        words = ["python", "-m", "portability.run", *_words(manifest)]
        for column in ("run_id", "native_id", "bare_id"):
            for row in manifest["cells"]:
                if row[column] not in found:
                    found[row[column]] = shlex.join([*words, _only(row, column)])
    for run_id in sorted(runs):
        origin = runs[run_id].get("origin")
        if origin in runs and run_id in found:
            found.setdefault(origin, found[run_id])
    return {run_id: command for run_id, command in found.items() if run_id in runs}


def _only(row: dict[str, Any], column: str) -> str:
    """The choice of this cell's run; ids stand in quotes, because one of digits alone would be a number. Cells of a bare
    host have many natives, and all of them would come along, so one is named."""
    alone = column == "run_id" and row["run_id"] != row["bare_id"]
    keys = ("run_id",) if alone else ("run_id", "native_id")
    return "only={" + ", ".join(f'{key}: "{row[key]}"' for key in keys) + "}"


def _words(manifest: dict[str, Any]) -> list[str]:
    """What the study's own command said: its overrides where the manifest has them, else its sweep."""
    sweep = [f"+sweep={manifest['sweep']}"] if manifest.get("sweep") else []
    words = [word for word in manifest.get("overrides") or sweep if not word.startswith("study=")]
    return [*words, f"study={manifest['study']}"] if manifest.get("study") else words
