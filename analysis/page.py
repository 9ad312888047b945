"""A study as one HTML page that needs nothing else: the verdict, charts and tables by question, every cell and its run."""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from analysis.captions import protocol
from analysis.charts import STYLE, Chart, key
from analysis.details import COSTS, EXAMPLES, POINTS, Details
from analysis.evidence import Evidence
from analysis.load import Problem, Study
from analysis.look import look
from analysis.metrics import UNITS, Metric, metric_of, shown
from analysis.recipe import Table
from analysis.render import Entry, grid
from analysis.report import counts, provenance
from analysis.sections import Section
from analysis.verdict import caveats, chief, verdict_words
from portability.core.errors import without_places

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("page.js", "chart.js", "run.js")  # one script in the page
FILTERS = ("method", "origin", "receiving", "relation", "init", "budget", "seed", "status")  # always there, in this order
MAYBE = {"origin_data": ["relation"], "data": [], "port": []}  # there where a study has several, in one group of these
SHORT = 32  # letters of a number with its interval, which no line breaks
HIDDEN = ("reason", "run_id", "mark", "native_id", "bare_id")


def page(found: Evidence, parts: Sequence[Section], chart: Sequence[Chart], details: Details) -> str:
    """The whole page. Equal arguments give equal bytes; every text is escaped; a policy forbids all loading.

    Args:
        chart: what stands at the head.
    """
    study, metric = found.study, found.metric
    style, script = f"{STYLE}\n{_asset('page.css')}", "\n".join(_asset(name) for name in SCRIPTS)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: without_places(value) if type(value) is str else value,  # errors may name folders
    )
    return environment.from_string(_asset("page.html")).render(
        policy=Markup(_policy(style, script)), style=Markup(style), script=Markup(script),
        name=study.name, metric=metric.label, protocol=protocol(study.schema), verdict=verdict_words(found),
        chart=[_chart(one) for one in chart], numbers=chief(found), caveats=caveats(found), counts=counts(study),
        runs=details.total, hours=_hours(study), parts=[_part(part) for part in parts],
        problems=_problems(study.problems),
        provenance=[line.removeprefix("- ").partition(": ")[::2] for line in provenance(study)],
        hosts=study.parts["host"], sets=_sets(study),
        left_out=details.left_out, payload=_payload(study, metric, details),
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """What the page may do: its own style and script by their digests, pictures inside it, and nothing else."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; img-src data:; "
            "base-uri 'none'; form-action 'none'")


# ---- what is written out


def _part(part: Section) -> dict[str, Any]:
    return vars(part) | {"charts": [_chart(one) for one in part.charts], "tables": [_table(table) for table in part.tables]}


def _chart(chart: Chart) -> dict[str, Any]:
    """A chart as the template takes it; the SVG is of analysis.charts, which escapes what it is told."""
    return vars(chart) | {"panels": [Markup(without_places(panel.svg)) for panel in chart.panels],
                          "samples": [(name, Markup(key(name))) for name in chart.names]}


def _hours(study: Study) -> float:
    return sum(float((record["run_info"] or {}).get("total_time") or 0) for record in study.records) / 3600


def _table(table: Table) -> dict[str, Any]:
    """A table as the template takes it: a label that repeats the row above is marked `again`."""
    view = grid(table)
    rows: list[list[dict[str, Any]]] = []
    before: list[str] = []
    for row in view.rows:
        labels = [entry.text for entry in row[: view.labels]] if table.column else []
        same = [labels[: i + 1] == before[: i + 1] for i in range(len(labels) - 1)]  # the last label is always said
        rows.append([{**_field(entry, table), "label": i < len(labels), "again": i < len(same) and same[i]}
                     for i, entry in enumerate(row)])
        before = labels
    return {"name": table.name, "title": table.lead, "notes": table.notes, "header": view.header,
            "labels": view.labels if table.column else 0, "rows": rows}


def _field(entry: Entry, table: Table) -> dict[str, Any]:
    """The number, and what it rests on (the counts in brackets), apart."""
    number, bracket, counts = entry.text.partition(" (") if table.column else (entry.text, "", "")
    return {"text": number, "counts": bracket + counts, "style": entry.style or ("short" if len(entry.text) <= SHORT else "")}


def _problems(problems: list[Problem]) -> dict[str, list[Problem]]:
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    return kinds


def _sets(study: Study) -> list[dict[str, Any]]:
    """The data sets by name: what the leak guard left (of the manifests), and their fingerprints (of the records)."""
    seen = {json.dumps(entry, sort_keys=True): entry for item in study.facts for entry in item.get("data", [])}
    rows = []
    for entry in seen.values():
        prints = [part for part in study.parts["data"] if part.get("name") == entry["name"]]
        rows.append({
            "name": entry["name"], "counts": {key: value for key, value in entry.items() if key != "name"},
            "train": ", ".join(dict.fromkeys(part["train_digest"] for part in prints)),
            "eval": ", ".join(dict.fromkeys(part["eval_digest"] for part in prints)),
        })
    return rows


# ---- what the script reads


def _payload(study: Study, metric: Metric, details: Details) -> Markup:
    """Cells and runs as JSON that no text in it can end: `<`, `>` and `&` are written as escapes."""
    cells = study.cells.assign(reason=study.cells["reason"].map(without_places))
    metrics = [metric_of(name) for name in shown(cells, metric.name)]
    columns = _columns(cells, metric, metrics)
    value = {
        "study": study.name, "metric": metric.name, "columns": columns,
        "metrics": [_numeric(item.name, item.label, item.unit) for item in metrics],
        "cells": {column["key"]: _encoded(cells[column["key"]]) for column in columns},
        "runs": details.runs, "parts": details.parts, "total": details.total, "costs": COSTS, "points": POINTS,
        "examples": EXAMPLES, "looks": {str(name): look(str(name)) for name in cells["init"].unique()},
    }
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _columns(cells: pd.DataFrame, metric: Metric, metrics: list[Metric]) -> list[dict[str, Any]]:
    """The table's columns from left to right, and the hidden ones the script needs."""
    several = [name for name, by in MAYBE.items() if (cells.groupby(by)[name] if by else cells[[name]]).nunique().max() > 1]
    keys = [*FILTERS[:4], *several, *FILTERS[4:]]
    texts = [{"key": key, "label": key.replace("_", " "), "kind": "count" if key in ("budget", "seed") else "text",
              "filter": True, "shown": True} for key in keys]
    others = [_numeric(item.name, item.label, item.unit) for item in metrics if item.name != metric.name]
    chosen = _numeric(metric.name, metric.label, metric.unit)
    references = [_numeric(name, name, metric.unit) for name in ("native", "bare")]
    lift = _numeric("lift", "lift over bare", metric.difference) | {"scale": metric.scale * UNITS[metric.difference].scale}
    hidden = [{"key": key, "label": key.replace("_", " "), "kind": "text", "filter": False, "shown": False}
              for key in (*(name for name in MAYBE if name not in several), *HIDDEN)]
    return [*texts, chosen, *references, lift, *others, *hidden]


def _numeric(key: str, label: str, unit_name: str) -> dict[str, Any]:
    unit = UNITS[unit_name]
    return {"key": key, "label": f"{label},\N{NO-BREAK SPACE}{unit.symbol}", "kind": "number", "filter": False, "shown": True,
            "scale": unit.scale, "digits": unit.digits, "signed": unit.signed}


def _encoded(column: pd.Series) -> dict[str, Any] | list[float | int | None]:
    """Numbers as they are (None for NaN), texts as places in a list of the distinct ones."""
    if pd.api.types.is_numeric_dtype(column):
        return [None if isinstance(value, float) and math.isnan(value) else value for value in column.tolist()]
    codes, words = pd.factorize(column.astype(object).where(column.notna(), ""))
    return {"words": [str(word) for word in words], "codes": codes.tolist()}
