"""Tables against the same numbers worked out by hand from the records, and what a reader sees of a hole."""

import functools
import io
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pandas as pd
import pytest

from portability.analysis.context import gather
from portability.analysis.tables.captions import Table
from portability.analysis.tables.registry import TABLES
from portability.analysis.tables.registry import build as build_tables
from portability.analysis.tables.render import FORMS, csv, escape, grid, latex, markdown
from support.pairs import representatives
from support.synthetic import FACTS, Axes, Synthetic, accuracy, build

# tables that only some studies have
OF_SOME = ("primary", "iterates", "rates", "predictors", "equal_compute", "changed_hosts", "left_out",
           "port_choice")
ALWAYS = [name for name in TABLES if name not in OF_SOME]


def tables(study: Synthetic, metric: str = "eval_accuracy") -> dict[str, Table]:
    """All tables of the study, by name."""
    return {table.name: table for table in build_tables(gather(study.store, metric))}


def made(study: Synthetic, name: str, metric: str = "eval_accuracy") -> Table:
    """One table of the study."""
    return build_tables(gather(study.store, metric), [name])[0]


def entry(frame: pd.DataFrame, **keys: object) -> pd.Series:
    """The one row with these keys."""
    for key, value in keys.items():
        frame = frame[frame[key] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """By metric, a study that lacks nothing, loaded once."""
    store = build(tmp_path_factory.mktemp("whole") / "toy").store
    return functools.cache(lambda metric: gather(store, metric))


@pytest.fixture(scope="module")
def lacking(tmp_path_factory):
    """A study that lacks a run, loaded once."""
    study = build(tmp_path_factory.mktemp("lacking") / "toy")
    study.remove(study.pick(init="ported")[0].run_id)
    return gather(study.store, "eval_accuracy")


@pytest.mark.parametrize("name", ALWAYS)
@pytest.mark.parametrize("metric", representatives(["eval_accuracy", "eval_loss"], "eval_accuracy"))
def test_every_table_of_a_whole_study_is_whole(whole, name, metric):
    (table,) = build_tables(whole(metric), [name])
    assert len(table.frame) and "†" not in markdown(table)
    if table.column is not None:
        assert (table.frame["n"] == table.frame["expected"]).all() and set(table.frame["status"]) == {
            "complete"}


@pytest.mark.parametrize("init", ["ported", "scratch"])
def test_init_by_method_is_the_mean_over_cells_at_the_largest_budget_and_its_spread_over_runs(study, init):
    row = entry(made(study, "init_by_method").frame, method="prefix", init=init, quantity="eval_accuracy")
    cells = study.pick(method="prefix", init=init, budget=500)
    numbers = list({cell.run_id: study.accuracy(cell) for cell in cells}.values())
    assert row["runs"] == len(numbers) == {"ported": 18, "scratch": 6}[init]
    assert row["mean"] == pytest.approx(mean(study.accuracy(cell) for cell in cells))
    assert row["std"] == pytest.approx(stdev(numbers))


def test_the_matrix_keeps_direction_and_has_native_on_its_diagonal(study):
    frame = made(study, "origin_by_receiving").frame
    keys = {"method": "lora", "relation": "same", "quantity": "eval_accuracy"}
    for origin, receiving in study.axes.pairs:
        pair = {"origin": origin, "receiving": receiving}
        cells = study.pick(method="lora", relation="same", init="ported", budget=500, **pair)
        row = entry(frame, **keys, **pair)
        assert row["mean"] == pytest.approx(mean(study.accuracy(cell) for cell in cells))
    native = {cell.native_id for cell in study.pick(method="lora", receiving="large")}
    row = entry(frame, **keys, origin="large", receiving="large")
    assert row["mean"] == pytest.approx(mean(accuracy(run_id, 900) for run_id in native)) and row["runs"] == 3
    # not asked for, hence no row
    assert frame[(frame["origin"] == "large") & (frame["receiving"] == "tuned")].empty


def test_zero_shot_shows_the_bare_host_and_the_lift_over_it(study):
    frame = made(study, "zero_shot").frame
    cells = study.pick(method="lora", receiving="base", init="ported", budget=0)
    bare = accuracy(cells[0].bare_id, 0)
    lifts = [100 * (study.accuracy(cell) - bare) for cell in cells]
    row = entry(frame, method="lora", receiving="base", init="ported", quantity="lift over bare")
    assert row["mean"] == pytest.approx(mean(lifts)) and row["std"] == pytest.approx(stdev(lifts))
    assert row["unit"] == "pp"
    assert entry(frame, method="lora", receiving="base", init="bare")["mean"] == pytest.approx(bare)


def test_every_budget_and_relation_has_its_own_number(study):
    point = {"method": "lora", "init": "sampled", "budget": 100}
    row = entry(made(study, "init_by_budget").frame, quantity="eval_accuracy", **point)
    assert row["mean"] == pytest.approx(mean(study.accuracy(cell) for cell in study.pick(**point)))
    point = {"method": "lora", "init": "sampled", "relation": "different"}
    row = entry(made(study, "by_relation").frame, quantity="eval_accuracy", **point)
    cells = study.pick(budget=500, **point)
    assert row["mean"] == pytest.approx(mean(study.accuracy(cell)
                                             for cell in cells)) and row["origin_data"] == "rt"


@pytest.mark.system
def test_failed_and_missing_points_are_shown_and_never_dropped(study):
    for cell in study.pick(method="lora", origin="base", receiving="large", relation="same", init="ported",
                           budget=0):
        study.remove(cell.run_id)
        study.store.fail(cell.run_id, {"error": "boom"})
    for cell in study.pick(method="prefix", origin="base", relation="same", init="ported", budget=0):
        study.remove(cell.run_id)
    found = tables(study)
    text = markdown(found["origin_by_receiving"])
    assert "failed† (0/3, 0)" in text and "missing† (0/3, 0)" in text
    assert "† computed from fewer cells" in found["origin_by_receiving"].caption
    matrix = found["origin_by_receiving"].frame
    row = entry(matrix, method="lora", relation="same", origin="base", receiving="large",
                quantity="eval_accuracy")
    assert pd.isna(row["mean"]) and row["status"] == "failed"
    row = entry(found["completeness"].frame, method="lora", origin="base", receiving="large", relation="same",
                init="ported", budget=500)
    assert row[["expected", "done", "failed", "missing"]].tolist() == [3, 0, 3, 0] and "boom" in row["errors"]
    assert "boom" in markdown(found["completeness"])


def test_a_number_from_an_incomplete_cell_carries_the_mark_in_every_form(study):
    study.remove(study.pick(method="lora", init="ported")[0].run_id)
    table = made(study, "init_by_method")
    assert "† (17/18, 17)" in markdown(table)
    assert "$^{\\dagger}$ (17/18, 17)" in latex(table)
    row = entry(pd.read_csv(io.StringIO(csv(table))), method="lora", init="ported", quantity="eval_accuracy")
    assert row["status"] == "incomplete" and row["n"] == 17


def test_one_run_prints_no_spread(tmp_path: Path):
    one = build(tmp_path / "one", Axes(methods=("lora",), pairs=(("base", "large"),), relations=("same",),
                                       seeds=(0,)))
    rows = grid(made(one, "init_by_method")).rows
    assert rows and not any("±" in field.text for row in rows for field in row)
    assert rows[0][-1].text.endswith(" (1/1, 1)")


@pytest.mark.parametrize("name", ALWAYS)
def test_csv_read_again_gives_the_same_numbers(lacking, name):
    (table,) = build_tables(lacking, [name])
    numeric = table.frame.select_dtypes("number").columns
    again = pd.read_csv(io.StringIO(csv(table)), keep_default_na=False, na_values=dict.fromkeys(numeric, ""))
    pd.testing.assert_frame_equal(again[numeric], table.frame[numeric], check_exact=True, check_dtype=False)
    if table.column is not None:
        assert {"mean", "std", "n", "runs", "expected", "status"} <= set(again.columns)


def test_latex_escapes_and_uses_booktabs(tmp_path: Path):
    axes = Axes(methods=("lo_ra & 50%",), pairs=(("raw_base", "raw_large"),))
    text = latex(made(build(tmp_path / "tex", axes), "init_by_method"))
    assert "lo\\_ra \\& 50\\%" in text and "lo_ra" not in text
    assert all(rule in text for rule in ("\\toprule", "\\midrule", "\\bottomrule"))
    assert escape("a\\b{c}#$~^<>") == (
        "a\\textbackslash{}b\\{c\\}\\#\\$\\textasciitilde{}\\textasciicircum{}\\textless{}\\textgreater{}")


@pytest.mark.parametrize(("metric", "best"), [("eval_accuracy", max), ("eval_loss", min)])
def test_the_best_is_bold_and_the_second_underlined(study, metric, best):
    table = made(study, "init_by_method", metric)
    frame = table.frame[(table.frame["quantity"] == metric) & (table.frame["method"] == "lora")]
    winner = frame[frame["mean"] == best(frame["mean"])]["init"].item()
    view = grid(table)
    column = view.header.index("lora")
    bold = [row[1].text for row in view.rows if row[column].style == "best"]
    assert bold == [winner]
    assert sum(row[column].style == "second" for row in view.rows) == 1
    assert "\\textbf{" in latex(table) and "\\underline{" in latex(table) and "**" in markdown(table)


def test_an_incomplete_entry_never_wins(study):
    table = made(study, "init_by_method")
    winner = next(row[1].text for row in grid(table).rows if row[2].style == "best")
    method = grid(table).header[2]
    for cell in study.pick(method=method, init=winner)[:1]:
        study.remove(cell.run_id)
    after = next(row[1].text for row in grid(made(study, "init_by_method")).rows if row[2].style == "best")
    assert after != winner


@pytest.mark.system
def test_captions_name_replicates_leak_guard_and_kept_overlap(study):
    caption = made(study, "init_by_method").caption
    assert "origin (up to 3)" in caption and "seed (up to 3)" in caption
    assert "rt 2,495 train, 500 eval, 5,644 dropped" in caption and "overlap" not in caption
    study.store.expect(study.cells[:1], {**FACTS, "overlap": "keep"})
    assert all("overlap: keep" in table.caption for table in tables(study).values())


def test_ports_are_told_apart_and_never_pooled(study):
    extra = [replace(cell, port="repeat", run_id=cell.run_id[::-1]) for cell in study.cells
             if cell.init == "ported"]
    study.store.expect(extra, FACTS)
    frame = made(study, "init_by_method").frame
    rows = frame[(frame["init"] == "ported") & (frame["quantity"] == "eval_accuracy")]
    assert set(rows["port"]) == {"pad", "repeat"} and set(rows[rows["port"]
                                                               == "pad"]["status"]) == {"complete"}


@pytest.mark.parametrize("form", FORMS)
def test_a_study_of_bare_cells_alone_makes_empty_tables(tmp_path: Path, form):
    axes = Axes(relations=("same",), seeds=(0,), budgets=(0,), inits=("bare",))
    found = tables(build(tmp_path / "bare", axes))
    assert all(FORMS[form](table) for table in found.values())


def test_the_order_of_commands_moves_no_number(study):
    before = made(study, "init_by_method").frame
    study.store.expect(study.cells[::-1], {**FACTS, "sweep": "backwards"})
    after = made(study, "init_by_method").frame
    keys = ["method", "quantity", "init"]
    left, right = (frame.sort_values(keys, ignore_index=True) for frame in (before, after))
    pd.testing.assert_frame_equal(left, right)
