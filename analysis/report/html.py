"""A study as one HTML page that needs nothing else: the verdict, charts and tables by question, every cell
and its run."""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from portability.analysis.context import StudyContext
from portability.analysis.figures.style import css_class
from portability.analysis.figures.svg import STYLE, Chart, key
from portability.analysis.formatting import NOTHING
from portability.analysis.load import Problem, Study
from portability.analysis.metrics import UNITS, Metric, metric_of, shown
from portability.analysis.report.findings import caveats, headline_numbers, verdict_words
from portability.analysis.report.markdown import counts, provenance
from portability.analysis.report.run_details import Details
from portability.analysis.report.sections import Section
from portability.analysis.tables.captions import protocol
from portability.analysis.tables.render import Entry, grid
from portability.analysis.tables.spec import Table
from portability.core.errors import redact_paths

ASSETS = Path(__file__).parent / "assets"
SCRIPT = "page.js"
FILTERS = ("method", "origin", "receiving", "relation", "init", "budget", "seed",
           "status")  # always there, in this order
MAYBE = {"origin_data": ["relation"], "data": [],
         "port": []}  # there where a study has several, in one group of these
SHORT = 32  # letters of a number with its interval, which no line breaks
HIDDEN = ("reason", "run_id", "mark", "native_id", "bare_id")


def page(context: StudyContext, parts: Sequence[Section], charts: Sequence[Chart], details: Details) -> str:
    """The whole page. Equal arguments give equal bytes; every text is escaped; a policy forbids all loading.

    Args:
        charts: those at the head.
    """
    study, style, script = context.study, f"{STYLE}\n{_asset('page.css')}", _asset(SCRIPT)
    columns = _columns(study.cells, context.metric)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: redact_paths(value) if type(value) is str
        else value)  # errors may name folders
    return environment.from_string(_asset("page.html")).render(
        policy=Markup(_policy(style, script)), style=Markup(style), script=Markup(script), name=study.name,
        metric=context.metric.label, protocol=protocol(study.schema), verdict=verdict_words(context),
        charts=[_chart(chart) for chart in charts], numbers=headline_numbers(context),
        caveats=caveats(context), counts=counts(study), runs=details.total, hours=_hours(study),
        parts=[_part(part) for part in parts], problems=_problems(study.problems),
        provenance=[line.removeprefix("- ").partition(": ")[::2] for line in provenance(study)]
        + _sources(study), columns=columns, left_out=details.left_out,
        payload=_payload(context, columns, details))


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """What the page may do: its own style and script by their digests, pictures inside it, and nothing
    else."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
            f"img-src data:; "
            "base-uri 'none'; form-action 'none'")


# ---- written out


def _part(part: Section) -> dict[str, Any]:
    return vars(part) | {"charts": [_chart(chart) for chart in part.charts],
                         "tables": [_table(one) for one in part.tables]}


def _chart(chart: Chart) -> dict[str, Any]:
    """A chart as the template takes it; the SVG is of figures.svg, which escapes its texts."""
    return vars(chart) | {"panels": [Markup(redact_paths(panel.svg)) for panel in chart.panels],
                          "samples": [(name, Markup(key(name))) for name in chart.names]}


def _hours(study: Study) -> float:
    return sum(float((record["run_info"] or {}).get("total_time") or 0) for record in study.records) / 3600


def _table(table: Table) -> dict[str, Any]:
    """A table as the template takes it."""
    view = grid(table)
    labels = view.labels if table.column else 0
    rows = [[_field(entry, table) | {"label": i < labels} for i, entry in enumerate(row)]
            for row in view.rows]
    return {"id": f"t-{table.name}", "title": table.lead, "notes": table.notes, "header": view.header,
            "labels": labels, "rows": rows}


def _field(entry: Entry, table: Table) -> dict[str, Any]:
    """The number, and what it rests on (the counts in brackets), apart."""
    number, bracket, counts = entry.text.partition(" (") if table.column else (entry.text, "", "")
    style = entry.style or ("short" if len(entry.text) <= SHORT else "")
    return {"text": number, "counts": bracket + counts, "style": style}


def _problems(problems: list[Problem]) -> dict[str, list[Problem]]:
    return {kind: [problem for problem in problems if problem.kind == kind]
            for kind in dict.fromkeys(problem.kind for problem in problems)}


def _sources(study: Study) -> list[tuple[str, str]]:
    """The hosts and data sets behind the records; of sets what the leak guard left (of the manifests), and
    their
    fingerprints (of the records)."""
    facts = []
    for host in study.parts["host"]:
        layers = ", ".join(f"{stack} {depth}" for stack, depth in host["shape"]["layers"].items())
        facts.append((f"host {host['name']}", f"{host['shape']['family']}, layers: {layers}, width "
                      f"{host['shape']['hidden']}, "
                      f"fingerprint {host['fingerprint']}, source {host['source']}, revision "
                      f"{host['revision'] or NOTHING}"))
    sets = [entry for item in study.facts for entry in item.get("data", [])]
    for entry in {json.dumps(entry, sort_keys=True): entry for entry in sets}.values():
        own = [part for part in study.parts["data"] if part.get("name") == entry["name"]]
        prints = dict.fromkeys(f"{side} fingerprint {part[side + '_digest']}" for part in own
                               for side in ("train", "eval"))
        numbers = [f"{name.replace('_', ' ')} {value}" for name, value in entry.items() if name != "name"]
        facts.append((f"data {entry['name']}", ", ".join([*numbers, *prints])))
    return facts


# ---- read by the script


def _payload(context: StudyContext, columns: list[dict[str, Any]], details: Details) -> Markup:
    """Cells and runs as JSON that no text in it can end: `<`, `>` and `&` are written as escapes."""
    cells = context.cells.assign(reason=context.cells["reason"].map(redact_paths))
    value = {
        "study": context.study.name, "metric": next(column for column in columns
                                                    if column["key"] == context.metric.name),
        "columns": [{key: value for key, value in column.items() if key != "options"} for column in columns],
        "cells": {column["key"]: _encoded(cells[column["key"]]) for column in columns}, "runs": details.runs,
        "parts": details.parts, "total": details.total,
        "looks": {str(name): css_class(str(name)) for name in cells["init"].unique()},
    }
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _columns(cells: pd.DataFrame, metric: Metric) -> list[dict[str, Any]]:
    """The table's columns from left to right, and the hidden ones the script needs."""
    several = [name for name, by in MAYBE.items()
               if (cells.groupby(by)[name] if by else cells[[name]]).nunique().max() > 1]
    texts = [_text(key, cells[key]) for key in (*FILTERS[:4], *several, *FILTERS[4:])]
    names = [name for name in shown(cells, metric.name) if name != metric.name]
    numbers = [_numeric(metric.name, metric.label, metric.unit), _numeric("native", "native", metric.unit),
               _numeric("bare", "bare", metric.unit),
               _numeric("lift", "lift over bare", metric.difference, metric.scale)]
    others = [_numeric(item.name, item.label, item.unit) for item in map(metric_of, names)]
    hidden = [_text(key) for key in (*(name for name in MAYBE if name not in several), *HIDDEN)]
    return [*texts, *numbers, *others, *hidden]


def _text(key: str, values: pd.Series | None = None) -> dict[str, Any]:
    """A column of names or counts, shown and filtered by its values where these are given."""
    there = values is not None
    options = [] if values is None else list(values.dropna().unique())
    number = key in ("budget", "seed")
    return {"key": key, "label": key.replace("_", " "), "kind": "count" if number else "text",
            "filter": there, "shown": there,
            "options": [escape(value) for value in (sorted(options) if number else options)]}


def _numeric(key: str, label: str, unit_name: str, scale: float = 1.0) -> dict[str, Any]:
    unit = UNITS[unit_name]
    return {"key": key, "label": f"{label},\N{NO-BREAK SPACE}{unit.symbol}", "kind": "number",
            "filter": False, "shown": True, "scale": scale * unit.scale, "digits": unit.digits,
            "signed": unit.signed}


def _encoded(column: pd.Series) -> dict[str, Any] | list[float | int | None]:
    """Numbers as they are (None for NaN), texts as places in a list of the distinct ones."""
    if pd.api.types.is_numeric_dtype(column):
        return [None if isinstance(value, float) and math.isnan(value) else value
                for value in column.tolist()]
    codes, words = pd.factorize(column.astype(object).where(column.notna(), ""))
    return {"words": [str(word) for word in words], "codes": codes.tolist()}
