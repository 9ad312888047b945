"""The verdict is made of declared contrasts alone; what was not declared is said to be exploratory; what
limits it is said."""

import io
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from portability.analysis.context import StudyContext, gather
from portability.analysis.figures import charts
from portability.analysis.measures.primary_contrasts import iterates, primary
from portability.analysis.measures.special_studies import has_rates, rates
from portability.analysis.report.findings import (
    NOTHING,
    caveats,
    declared_sentences,
    headline_numbers,
    numbers,
    sections,
    verdict_words,
)
from portability.analysis.report.markdown import counts
from portability.analysis.tables.captions import turns
from portability.analysis.tables.registry import build as build_tables
from portability.analysis.tables.render import grid
from portability.analyze import WIDE, say
from portability.core.contrasts import Contrast
from portability.store import Store
from support.synthetic import FACTS, Axes, Synthetic, build
from support.written import change, entry, rewrite

pytestmark = pytest.mark.system  # whole studies are analysed

SIX = Axes(("lora",), (("base", "large"),), ("same",), seeds=tuple(range(6)))
LATE, EARLY = (Contrast(f"{name} scratch", "ported", "scratch", budget)
               for name, budget in (("late", 500), ("early", 100)))
SAMPLED = Contrast("late sampled", "ported", "sampled", 500)


def told(root: Path, gains: dict[str, float], declared: tuple[Contrast, ...] = (),
         spread: float = 0.01) -> Synthetic:
    """A study whose runs are so far above scratch at every budget, the same in the last iterate unless a test
    says other."""
    study = build(root, SIX, FACTS | {"primary": [asdict(one) for one in declared]})
    random = np.random.default_rng(0)
    curves = {name: (0.6 + gain + random.normal(0, spread, (6, 3))).tolist() for name, gain in gains.items()}
    rewrite(study, scratch=[[0.6] * 3] * 6, **curves)
    return study


def last(study: Synthetic, init: str, change_by: float) -> None:
    """Give every run a last iterate: that of an init so far from what its marks evaluate, with a spread of
    its own."""
    for cell in study.pick(budget=0):
        path = study.path(cell.run_id)
        record = json.loads(path.read_text())
        for mark in record["train_info"]["metrics"]:
            own = change_by + 0.02 * (cell.seed % 3 - 1) if cell.init == init else 0.0
            mark["last_accuracy"] = mark["eval_accuracy"] + own
        path.write_text(json.dumps(record))


def test_the_verdict_counts_what_is_ahead_behind_and_open_and_names_each_with_its_size(tmp_path):
    found = gather(told(tmp_path / "s", {"ported": 0.1, "sampled": 0.2}, (LATE, SAMPLED, EARLY)).store)
    rows = primary(found)
    size = {row["name"]: f"{row['mean']:+.1f} pp".replace("-", "−") for _, row in rows.iterrows()}
    assert verdict_words(found) == (
        f"Of 3 contrasts declared before the runs, 2 are ahead (late scratch {size['late scratch']}, early "
        f"scratch {size['early scratch']}), 1 is behind (late sampled {size['late sampled']}).")
    # in the order of the sweep
    assert [row.name for row in headline_numbers(found)] == ["late scratch", "late sampled", "early scratch"]
    assert not any("exploratory" in line for line in caveats(found))


def test_what_tests_leave_open_is_said_to_be_open(tmp_path):
    found = gather(told(tmp_path / "s", {"ported": 0.0, "sampled": 0.0}, (LATE,)).store)
    assert verdict_words(found).startswith("Of 1 contrast declared before the runs, 1 is left open (late "
                                           "scratch ")


def test_of_many_that_are_left_open_only_the_number_is_said(tmp_path):
    still = [replace(LATE, name=f"still {i}", baseline="sampled") for i in range(4)]
    found = gather(told(tmp_path / "s", {"ported": 0.1, "sampled": 0.1}, (*still, LATE)).store)
    assert verdict_words(found).endswith(" pp), 4 are left open.") and "still" not in verdict_words(found)
    # whatever came of them
    assert [row.name for row in headline_numbers(found)] == ["still 0", "still 1", "still 2"]


def test_without_a_declared_contrast_the_headline_is_exploratory_and_says_so(tmp_path):
    found = gather(told(tmp_path / "s", {"ported": 0.1, "sampled": 0.05}).store)
    words, level = verdict_words(found), found.levels["all"].set_index(["baseline", "budget"])["mean"]
    assert words.startswith("No contrast was declared before the runs, so nothing is decided; exploratory, "
                            "over everything: ")
    for baseline, budget in (("scratch", 100), ("scratch", 500), ("sampled", 500)):
        assert f"ported − {baseline} after {budget} updates {level[baseline, budget]:+.1f} pp [" in words
    assert len(headline_numbers(found)) == 3 and len(numbers(found)) == 4
    assert not [part for part in sections(found) if part.short == "Declared"]


def test_what_the_grid_leaves_out_is_said_wherever_it_is_compared(tmp_path):
    axes = replace(SIX, exclude=({"init": "scratch", "budget": 500},))
    shown = gather(build(tmp_path / "shown", axes).store)
    sizes = {row.name: row.size for row in numbers(shown)}
    assert sizes["ported − scratch after 500 updates"] == "left out by the grid"
    assert sizes["ported − scratch after 100 updates"].endswith(" pp")
    assert "ported − scratch after 500 updates left out by the grid" in verdict_words(shown)
    (table,) = build_tables(shown, ["comparisons"])
    late = entry(table.frame, level="all", baseline="scratch", budget=500)
    assert late[["expected", "n", "failed", "missing", "unpaired"]].tolist() == [6, 0, 0, 6, 6]
    assert "(failed behind 0, left out by the grid behind 5, other reasons behind 0)" in table.caption
    words = [shown.text for row in grid(table).rows for shown in row]
    assert words.count("left out by the grid†") == 2  # over all, and of the method

    study = build(tmp_path / "declared", axes, FACTS | {"primary": [asdict(one) for one in (LATE, SAMPLED)]})
    found = gather(study.store)
    assert verdict_words(found).startswith("Of 2 contrasts declared before the runs, ")
    assert "late scratch left out by the grid" in verdict_words(found)
    assert ("Ported against scratch after 500 updates: no test (6 of 6 seeds lack cells and are left out; 0 "
            "of 6 pairs are done, 6 are left out by the grid)." in declared_sentences(found))
    panel = charts.contrasts(found)[0].panels[0]
    assert "left out by the grid" in panel.svg
    for cell in study.pick(init="sampled", budget=0):
        study.remove(cell.run_id)
    sizes = {row.name: row.size for row in numbers(gather(study.store))}
    assert sizes == {"late scratch": "left out by the grid", "late sampled": "no whole seed"}


def test_a_study_without_two_starts_says_so(tmp_path):
    found = gather(build(tmp_path / "s", replace(SIX, inits=("scratch",))).store)
    assert verdict_words(found) == NOTHING and headline_numbers(found) == []


def test_a_verdict_that_turns_with_the_iterate_is_named(tmp_path):
    study = told(tmp_path / "s", {"ported": 0.1, "sampled": 0.0}, (LATE, EARLY))
    last(study, "ported", 0.0)
    assert turns(gather(study.store)) == ["Under the last iterate alone all 2 verdicts are the same."]
    last(study, "ported", -0.2)
    found = gather(study.store)
    assert declared_sentences(found)[
        0] == "Under the last iterate alone 2 of 2 verdicts turn: late scratch, early scratch."
    frame = iterates(found)
    assert frame["verdict"].tolist() == ["ahead"] * 2 and frame["last_verdict"].tolist() == ["behind"] * 2
    marks = [{mark["updates"]: mark
              for mark in json.loads(study.path(cell.run_id).read_text())["train_info"]["metrics"]}[500]
             for init in ("ported", "scratch") for cell in study.pick(init=init, budget=0)]
    values = np.array([100 * mark["last_accuracy"] for mark in marks]).reshape(2, 6)
    assert entry(frame, name="late scratch")["last_mean"] == pytest.approx((values[0] - values[1]).mean())
    shown = grid(build_tables(found, ["iterates"])[0])
    assert [row[-1].text for row in shown.rows] == ["turns", "turns"]


@pytest.mark.parametrize("alike", [False, True], ids=["without one", "the same"])
def test_records_without_another_last_iterate_have_no_such_table(tmp_path, alike):
    study = told(tmp_path / "s", {"ported": 0.1, "sampled": 0.0}, (LATE,))
    if alike:
        last(study, "none of them", 0.0)
    found = gather(study.store)
    assert [table.name for part in sections(found) for table in part.tables
            if part.short == "Declared"] == ["primary"]


def test_starts_that_no_scale_matches_are_counted_and_how_near_they_come(tmp_path):
    study = told(tmp_path / "s", {"ported": 0.1, "sampled": 0.2}, (LATE,))
    for cell, effect in zip(study.pick(init="sampled", budget=0), (1.0, 0.995, 0.8, 1.3, 1.01, 1.0),
                            strict=True):
        change(study, cell.run_id, {}, port_info={"effect_fraction": effect})
    assert ("2 starts that should move the logits as much as a port cannot at any scale; the nearest gives "
            "80 to 130 % of it."
            in caveats(gather(study.store)))


def test_cells_are_counted_by_kind_with_what_became_of_them(tmp_path):
    study = build(tmp_path / "s", SIX)
    study.remove(study.pick(init="ported", seed=3)[0].run_id)
    found = counts(gather(study.store).study)
    assert found == [
        ("cells of the grid", 36, "34 done, 2 missing"), ("before any update", 18, "17 done, 1 missing")]
    text = " ".join(caveats(gather(study.store)))
    assert "51 of 54 cells are done (3 missing)" in text and "over seeds only" in text


def test_the_terminal_has_the_same_numbers_in_a_hundred_columns_and_no_escapes_when_piped(tmp_path):
    found = gather(told(tmp_path / "s", {"ported": 0.1, "sampled": 0.2}, (LATE, SAMPLED)).store)
    out = io.StringIO()
    say(found, Console(file=out, width=WIDE, highlight=False))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 100 and "\x1b" not in text
    for row in numbers(found):
        line = next(line for line in text.splitlines() if line.strip().startswith(row.name))
        assert row.size in line and row.between.strip("[]") in line and line.rstrip().endswith(row.verdict)


# ---- learning rates


def rated(root: Path, best: dict[str, float]) -> StudyContext:
    """A study of three rates of one method, in which each start is best at one of them."""
    known = {"lora_0.333": ["lora", 1 / 3], "lora": ["lora", 1], "lora_3": ["lora", 3]}
    axes = Axes(tuple(known), (("base", "large"),), ("same",), seeds=(0, 1), budgets=(0, 100))
    study = build(root, axes, FACTS | {"rates": known})
    for cell in study.pick(budget=0):
        factor = known[cell.method][1]
        height = {"ported": 0.8, "sampled": 0.7, "scratch": 0.6}[cell.init]
        height -= 0.05 * abs(np.log(factor / best[cell.init]))
        change(study, cell.run_id, {100: height + 0.01 * cell.seed})
    return gather(study.store)


def test_every_start_stands_at_its_own_best_rate_beside_the_common_one_and_an_edge_is_named(tmp_path):
    found = rated(tmp_path / "s", {"ported": 1, "sampled": 1, "scratch": 3})
    frame = rates(found)
    row = entry(frame, init="scratch")
    off = 0.05 * np.log(3)
    assert row[["method", "factor", "edge"]].tolist() == ["lora", 3, True]
    assert row[["common", "best", "gain_common", "gain_best"]].tolist() == pytest.approx(
        [0.605 - off, 0.605, 20 + 100 * off, 20])
    assert entry(frame, init="ported")[["factor", "edge"]].tolist() == [1, False]
    table = build_tables(found, ["rates"])[0]
    assert "may lie beyond: scratch of lora." in table.notes
    shown = {row[2].text: [entry.text for entry in row] for row in grid(table).rows}
    assert "×3, at the edge" in shown["scratch"] and "×1" in shown["ported"]
    assert "Would other learning rates change the comparison?" in [part.title for part in sections(found)]


def test_a_rate_at_which_runs_are_missing_is_not_the_best(tmp_path):
    found = rated(tmp_path / "s", {"ported": 3, "sampled": 3, "scratch": 3})
    cells = found.study.cells
    worst = cells[(cells["method"] == "lora_3") & (cells["init"] == "ported") & (cells["seed"] == 0)].iloc[0]
    study = Store(tmp_path / "s")
    shutil.rmtree(study.folder(worst["run_id"]))
    frame = rates(gather(study))
    row = entry(frame, init="ported", budget=100)
    assert row["factor"] == 1 and np.isnan(row["x3.0"]) and entry(frame, init="sampled",
                                                                  budget=100)["factor"] == 3
    assert "some of these cells are not done" in build_tables(gather(study), ["rates"])[0].notes


def test_names_of_contrasts_are_printed_as_they_stand(tmp_path):
    found = gather(told(tmp_path / "s", {"ported": 0.1, "sampled": 0.2},
                        (replace(LATE, name="late [early] [/b] one"),)).store)
    out = io.StringIO()
    say(found, Console(file=out, width=WIDE))
    assert "late [early] [/b] one" in out.getvalue()


def test_the_best_loss_is_the_lowest(tmp_path):
    rated(tmp_path / "s", {"ported": 1, "sampled": 1, "scratch": 3})
    found = gather(Store(tmp_path / "s"), "eval_loss")
    assert entry(rates(found), init="scratch")["factor"] == 3 and entry(rates(found),
                                                                        init="sampled")["gain_best"] < 0


def test_a_study_of_one_rate_has_no_such_table(tmp_path):
    assert not has_rates(gather(build(tmp_path / "s", SIX, FACTS | {"rates": {"lora": ["lora", 1]}}).store))
    assert not has_rates(gather(build(tmp_path / "old", SIX).store))
