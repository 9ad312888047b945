"""Many studies as one HTML page that needs nothing else, made of what the report of one study is made of."""

from pathlib import Path
from typing import Any

import pandas as pd

from portability.analysis.comparison.rows import COSTS, Comparison
from portability.analysis.comparison.text import AGAINST, Block, address, gains, notes, studies
from portability.analysis.figures.svg import MARKERS
from portability.analysis.formatting import interval, number
from portability.analysis.metrics import UNITS, metric_of
from portability.analysis.report.html import encoded, numeric, rendered, worded
from portability.core.wording import counted

SCRIPT = "compare.js"
FILTERS = ("basis", "study", "level", "method", "strategy", "origin", "receiving", "hosts", "relation",
           "data", "budget", "against")
LABELS = {"basis": "numbers", "level": "a row for each", "hosts": "kind of pair", "budget": "updates",
          "against": "less"}
HIDDEN = ("basis", "study", "level")  # as columns: one is the row's head, the others are in its filter
COUNTS = {"pairs": 0, "seeds": 0, "updates": 0, "own_updates": 0, "calibration_tokens": 0, "port_seconds": 4,
          "trainable": 0}  # and their decimals
WORDS = COSTS | {"pairs": "pairs", "seeds": "seeds", "updates": "updates in all"}
COLOURS = 8  # of charts.css; the strategies beyond share the last


def page(comparison: Comparison, folder: Path, against: str = AGAINST) -> str:
    """The whole page. Equal arguments give equal bytes; every text is escaped; a policy forbids all loading.

    Args:
        folder: where it will lie; reports of studies in it are linked.
        against: the start that gains are held against at first.

    Raises:
        UserError: as of text.gains.
    """
    columns, reports = _columns(comparison, against), _reports(comparison, folder)
    return rendered(
        "compare.html", SCRIPT, _payload(comparison, columns, reports), said=_said(comparison),
        columns=columns, notes=notes(comparison, against), bases=[str(basis) for basis in comparison.bases()],
        gains=list(gains(comparison, against=against, last=True)), studies=studies(comparison),
        training=_training(comparison), declared=_declared(comparison),
        verdicts=[(one.name, reports.get(one.name), one.verdict) for one in comparison.studies],
        costs={name: WORDS[name] for name in ("updates", *COSTS)})


def _said(comparison: Comparison) -> str:
    """What stands side by side, in a sentence."""
    axes = {name: len({word for study in comparison.studies for word in study.axes[name]})
            for name in ("method", "strategy", "pair")}
    several = "study" if len(comparison.studies) == 1 else "studies"
    ways = "way" if axes["strategy"] == 1 else "ways"
    return (f"{len(comparison.studies)} {several} side by side: {counted(axes['method'], 'method')}, "
            f"{axes['strategy']} {ways} of porting, {counted(axes['pair'], 'pair')} of hosts.")


def _reports(comparison: Comparison, folder: Path) -> dict[str, str]:
    """Where the report of each study is, as seen from a folder that it lies in."""
    found = {study.name: study.folder / "report/index.html" for study in comparison.studies}
    return {name: address(path, folder) for name, path in found.items()
            if path.exists() and path.resolve().is_relative_to(folder.resolve())}


def _declared(comparison: Comparison) -> Block:
    """Every declared contrast with what its test says."""
    rows = []
    for study in comparison.studies:
        for row in study.declared:
            unit = UNITS[row["unit"]]
            size = "" if row["mean"] is None else f"{number(row['mean'], unit)} {unit.symbol}"
            between = "" if row["low"] is None else interval(row["low"], row["high"], unit)
            metric = metric_of(study.basis.metric).label
            rows.append([study.name, row["name"], row["words"], metric, size, between, row["verdict"]])
    head = ["study", "contrast", "in words", "of", "difference", "95 %", "verdict"]
    return Block("Declared contrasts", head, rows, 4)


def _training(comparison: Comparison) -> Block:
    """How the runs of each study were trained: what is not the same in all of them."""
    rows = [(study, one) for study in comparison.studies for one in study.training]
    names = dict.fromkeys(name for _, one in rows for name in one)
    differing = [name for name in names if len({str(one.get(name)) for _, one in rows}) > 1]
    lines = [[study.name, *(str(one.get(name, "")) for name in differing)] for study, one in rows]
    head = ["study", *(name.replace("_", " ") for name in differing)]
    return Block("Settings of the training", head, lines, 1)


# ---- read by the script


def _payload(comparison: Comparison, columns: list[dict[str, Any]],
             reports: dict[str, str]) -> dict[str, Any]:
    """Rows, addresses of reports, and how strategies look in charts."""
    frame = _frame(comparison)
    looks = {name: f"s{min(place, COLOURS - 1)}" for place, name in enumerate(frame["strategy"].unique())}
    return {"file": "comparison.csv", "columns": columns, "reports": reports, "looks": looks,
            "markers": MARKERS, "cells": {column["key"]: encoded(frame[column["key"]]) for column in columns}}


def _frame(comparison: Comparison) -> pd.DataFrame:
    bases = {study.name: str(study.basis) for study in comparison.studies}
    return comparison.rows.assign(basis=comparison.rows["study"].map(bases))


def _columns(comparison: Comparison, against: str) -> list[dict[str, Any]]:
    """The table's columns from left to right, and those that only the charts need."""
    frame, texts, chosen = _frame(comparison), [], {"level": "strategy", "against": against}
    for key in FILTERS:
        values = frame[key].unique().tolist()
        more = {"options": values, "chosen": chosen.get(key)} if len(values) > 1 else {}
        texts.append({**worded(key), "label": LABELS.get(key, key), **more, "shown": key not in HIDDEN})
    units = frame["unit"].unique()
    unit = units[0] if len(units) == 1 else "number difference"
    signed = [numeric(key, key, unit) for key in ("gain", "low", "high")]
    counts = [{"key": key, "label": WORDS[key], "kind": "number", "shown": True, "scale": 1, "digits": digits,
               "signed": False} for key, digits in COUNTS.items()]
    return [*texts, *signed, *counts, *map(worded, ("arm", "metric", "unit", "mark"))]
