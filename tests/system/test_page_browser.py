"""The page of a study in a real browser, from a file, as a reader has it."""

import csv
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from portability.analysis.context import StudyContext
from portability.analysis.measures.primary_contrasts import primary
from portability.analysis.metrics import METRICS
from portability.analysis.report.html import page as write_page
from portability.core.contrasts import Contrast
from portability.store import Store
from support.pages import HOSTILE, SMALL, Made, made
from support.synthetic import FACTS, NANO, build

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path")
RUN = "d6ea94f63a27b5ca"  # adapter, ported, nano-raw-large -> nano-raw-base, seed 1


@dataclass
class Reader:
    """A browser with the published study's page at hand."""

    browser: Any
    address: str
    nano: Made
    contexts: list[Any] = field(default_factory=list)

    def open(self, place: str = "", address: str | None = None, **options: Any) -> Any:
        """A fresh tab with the page; `said` on it collects every message, error and request."""
        self.contexts.append(self.browser.new_context(viewport={"width": 1280, "height": 900}, **options))
        tab = self.contexts[-1].new_page()
        tab.said = []
        tab.on("console", lambda message: tab.said.append(message.text))
        tab.on("pageerror", lambda error: tab.said.append(str(error)))
        tab.on("dialog", lambda dialog: tab.said.append("dialog"))
        tab.on("request", lambda request: tab.said.extend([request.url]
                                                          * (not request.url.startswith(("file:", "data:")))))
        tab.goto((address or self.address) + place)
        return tab


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    nano = made(Store(NANO))
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(nano.html, encoding="utf-8")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield Reader(browser, path.as_uri(), nano)
        browser.close()


@pytest.fixture
def reader(whole: Reader) -> Iterator[Reader]:
    yield whole
    while whole.contexts:
        whole.contexts.pop().close()


def saved(tmp_path: Path, html: str) -> str:
    (tmp_path / "index.html").write_text(html, encoding="utf-8")
    return (tmp_path / "index.html").as_uri()


def values(tab: Any, key: str) -> list[str]:
    """The texts of one column of the table of cells, as shown."""
    return tab.evaluate("""key => {
        const at = [...document.querySelectorAll('#grid thead th')].findIndex(head => head.dataset.key === key);
        return [...document.querySelectorAll('#grid tbody tr')].map(row => row.children[at].textContent); }""", key)


def test_it_loads_from_a_file_without_a_message_or_a_request(reader):
    tab = reader.open()
    tab.wait_for_selector("#grid tbody button")
    tab.get_by_role("button", name=re.compile("^Open run")).first.click()
    assert tab.locator("#run").is_visible()
    assert tab.said == []


def test_filters_count_what_pandas_counts(reader):
    tab = reader.open()
    texts = ["method", "origin", "receiving", "relation", "init", "run_id", "native_id", "bare_id"]
    for chosen, text in (
        ({"method": "lora"}, ""), ({"method": "prefix", "init": "ported", "budget": "50", "seed": "3"}, ""),
        ({"budget": "0"}, ""),
        ({"relation": "same", "status": "done"}, "nano-raw-large Sampled"), ({}, RUN[:8]),
        ({}, "no such words"),
    ):
        cells = reader.nano.found.study.cells
        tab.click("#clear")
        tab.fill("#f-q", text)
        for key, value in chosen.items():
            tab.select_option(f"#f-{key}", value)
            cells = cells[cells[key].astype(str) == value]
        for word in text.lower().split():
            cells = cells[cells[texts].apply(lambda row, word=word: any(word in value for value in row),
                                             axis=1)]
        assert tab.inner_text("#shown") == f"{len(cells):,} of 2,080 rows"
        assert tab.locator("#grid tbody button").count() == min(50, len(cells))


def test_pages_follow_each_other(reader):
    tab = reader.open("#method=lora&init=scratch&budget=200")
    assert tab.inner_text("#place") == "rows 1 to 40" and tab.is_disabled("#on") and tab.is_disabled("#back")
    tab.click("#clear")
    tab.click("#on")
    assert tab.inner_text("#place") == "rows 51 to 100" and not tab.is_disabled("#back")


def test_sorting_is_by_number_and_says_so(reader):
    tab, cells = reader.open("#init=ported"), reader.nano.found.study.cells
    losses = cells[cells["init"] == "ported"]["eval_loss"]
    head, button = tab.locator("th[data-key=eval_loss]"), tab.locator("[data-sort=eval_loss]")
    assert head.get_attribute("aria-sort") is None
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert values(tab, "eval_loss") == [f"{value:.3f}" for value in sorted(losses)[:50]]
    button.click()
    assert head.get_attribute("aria-sort") == "descending"
    assert values(tab, "eval_loss") == [f"{value:.3f}" for value in sorted(losses, reverse=True)[:50]]
    tab.locator("[data-sort=budget]").click()
    assert head.get_attribute("aria-sort") is None and set(values(tab, "budget")) == {"0"}
    for sign in ("", "-"):  # only zero-shot cells have a lift: the others stay at the end, either way
        assert "–" not in values(reader.open(f"#init=ported&sort={sign}lift"), "lift")
        assert set(values(reader.open(f"#init=ported&sort={sign}lift&page=99"), "lift")) == {"–"}


def test_the_address_holds_the_view(reader):
    tab = reader.open()
    tab.select_option("#f-method", "lora")
    tab.fill("#f-q", "nano-raw-large & more")
    tab.fill("#f-q", "nano-raw-large")
    tab.locator("[data-sort=eval_accuracy]").click()
    tab.locator("[data-sort=eval_accuracy]").click()
    tab.click("#on")
    tab.wait_for_url(re.compile("page=2"))
    again = reader.open(tab.evaluate("location.hash"))
    assert again.input_value("#f-method") == "lora" and again.input_value("#f-q") == "nano-raw-large"
    for query in ("#shown", "#place", "#grid tbody"):
        assert again.inner_text(query) == tab.inner_text(query)
    assert again.locator("th[data-key=eval_accuracy]").get_attribute("aria-sort") == "descending"
    odd = reader.open("#method=nothing&sort=nothing&page=-4&run=nothing")
    assert odd.inner_text("#shown") == "2,080 of 2,080 rows" and not odd.locator(
        "#run").is_visible() and odd.said == []


def test_a_run_opens_by_keyboard_says_what_its_record_says_and_gives_focus_back(reader):
    tab = reader.open(f"#q={RUN}")
    tab.focus("#save")
    for _ in range(40):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.dataset.run") == RUN:
            break
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "h-run" and RUN in tab.inner_text("#sheet .eyebrow")
    record = Store(NANO).read(RUN)
    rows = [row.split("\t") for row in tab.inner_text("#sheet table[aria-label^=Metrics] tbody").split("\n")]
    marks = record["train_info"]["metrics"]
    assert rows[0][1:] == [f"{100 * mark['eval_accuracy']:.2f}" for mark in marks]
    assert rows[3][1:] == [f"{mark['eval_loss']:.4f}" for mark in marks]
    sheet, info = tab.inner_text("#sheet"), record["port_info"]
    assert f"{100 * info['carried_norm_fraction']:.1f} %" in sheet
    assert "carried 4, cut 24, dropped 16, mapped 4" in sheet
    assert f"{record['train_info']['num_trainable_params']:,}" in sheet
    assert f"{record['train_info']['tokens']:,}" in sheet
    assert f'only={{run_id: "{RUN}"}}' in sheet
    tab.keyboard.press("Escape")
    assert not tab.locator("#run").is_visible()
    assert tab.evaluate("document.activeElement.dataset.run") == RUN
    tab.wait_for_url(lambda url: "run=" not in url)


def test_a_run_is_there_as_soon_as_it_is_opened(reader):
    tab = reader.open("#method=lora")
    at_once = tab.evaluate("""() => { const button = document.querySelector('#grid tbody button'); button.click();
        const said = document.querySelector('#sheet .eyebrow code').textContent, run = button.dataset.run;
        return [document.getElementById('run').open, said === run, location.hash.endsWith(`&run=${run}`)]; }""")
    assert at_once == [True, True, True]
    tab.go_back()
    tab.locator("#run").wait_for(state="hidden")


def test_predictions_are_marked_right_or_wrong_as_the_store_has_them(reader):
    tab, found = reader.open(f"#run={RUN}"), Store(NANO).predictions(RUN)
    shown = tab.locator("#sheet table[aria-label=Predictions] tbody tr").all_inner_texts()
    for place, line in enumerate(shown):
        right = (found["margin"][:, place] > 0) == (found["label"][place] == 1)
        assert [mark == "✓" for mark in re.findall("[✓✗]", line)] == right.tolist()
        chances = [f"{1 / (1 + math.exp(-margin)):.3f}" for margin in found["margin"][:, place]]
        assert re.findall(r"0\.\d{3}|1\.000", line) == chances


def test_runs_lead_to_the_runs_they_rest_on_and_back(reader):
    tab, record = reader.open(f"#run={RUN}"), Store(NANO).read(RUN)
    tab.locator("#sheet .related button", has_text="Origin").click()
    origin = record["spec"]["origin"]
    assert origin in tab.inner_text("#sheet .eyebrow")
    assert "runs start from this one" in tab.inner_text("#sheet .related")
    tab.go_back()
    tab.locator("#sheet .eyebrow", has_text=RUN).wait_for()
    for name in ("Native", "Bare host"):
        tab.locator("#sheet .related button", has_text=name).click()
        column = {"Native": "native_id", "Bare host": "bare_id"}[name]
        cells = reader.nano.found.study.cells
        assert cells[cells["run_id"] == RUN].iloc[0][column] in tab.inner_text("#sheet .eyebrow")
        tab.go_back()
        tab.locator("#sheet .eyebrow", has_text=RUN).wait_for()
    assert tab.said == []


def test_a_run_without_a_result_opens_too(reader, tmp_path):
    study = build(tmp_path / "toy", SMALL)
    failed = study.pick(init="ported")[0].run_id
    study.remove(failed)
    study.store.fail(failed, {"error": "out of memory"})
    whole = made(study.store, parts=[])
    tab = reader.open(f"#run={failed}", saved(tmp_path, whole.html))
    assert "out of memory" in tab.inner_text("#sheet pre.error") and "only=" in tab.inner_text("#sheet")
    few = made(study.store, parts=[], details=replace(whole.details, runs={}, parts=[]))
    tab = reader.open(f"#run={study.cells[0].run_id}", saved(tmp_path, few.html))
    assert "describes no runs" in tab.inner_text("#sheet") and tab.said == []


def test_the_filtered_rows_are_saved_as_csv(reader, tmp_path):
    tab = reader.open("#method=lora&init=ported&sort=-eval_accuracy")
    with tab.expect_download() as download:
        tab.click("#save")
    download.value.save_as(tmp_path / "cells.csv")
    kept = pd.read_csv(tmp_path / "cells.csv", dtype={"run_id": str})
    cells = reader.nano.found.study.cells
    cells = cells[(cells["method"] == "lora") & (cells["init"] == "ported")]
    cells = cells.sort_values("eval_accuracy", ascending=False, kind="stable")
    assert kept["run_id"].tolist() == cells[
        "run_id"].tolist() and download.value.suggested_filename == "nano_full-cells.csv"
    assert kept["eval_loss"].tolist() == cells["eval_loss"].tolist() and kept["lift"].isna().sum() == cells[
        "lift"].isna().sum()


def test_hostile_names_do_nothing_and_start_no_formula(reader, tmp_path):
    study = build(tmp_path / "toy", replace(SMALL, methods=(HOSTILE, "=1+1")))
    tab = reader.open("", saved(tmp_path, made(study.store).html))
    tab.select_option("#f-method", HOSTILE)
    tab.locator("#grid tbody button").first.click()
    assert HOSTILE.split("\u2028")[0].strip() in tab.inner_text("#sheet")
    tab.keyboard.press("Escape")
    tab.click("#clear")
    with tab.expect_download() as download:
        tab.click("#save")
    rows = list(csv.reader(Path(download.value.path()).read_text(encoding="utf-8").splitlines(keepends=True)))
    assert {row[rows[0].index("method")] for row in rows[1:]} == {HOSTILE, "'=1+1"}
    assert tab.said == [] and tab.locator("script").count() == 2 and tab.locator("img").count() == 0


@pytest.mark.parametrize("place", ["", f"#run={RUN}"])
def test_a_phone_needs_no_sideways_scrolling(reader, place):
    tab = reader.open(place)
    tab.set_viewport_size({"width": 390, "height": 844})
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate("document.getElementById('run').scrollWidth <= innerWidth")
    if not place:
        tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert tab.locator("#t-lift ~ .box").evaluate("box => box.scrollWidth > box.clientWidth")
        wide = tab.evaluate("[...document.querySelectorAll('.plot:not(.key)')].map(n => "
                            "n.getBoundingClientRect().width)")
        # a unit of a chart is about a pixel, so its letters are 11
        assert wide and all(300 < width <= 390 for width in wide)


def test_the_first_screen_has_the_verdict_the_chart_and_three_numbers(reader):
    tab = reader.open()
    tab.set_viewport_size({"width": 1280, "height": 800})
    place = """query => [...document.querySelectorAll(query)].map(n => n.getBoundingClientRect()).map(r => [r.top, r.bottom])"""
    heads, pictures, sizes = (tab.evaluate(place, query) for query in ("h1", ".first .plot:not(.key)",
                                                                       ".chief strong"))
    assert len(heads) == 1 and len(pictures) == 2 and len(sizes) == 3
    assert heads[0][1] <= pictures[0][0] and all(bottom < 800 for _, bottom in [*heads, *pictures, *sizes])
    assert tab.inner_text("h1").startswith("Of 6 contrasts declared before the runs, ")
    all_level = reader.nano.found.levels["all"].set_index(["baseline", "budget"])["mean"]
    expected = [all_level[name] for name in (("scratch", 50), ("scratch", 200), ("sampled", 50))]
    shown = [float(text.removesuffix(" pp")) for text in tab.locator(".chief strong").all_inner_texts()]
    assert shown == [round(value, 1) for value in expected]


def test_without_a_declared_contrast_the_first_screen_says_that_it_is_exploratory(reader, tmp_path):
    tab = reader.open("", saved(tmp_path, made(build(tmp_path / "toy", SMALL).store).html))
    assert tab.inner_text("h1").startswith("No contrast was declared before the runs")
    assert tab.locator(".chief em").all_inner_texts() == ["exploratory"] * 3


def test_a_declared_contrast_heads_the_page(reader, tmp_path):
    contrasts = [Contrast("late", "ported", "scratch", 500), Contrast("early", "ported", "sampled", 100)]
    study = build(tmp_path / "toy", SMALL, FACTS | {"primary": [asdict(one) for one in contrasts]})
    whole = made(study.store)
    tab = reader.open("", saved(tmp_path, whole.html))
    assert tab.inner_text("h1").startswith("Of 2 contrasts declared before the runs, ")
    assert tab.inner_text("nav li").startswith("Declared")
    rows = primary(whole.found)
    assert tab.locator(".chief em").all_inner_texts() == rows["verdict"].tolist()
    label = tab.locator("section.question .plot").first.get_attribute("aria-label")
    for _, row in rows.iterrows():
        assert f"{row['name']} {row['mean']:+.1f} [".replace("-", "−") in label


CONTRAST = """queries => {
  const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => { for (; node; node = node.parentElement) { const colour = getComputedStyle(node).backgroundColor;
    if (!/, 0\\)$|transparent/.test(colour)) return colour; } return 'rgb(255, 255, 255)'; };
  return queries.map(query => { const node = document.querySelector(query); const style = getComputedStyle(node);
    const front = node instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(front), light(behind(node))].sort((x, y) => y - x); return [query, (a + 0.05) / (b + 0.05)]; });
}"""
TEXTS = [
    "h1", "p", ".eyebrow", ".eyebrow .protocol", ".chief dt", ".chief strong", ".chief em", ".counts dt",
    ".counts small",
    ".caveats li", "nav a", "figcaption", ".note", ".legend li", ".plot text", ".plot .title",
    "thead th", "tbody th", "td.best span", "td small", "summary", "#filters label", "#filters select",
    "#clear", "#grid thead button", "#grid tbody button", "#grid .status", ".facts dt", ".facts dd",
    "#sheet h2", "#sheet .sub",
    "#sheet .related small", "#sheet svg text", "td.wrong", "td.right span", "pre code",
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_start_has_one_colour_everywhere_that_stands_out_in_both_schemes(reader, scheme):
    tab = reader.open(f"#run={RUN}", color_scheme=scheme)
    names = ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "native", "bare"]
    tab.evaluate("""names => names.forEach(name => { const span = document.createElement('span'); span.className = name;
        span.id = `c-${name}`; document.querySelector('.panels').append(span); })""", names)
    ratios = dict(tab.evaluate(CONTRAST, [f"#c-{name}" for name in names]))
    assert {name: ratio for name, ratio in ratios.items() if ratio < 3.0} == {}
    colour = "query => [...new Set([...document.querySelectorAll(query)].map(n => getComputedStyle(n).stroke))]"
    own = {name: tab.evaluate(f"getComputedStyle(document.getElementById('c-{name}')).color")
           for name in names}
    assert len(set(own.values())) == len(names)
    for name in ("s0", "s1", "s2", "native", "bare"):
        assert tab.evaluate(colour, f".plot .{name} .line") == [own[name]], name
    assert tab.evaluate(colour, "#sheet .plot > .line") == [own["s0"]]  # the run is a ported one
    for name in ("native", "bare"):
        assert tab.evaluate(colour, f"#sheet .{name} .line") == [own[name]]
    others = tab.evaluate("() => [...document.querySelectorAll('a, .status, td.wrong')].map(n => "
                          "getComputedStyle(n).color)")
    assert not set(others) & set(own.values())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_kind_of_text_has_contrast_in_both_schemes(reader, scheme):
    tab = reader.open(f"#run={RUN}", color_scheme=scheme, reduced_motion="reduce")
    tab.evaluate("""() => { const span = document.createElement('span'); span.className = 'protocol'; span.textContent = 'Old';
        document.querySelector('.eyebrow').append(span); }""")  # stands at the head of old studies alone
    ratios = dict(tab.evaluate(CONTRAST, TEXTS))
    assert {query: ratio for query, ratio in ratios.items() if ratio < 4.5} == {}
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 27)"
    assert dark == (scheme == "dark")
    assert tab.evaluate("getComputedStyle(document.getElementById('run')).animationName") == "none"


def test_print_shows_everything_and_no_controls(reader):
    tab = reader.open()
    tab.emulate_media(media="print")
    for query in ("#filters", "#save", "#on", "nav", "#sheet summary"):
        assert not tab.locator(query).first.is_visible(), query
    for query in ("#t-lift ~ .box table", "#grid tbody tr", "#problems h2", "#provenance dl", "details p",
                  ".plot", "summary"):
        assert tab.locator(query).first.is_visible(), query
    assert tab.locator("details p").first.evaluate("node => node.getBoundingClientRect().height") > 0
    assert len(tab.pdf()) > 10_000


def test_without_a_script_the_words_tables_and_charts_are_there(reader):
    tab = reader.open(java_script_enabled=False)
    for query in ("h1", ".caveats li", "#t-lift ~ .box table", ".plot", "#provenance dl", "noscript p"):
        assert tab.locator(query).first.is_visible(), query
    assert not tab.locator("#filters").is_visible()
    tab.locator("summary").first.click()
    assert tab.locator("details p").first.is_visible()


def test_everything_has_a_name_an_id_of_its_own_and_a_place_in_the_outline(reader):
    tab = reader.open(f"#run={RUN}")
    facts = json.loads(tab.evaluate("""() => JSON.stringify({
      ids: [...document.querySelectorAll('[id]')].map(n => n.id),
      unnamed: [...document.querySelectorAll('input, select, button, table, dialog, nav, [role=img]')]
        .filter(n => !(n.labels?.length || n.textContent.trim() || n.ariaLabel || n.hasAttribute('aria-labelledby'))).length,
      lost: [...document.querySelectorAll('[aria-labelledby]')]
        .filter(n => !document.getElementById(n.getAttribute('aria-labelledby'))).length,
      heads: [...document.querySelectorAll('th')].filter(n => !n.scope).length,
      levels: [...document.querySelectorAll('h1,h2,h3,h4,h5')].map(n => Number(n.tagName[1])) })"""))
    assert len(facts["ids"]) == len(set(facts["ids"]))
    assert (facts["unnamed"], facts["lost"], facts["heads"]) == (0, 0, 0)
    assert all(b - a <= 1 for a, b in zip(facts["levels"], facts["levels"][1:], strict=False))
    skip = reader.open()
    skip.keyboard.press("Tab")
    assert skip.evaluate("document.activeElement.className") == "skip"
    outline = skip.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    skip.keyboard.press("Enter")
    assert outline == "solid" and skip.evaluate("document.activeElement.id") == "main"


def test_twenty_thousand_rows_stay_quick(reader, tmp_path):
    study, cells = reader.nano.found.study, reader.nano.found.study.cells
    many = pd.concat([cells.assign(seed=cells["seed"] + 5 * i) for i in range(10)],
                     ignore_index=True)[:20_000]
    html = write_page(StudyContext(replace(study, cells=many), METRICS["eval_accuracy"]), [], [],
                      reader.nano.details)
    tab = reader.open("", saved(tmp_path, html))
    took = tab.evaluate("""() => { const start = performance.now(); const box = document.getElementById('f-q');
        const type = words => { box.value = words; box.dispatchEvent(new Event('input', {bubbles: true})); };
        ['lora', 'lora 50', ''].forEach(type);
        document.querySelector('[data-sort=eval_accuracy]').click();
        document.body.offsetHeight;
        return performance.now() - start; }""")
    assert tab.inner_text("#shown") == "20,000 of 20,000 rows" and took < 2000
