"""The published studies side by side: gains and costs computed another way, from cells and records alone; the
README of results/ and the page that are made of them."""

import json

import numpy as np
import pandas as pd
import pytest

from portability.analysis.comparison.page import page
from portability.analysis.comparison.rows import LEVELS, compared
from portability.analysis.comparison.text import readme
from portability.store import studies
from support.pages import Tags, payload
from support.synthetic import ROOT

RESULTS = ROOT / "results"
PAIR = ["method", "origin", "receiving", "relation", "data"]


@pytest.fixture(scope="module")
def every():
    return compared(store for store in studies(RESULTS) if store.published)


@pytest.fixture(scope="module")
def html(every):
    return page(every, RESULTS)


def cells_of(name: str) -> pd.DataFrame:
    return pd.read_parquet(RESULTS / name / "published/cells.parquet")


def gains_of(name: str, against: str) -> pd.DataFrame:
    """Every ported cell less its baseline of the same seed, in points, by merging the published cells."""
    cells = cells_of(name)
    arm, base = cells[cells["init"] == "ported"], cells[cells["init"] == against]
    keys = [*PAIR, "seed", "budget"]
    if against == "bare":
        arm = arm[arm["budget"] == 0]
        base = base.drop_duplicates(["receiving", "data"])[["receiving", "data", "eval_accuracy"]]
        both = arm.merge(base, on=["receiving", "data"], suffixes=("", "_base"), validate="m:1")
    else:
        if set(base["port"]) & set(arm["port"]) and base["port"].nunique() > 1:
            keys = [*keys, "port"]
        both = arm.merge(base.drop_duplicates(keys), on=keys, suffixes=("", "_base"), validate="m:1")
    return both.assign(gain=100 * (both["eval_accuracy"] - both["eval_accuracy_base"]))


@pytest.mark.parametrize(("name", "against", "count"), [
    ("nano_full", "scratch", 16), ("nano_full", "bare", 4), ("strategies_nano", "scratch", 36),
    ("strategies_smollm2", "bare", 7), ("nano_evidence", "sampled", 16)])
def test_gains_are_those_of_the_published_cells(every, name, against, count):
    pairs = gains_of(name, against)
    for level, keys in LEVELS.items():
        keys = [*keys, "budget"]
        rows = every.rows.query("study == @name and against == @against and level == @level")
        rows = rows.rename(columns={"strategy": "port"}).set_index(keys)
        whole = pairs.groupby(keys)["gain"].agg(["mean", "count"])
        assert level == "pair" or len(rows) == count
        assert set(rows.index) == set(whole.index)
        whole = whole.loc[rows.index]
        np.testing.assert_allclose(rows["gain"], whole["mean"], atol=1e-9)
        assert rows["n"].tolist() == whole["count"].tolist()
        hosts = pairs.assign(pair=pairs["origin"] + pairs["receiving"]).groupby(keys)["pair"].nunique()
        assert rows["pairs"].tolist() == hosts.loc[rows.index].tolist()


def test_intervals_are_those_of_the_studies_own_tables(every):
    told = {"method": "strategy", "direction": "pair"}
    for study in ("nano_full", "strategies_nano"):
        table = pd.read_csv(RESULTS / study / "tables/comparisons.csv")
        table = table[table["level"].isin(told)].assign(level=table["level"].map(told), study=study)
        keys = ["level", "method", "origin", "receiving", "relation", "budget", "against"]
        table = table.rename(columns={"baseline": "against"})
        rows = every.rows[(every.rows["study"] == study) & (every.rows["against"] != "bare")]
        if "port" in table:
            rows, keys = rows.rename(columns={"strategy": "port"}), [*keys, "port"]
        both = rows.merge(table, on=keys, suffixes=("", "_table"), validate="1:1")
        assert len(both) == len(rows) == len(table)
        for one, other in (("gain", "mean"), ("low", "low_table"), ("high", "high_table")):
            np.testing.assert_allclose(both[one], both[other], rtol=1e-6, atol=1e-6)


def test_costs_are_medians_over_the_records_of_ported_runs(every):
    name = "strategies_smollm2"
    records = pd.read_parquet(RESULTS / name / "published/records.parquet")
    records = {row["run_id"]: json.loads(row["record"]) for row in records.to_dict("records")}
    cells = cells_of(name)
    arm = cells[cells["init"] == "ported"].drop_duplicates(["port", "run_id"])
    for port, own in arm.groupby("port"):
        found = [records[run_id] for run_id in own["run_id"]]
        rows = every.rows.query("study == @name and level == 'strategy'")
        row = rows[rows["strategy"] == port].iloc[0]
        seconds = np.median([record["port_info"]["seconds"] for record in found])
        tokens = np.median([record["port_info"]["calibration_tokens"] for record in found])
        assert [row["port_seconds"], row["calibration_tokens"], row["own_updates"]] == [seconds, tokens, 0]
        assert row["trainable"] == np.median(
            [record["train_info"]["num_trainable_params"] for record in found])


def test_each_study_is_told_with_its_counts_and_contrasts(every):
    assert sorted(study.name for study in every.studies) == sorted(
        path.parent.name for path in RESULTS.glob("*/published"))
    for study in every.studies:
        cells, table = cells_of(study.name), pd.read_csv(study.folder / "tables/primary.csv")
        assert study.counts["cells"] == len(cells) and study.counts["done"] == cells["done"].sum()
        assert study.axes["strategy"] == sorted(cells.loc[cells["init"] == "ported", "port"].unique())
        assert [row["verdict"] for row in study.declared] == table["verdict"].tolist()
        (manifest,) = (json.loads(path.read_text()) for path in (study.folder / "manifests").iterdir())
        metric = f"eval_{manifest.get('primary_metric', 'accuracy')}"
        assert study.basis == (2, "4", "the last iterate", metric)


def test_the_readme_of_the_results_is_what_the_command_makes(every):
    assert (RESULTS / "README.md").read_text() == readme(every, RESULTS)


# ---- the page


def test_the_page_names_no_address_and_is_small(html):
    assert len(html.encode()) < 1e6
    tags = Tags(html)
    loads = ("src", "href", "srcset", "action")
    addresses = [value for _, attributes in tags.tags for key, value in attributes.items() if key in loads]
    reports = {f"{path.parents[1].name}/report/index.html" for path in RESULTS.glob("*/report/index.html")
               if (path.parents[1] / "published").exists()}
    assert {value for value in addresses if not value.startswith(("#", "data:"))} == reports
    style, script = [text for text in tags.raw if not text.startswith("{")]
    assert not any(word in style + script for word in (
        "@import", "url(", "fetch(", "XMLHttpRequest", "innerHTML", "eval(", "document.write"))
    keys = {key for _, attributes in tags.tags for key in attributes}
    assert "style" not in keys and not [key for key in keys if key.startswith("on")]
    policy = next(meta["content"] for meta in tags.all("meta")
                  if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and str(ROOT) not in html


def test_the_rows_in_the_page_are_those_of_the_comparison(every, html):
    data = payload(html)
    for key in ("study", "method", "strategy", "receiving", "against", "level"):
        found = data["cells"][key]
        assert [found["words"][code] for code in found["codes"]] == every.rows[key].tolist()
    for key in ("gain", "low", "port_seconds", "budget"):
        assert data["cells"][key] == [None if pd.isna(value) else value for value in every.rows[key]]
    columns = {column["key"]: column for column in data["columns"]}
    assert columns["level"]["chosen"] == "strategy"
    assert ("options" in columns["basis"]) == (len(every.bases()) > 1)


def test_ids_are_unique_and_headings_leave_no_level_out(html):
    tags = Tags(html).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in tags:
        for key in ("aria-labelledby", "for"):
            assert attributes.get(key, "main") in ids
    levels = [int(tag[1]) for tag, _ in tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
