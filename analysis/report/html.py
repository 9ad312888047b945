"""A study as one HTML page that needs nothing else: the verdict, charts and tables by question, every cell
and its run."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from portability.analysis.context import StudyContext
from portability.analysis.figures.svg import STYLE, Chart, css_class, key
from portability.analysis.formatting import NOTHING
from portability.analysis.load import Study
from portability.analysis.metrics import UNITS, Metric, metric_of, shown
from portability.analysis.report.findings import Section, caveats, headline_numbers, verdict_words
from portability.analysis.report.markdown import counts, provenance
from portability.analysis.report.run_details import Details
from portability.analysis.tables.captions import protocol
from portability.analysis.tables.render import grid
from portability.core.errors import redact_paths

ASSETS = Path(__file__).parent / "assets"
TABLE, SCRIPT = "grid.js", "page.js"
FILTERS = ("method", "origin", "receiving", "relation", "init", "budget", "seed", "status")  # always there
# there where a study has several, in one group of these
MAYBE = {"origin_data": ["relation"], "data": [], "port": []}
HIDDEN = ("reason", "run_id", "mark", "native_id", "bare_id")


def page(context: StudyContext, parts: Sequence[Section], charts: Sequence[Chart], details: Details) -> str:
    """The whole page. Equal arguments give equal bytes; every text is escaped; a policy forbids all loading.

    Args:
        charts: those at the head.
    """
    study, columns = context.study, _columns(context.study.cells, context.metric)
    return rendered(
        "page.html", SCRIPT, _payload(context, columns, details), study=study, metric=context.metric.label,
        protocol=protocol(study.protocol), verdict=verdict_words(context), charts=charts,
        numbers=headline_numbers(context), caveats=caveats(context), counts=counts(study), details=details,
        parts=parts, provenance=[*provenance(study), *_sources(study)], columns=columns)


def rendered(template: str, script: str, payload: Mapping[str, Any], **values: Any) -> str:
    """A page out of one of ASSETS, with the table of grid.js and a script of its own; see `page`.

    Args:
        payload: what the scripts read: `columns` and `cells` of the table, the `file` that its CSV is saved
            as, and what the page's own script wants.
        values: what the template names.
    """
    style, script = f"{STYLE}\n{_asset('page.css')}", f"{_asset(TABLE)}\n{_asset(script)}"
    environment = Environment(  # errors may name folders
        loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=lambda value: redact_paths(value) if type(value) is str else value)
    environment.globals["grid"] = grid
    environment.filters |= {"key": lambda name: Markup(key(name)),
                            "drawn": lambda panel: Markup(redact_paths(panel.svg))}
    return environment.get_template(template).render(
        policy=Markup(_policy(style, script)), style=Markup(style), script=Markup(script),
        payload=_inside(payload), **values)


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """What the page may do: its own style and script by their digests, pictures inside it, and nothing
    else."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
            "img-src data:; base-uri 'none'; form-action 'none'")


def _inside(value: Mapping[str, Any]) -> Markup:
    """A value as JSON that no text in it can end: `<`, `>` and `&` are written as escapes."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _sources(study: Study) -> list[tuple[str, str]]:
    """The hosts and data sets behind the records; of sets what the leak guard left (of the manifests), and
    their
    fingerprints (of the records)."""
    facts = []
    for host in study.parts["host"]:
        shape = host["shape"]
        layers = ", ".join(f"{stack} {depth}" for stack, depth in shape["layers"].items())
        words = (f"{shape['family']}, layers: {layers}, width {shape['hidden']}, fingerprint "
                 f"{host['fingerprint']}, source {host['source']}, revision {host['revision'] or NOTHING}")
        facts.append((f"host {host['name']}", words))
    sets = [entry for item in study.facts for entry in item.get("data", [])]
    for entry in {json.dumps(entry, sort_keys=True): entry for entry in sets}.values():
        prints = dict.fromkeys(f"{side} fingerprint {part[side + '_digest']}" for part in study.parts["data"]
                               if part.get("name") == entry["name"] for side in ("train", "eval"))
        numbers = [f"{name.replace('_', ' ')} {value}" for name, value in entry.items() if name != "name"]
        facts.append((f"data {entry['name']}", ", ".join([*numbers, *prints])))
    return facts


# ---- read by the script


def _payload(context: StudyContext, columns: list[dict[str, Any]], details: Details) -> dict[str, Any]:
    """Cells and runs."""
    cells = context.cells.assign(reason=context.cells["reason"].map(redact_paths))
    return {
        "file": f"{context.study.name}-cells.csv", "columns": columns, "runs": details.runs,
        "parts": details.parts,
        "metric": next(column for column in columns if column["key"] == context.metric.name),
        "cells": {column["key"]: encoded(cells[column["key"]]) for column in columns},
        "total": details.total,
        "looks": {str(name): css_class(str(name)) for name in cells["init"].unique()},
    }


def _columns(cells: pd.DataFrame, metric: Metric) -> list[dict[str, Any]]:
    """The table's columns from left to right, and the hidden ones the script needs."""
    several = [name for name, by in MAYBE.items()
               if (cells.groupby(by)[name] if by else cells[[name]]).nunique().max() > 1]
    texts = [{**worded(key), "shown": True, "options": cells[key].dropna().unique().tolist()}
             for key in (*FILTERS[:4], *several, *FILTERS[4:])]
    names = [name for name in shown(cells, metric.name) if name != metric.name]
    numbers = [numeric(metric.name, metric.label, metric.unit), numeric("native", "native", metric.unit),
               numeric("bare", "bare", metric.unit),
               numeric("lift", "lift over bare", metric.difference, metric.scale)]
    others = [numeric(item.name, item.label, item.unit) for item in map(metric_of, names)]
    hidden = [*(name for name in MAYBE if name not in several), *HIDDEN]
    return [*texts, *numbers, *others, *map(worded, hidden)]


def worded(key: str) -> dict[str, Any]:
    """A column of texts, or of counts."""
    kind = "count" if key in ("budget", "seed") else "text"
    return {"key": key, "label": key.replace("_", " "), "kind": kind, "shown": False}


def numeric(key: str, label: str, unit_name: str, scale: float = 1.0) -> dict[str, Any]:
    """A column of numbers with their unit, a key of UNITS."""
    unit = UNITS[unit_name]
    return {"key": key, "label": f"{label},\N{NO-BREAK SPACE}{unit.symbol}", "kind": "number", "shown": True,
            "scale": scale * unit.scale, "digits": unit.digits, "signed": unit.signed}


def encoded(column: pd.Series) -> dict[str, Any] | list[float | int | None]:
    """Numbers as they are (None for NaN), texts as places in a list of the distinct ones."""
    if pd.api.types.is_numeric_dtype(column):
        return [None if isinstance(value, float) and math.isnan(value) else value
                for value in column.tolist()]
    codes, words = pd.factorize(column.astype(object).where(column.notna(), ""))
    return {"words": [str(word) for word in words], "codes": codes.tolist()}
