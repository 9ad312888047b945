"""Every cell has one row and one status, and everything wrong is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from portability.analysis.load import problems, read, tidy
from portability.analysis.tables.captions import protocol
from portability.analyze import main as analyze
from portability.core.errors import UserError
from portability.store import Store, records
from support.synthetic import FACTS, Axes, Synthetic, accuracy, build, record, write


def status(study: Synthetic, **coordinates: object) -> set[str]:
    """Distinct statuses of the cells with these coordinates."""
    cells = tidy(study.store)
    for key, value in coordinates.items():
        cells = cells[cells[key] == value]
    assert len(cells)
    return set(cells["status"])


def test_a_whole_study_has_one_done_row_per_cell_and_no_problem(study):
    cells = tidy(study.store)
    assert len(cells) == len(study.cells) == 2 * 3 * 2 * 3 * 3 * 3
    assert set(cells["status"]) == {"done"}
    assert problems(study.store) == []


def test_numbers_are_those_of_the_records(study):
    truth = {(c.run_id, c.mark): study.accuracy(c) for c in study.cells}
    for row in tidy(study.store).itertuples():
        assert row.value == row.eval_accuracy == truth[row.run_id, row.mark]
        assert row.native == accuracy(row.native_id, 900)  # at its largest mark, 500, not at 0
        assert row.bare == accuracy(row.bare_id, 0)
        if row.budget == 0:
            assert row.lift == pytest.approx(row.value - row.bare, abs=1e-12)
        else:
            assert row.lift != row.lift


def test_the_union_of_two_commands_counts_a_cell_once(study):
    study.store.expect(study.cells[:10], {**FACTS, "sweep": "again"})
    assert len(tidy(study.store)) == len(study.cells)


def test_a_run_that_never_ran_is_missing_with_no_number(study):
    cell = study.pick(init="ported")[0]
    study.remove(cell.run_id)
    cells = tidy(study.store)
    lost = cells[cells["run_id"] == cell.run_id]
    assert set(lost["status"]) == {"missing"} and len(lost) == 3
    assert lost[["eval_accuracy", "eval_loss", "value", "lift"]].isna().all(axis=None)
    assert [(p.kind, p.cells) for p in problems(study.store)] == [("missing", 3)]
    assert cell.run_id in str(problems(study.store)[0])


def test_a_failure_without_a_result_is_failed_and_gives_its_error(study):
    cell = study.pick(init="sampled")[0]
    study.remove(cell.run_id)
    study.store.fail(cell.run_id, {"error": "loss is not finite at update 7"})
    assert status(study, run_id=cell.run_id) == {"failed"}
    assert "loss is not finite at update 7" in str(problems(study.store)[0])


def test_a_failure_never_masks_a_result(study):
    cell = study.pick(init="sampled")[0]
    study.store.fail(cell.run_id, {"error": "first attempt"})
    assert status(study, run_id=cell.run_id) == {"done"}
    assert problems(study.store) == []


@pytest.mark.parametrize("text", ["{\"schema\": 1", "", "[]", "{\"schema\": 1, \"run_id\": \"0\"}"])
def test_a_record_that_cannot_be_read_counts_as_missing_and_is_named_broken(study, text):
    cell = study.pick(init="ported")[0]
    study.path(cell.run_id).write_text(text)
    assert status(study, run_id=cell.run_id) == {"missing"}
    assert {p.kind for p in problems(study.store)} == {"missing", "broken"}
    assert all(cell.run_id in str(p) for p in problems(study.store))


def test_a_record_without_success_is_not_used(study):
    cell = study.pick(init="ported")[0]
    value = record(cell.run_id, {0: 0.9, 100: 0.9, 500: 0.9})
    value["train_info"]["status"] = "cancelled"
    write(study.store, cell.run_id, value)
    assert status(study, run_id=cell.run_id) == {"missing"}
    assert "cancelled" in str(problems(study.store)[-1])


def test_a_run_not_evaluated_at_a_mark_is_missing_there_only(study):
    cell = study.pick(init="ported", budget=500)[0]
    write(study.store, cell.run_id, record(cell.run_id, {0: 0.6, 100: 0.7}))
    assert status(study, run_id=cell.run_id, budget=100) == {"done"}
    assert status(study, run_id=cell.run_id, budget=500) == {"missing"}
    assert "not evaluated at 500 updates" in str(problems(study.store)[0])


def test_equal_coordinates_with_another_run_are_a_duplicate_and_give_no_number(study, tmp_path):
    """The store refuses such a command itself; folders copied into one another can still bring it about."""
    cell = study.pick(init="ported")[0]
    other = study.pick(init="sampled")[0].run_id
    elsewhere = Store(tmp_path / "elsewhere")
    elsewhere.expect([replace(cell, run_id=other)], FACTS)
    for path in (elsewhere.root / "manifests").iterdir():
        shutil.copy(path, study.store.root / "manifests")
    cells = tidy(study.store)
    assert len(cells) == len(study.cells)
    double = cells[cells["status"] == "duplicate"]
    assert len(double) == 1 and double["value"].isna().all()
    (problem,) = problems(study.store)
    assert problem.kind == "duplicate" and cell.run_id in str(problem) and other in str(problem)


def test_commands_that_disagree_on_the_native_run_give_no_native_number(study):
    cell = study.pick(init="ported")[0]
    study.store.expect([replace(cell, native_id="f" * 16)], FACTS)
    row = tidy(study.store).query("native_status != 'done'")
    assert len(row) == 1 and row["native"].isna().all() and set(row["status"]) == {"done"}
    assert [p.kind for p in problems(study.store)] == ["duplicate"]


def test_a_record_of_another_schema_is_foreign_and_not_used(study):
    cell = study.pick(init="ported")[0]
    write(study.store, cell.run_id, record(cell.run_id, {0: 0.9, 100: 0.9, 500: 0.9}, schema=99))
    cells = tidy(study.store)
    assert set(cells[cells["run_id"] == cell.run_id]["status"]) == {"foreign"}
    assert cells[cells["run_id"] == cell.run_id]["value"].isna().all()
    assert "schema 99" in str(problems(study.store)[0])


@pytest.mark.parametrize(("count", "kept"), [(1, "4"), (-1, "5")])
def test_runs_of_two_majors_of_transformers_are_never_pooled(tmp_path, count, kept):
    """The few are left out, and the report says so once at its head."""
    study = build(tmp_path / "toy", Axes(("lora",), (("base", "large"),), seeds=(0, 1), budgets=(0, 100)))
    ids = sorted(study.runs)
    for run_id in ids[:count]:
        write(study.store, run_id, record(run_id, study.runs[run_id], transformers="5.24.0"))
    other = set(ids[:1] if count == 1 else ids[-1:])
    found = read(study.store)
    assert found.protocol.major == kept and set(found.runs["run_id"]) == set(ids) - other
    assert {problem.where.removeprefix("native ").removeprefix("bare ").split()[1]
            for problem in found.problems} == other
    assert all("made with transformers" in str(problem) for problem in found.problems)
    (said,) = protocol(found.protocol)
    assert f"Made with transformers {kept}; 1 run made with {9 - int(kept)} is left out" in said
    if count == 1:
        assert analyze([str(study.store.root), "--quiet"]) == 0
        assert said in (study.store.root / "report.md").read_text()


def test_a_missing_bare_run_leaves_no_lift_and_is_named(study):
    bare = study.pick(receiving="base")[0].bare_id
    study.remove(bare)
    cells = tidy(study.store)
    assert cells[cells["receiving"] == "base"][["bare", "lift"]].isna().all(axis=None)
    assert [p.where for p in problems(study.store)] == [f"bare run {bare}"]


def test_cells_without_a_native_have_no_native_number_and_are_no_problem(tmp_path: Path):
    study = build(tmp_path / "whole", Axes(seeds=(0,)))
    cells = [replace(cell, native_id="") if cell.receiving == "base" else cell for cell in study.cells]
    study.store.root.joinpath("manifests").rename(tmp_path / "aside")
    study.store.expect(cells, FACTS)
    found = tidy(study.store)
    assert found[found["receiving"] == "base"]["native"].isna().all() and set(found["status"]) == {"done"}
    assert found[found["receiving"] != "base"]["native"].notna().all()
    assert problems(study.store) == []


def test_a_failed_origin_training_is_named_although_no_cell_reads_it(study):
    study.store.fail("0123456789abcdef", {"error": "out of memory"})
    (problem,) = problems(study.store)
    assert problem.kind == "failed" and "out of memory" in str(problem) and problem.cells == 0


def test_infinity_and_null_are_no_numbers(study):
    cell = study.pick(init="ported", budget=500)[0]
    value = record(cell.run_id, {0: 0.6, 100: 0.7, 500: 0.8})
    value["train_info"]["metrics"][1]["eval_accuracy"] = None
    value["train_info"]["metrics"][2]["eval_accuracy"] = float("inf")
    write(study.store, cell.run_id, value)
    cells = tidy(study.store)
    assert cells[cells["run_id"] == cell.run_id]["value"].notna().sum() == 1


def test_bare_cells_and_cells_without_a_seed_are_read(tmp_path: Path):
    study = build(tmp_path / "toy", Axes(relations=("same",), seeds=(0,)))
    first = study.cells[0]
    bare = replace(first, init="bare", budget=0, mark=0, run_id=first.bare_id, seed=None)
    study.store.expect([bare], FACTS)
    cells = tidy(study.store)
    assert len(cells) == len(study.cells) + 1 and set(cells["status"]) == {"done"}


def test_an_unknown_metric_lists_the_choices(study):
    with pytest.raises(UserError, match="eval_accuracy_calibrated, eval_auc, eval_f1"):
        tidy(study.store, "accuracy")


def test_a_folder_without_a_study_is_a_user_error(tmp_path: Path):
    with pytest.raises(UserError, match="no study"):
        tidy(Store(tmp_path))


def test_each_record_is_read_once(study, monkeypatch):
    seen: list[str] = []
    parse = records.parse

    def counting(raw: bytes, run_id: str) -> object:
        seen.append(run_id)
        return parse(raw, run_id)

    monkeypatch.setattr("portability.store.records.parse", counting)
    tidy(study.store)
    assert sorted(seen) == sorted(study.runs)
    assert json.loads(study.path(seen[0]).read_text())["run_id"] == seen[0]
