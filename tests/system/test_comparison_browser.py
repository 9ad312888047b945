"""The page over many studies in a real browser, from a file, as a reader has it."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from portability.analysis.comparison.page import page
from portability.analysis.comparison.rows import Comparison, compared
from portability.store import Store
from support.pages import HOSTILE, SMALL
from support.synthetic import ROOT, build

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two published studies of one kind, and one of the old protocol whose method has a hostile name."""
    old = build(tmp_path_factory.mktemp("results") / "old", replace(SMALL, methods=(HOSTILE,)))
    for path in old.store.root.glob("runs/*/*/record.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 1}))
    names = ("nano_full", "strategies_smollm2")
    return compared([*(Store(ROOT / "results" / name) for name in names), old.store])


@pytest.fixture(scope="module")
def browser(found: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(page(found, path.parent), encoding="utf-8")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started, path.as_uri()
        started.close()


@pytest.fixture
def opened(browser: tuple[Any, str]) -> Iterator[Any]:
    """Opens a fresh tab; `said` on it collects every message, error and request."""
    contexts = []

    def tab(place: str = "", **options: Any) -> Any:
        contexts.append(browser[0].new_context(viewport={"width": 1280, "height": 900}, **options))
        made = contexts[-1].new_page()
        made.said = []
        made.on("console", lambda message: made.said.append(message.text))
        made.on("pageerror", lambda error: made.said.append(str(error)))
        made.on("request", lambda request: made.said.extend(
            [request.url] * (not request.url.startswith(("file:", "data:")))))
        made.goto(browser[1] + place)
        return made

    yield tab
    for context in contexts:
        context.close()


def passing(found: Comparison, **wanted: object) -> pd.DataFrame:
    rows = found.rows
    for key, value in {"level": "strategy", "against": "scratch", **wanted}.items():
        rows = rows if value is None else rows[rows[key].astype(str) == str(value)]
    return rows


def test_rows_and_points_are_those_that_pass_the_filters(opened, found):
    tab = opened()
    for wanted in ({}, {"method": "lora"}, {"level": None, "against": None, "budget": 0},
                   {"study": "strategies_smollm2", "level": "pair", "against": "bare"}):
        tab.click("#clear")
        for key, value in wanted.items():
            tab.select_option(f"#f-{key}", "" if value is None else str(value))
        rows = passing(found, **wanted)
        assert tab.inner_text("#shown") == f"{len(rows):,} of {len(found.rows):,} rows"
        assert tab.locator("#charts svg.wide .dot").count() == rows["gain"].notna().sum()
        bars = rows[["gain", "low"]].notna().all(axis=1)
        assert tab.locator("#charts svg.wide .whisker").count() == bars.sum()
        tab.select_option("#cost", "port_seconds")
        seen = rows[rows["gain"].notna() & rows["port_seconds"].notna()]
        assert tab.locator("#charts svg.wide .dot").count() == len(seen)
        tab.select_option("#cost", "updates")
    assert tab.said == []


def test_each_kind_of_numbers_has_a_chart_of_its_own(opened, found):
    tab = opened()
    captions = tab.locator("#charts figcaption").all_inner_texts()
    assert len(captions) == 2 and len({text.partition(":")[0] for text in captions}) == 2
    studies = {study.name: str(study.basis) for study in found.studies}
    for chart, caption in zip(tab.locator("#charts figure").all(), captions, strict=True):
        titles = chart.locator("title").all_text_contents()
        assert titles and all(caption.startswith(studies[title.partition(":")[0]]) for title in titles)


def test_a_point_says_what_its_row_says(opened, found):
    row = passing(found, study="nano_full", method="lora", budget=50).iloc[0]
    said = (f"nano_full: lora, pad, 50 updates: ported less scratch {row['gain']:+.1f} [{row['low']:+.1f}, "
            f"{row['high']:+.1f}]; updates in all 50").replace("-", "−")
    assert said in opened().locator("#charts title").all_text_contents()


def test_the_address_holds_the_view_and_none_where_it_is_the_usual_one(opened, found):
    tab = opened("#cells")
    assert tab.inner_text("#shown") == f"{len(passing(found)):,} of {len(found.rows):,} rows"
    tab.select_option("#f-level", "")
    tab.select_option("#f-method", "lora")
    tab.wait_for_url(lambda url: "method=lora" in url and "level=" in url and "against" not in url)
    again = opened(tab.evaluate("location.hash"))
    assert again.inner_text("#shown") == tab.inner_text("#shown") != "0"
    assert again.input_value("#f-level") == "" and again.input_value("#f-against") == "scratch"


def test_rows_are_sorted_and_saved(opened, found, tmp_path):
    tab = opened("#sort=-gain")
    with tab.expect_download() as download:
        tab.click("#save")
    assert download.value.suggested_filename == "comparison.csv"
    download.value.save_as(tmp_path / "rows.csv")
    kept, rows = pd.read_csv(tmp_path / "rows.csv"), passing(found).sort_values("gain", ascending=False)
    assert kept["gain"].tolist() == pytest.approx(rows["gain"].tolist(), nan_ok=True)
    assert rows["gain"].isna().any()  # they stand at the end


def test_a_phone_needs_no_sideways_scrolling(opened):
    tab = opened()
    tab.set_viewport_size({"width": 390, "height": 844})
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # a unit of a chart is about a pixel, so its letters are 11
    tab.wait_for_function("""() => { const chart = document.querySelector('#charts svg.wide');
        const width = chart.getBoundingClientRect().width;
        return width <= 390 && width / chart.viewBox.baseVal.width > 0.95; }""", timeout=5000)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_without_a_script_the_tables_are_there(opened):
    tab = opened(java_script_enabled=False)
    for query in ("h1", "#t-gains-1 ~ .box table", "#t-declared ~ .box table", "noscript p"):
        assert tab.locator(query).first.is_visible(), query
    assert not tab.locator("#filters").is_visible()
