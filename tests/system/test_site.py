"""The site is built without a warning, and its pages load nothing from elsewhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\s(?:src|data)=["']?([^"'\s>]+)"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|icon|preconnect|preload|prefetch))[^>]*?"""
    r"""\shref=["']?([^"'\s>]+)|(?:url\(|@import\s+)["']?([^"')\s]+)"""
)


def loaded(text: str) -> set[str]:
    """The addresses that a page or a style sheet loads by itself."""
    return {address for found in LOADED.findall(text) for address in found if address}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_pages_load_nothing_from_elsewhere(site):
    """Reports have a test of their own; scripts fetch a library for diagrams, of which there are none."""
    pages = [path for path in site.rglob("*.html") if "report" not in path.parts]
    assert len(pages) > 150
    for path in [*pages, *site.rglob("*.css")]:
        text = path.read_text()
        outside = {one for one in loaded(text) if re.match(r"(https?:)?//", one)}
        assert outside == set(), path
        assert 'class="mermaid"' not in text
        missing = {
            one
            for one in loaded(text)
            if not re.match(r"data:|#", one)
            and not (path.parent / one.partition("?")[0].partition("#")[0]).exists()
        }
        assert missing == set() or path.name == "404.html", path  # its addresses begin at a server


def test_what_is_loaded_is_seen():
    page = (
        '<link href="https://a/b.css" rel="stylesheet"><script async src=//c/d.js></script><a href="https://e">'
        '<style>p {background: url(https://f/g.png)}</style><img alt="x" src="h.png"><link rel=next href=i>'
    )
    assert loaded(page) == {"https://a/b.css", "//c/d.js", "https://f/g.png", "h.png"}


def test_search_works_in_files(site):
    """The index is a script, which a page that is no server's may load, and the worker is one of our own."""
    index = (site / "search/search_index.js").read_text()
    assert index.startswith("var __index = {") and '"concepts.html' in index
    assert '"project/conf/config.yaml.html' not in index  # a file that is shown is not found before pages
    assert "site/iframe-worker.js" in (site / "index.html").read_text()


def test_notebooks_and_files_of_the_project_are_pages(site):
    assert "on its own host" in (site / "notebooks/port_my_lora.html").read_text()
    assert "what all engines share" in (site / "project/conf/config.yaml.html").read_text()
    assert (site / "project/results/nano_full/report/index.html").is_file()
    assert "fit somebody" in (site / "reference/commands.html").read_text()
    assert "port_adapter" in (site / "reference/python.html").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path")
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_a_page_that_is_opened_as_a_file_is_read_and_searched(site, width):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    asked, wrong = [], []
    with api.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 800})
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.goto((site / "concepts.html").as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        if width < 1000:
            tab.click("label[for=__search]:visible")
        tab.locator("input.md-search__input").press_sequentially("procrustes")
        tab.wait_for_selector(".md-search-result__item")
        browser.close()
    assert wrong == [] and [url for url in asked if not re.match("file:|data:|blob:", url)] == []
