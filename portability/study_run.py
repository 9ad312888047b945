"""A study as a run of its own in W&B: its verdict, its gains, and the charts that show them; and what each
run is beside the others."""

from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd

from portability.analysis.context import StudyContext, gather
from portability.analysis.figures.charts import contrasts, differences, headline
from portability.analysis.figures.svg import Chart, svg_file
from portability.analysis.report.findings import caveats, numbers, verdict_words
from portability.analysis.stats.pairing import COORDINATES, arm_of, paired
from portability.core.specs import BARE
from portability.store import Store
from portability.tracking.entries import STUDY, Entry

CELLS = [*COORDINATES, "run_id", "mark", "status", "value", "bare", "native", "lift"]
PAGE = "<!doctype html><meta charset=utf-8><body style='font:13px system-ui;margin:8px'>{}"


def comparisons(cells: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Run id -> its numbers beside other runs, as fractions: zero_shot_lift over the bare host, and
    gain_over_X for each other init X, paired by seed, at the run's largest budget."""
    lifts = cells[(cells["budget"] == 0) & cells["lift"].notna()]
    columns = {"zero_shot_lift": lifts.drop_duplicates("run_id", keep="last").set_index("run_id")["lift"]}
    for baseline in _baselines(cells):
        last = _gains(cells, baseline).sort_values("budget").drop_duplicates("run_id", keep="last")
        columns[f"gain_over_{baseline}"] = last.set_index("run_id")["gain"]
    return {str(run_id): row.dropna().to_dict() for run_id, row in pd.DataFrame(columns).iterrows()}


def _baselines(cells: pd.DataFrame) -> list[str]:
    """The inits over which the study's arm may have a gain."""
    return [str(init) for init in cells["init"].unique() if init not in (arm_of(cells), BARE)]


def _gains(cells: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Every pair's gain (a fraction) with the coordinates and run of the study's arm; zero-shot is no
    pair's."""
    pairs = paired(cells, arm_of(cells), baseline, scale=1.0)
    pairs = pairs[pairs["value"].notna() & (pairs["budget"] > 0)]
    gains = pairs[[*COORDINATES, "value"]].rename(columns={"value": "gain"})
    return gains.merge(cells[[*COORDINATES, "run_id"]], on=COORDINATES, how="left")


def study_entry(store: Store) -> Entry:
    """The study as a run of its own: verdict and gains as summary, tables of contrasts, cells and gains by
    pair, and the arms against updates, a heat map and a forest as charts; sent anew when the study grows."""
    context, name = gather(store), store.root.resolve().name
    rows, cells = numbers(context), context.cells
    gains = _by_pair(cells)
    last = gains[gains["budget"] == gains["budget"].max()].groupby("baseline")["gain"].mean()
    counts = cells["status"].value_counts()
    summary: dict[str, Any] = {f"cells_{status}": int(number) for status, number in counts.items()}
    summary |= {f"mean_gain_over_{baseline}": float(gain) for baseline, gain in last.items()}
    said = [[row.name, row.size, row.between, row.p, row.verdict] for row in rows]
    how = {"group": name, "job_type": STUDY, "name": f"{name}: verdict and gains",
           "tags": [STUDY, f"study:{name}"[:64]]}
    return Entry(
        f"{STUDY}-{name}", how, {"study": name, "cells": len(cells), "caveats": caveats(context)},
        summary={**summary, "verdict": verdict_words(context)}, charts=_charts(context, gains),
        tables={"contrasts": (["contrast", "difference", "95 %", "p (Holm)", "verdict"], said),
                "cells": _table(cells[CELLS]), "gains": _table(gains)})


def _by_pair(cells: pd.DataFrame) -> pd.DataFrame:
    """The mean gain over each other init, by everything but the seed."""
    keys = ["method", "origin", "receiving", "relation", "data", "port", "budget", "baseline"]
    parts = [_gains(cells, baseline).assign(baseline=baseline) for baseline in _baselines(cells)]
    pairs = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*keys, "gain"])
    return pairs.groupby(keys, sort=True)["gain"].agg(gain="mean", pairs="count").reset_index()


def _charts(context: StudyContext, gains: pd.DataFrame) -> dict[str, str]:
    """Pages of HTML by name."""
    drawn: dict[str, Sequence[Chart]] = {"arms_by_updates": headline(context),
                                         "forest": contrasts(context) or differences(context)}
    pages = {name: "".join(map(svg_file, charts)) for name, charts in drawn.items() if charts}
    return {name: PAGE.format(text) for name, text in {**pages, "heat_map": heat_map(gains)}.items() if text}


def heat_map(gains: pd.DataFrame) -> str:
    """Mean gains at the largest budget as a table of HTML for each other init: rows are origins, columns
    receiving hosts, orange is ahead and blue behind; empty where there are none.

    Args:
        gains: fractions, with columns origin, receiving, budget, baseline and gain.
    """
    last, parts = gains[gains["budget"] == gains["budget"].max()], []
    strongest = last["gain"].abs().max() or 1.0
    for baseline, own in last.groupby("baseline"):
        table = own.pivot_table(index="origin", columns="receiving", values="gain", aggfunc="mean")
        rows = "".join(f"<tr><th>{escape(str(origin))}</th>{''.join(_cell(x, strongest) for x in row)}</tr>"
                       for origin, row in zip(table.index, table.to_numpy(), strict=True))
        heads = "".join(f"<th>{escape(str(name))}</th>" for name in ("", *table.columns))
        parts.append(f"<h4>Mean gain over {escape(str(baseline))}, in points: origin by receiving host</h4>"
                     f"<table><tr>{heads}</tr>{rows}</table>")
    return "".join(parts)


def _cell(gain: float, strongest: float) -> str:
    if pd.isna(gain):
        return "<td></td>"
    colour = "196,79,0" if gain > 0 else "0,105,168"
    return f"<td style='background:rgba({colour},{abs(gain) / strongest * 0.8:.2f})'>{100 * gain:+.1f}</td>"


def _table(frame: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows for a W&B table, None where there is no number."""
    plain = frame.astype(object).where(frame.notna(), None)
    return list(plain.columns), plain.to_numpy().tolist()
