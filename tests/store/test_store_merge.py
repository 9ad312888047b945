"""Shards become one study: everything is checked before anything is copied, and a second merge copies
nothing."""

import json
import shutil
from dataclasses import replace

import pytest

from portability.analysis.load import tidy
from portability.core.specs import Cell
from portability.store import Result, Store
from portability.store.__main__ import main as command
from support.store_parts import FIXTURES, broken, change_a_digit, contents, flip, grow, ported, study


@pytest.fixture
def target(tmp_path):
    found = study("format2", tmp_path / "target")
    grow(found, range(1, 3))
    return found


@pytest.fixture
def shard(tmp_path):
    found = study("format2", tmp_path / "shard")
    grow(found, range(2, 5), shift=0.0)
    return found


def merge(*stores):
    return command(["merge", *(str(store.root) for store in stores)])


def refuse(capsys, target, *shards):
    """Merge, which must change nothing; gives back the error."""
    before = contents(target.root)
    assert merge(target, *shards) == 2 and contents(target.root) == before
    error = capsys.readouterr().err
    assert error.startswith("portability: ") and error.count("\n") == 1
    return error


def edit(store, run_id, change):
    """Commit a run again with a changed record, so that all digests are right."""
    record = store.read(run_id)
    change(record)
    tensors = {name: store.tensors(run_id, name) for name in ("module", "predictions")}
    report = json.loads((store.folder(run_id) / "port_report.json").read_text())
    store.commit(run_id, Result(record, {name: one for name, (one, _) in tensors.items()},
                                {name: data for name, (_, data) in tensors.items() if data}, report))


def test_a_merged_study_holds_the_runs_of_all_and_a_second_merge_copies_nothing(target, shard, tmp_path,
                                                                                capsys):
    third = Store(tmp_path / "third")
    grow(third, range(4, 7))
    wanted = {**target.marks(), **shard.marks(), **third.marks()}
    assert merge(target, shard, third) == 0
    out = capsys.readouterr().out
    assert "shard: 2 runs copied, 5 already there; 1 manifest and 0 failures copied" in out
    assert "third: 2 runs copied, 1 already there" in out
    assert target.marks() == wanted and set(tidy(target)["status"]) == {"done"}
    assert all(target.sound(run_id) is None for run_id in wanted)
    assert command(["verify", str(target.root)]) == 0
    before = contents(target.root)
    assert merge(target, shard, third) == 0 and contents(target.root) == before
    said = capsys.readouterr().out
    assert "shard: 0 runs copied, 7 already there; 0 manifests and 0 failures copied" in said


def test_a_study_is_merged_into_a_folder_that_is_not_there(shard, tmp_path):
    new = Store(tmp_path / "new" / "study")
    assert merge(new, shard) == 0 and contents(new.root) == contents(shard.root)


def test_times_machine_and_versions_may_differ(target, shard):
    run_id = grow(target, range(2, 3))[0]

    def change(record):
        record["run_info"]["created_at"] = "2030-01-01T00:00:00+00:00"
        record["train_info"]["train_time"] = 99.0
        record["meta_info"]["system_info"]["machine"] = "other"

    edit(shard, run_id, change)
    kept = (target.folder(run_id) / "record.json").read_bytes()
    assert merge(target, shard) == 0
    assert (target.folder(run_id) / "record.json").read_bytes() == kept


def test_metrics_that_only_one_of_them_was_asked_for_may_differ(target, shard):
    run_id = grow(target, range(2, 3))[0]
    edit(shard, run_id, lambda record: [mark.update(eval_auc=0.5)
                                        for mark in record["train_info"]["metrics"]])
    assert merge(target, shard) == 0


def test_a_port_that_took_another_time_is_the_same(target, shard):
    base = shard.read(grow(target, range(2, 3))[0])
    tensors = {name: shard.tensors(base["run_id"], name)[0] for name in ("module", "predictions")}
    shard.commit(base["run_id"], Result(base, tensors, {"module": {"axes": "{}"}}, {"seconds": 9.9, "x": 1}))
    assert merge(target, shard) == 0


@pytest.mark.parametrize("what", [
    "module.safetensors", "train_info.metrics", "train_info.train_loss", "spec", "port_report.json"])
def test_other_numbers_under_one_id_refuse_the_whole_merge(target, shard, capsys, what):
    (run_id,) = grow(target, range(2, 3))
    if what == "module.safetensors":
        grow(shard, range(2, 3), shift=0.5)
    elif what == "port_report.json":
        base = shard.read(run_id)
        tensors = {name: shard.tensors(run_id, name)[0] for name in ("module", "predictions")}
        shard.commit(run_id, Result(base, tensors, {"module": {"axes": "{}"}}, {"seconds": 9.9, "x": 2}))
    else:
        def change(record):
            if what == "spec":
                record["spec"]["host"]["name"] = "other"
            elif what == "train_info.train_loss":
                record["train_info"]["train_loss"][0][1] += 1e-9
            else:
                record["train_info"]["metrics"][0]["eval_loss"] += 1e-9

        edit(shard, run_id, change)
    error = refuse(capsys, target, shard)
    assert run_id in error and f"differ in {what}" in error and "nothing was copied" in error


def damage_module(store, run_id):
    flip(store.folder(run_id) / "module.safetensors")


def damage_record(store, run_id):
    change_a_digit(store.folder(run_id) / "record.json")


def damage_gone(store, run_id):
    (store.folder(run_id) / "predictions.safetensors").unlink()


def damage_swapped(store, run_id):
    other = next(one for one in store.marks() if one != run_id)
    store.folder(run_id).rename(store.root / "aside")
    store.folder(other).rename(store.folder(run_id))
    (store.root / "aside").rename(store.folder(other))


@pytest.mark.parametrize("damage", [damage_module, damage_record, damage_gone, damage_swapped])
def test_an_unsound_run_of_a_shard_is_refused_by_name(target, shard, damage, capsys):
    run_id = grow(shard, range(9, 10))[0]
    damage(shard, run_id)
    error = refuse(capsys, target, shard)
    assert f"run {run_id}" in error and str(shard.root) in error


def test_an_unsound_run_of_the_target_is_not_written_over(target, shard, capsys):
    run_id = ported(target)
    damage_module(target, run_id)
    assert f"run {run_id} of {target.root} is not sound" in refuse(capsys, target, shard)


def test_a_cell_with_two_runs_is_refused(target, shard, capsys):
    cell = Cell(**shard.manifests()[0]["cells"][0])
    other = Store(shard.root.parent / "other")
    other.expect([replace(cell, run_id="f" * 16)], {"sweep": "x"})
    assert "already holds the cell" in refuse(capsys, target, shard, other)


def test_a_changed_manifest_is_refused(target, shard, capsys):
    path = sorted((shard.root / "manifests").iterdir())[0]
    path.write_text(path.read_text().replace('"mark": 2', '"mark": 1'))
    assert path.name in refuse(capsys, target, shard)


def test_failures_are_kept_and_renumbered_where_both_have_the_number(target, shard, capsys):
    run_id = "f" * 16
    target.fail(run_id, {"error": "target"})
    shutil.copytree(target.root / "failures", shard.root / "failures")
    shard.fail(run_id, {"error": "shard"})
    (shard.root / "failures" / f"{run_id}-1.json").write_text(json.dumps({"run_id": run_id, "attempt": 1,
                                                                          "error": "other"}))
    for _ in range(2):
        assert merge(target, shard) == 0
        found = [json.loads(path.read_text()) for path in sorted((target.root / "failures").iterdir())]
        assert [(one["attempt"], one["error"]) for one in found] == [(1, "target"), (2, "other"),
                                                                     (3, "shard")]
    (shard.root / "failures" / f"{run_id}-1.json").write_text("{")
    assert f"failure {run_id}-1 cannot be read" in refuse(capsys, target, shard)


def test_equal_failures_of_one_shard_are_all_kept(target, shard):
    run_id = "f" * 16
    (shard.root / "failures").mkdir()
    for attempt in (1, 2):  # as written before failures had a time
        text = json.dumps({"run_id": run_id, "attempt": attempt, "error": "boom"})
        (shard.root / "failures" / f"{run_id}-{attempt}.json").write_text(text)
    assert [merge(target, shard), merge(target, shard), target.attempts(run_id)] == [0, 0, 2]


def test_what_cannot_be_merged_is_said(target, shard, tmp_path, capsys):
    assert "is given twice" in refuse(capsys, target, target) and "is given twice" in refuse(capsys, target,
                                                                                             shard, shard)
    assert "no study in" in refuse(capsys, target, Store(tmp_path / "nowhere"))
    assert command(["pack", str(shard.root), "--out", str(tmp_path / "copy")]) == 0
    assert "published copy" in refuse(capsys, target, Store(tmp_path / "copy"))


def test_a_merge_that_was_stopped_goes_on(target, shard, monkeypatch, capsys):
    """The disk is full at the second run: one run is there whole, nothing half."""
    original, calls = shutil.copyfile, []

    def full(source, goal):
        calls.append(source)
        if len(calls) > 6:
            raise OSError(28, "No space left on device")
        return original(source, goal)

    monkeypatch.setattr(shutil, "copyfile", full)
    before = len(target.marks())
    assert merge(target, shard) == 2 and "No space left" in capsys.readouterr().err
    assert len(target.marks()) == before + 1 and command(["verify", str(target.root)]) == 0
    assert not list(target.root.rglob(".draft-*"))
    monkeypatch.undo()
    assert merge(target, shard) == 0 and len(target.marks()) == before + 2


def test_studies_of_format_1_are_merged_by_their_bytes(tmp_path, capsys):
    one, two = study("format1", tmp_path / "one"), study("format1", tmp_path / "two")
    assert merge(one, two) == 0 and "0 runs copied, 4 already there" in capsys.readouterr().out
    flip(two.folder(ported(two)) / "predictions.safetensors")
    assert "differ in predictions.safetensors" in refuse(capsys, one, two)
    assert broken(Store(FIXTURES / "format1" / "study")) == []
