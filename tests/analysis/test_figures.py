"""Figures read back: what is drawn is what the frames hold, what is missing is hollow, crossed or said, never zero."""

import io
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes as Panel
from matplotlib.figure import Figure
from scenarios import STUDIES, evidence

from analysis.critical import critical_difference, ranks
from analysis.evidence import Evidence, gather
from analysis.figures import PLOTS_MORE, costs, front, pareto, profiles, similarity
from analysis.forest import forest
from analysis.inference import ties
from analysis.plots import PLOTS, learning_curves
from analysis.predictors import gain_and_similarity
from portability.store import Store

CASES = [*((kind, "eval_accuracy") for kind in STUDIES), ("holes", "eval_loss"), ("whole", "eval_positive_share")]


@pytest.fixture(scope="module")
def nano() -> Evidence:
    """A published study."""
    return gather(Store(Path(__file__).parents[2] / "results/nano_full"))


@pytest.fixture(scope="module")
def holes(tmp_path_factory) -> Evidence:
    """A study with failed and missing runs."""
    return evidence(STUDIES["holes"](tmp_path_factory.mktemp("holes")))


def svg(figure: Figure) -> bytes:
    """The file as the command writes it."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "portability"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def markers(panel: Panel) -> list[tuple[float, float, bool]]:
    """x, y and whether it is filled, of every point."""
    own = [line for line in panel.lines if line.get_linestyle() == "None" and line.get_marker() != "x"]
    return [(float(x), float(y), line.get_markerfacecolor() != "white") for line in own
            for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def words(figure: Figure) -> str:
    """All text of a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("kind", "metric"), CASES)
def test_every_study_is_drawn_or_has_no_figure_and_nothing_raises(tmp_path, kind, metric):
    found = evidence(STUDIES[kind](tmp_path / "s"), metric)
    for plot in (PLOTS | PLOTS_MORE).values():
        for name, figure in plot(found).items():
            ElementTree.fromstring(svg(figure))
            assert figure.axes and " " not in name.replace(kind, "")
    if kind == "bare only":
        assert not any(plot(found) for plot in (PLOTS | PLOTS_MORE).values())


def test_the_same_study_gives_the_same_bytes(holes):
    for plot in PLOTS_MORE.values():
        first, again = plot(holes), plot(holes)
        assert list(first) == list(again)
        assert all(svg(first[name]) == svg(again[name]) for name in first)


# ---- forest


def test_a_forest_holds_every_level_at_the_largest_budget_with_its_intervals(nano):
    figure = forest(nano)["forest-scratch"]
    axes = figure.axes[0]
    levels = nano.levels
    top = {name: frame[(frame["budget"] == 200) & (frame["baseline"] == "scratch")] for name, frame in levels.items()}
    rows = pd.concat([top[name] for name in ("all", "pair", "method", "relation")], ignore_index=True)
    points = markers(axes)
    assert [x for x, _, _ in points] == pytest.approx(rows["mean"].tolist()) and all(filled for _, _, filled in points)
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]]
    np.testing.assert_allclose([line.get_xdata() for line in lines], rows[["low", "high"]])
    bands = sorted(patch.get_width() / 2 for patch in axes.patches)
    assert bands == pytest.approx(sorted(rows["mdd"]))
    text = " ".join(words(figure).split())
    assert "+9.6 [−0.3, +19.5] (40/40, 5)" in text and "new test examples" in text and "four times in five" in text


def test_directions_have_a_panel_a_method_and_a_foot_that_says_what_five_seeds_can_show(nano):
    figure = forest(nano)["forest_directions-sampled"]
    rows = nano.levels["direction"].query("budget == 200 and baseline == 'sampled'")
    for axes in figure.axes:
        own = rows[rows["method"] == axes.get_title()]
        assert [x for x, _, _ in markers(axes)] == pytest.approx(own["mean"].tolist())
    text = " ".join(words(figure).split())
    assert "5 seeds behind a point." in text


def test_what_failed_is_crossed_what_lacks_is_hollow_and_no_interval_is_said(holes):
    figure = forest(holes)["forest_directions-scratch"]
    lora, prefix = (next(axes for axes in figure.axes if axes.get_title() == name) for name in ("lora", "prefix"))
    crosses = [line for line in lora.lines if line.get_marker() == "x"]
    assert len(crosses) == 1 and len(markers(lora)) == 5 and "failed†" in {text.get_text() for text in lora.texts}
    hollow = [point for point in markers(prefix) if not point[2]]
    assert len(hollow) == 1 and "† no interval" in {text.get_text() for text in prefix.texts}
    pooled = forest(holes)["forest-scratch"]
    assert sum(not filled for _, _, filled in markers(pooled.axes[0])) == 3  # a direction, a method, a relation
    assert len([line for line in pooled.axes[0].lines if line.get_marker() == "x"]) == 4  # what no seed has all cells of
    assert "incomplete" in words(pooled)


def test_one_seed_has_points_without_bars(tmp_path):
    figures = forest(evidence(STUDIES["one of all"](tmp_path / "s")))
    assert "no interval (1/1, 1)" in words(figures["forest-scratch"])
    assert not [line for line in figures["forest-scratch"].axes[0].lines if len(set(line.get_xdata())) == 2]


# ---- critical differences


def test_ranks_are_means_over_whole_tasks(holes):
    cells = holes.largest[holes.largest["method"] == "lora"]
    means, used, tasks = ranks(cells, "init", 1)
    assert (used, tasks) == (5, 6)
    per_task = cells.groupby(["origin", "receiving", "relation", "init"])["value"].mean().unstack().dropna()
    assert means.to_dict() == pytest.approx(per_task.rank(axis=1, ascending=False).mean().to_dict())
    assert ranks(cells, "init", -1)[0].to_dict() == pytest.approx((4 - means).to_dict())


def test_bars_join_what_shares_a_letter(nano):
    figure = critical_difference(nano)["critical_difference_inits"]
    letters = ties(nano.largest, "init", ["method", "budget"])
    for axes in figure.axes:
        name = axes.get_title().split(":")[0]
        cells = nano.largest if name == "all methods" else nano.largest[nano.largest["method"] == name]
        means = ranks(cells, "init", 1)[0]
        assert sorted(x for x, _, _ in markers(axes)) == pytest.approx(sorted(means))
        if name != "all methods":
            own = letters[letters["method"] == name].set_index("init")["letters"]
            groups = [sorted(means[init] for init in own.index if letter in own[init]) for letter in sorted(set("".join(own)))]
            drawn = [sorted(line.get_xdata()) for line in axes.lines if line.get_gid() == "tie"]
            assert drawn == [pytest.approx(group) for group in groups if len(group) > 1]
    assert "it tests paired differences, not ranks" in " ".join(words(figure).split())


def test_ranks_of_what_is_not_whole_are_hollow_and_tasks_left_out_are_counted(holes):
    figure = critical_difference(holes)["critical_difference_inits"]
    lora = next(axes for axes in figure.axes if axes.get_title().startswith("lora"))
    assert lora.get_title() == "lora: 5 of 6 tasks" and sum(not filled for _, _, filled in markers(lora)) == 1
    assert "Tasks that lack one of the items are left out." in " ".join(words(figure).split())


def test_where_neither_end_is_better_nothing_is_ranked(study):
    found = evidence(study, "eval_positive_share")
    assert critical_difference(found) == {}
    assert not [line for axes in pareto(found)["cost"].axes for line in axes.lines if line.get_gid() == "front"]


# ---- similarity, cost and profiles


def test_points_of_similarity_are_the_gains_of_the_directions(holes):
    figures = similarity(holes)
    points = gain_and_similarity(holes)
    points = points[(points["budget"] == 500) & (points["baseline"] == "scratch") & points["gain"].notna()]
    known = points[points["cka"].notna()]
    assert 0 < len(known) < len(points)
    panel = figures["gain_and_similarity-scratch"].axes[0]
    drawn = sorted((x, y) for x, y, _ in markers(panel))
    assert drawn == [pytest.approx(pair) for pair in sorted(zip(known["cka"], known["gain"], strict=True))]
    assert sum(not filled for _, _, filled in markers(panel)) == (known["mark"] == "†").sum()
    assert panel.get_xlim()[0] < 0.8 < panel.get_xlim()[1] and panel.get_ylim()[0] <= known["low"].min()
    text = " ".join(words(figures["gain_and_similarity-scratch"]).split())
    assert f"{len(points) - len(known)} points without a recorded number" in text


def test_without_a_recorded_similarity_there_is_no_figure_of_it(nano):
    without = replace(nano, study=replace(nano.study, pairs=nano.study.pairs.iloc[:0]))
    assert set(similarity(without)) == {"gain_and_carried-sampled", "gain_and_carried-scratch"}
    runs = nano.study.runs.assign(carried=None, carried_norm=None)
    assert similarity(replace(without, study=replace(without.study, runs=runs))) == {}


def test_costs_are_means_over_distinct_runs_and_the_front_is_what_nothing_beats(nano):
    figure = pareto(nano)["cost"]
    facts = nano.study.runs.set_index("run_id")
    for axes, name in zip(figure.axes, ("mark", "seconds", "trainable"), strict=True):
        cells = nano.arms.merge(nano.study.runs[["run_id", "updates", "seconds", "trainable"]], on="run_id")
        points = costs(cells, name)
        assert len(points) == (48 if name == "mark" else 12)
        drawn = sorted((x, y) for x, y, _ in markers(axes))
        assert drawn == [pytest.approx(pair) for pair in sorted(zip(points["cost"], 100 * points["mean"], strict=True))]
        best = {
            (row.cost, row.mean) for row in points.itertuples()
            if not any((other.cost <= row.cost and other.mean >= row.mean and (other.cost, other.mean) != (row.cost, row.mean))
                       for other in points.itertuples())
        }
        assert set(front(points, 1)[["cost", "mean"]].itertuples(index=False, name=None)) == best
        line = next(line for line in axes.lines if line.get_gid() == "front")
        assert len(line.get_xdata()) == len(best)
    lora = set(nano.largest.query("method == 'lora' and init == 'scratch'")["run_id"])
    row = points[(points["method"] == "lora") & (points["init"] == "scratch")]
    assert len(lora) == 15 and row["cost"].item() == pytest.approx(facts.loc[list(lora), "trainable"].mean())


def test_an_incomplete_point_is_hollow_and_never_on_the_front(holes):
    cells = holes.arms.merge(holes.study.runs[["run_id", "updates", "seconds", "trainable"]], on="run_id", how="left")
    points = costs(cells, "mark")
    lacking = points[points["status"] != "complete"]
    assert len(lacking) and (front(points, 1)["status"] == "complete").all()
    assert sum(not filled for _, _, filled in markers(pareto(holes)["cost"].axes[0])) == len(lacking)


def test_profiles_are_shares_of_all_scores(nano, holes):
    figure = profiles(nano)["profiles"]
    assert [axes.get_title() for axes in figure.axes] == ["zero-shot", *(f"after {n} updates" for n in (50, 100, 200))]
    for line in figure.axes[-1].lines:
        values = nano.largest.loc[nano.largest["init"] == line.get_label(), "value"].to_numpy()
        expected = [(values > limit / 100 + 1e-12).mean() for limit in line.get_xdata()]
        np.testing.assert_allclose(line.get_ydata(), expected, atol=0.02)
    dashed = {line.get_label() for line in profiles(holes)["profiles"].axes[0].lines if line.get_linestyle() == "--"}
    assert dashed == {"ported", "sampled"}


def test_the_share_below_a_loss_grows(study):
    axes = profiles(evidence(study, "eval_loss"))["profiles"].axes[0]
    assert axes.get_ylabel() == "share of scores below" and all(np.diff(line.get_ydata()).min() >= 0 for line in axes.lines)


def test_curves_stay_inside_the_scale_of_a_share(nano):
    for figure in learning_curves(nano).values():
        low, high = figure.axes[0].get_ylim()
        assert low >= -2 and high <= 102
        assert "nothing done" in words(figure)


def test_a_study_of_many_directions_has_curves_over_all_origins(nano, monkeypatch):
    monkeypatch.setattr("analysis.plots.MOST", 10)
    figure = learning_curves(nano)["learning_curves-same"]
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 12 and all("all origins → nano-" in title for title in titles)
