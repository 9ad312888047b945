"""Documents: README is short, links lead somewhere, every decision has its four headings and its row in the
index."""

import re
import subprocess
from pathlib import Path

import pytest

from portability import __version__

ROOT = Path(__file__).parents[1]
DECISIONS = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
GENERATED = ("report.md", "tables/")  # written by portability.analyze
FENCE = re.compile(r"^```.*?^```", re.M | re.S)


def documents() -> list[Path]:
    """Every Markdown file of the checkout that a person wrote."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard",
                             "*.md"],
                            capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in listed if not any(part in name for part in GENERATED)
            and (ROOT / name).exists()]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_readme_fits_two_screens():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130 and len(text.split()) <= 900
    assert len(re.findall(r"!\[", text)) == 1


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(path):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", path.read_text())):
        name, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        there = (path.parent / name).resolve() if name else path
        if not there.exists() or anchor and anchor not in anchors(there):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_has_its_number_and_four_headings_with_text(path):
    title, *parts = re.split(r"^## ", path.read_text(), flags=re.M)
    number = int(path.name[:4])
    assert re.fullmatch(rf"# D-{number:02d}: .+", title.strip())
    assert [part.split("\n")[0] for part in parts] == ["Status", "Context", "Decision", "Consequence"]
    assert all(part.partition("\n")[2].strip() for part in parts)
    assert re.match(r"Status\n\n(Accepted|Superseded by|Negative result)", parts[0])


def test_the_index_lists_every_decision_with_its_title():
    rows = re.findall(r"^\| \[D-(\d+)\]\(([^)]+)\) \| (.*?) \|",
                      (ROOT / "docs/decisions/README.md").read_text(), re.M)
    titles = [re.match(r"# D-(\d+): (.+)", path.read_text()).groups() for path in DECISIONS]
    assert rows == [(number, path.name, title) for path, (number, title) in zip(DECISIONS, titles,
                                                                                strict=True)]
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1))


def test_one_version_stands_in_package_citation_and_changelog():
    heads = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    released = [head for head in heads if head != "Unreleased"]
    assert heads[-len(released) :] == released  # what is not released stands on top
    found = [re.fullmatch(r"(\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)", head) for head in released]
    assert all(found), released
    numbers = [tuple(map(int, version[1].split("."))) for version in found]
    dates = [version[2] for version in found]
    assert numbers == sorted({*numbers}, reverse=True) and dates == sorted(dates, reverse=True)
    assert found[0][1] == __version__
    cited = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {__version__}\ndate-released: {dates[0]}\n" in cited


def test_code_names_only_decisions_that_exist():
    known = {int(path.name[:4]) for path in DECISIONS}
    sources = [path for folder in ("portability", "analysis", "conf", "sweeps", "tests")
               for ending in ("*.py", "*.yaml")
               for path in (ROOT / folder).rglob(ending)]
    named = {int(number) for path in sources for number in re.findall(r"\bD-(\d+)\b", path.read_text())}
    assert named and named <= known
