"""Charts read back: what is drawn is what the frames hold; what is not whole is hollow, and what has no
number is not drawn."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from portability.analysis.context import StudyContext, gather
from portability.analysis.figures import charts
from portability.analysis.figures.svg import (
    BOTTOM,
    HIGH,
    SLOTS,
    TOP,
    Chart,
    Line,
    css_class,
    forest_panel,
    svg_file,
    ticks,
)
from portability.analysis.report.findings import QUESTIONS
from portability.store import Store
from support.scenarios import STUDIES, evidence
from support.synthetic import NANO, Axes, build

CASES = [*((kind, "eval_accuracy") for kind in STUDIES), ("holes", "eval_loss"),
         ("whole", "eval_positive_share")]
MAKERS = [charts.headline, *(make for question in QUESTIONS for make in question.charts)]
SPACE = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def nano() -> StudyContext:
    """A published study."""
    return gather(Store(NANO))


@pytest.fixture(scope="module")
def holes(tmp_path_factory) -> StudyContext:
    """A study with failed and missing runs."""
    return evidence(STUDIES["holes"](tmp_path_factory.mktemp("holes")))


def drawn(svg: str, kind: str) -> list[tuple[float, bool]]:
    """Height, as a share of the panel, of every marker of a start, and whether it is filled."""
    tree = ElementTree.fromstring(svg)
    dots = [dot for group in tree.findall("g") if group.get("class") == kind for dot in group
            if "dot" in dot.get("class")]
    heights = [float(re.findall(r"[\d.]+", dot.get("transform"))[1]) for dot in dots]
    return [((HIGH - BOTTOM - height) / (HIGH - TOP - BOTTOM), "hollow" not in dot.get("class"))
            for height, dot in zip(heights, dots, strict=True)]


@pytest.mark.system
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("kind", "metric"), CASES)
def test_every_study_is_drawn_or_has_no_chart_and_nothing_raises(tmp_path, kind, metric):
    found = evidence(STUDIES[kind](tmp_path / "s"), metric)
    charts = [chart for make in MAKERS for chart in make(found)]
    for chart in charts:
        for text in (svg_file(chart), *(panel.svg for panel in chart.panels)):
            assert "nan" not in re.sub('aria-label="[^"]*"', "", text)
            ElementTree.fromstring(text)
        assert chart.title.endswith(".") and " " not in chart.name
    assert len({chart.name for chart in charts}) == len(charts)
    assert bool(charts) == (kind not in ("bare only", "nothing"))


def test_the_head_shows_means_by_start_with_kinds_of_pairs_apart(nano):
    chart, = charts.headline(nano)
    assert [panel.title for panel in chart.panels] == ["Hosts of one lineage", "Hosts of other sizes"]
    sizes = {"nano-raw-base": 1, "nano-tuned-base": 1, "nano-raw-large": 2}
    cells = nano.arms.assign(same=nano.arms["origin"].map(sizes) == nano.arms["receiving"].map(sizes))
    for panel, same in zip(chart.panels, (True, False), strict=True):
        for name in ("ported", "sampled", "scratch"):
            means = 100 * cells[(cells["same"] == same) & (cells["init"]
                                                           == name)].groupby("budget")["value"].mean()
            shown = drawn(panel.svg, css_class(name))
            # from 40 to 100
            assert [40 + 60 * height for height, _ in shown] == pytest.approx(means.tolist(), abs=0.05)
            assert all(filled for _, filled in shown)
            assert f"{name} {means[0]:.1f} at 0, {means[50]:.1f} at 50" in panel.svg


def test_kinds_are_those_of_the_manifest(nano):
    assert set(nano.kinds.values()) == {"lineage", "size"}


def test_the_first_chart_shows_the_arm_and_its_first_baselines(tmp_path):
    inits = ("ported", "shuffled", "sampled", "sampled_norm", "scratch")
    found = evidence(build(tmp_path / "s", Axes(("lora",), inits=inits)))
    assert {name for chart in charts.headline(found) for name in chart.names} >= {"ported", "sampled",
                                                                                  "scratch"}
    assert not {name for chart in charts.headline(found) for name in chart.names} & {"shuffled",
                                                                                     "sampled_norm"}
    assert {name for chart in charts.by_method(found) for name in chart.names} >= set(inits)


def test_what_failed_is_not_drawn_and_what_lacks_is_hollow(holes):
    chart, other = charts.every_curve(holes)
    panel = next(panel for panel in chart.panels if panel.title == "lora: base → large")
    assert drawn(panel.svg, "s0") == [] and "ported no number" in panel.svg and len(drawn(panel.svg,
                                                                                          "s2")) == 3
    lacking = next(panel for panel in other.panels if panel.title == "prefix: tuned → large")
    assert [filled for _, filled in drawn(lacking.svg, "s0")] == [False] * 3
    assert all(filled for _, filled in drawn(lacking.svg, "s2"))


def test_differences_are_those_of_every_level_at_the_largest_budget(nano):
    chart, = charts.differences(nano)
    panel = next(panel for panel in chart.panels if panel.title == "ported − scratch")
    rows = [row for name in ("all", "pair", "method", "relation") for _, row in nano.levels[name].iterrows()
            if row["budget"] == 200 and row["baseline"] == "scratch"]
    assert panel.svg.count('class="dot"') == panel.svg.count('class="line"') == len(rows) == 1 + 4 + 4 + 8
    for row in rows:
        assert f"{row['mean']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]".replace("-", "−") in panel.svg


def test_a_bar_ends_where_its_interval_does():
    panel = forest_panel("one", [Line("a", 1.0, -2.0, 4.0, "+1.0")], "pp", (-10.0, 10.0))
    bar = re.search(r'class="line" d="M([\d.]+) [\d.]+H([\d.]+)"', panel.svg).groups()
    zero = float(re.search(r'class="zero" d="M([\d.]+)', panel.svg)[1])
    left, right = (float(end) - zero for end in bar)
    assert right == pytest.approx(-2 * left, abs=0.2)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-12.3, 45.6), (0.001, 0.0042), (7.0, 7.0),
                                           (-3e6, 2e7)])
def test_ticks_are_few_round_and_within(low, high):
    marks = ticks(low, high)
    assert 1 <= len(marks) <= 6 and all(low - 1e-9 <= mark <= high + 1e-9 for mark in marks)
    assert all(float(f"{mark:.2g}") == mark for mark in marks)


def test_names_are_escaped_and_long_ones_are_cut_but_told_in_full():
    name = "<b>&" + "x" * 100
    panel = forest_panel(name, [Line(name, 1.0, 0.5, 1.5, "words")], "pp", (0.0, 2.0))
    tree = ElementTree.fromstring(panel.svg)
    assert name in tree.get("aria-label") and all(len(text.text) <= 62 for text in tree.findall("text"))
    ElementTree.fromstring(svg_file(Chart("n", name, [panel], [name], "")))


def test_a_file_holds_its_own_colours_for_light_and_dark_and_no_fixed_width(nano):
    text = svg_file(charts.headline(nano)[0])
    tree = ElementTree.fromstring(text)
    assert tree.get("width") is None and tree.get("viewBox") and "prefers-color-scheme: dark" in tree.find(
        f"{SPACE}style").text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_every_start_of_the_configuration_has_a_colour_of_its_own_within_a_study():
    names = {path.stem for path in (Path(__file__).parents[2] / "conf" / "init").glob("*.yaml")} - {"bare",
                                                                                                    "native"}
    assert names <= set(SLOTS), names - set(SLOTS)
    ported = [name for name in names if "extract" not in name and name != "pissa"]
    extracted = [name for name in names if "extract" in name or name in ("pissa", "scratch")]
    for group in (ported, extracted):
        assert len({SLOTS[name] for name in group}) == len(group)


def test_the_same_study_gives_the_same_bytes(holes):
    first, again = ([svg_file(chart) for make in MAKERS for chart in make(holes)] for _ in range(2))
    assert first == again and first
