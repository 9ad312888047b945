"""A published study, packed without modules, is read as the original; nothing can be written to it."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from portability import analyze
from portability.core.errors import UserError
from portability.core.specs import SCHEMA
from portability.store import Result, Store, studies
from portability.store.__main__ import main as command
from portability.store.admin import archive
from support.store_parts import broken, change_a_digit, contents, flip, grow, ported, study


@pytest.fixture
def original(tmp_path):
    """A study with a done, a failed and a missing run, and runs of both formats."""
    store = study("format2", tmp_path / "original")
    ids = grow(store, range(5, 12))
    for run_id in ids[:2]:
        shutil.rmtree(store.folder(run_id))
    old = study("format1", tmp_path / "old")
    for record in old.records():
        if not store.has(record["run_id"]):
            shutil.copytree(old.folder(record["run_id"]), store.folder(record["run_id"]))
    for path in (old.root / "manifests").iterdir():
        shutil.copy(path, store.root / "manifests")
    for run_id in (ids[0], ids[0], ids[3]):
        store.fail(run_id, {"error": "loss is not finite at update 7", "kind": "UserError",
                            "traceback": None})
    return store


@pytest.fixture
def copy(original, tmp_path):
    assert command(["pack", str(original.root), "--out", str(tmp_path / "copy")]) == 0
    return Store(tmp_path / "copy")


def test_every_read_path_says_the_same_of_the_copy(original, copy):
    assert copy.published and not original.published
    assert sorted(path.name for path in copy.root.iterdir()) == ["manifests", "published"]
    assert sorted(path.name for path in (copy.root / "published").iterdir()) == [
        "cells.parquet", "predictions.parquet", "records.parquet"]
    assert list(copy.entries()) == list(original.entries()) and list(copy.records()) == list(
        original.records())
    assert copy.marks() == original.marks() and broken(
        copy) == [] and copy.manifests() == original.manifests()
    assert copy.failures() == original.failures() and len(copy.failures()) == 1
    (failed,) = copy.failures()
    assert copy.attempts(failed) == 2 and copy.attempts("f" * 16) == 0 and not copy.has(failed)
    assert copy.failures({i: [99] for i in copy.marks()}) == original.failures({i: [99]
                                                                                for i in original.marks()})
    assert all(copy.sound(run_id) is None for run_id in copy.marks()) and copy.sound("f" * 16)
    assert copy.compact() == 0


def test_predictions_of_the_copy_are_equal_bit_for_bit(original, copy):
    assert len(original.marks()) == 13
    for run_id in original.marks():
        one, two = original.predictions(run_id), copy.predictions(run_id)
        assert set(one) == set(two) and all(one[name].dtype == two[name].dtype for name in one)
        assert all(np.array_equal(one[name].view(np.uint8), two[name].view(np.uint8)) for name in one)
    with pytest.raises(UserError, match="no predictions of run f*; fetch the published study again"):
        copy.predictions("f" * 16)


def test_tables_of_the_copy_are_those_of_the_original_byte_for_byte(original, copy):
    for store in (original, copy):
        assert analyze.main([str(store.root), "--quiet"]) == 0
    one, two = (contents(store.root / "tables") for store in (original, copy))
    assert len(one) > 5 and one == two


def test_a_copys_cells_are_tidy(original, copy):
    cells = pd.read_parquet(copy.root / "published" / "cells.parquet")
    asked = {tuple(sorted(cell.items())) for manifest in original.manifests() for cell in manifest["cells"]}
    assert len(cells) == len(asked)
    for cell in cells.to_dict("records"):
        record = original.read(cell["run_id"])
        # never pooled with older ones
        own = record["train_info"]["metrics"] if record and record["schema"] == SCHEMA else []
        at = next((mark for mark in own if mark["updates"] == cell["mark"]), None)
        assert cell["done"] == (at is not None)
        if at is not None:
            assert all(cell[name] == value for name, value in at.items() if name != "updates")
    assert cells["last_accuracy"].notna().any() and cells["eval_accuracy"].notna().any()


def test_verify_holds_a_copys_cells_against_its_records(copy, capsys):
    path = copy.root / "published" / "cells.parquet"
    cells = pd.read_parquet(path)
    cells.loc[cells["done"].idxmax(), "eval_accuracy"] += 0.01
    cells.to_parquet(path, index=False)
    assert command(["verify", str(copy.root)]) == 1
    assert "cells.parquet is not what the records and manifests say" in capsys.readouterr().out


def test_nothing_is_written_to_a_published_copy(original, copy):
    run_id = ported(copy)
    before = contents(copy.root)
    for write in (lambda: copy.commit(run_id, Result({"train_info": {"metrics": []}})),
                  lambda: copy.fail(run_id, {"error": "x"}), lambda: copy.expect([], {}),
                  lambda: copy.tensors(run_id, "module")):
        with pytest.raises(UserError, match="is a published copy without modules; choose another study=NAME"):
            write()
    assert contents(copy.root) == before


def test_published_and_ordinary_studies_lie_side_by_side(original, copy):
    found = {store.root.name: store.published for store in studies(original.root.parent)}
    assert found["copy"] is True and found["original"] is False


def test_only_a_sound_study_is_packed_and_only_into_an_empty_folder(original, copy, tmp_path, capsys):
    assert command(["pack", str(original.root), "--out",
                    str(copy.root)]) == 2 and "not empty" in capsys.readouterr().err
    assert command(["pack", str(copy.root), "--out",
                    str(tmp_path / "other")]) == 2 and "already" in capsys.readouterr().err
    run_id = ported(original)
    flip(original.folder(run_id) / "predictions.safetensors")
    assert command(["pack", str(original.root), "--out", str(tmp_path / "other")]) == 2
    assert run_id in (error := capsys.readouterr().err) and "predictions.safetensors" in error
    change_a_digit(original.folder(run_id) / "record.json")
    assert command(["pack", str(original.root), "--out", str(tmp_path
                                                    / "other")]) == 2 and run_id in capsys.readouterr().err
    assert not (tmp_path / "other").exists() and not list(tmp_path.glob(".draft*"))


def test_a_study_without_a_finished_run_is_packed_too(original, tmp_path):
    shutil.rmtree(original.root / "runs")
    shutil.rmtree(original.root / "failures")
    assert command(["pack", str(original.root), "--out", str(tmp_path / "empty")]) == 0
    empty = Store(tmp_path / "empty")
    assert empty.published and list(empty.records()) == [] and not empty.has("f"
                                                                             * 16) and empty.failures() == {}


def test_verify_finds_a_copy_clean_and_names_what_was_changed(copy, capsys):
    assert command(["verify", str(copy.root)]) == 0, capsys.readouterr().out
    assert "13 runs, 6 files checked: 0 findings" in capsys.readouterr().out
    path = copy.root / "published" / "records.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    place = next(i for i, row in enumerate(rows) if row["kind"] == "run" and '"format":2' in row["record"])
    record = json.loads(rows[place]["record"])
    record["train_info"]["metrics"][0]["eval_accuracy"] = 0.99
    rows[place]["record"] = json.dumps(record)
    archive.write(path, pa.Table.from_pylist(rows, table.schema))
    assert command(["verify", str(copy.root)]) == 1
    said = capsys.readouterr().out
    assert f"run {record['run_id']}: its record differs from the record's own digest" in said
    assert not Store(copy.root).has(record["run_id"])


def test_verify_compares_packed_predictions_with_the_digest_in_the_record(copy, capsys):
    path = copy.root / "published" / "predictions.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    run_id = ported(copy)
    next(row for row in rows if row["run_id"] == run_id and row["example"] == 3)["margin"] += 0.001
    archive.write(path, pa.Table.from_pylist(rows, table.schema))
    assert command(["verify", str(copy.root)]) == 1
    out = capsys.readouterr().out
    assert f"run {run_id}: its predictions differ" in out and out.endswith(": 1 finding\n")


def test_an_older_copy_without_a_column_of_scores_is_read(copy):
    path = copy.root / "published" / "predictions.parquet"
    archive.write(path, pq.read_table(path).drop_columns("score"))
    assert command(["verify", str(copy.root)]) == 0


@pytest.mark.parametrize("name", ["records", "predictions"])
def test_a_damaged_copy_is_one_clear_sentence(copy, capsys, name):
    path = copy.root / "published" / f"{name}.parquet"
    path.write_bytes(path.read_bytes()[:300])
    assert command(["verify", str(copy.root)]) == 1
    assert f"{name}.parquet cannot be read" in capsys.readouterr().out
    assert analyze.main(
        [str(copy.root)]) == 2 and "fetch the published study again" in capsys.readouterr().err
