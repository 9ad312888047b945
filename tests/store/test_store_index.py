"""The index makes reading fast and is never needed: without it, stale, or broken, the same is read."""

import json
import logging
import shutil
import time

import pyarrow.parquet as pq
import pytest

from portability.analysis.load import read
from portability.store import Store, index, records
from portability.store.records import canonical, seal
from support.store_parts import FIXTURES, broken, change_a_digit, flip, grow, ported, study


@pytest.fixture
def store(tmp_path):
    found = study("format2", tmp_path / "study")
    grow(found, range(5, 9))
    found.fail("f" * 16, {"error": "x"})
    return found


def view(store):
    """Everything the read paths say."""
    return list(store.entries()), list(store.records()), store.marks(), broken(store), store.failures()


def test_the_same_is_read_with_and_without_the_index(store):
    before = view(store)
    assert len(before[0]) == 8
    assert store.compact() == 8 and view(store) == before and store.compact() == 0
    (store.root / index.NAME).unlink()
    assert view(store) == before


def test_a_row_holds_what_the_record_says(store):
    store.compact()
    run_id = ported(store)
    (row,) = [row for row in pq.read_table(store.root / index.NAME).to_pylist() if row["run_id"] == run_id]
    seen = (store.folder(run_id) / "record.json").stat()
    assert (row["mtime_ns"], row["size"]) == (seen.st_mtime_ns, seen.st_size)
    assert row["record"] == canonical(store.read(run_id))


def test_only_what_changed_is_read_anew(store, monkeypatch):
    store.compact()
    parsed = []
    original = records.parse
    monkeypatch.setattr(records, "parse", lambda raw, run_id: parsed.append(run_id) or original(raw, run_id))
    new = grow(store, range(20, 22))
    gone = ported(store)
    shutil.rmtree(store.folder(gone))
    parsed.clear()
    assert set(store.marks()) == {run_id for run_id, _, _ in store.entries()} and gone not in store.marks()
    assert set(parsed) == set(new)
    parsed.clear()
    assert store.compact() == 2 and sorted(parsed) == sorted(new)
    assert gone not in pq.read_table(store.root / index.NAME).column("run_id").to_pylist()


def test_a_run_evaluated_again_or_changed_after_the_index_was_written_is_seen(store):
    store.compact()
    run_id = grow(store, range(40, 41))[0]
    store.compact()
    time.sleep(0.01)
    change_a_digit(store.folder(run_id) / "record.json")
    assert broken(store) == [run_id] and run_id not in store.marks()
    fixture = Store(FIXTURES / "format2" / "study")
    again = {**fixture.read(ported(fixture)), "run_id": run_id}
    again["train_info"]["metrics"].append({"updates": 7})
    (store.folder(run_id) / "record.json").write_text(json.dumps(seal(again, again["files"])))
    assert store.marks()[run_id] == {0, 2, 7}


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "columns"])
def test_a_broken_index_is_warned_of_ignored_and_made_anew(store, damage, caplog):
    before = view(store)
    store.compact()
    path = store.root / index.NAME
    if damage == "columns":
        pq.write_table(pq.read_table(path).drop_columns(["record"]), path)
    elif damage == "flip":
        flip(path, path.stat().st_size // 3)
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else 200])
    with caplog.at_level(logging.WARNING):
        assert view(store) == before
    assert "index.parquet cannot be read" in caplog.text
    assert store.compact() == 8 and len(index.load(path)) == 8 and view(store) == before


def test_a_broken_run_never_enters_the_index(store):
    run_id = ported(store)
    change_a_digit(store.folder(run_id) / "record.json")
    store.compact()
    assert run_id not in pq.read_table(store.root / index.NAME).column("run_id").to_pylist()
    assert broken(store) == [run_id] and "own digest" in dict((i, f) for i, _, f in store.entries())[run_id]


@pytest.mark.system
def test_ten_thousand_records_are_read_in_seconds(tmp_path):
    """100,000 were measured by hand; the limits here are wide, they catch what grows with the square."""
    source = Store(FIXTURES / "format2" / "study")
    record = source.read(ported(source))
    for place in range(10_000):
        run_id = f"{place * 2654435761 % 2**64:016x}"[::-1]
        record["run_id"] = run_id
        folder = tmp_path / "runs" / run_id[:2] / run_id
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(seal(record, record["files"])))
    store = Store(tmp_path)
    cell = source.manifests()[0]["cells"][0]
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "x.json").write_text(json.dumps({"cells": [cell]}))
    start = time.monotonic()
    assert store.compact() == 10_000
    compacted = time.monotonic()
    assert len(store.marks()) == 10_000 and broken(store) == []
    indexed = time.monotonic()
    assert len(read(store).records) == 10_000
    assert compacted - start < 60 and indexed - compacted < 10 and time.monotonic() - indexed < 20
