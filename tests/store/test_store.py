"""A run is done when its record is there; nothing half-written is ever seen."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from portability import store as store_module
from portability.core.errors import UserError
from portability.core.specs import Cell
from portability.store import Result, Store, studies
from support.store_parts import broken

ID = "0123456789abcdef"


def result(*marks, value=1.0):
    record = {"run_id": ID, "train_info": {"metrics": [{"updates": mark} for mark in marks]}}
    return Result(record, {"module": {"a": torch.full((2,), value)}}, {"module": {"axes": "{}"}}, {"x": 1})


def test_what_is_committed_is_read_back(tmp_path):
    store = Store(tmp_path)
    assert not store.has(ID)
    store.commit(ID, result(0, 50))
    assert store.has(ID, [0, 50]) and not store.has(ID, [0, 100])
    tensors, metadata = store.tensors(ID, "module")
    assert tensors["a"].tolist() == [1.0, 1.0] and metadata == {"axes": "{}"}
    assert [record["run_id"] for record in store.records()] == [ID]
    assert json.loads((store.folder(ID) / "port_report.json").read_text()) == {"x": 1}


def test_a_run_committed_again_replaces_the_first_whole(tmp_path):
    store = Store(tmp_path)
    store.commit(ID, result(0))
    store.commit(ID, result(0, 50, value=2.0))
    assert store.has(ID, [50]) and store.tensors(ID, "module")[0]["a"][0] == 2.0
    assert [path.name for path in store.folder(ID).parent.iterdir()] == [ID]


@pytest.mark.parametrize("victim", ["module.safetensors", "record.json"])
def test_a_full_disk_while_writing_leaves_no_run_and_no_rest(tmp_path, monkeypatch, victim):
    store = Store(tmp_path)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if victim == "record.json":
        monkeypatch.setattr(os, "fsync", full)
    else:
        import safetensors.torch
        monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        store.commit(ID, result(0))
    assert not store.has(ID) and list(store.records()) == []
    assert list(store.folder(ID).parent.iterdir()) == []
    monkeypatch.undo()
    store.commit(ID, result(0))
    assert store.has(ID)


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"train_info": {}}', "", "\\xff"])
def test_what_is_no_record_counts_as_not_done(tmp_path, text):
    store = Store(tmp_path)
    store.commit(ID, result(0))
    (store.folder(ID) / "record.json").write_text(text)
    assert not store.has(ID) and broken(store) == [ID]


def test_a_full_disk_as_safetensors_reports_it_is_an_error_of_the_disk(tmp_path, monkeypatch):
    import safetensors.torch

    def full(*args, **kwargs):
        raise safetensors.SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        Store(tmp_path).commit(ID, result(0))
    assert list(Store(tmp_path).folder(ID).parent.iterdir()) == []


def test_a_broken_module_file_is_named(tmp_path):
    store = Store(tmp_path)
    store.commit(ID, result(0))
    path = store.folder(ID) / "module.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="module.safetensors cannot be read.*repeat the command"):
        store.tensors(ID, "module")


def test_a_failed_second_evaluation_is_not_hidden_by_the_first(tmp_path):
    store = Store(tmp_path)
    store.commit(ID, result(0))
    store.fail(ID, {"error": "later"})
    assert store.failures() == {} and store.failures({ID: [0, 50]})[ID]["error"] == "later"


def test_a_torn_record_counts_as_not_done_and_is_named(tmp_path):
    store = Store(tmp_path)
    store.commit(ID, result(0))
    path = store.folder(ID) / "record.json"
    path.write_text(path.read_text()[:20])
    assert not store.has(ID) and broken(store) == [ID] and list(store.records()) == []
    store.commit(ID, result(0))
    assert store.has(ID) and broken(store) == []


def test_drafts_of_a_killed_process_are_never_read(tmp_path):
    store = Store(tmp_path)
    draft = store.folder(ID).parent / f".draft-{ID}-host-1-x"
    draft.mkdir(parents=True)
    (draft / "record.json").write_text('{"train_info": {"metrics": []}}')
    assert list(store.records()) == [] and not store.has(ID)


def test_failures_count_attempts_and_never_mask_a_result(tmp_path):
    store = Store(tmp_path)
    assert [store.fail(ID, {"error": "one"}), store.fail(ID, {"error": "two"})] == [1, 2]
    assert store.failures()[ID]["error"] == "two"
    store.commit(ID, result(0))
    assert store.failures() == {}


def test_manifests_are_written_once_and_an_empty_folder_is_a_clear_error(tmp_path):
    cell = Cell("lora", "a", "b", "same", "x", "x", "ported", "pad", 0, 50, ID, 50, ID, ID)
    store = Store(tmp_path / "study")
    with pytest.raises(UserError, match="nothing was run there yet"):
        store.manifests()
    store.expect([cell], {"sweep": "s"})
    store.expect([cell], {"sweep": "s"})
    with pytest.raises(UserError, match="already holds the cell .*choose another study="):
        store.expect([replace(cell, run_id="f" * 16)], {"sweep": "s"})
    assert len(store.manifests()) == 1 and store.manifests()[0]["cells"][0]["run_id"] == ID
    for root in (tmp_path, store.root):
        assert [found.root.name for found in studies(root)] == ["study"]
    with pytest.raises(UserError, match="no study in"):
        studies(tmp_path / "nowhere")


def test_pickled_files_are_never_read():
    for path in Path(store_module.__file__).parent.glob("*.py"):
        text = path.read_text()
        assert "pickle" not in text and "torch.load" not in text


def cell_of(run_id, **where):
    return replace(Cell("lora", "a", "b", "same", "x", "x", "ported", "pad", 0, 50, run_id, 50, ID, ID),
                   **where)


def test_a_cell_that_only_ever_failed_may_be_asked_for_anew(tmp_path):
    store, old, new, kept = Store(tmp_path / "study"), "a" * 16, "b" * 16, "c" * 16
    store.expect([cell_of(old), cell_of(kept, seed=1)], {"sweep": "old"})
    store.fail(old, {"error": "a partial carry must be asked for"})
    store.expect([cell_of(new)], {"sweep": "new"})
    rows = [row["run_id"] for manifest in store.manifests() for row in manifest["cells"]]
    assert sorted(rows) == [new, kept], "the cell is of two runs"
    assert store.failures() == {} and (store.root / "failures" / "given_up"
                                       / f"{old}-1.json").exists(), "no trail"
    store.fail(new, {"error": "worse"})
    store.expect([cell_of(old)], {"sweep": "old"})  # and back
    rows = [row["run_id"] for manifest in store.manifests() for row in manifest["cells"]]
    assert sorted(rows) == [old, kept] and not list(store.root.rglob(".*"))


def test_a_cell_with_a_result_keeps_its_settings_and_the_others_are_counted(tmp_path):
    store, done, failed = Store(tmp_path / "study"), ID, ["a" * 16, "b" * 16]
    asked = [cell_of(done), *(cell_of(run_id, seed=1 + place) for place, run_id in enumerate(failed))]
    store.expect(asked, {"sweep": "s"})
    store.fail(done, {"error": "once"})
    store.commit(done, result(50))
    for run_id in failed:
        store.fail(run_id, {"error": "boom"})
    anew = [replace(cell, run_id=f"{place}" * 16) for place, cell in enumerate(asked)]
    with pytest.raises(UserError, match=f"run {done}, now 0000.*study=NAME.*or leave them out: 2 other cells "
                       "only failed"):
        store.expect(anew, None)
    with pytest.raises(UserError, match="already holds the cell"):
        store.expect(anew, {"sweep": "s"})
    assert len(store.manifests()) == 1
    store.expect(anew[1:], {"sweep": "s"})
    rows = [row["run_id"] for manifest in store.manifests() for row in manifest["cells"]]
    assert sorted(rows) == sorted([done, "1" * 16, "2" * 16])
