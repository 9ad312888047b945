"""What the page says of each run behind a study's cells: its numbers, what was ported, predictions, settings,
command."""

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from safetensors import SafetensorError

from portability.analysis.context import StudyContext
from portability.analysis.formatting import NOTHING, number
from portability.analysis.load import NOT_RUN, describe
from portability.analysis.metrics import UNITS, metric_of, shown, value_of
from portability.analysis.records import marks_of, protocol, state_of
from portability.core.errors import UserError, redact_paths
from portability.core.measures import probabilities, said
from portability.store import Store

EXAMPLES = 10  # test examples whose predictions are shown
POINTS = 60  # of a loss curve, at most; the record has all
COSTS = ("num_trainable_params", "num_total_params", "tokens", "padded_tokens", "file_size", "train_time",
         "stack")
Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Details:
    """All runs of a study as JSON-able values without paths; what many runs share stands once in `parts`.

    A run has its `state` (done, failed, missing, broken or foreign), `title` and `where`; one that is not
    done the `error`. One that is done has the id of its `origin`, the `score` at its last mark, its `curve`
    and `loss` (place of the updates, values, number of all points), `sections` (title, note, facts, or head
    and rows of a table) and `settings` (title, place of facts). `total` counts the runs; where it is larger
    than was allowed, `runs` is empty.
    """

    runs: dict[str, dict[str, Any]]
    parts: list[Any]
    total: int

    @property
    def left_out(self) -> bool:
        """Whether there are too many runs to describe."""
        return self.total > len(self.runs)


def details(store: Store, context: StudyContext, most: int = 3000) -> Details:
    """Describe every run that the store holds or that a cell names, in one pass over the records.

    Args:
        most: with more runs than this none is described, because the page would open slowly (our choice).
    """
    cells = context.cells
    entries = {run_id: (record, fault) for run_id, record, fault in store.entries()}
    failures, wanted = store.failures(), protocol(record for record, _ in entries.values())
    named = {run_id for name in ("run_id", "native_id", "bare_id")
             for run_id in cells[name].dropna() if run_id}
    ids = sorted({*named, *entries, *failures})
    if len(ids) > most:
        return Details({}, [], len(ids))
    read = {row["run_id"]: row for _, row in cells.drop_duplicates("run_id").iterrows()}
    metrics, parts = shown(cells, context.metric.name), Parts()
    runs: dict[str, dict[str, Any]] = {}
    for run_id in ids:
        record, fault = entries.get(run_id, (None, None))
        state, error = "missing", NOT_RUN
        if run_id in entries:
            state, error = state_of(run_id, record, fault, wanted)
        elif failure := failures.get(run_id):
            texts = [str(failure.get("error", "no message")), failure.get("traceback")]
            state, error = "failed", "\n\n".join(filter(None, texts))
        runs[run_id] = {"state": state, "title": "A run that no cell reads", "where": ""}
        if (row := read.get(run_id)) is not None:
            runs[run_id] |= {"title": f"{row['method']}, {row['init']}", "where": describe(row)}
        if record is not None and state == "done":
            runs[run_id] |= _done(store, record, metrics, parts, context.metric.name)
        else:
            runs[run_id]["error"] = redact_paths(error)
    for run_id, command in _commands(store.manifests(), runs).items():
        runs[run_id]["command"] = command
    return Details(runs, list(map(json.loads, parts)), len(ids))


class Parts(dict[str, int]):
    """Values as JSON, equal ones once, and the place of each."""

    def place(self, value: Any) -> int:
        return self.setdefault(json.dumps(value, sort_keys=True), len(self))


# ---- one run


def _done(store: Store, record: dict[str, Any], metrics: list[str], parts: Parts,
          chosen: str) -> dict[str, Any]:
    # a number that is not finite is no number
    record = json.loads(json.dumps(record), parse_constant=lambda _: None)
    spec, train, unit = record.get("spec") or {}, record["train_info"], UNITS[metric_of(chosen).unit]
    marks, points = marks_of(store, record, chosen), train.get("train_loss") or []
    values = [value_of(mark, chosen) for mark in marks]
    places = np.linspace(0, len(points) - 1, min(len(points), POINTS)).round().astype(int)
    some = [points[place] for place in places]
    port = record.get("port_info") or {}
    title = "What was cut out of the other host" if "seed_count" in port else "What was carried into it"
    sections = [_measured(marks, metrics), *([_facts(title, port)] if port else []),
                _predictions(store, record["run_id"], spec),
                _facts("What it cost", {key: train.get(key) for key in COSTS})]
    return {
        **_names(record, spec), "origin": spec.get("origin"),
        "score": _scaled(values[-1] if values else None, chosen),
        "curve": [parts.place([mark["updates"] for mark in marks]),
                  [None if y is None else unit.scale * y for y in values]],
        "loss": [parts.place([x for x, _ in some]),
                 [y if y is None else float(f"{y:.4g}") for _, y in some], len(points)],
        "sections": sections, "settings": [(title, parts.place(_flat(values)))
                                           for title, values in _settings(record, spec).items()],
    }


def _names(record: dict[str, Any], spec: dict[str, Any]) -> dict[str, str]:
    """Title and place of a run by its record's cell, where this says one."""
    cell = record.get("cell") or {}
    if not cell.get("host"):
        return {}
    source = f"{cell['origin']['host']} ({cell['origin']['data']}) → " if cell.get("origin") else ""
    seed = "no seed" if spec.get("seed") is None else f"seed {spec['seed']}"
    title = f"{cell['method']}, {cell['init']}" if cell.get("method") else "bare host"
    return {"title": title, "where": f"{source}{cell['host']} ({cell['data']}), {seed}"}


def _measured(marks: list[dict[str, Any]], metrics: list[str]) -> dict[str, Any]:
    rows = [[f"{metric_of(name).label}, {UNITS[metric_of(name).unit].symbol}",
             *(_scaled(value_of(mark, name), name, 1) for mark in marks)] for name in metrics]
    return {"title": "At its marks", "name": "Metrics at the marks",
            "head": ["metric", *_heads(mark["updates"] for mark in marks)], "rows": rows}


def _heads(marks: Iterable[int]) -> list[str]:
    return [f"{mark:,} updates" if mark else "zero-shot" for mark in marks]


def _facts(title: str, values: dict[str, Any]) -> dict[str, Any]:
    """A section of plain facts: shares in %, whole numbers as they are, others with three digits, lists in
    one line."""

    def text(value: Any, between: str = ", ") -> str:
        if isinstance(value, dict):
            lists = any(isinstance(inner, list) for inner in value.values())
            return ("; " if lists else ", ").join(f"{name} {text(inner)}" for name, inner in value.items())
        if isinstance(value, list):
            return between.join(text(inner, " and ") for inner in value)
        if isinstance(value, float):
            return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        return NOTHING if value is None else f"{value:,}" if isinstance(value, int) else str(value)

    facts = []
    for name, value in values.items():
        share = name.endswith("_fraction") and value is not None
        facts.append((name.replace("_", " "), f"{100 * value:.1f} %" if share else text(value)))
    return {"title": title, "facts": facts}


def _predictions(store: Store, run_id: str, spec: dict[str, Any]) -> dict[str, Any]:
    """What the first test examples are predicted to be at every mark, or how well they are answered; or why
    there is none."""
    try:
        found = store.predictions(run_id)
    except (UserError, SafetensorError) as error:
        return {"title": "Predictions", "note": redact_paths(str(error))}
    task, total = spec.get("task") or {}, found["invalid"].shape[1]
    first: dict[str, Any] = {name: values[:EXAMPLES] if name == "label" else values[:, :EXAMPLES]
                             for name, values in found.items() if name != "updates"}
    if "label" in found:
        first["words"] = task.get("label_words") or ["negative", "positive"]
    rows = list(map(list, zip(*(_cells(first, mark) for mark in range(len(found["updates"]))), strict=True)))
    head = _heads(found["updates"].tolist())
    star = " * " if found["invalid"][:, :EXAMPLES].any() else ""
    if "label" in found:
        words, two = first["words"], found["margin"].ndim == 2
        rows = [[words[label], *row] for label, row in zip(first["label"], rows, strict=True)]
        head = ["label", *head]
        star += "The host’s first choice of all words was " + (
            "neither label word." if two else "no label word.") if star else ""
        of = f"of “{words[1]}”" if two else "of the likeliest label, among the labels,"
        note = f"The probability {of} for the first {len(rows)} of {total:,} test examples"
    else:
        scoring = f" ({task['scoring'].replace('_', ' ')})" if task.get("scoring") else ""
        margins = ", in brackets how much likelier the right choice is than the best wrong one, in nats"
        star += "The answer did not end within its limit of tokens." if star else ""
        note = (f"The score{scoring} of the first {len(rows)} of {total:,} test examples, from 0 to 1"
                f"{margins if 'margin' in found else ''}")
    return {"title": "Predictions", "name": "Predictions", "note": f"{note}; the texts are not kept.{star}",
            "head": ["test example", *head], "rows": [[str(i), *row] for i, row in enumerate(rows)]}


def _cells(first: dict[str, Any], mark: int) -> Iterator[str]:
    """The text of every test example at a mark, with ✓ where it is right and ✗ where it is wrong."""
    invalid = ["*" if flag else "" for flag in first["invalid"][mark]]
    if "label" in first:
        margin = first["margin"][mark]
        picked, chances = said(margin), probabilities(margin)
        for pick, chance, label, star in zip(picked, chances, first["label"], invalid, strict=True):
            text = f"{chance[1]:.3f}" if margin.ndim == 1 else f"{first['words'][pick]} {chance[pick]:.3f}"
            yield f"{text}{star} {'✓' if pick == label else '✗'}"
        return
    margins = first["margin"][mark].tolist() if "margin" in first else [None] * len(invalid)
    for score, margin, star in zip(first["score"][mark].tolist(), margins, invalid, strict=True):
        more = "" if margin is None else f" ({margin:+.3g})".replace("-", "−")
        text, look = f"{score:.3f}".rstrip("0").rstrip("."), {1: "✓", 0: "✗"}.get(score, "")
        yield f"{text}{more}{star} {look}".rstrip()


def _settings(record: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """Everything that the run was asked for, and the machine."""
    info = record.get("run_info") or {}
    deep = {key: value for key, value in spec.items() if isinstance(value, dict)}
    run = {key: value for key, value in spec.items() if key not in deep} | {"written": info.get("created_at")}
    machine = {key: info.get(key) for key in ("git_commit", "worktree_dirty")}
    return {"run": run, **deep, "where it was made": machine | (record.get("meta_info") or {})}


def _flat(value: Any, name: str = "") -> Facts:
    """Nested values as facts, the names of inner ones behind those of outer ones."""
    if isinstance(value, dict) and value:
        names = {key: f"{name}.{key}" if name else key for key in value}
        return [fact for key, inner in value.items() for fact in _flat(inner, names[key])]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = NOTHING if value in (None, {}) else text
    return [(name or "value", text)]


def _scaled(value: float | None, name: str, more: int = 0) -> str:
    """A metric in its unit, with more digits than in a table."""
    unit = UNITS[metric_of(name).unit]
    return NOTHING if value is None else number(value, replace(unit, digits=unit.digits + more))


# ---- commands


def _commands(manifests: Iterable[dict[str, Any]], runs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """For every run a command that carries out this run, and only what it needs or is compared with.

    A run that no cell names is the origin of another, and comes along with that one. A run's name holds all
    its settings, so under other settings than the study's the command finds no such run and is refused.
    """
    found: dict[str, str] = {}
    for manifest in manifests:
        words = ["python", "-m", "portability.run", *_words(manifest)]
        for column, row in product(("run_id", "native_id", "bare_id"), manifest["cells"]):
            if row[column] not in found:
                found[row[column]] = shlex.join([*words, _only(row, column)])
    for run_id in sorted(runs):
        origin = runs[run_id].get("origin")
        if origin in runs and run_id in found:
            found.setdefault(origin, found[run_id])
    return {run_id: command for run_id, command in found.items() if run_id in runs}


def _only(row: dict[str, Any], column: str) -> str:
    """The choice of this cell's run; ids stand in quotes, because one of digits alone would be a number.
    Cells of a bare host have many natives, and all of them would come along, so one is named."""
    alone = column == "run_id" and row["run_id"] != row["bare_id"]
    keys = ("run_id",) if alone or not row["native_id"] else ("run_id", "native_id")
    return "only={" + ", ".join(f'{key}: "{row[key]}"' for key in keys) + "}"


def _words(manifest: dict[str, Any]) -> list[str]:
    """What the study's own command said: its overrides where the manifest has them, else its sweep."""
    sweep = [f"+sweep={manifest['sweep']}"] if manifest.get("sweep") else []
    words = [word for word in manifest.get("overrides") or sweep if not word.startswith("study=")]
    return [*words, f"study={manifest['study']}"] if manifest.get("study") else words
