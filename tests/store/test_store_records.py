"""Records of both formats are read; a changed byte, of a record or of a file beside it, is never taken for a
result."""

import hashlib
import json
import logging

import pytest

from portability.analysis.load import problems, read, tidy
from portability.core.errors import UserError
from portability.core.specs import SCHEMA
from portability.store import FORMAT, Result, Store
from support.store_parts import broken, change_a_digit, flip, grow, ported, study


@pytest.mark.parametrize("kind", ["format1", "format2"])
def test_studies_of_both_formats_are_read_whole(kind, tmp_path):
    store = study(kind, tmp_path / "study")
    records = list(store.records())
    assert len(records) == 4 and {record.get("format", 1) for record in records} == {1 if kind == "format1"
                                                                                     else FORMAT}
    assert broken(store) == [] and all(store.sound(record["run_id"]) is None for record in records)
    cells = tidy(store)
    assert set(cells["status"]) == {"done"} and cells["eval_accuracy"].notna().all() and not problems(store)
    assert store.predictions(ported(store))["margin"].shape == (2, 16)
    assert set(tidy(Store(tmp_path / "study"))["run_id"]) <= set(store.marks())


def test_a_record_names_every_file_beside_it_and_its_own_digest(tmp_path):
    store = Store(tmp_path)
    (run_id,) = grow(store, range(1))
    record = json.loads((store.folder(run_id) / "record.json").read_text())
    for name in ("module.safetensors", "predictions.safetensors", "port_report.json"):
        raw = (store.folder(run_id) / name).read_bytes()
        assert record["files"][name] == {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    rest = {key: value for key, value in record.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    assert record["format"] == 2 and record["digest"] == hashlib.sha256(text.encode()).hexdigest()
    assert len(record["files"]) == 3 and record["schema"] == SCHEMA


def test_a_changed_digit_in_a_record_that_still_parses_makes_the_run_not_done_and_is_named(tmp_path, caplog):
    store = study("format2", tmp_path / "study")
    run_id = ported(store)
    change_a_digit(store.folder(run_id) / "record.json")
    json.loads((store.folder(run_id) / "record.json").read_text())
    with caplog.at_level(logging.WARNING):
        assert not store.has(run_id)
    assert run_id in caplog.text and "own digest" in caplog.text
    assert broken(store) == [run_id] and "own digest" in store.sound(run_id)
    assert len(list(store.records())) == 3 and run_id not in store.marks()
    assert {problem.kind for problem in problems(store)} == {"missing", "broken"}
    with pytest.raises(UserError, match="no record that can be used"):
        store.tensors(run_id, "module")


@pytest.mark.parametrize("key", ["format", "digest", "files"])
def test_a_record_of_format_2_cannot_pass_for_an_older_one(tmp_path, key):
    store = study("format2", tmp_path / "study")
    run_id = ported(store)
    path = store.folder(run_id) / "record.json"
    record = json.loads(path.read_text())
    del record[key]
    path.write_text(json.dumps(record))
    assert store.read(run_id) is None and broken(store) == [run_id]


def test_a_record_of_a_newer_format_is_foreign_and_is_not_replaced(tmp_path):
    store = study("format2", tmp_path / "study")
    run_id = ported(store)
    path = store.folder(run_id) / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3}))
    assert not store.has(run_id) and broken(store) == [] and "format 3" in store.sound(run_id)
    found = read(store)
    assert set(found.cells[found.cells["run_id"] == run_id]["status"]) == {"foreign"}
    assert {problem.kind for problem in found.problems} == {"foreign"} and "format 3" in str(
        found.problems[0])
    with pytest.raises(UserError, match="newer version.*choose another study="):
        store.commit(run_id, Result({"train_info": {"metrics": []}}))
    assert json.loads(path.read_text())["format"] == 3


@pytest.mark.parametrize("name", ["module", "predictions"])
def test_a_file_with_another_byte_is_refused_and_named(tmp_path, name):
    store = study("format2", tmp_path / "study")
    run_id = ported(store)
    flip(store.folder(run_id) / f"{name}.safetensors")
    assert f"{name}.safetensors has other bytes" in store.sound(run_id) and store.has(run_id)
    with pytest.raises(UserError, match=f"{name}.safetensors has other bytes.*--discard"):
        store.predictions(run_id) if name == "predictions" else store.tensors(run_id, name)


def test_sound_names_what_is_missing_or_cut(tmp_path):
    store = study("format2", tmp_path / "study")
    run_id = ported(store)
    module = store.folder(run_id) / "module.safetensors"
    raw = module.read_bytes()
    module.write_bytes(raw[:-4])
    assert store.sound(run_id) == f"module.safetensors has {len(raw) - 4} bytes, its record says {len(raw)}"
    module.unlink()
    assert store.sound(run_id) == "module.safetensors is not there"
    (store.folder(run_id) / "record.json").unlink()
    assert "not there" in store.sound(run_id) and "not there" in store.sound("f" * 16)


def test_a_file_of_format_1_is_sound_while_it_opens(tmp_path):
    store = study("format1", tmp_path / "study")
    run_id = ported(store)
    path = store.folder(run_id) / "predictions.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert "predictions.safetensors does not open" in store.sound(run_id)


def test_two_runs_whose_folders_were_swapped_are_both_broken(tmp_path):
    store = Store(tmp_path)
    one, two = grow(store, range(2))
    aside = tmp_path / "aside"
    store.folder(one).rename(aside)
    store.folder(two).rename(store.folder(one))
    aside.rename(store.folder(two))
    assert broken(store) == sorted([one, two]) and f"that of run {two}" in store.sound(one)


def test_no_flipped_bit_of_a_record_changes_what_is_read(tmp_path, caplog):
    """A flip either makes the run not done (broken, or foreign in the digit of the format) or changes no
    value at all."""
    caplog.set_level(logging.ERROR)
    store = study("format2", tmp_path / "study")
    run_id = ported(store)
    path, record = store.folder(run_id) / "record.json", store.read(run_id)
    raw = path.read_bytes()
    for place in range(len(raw)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :])
        assert store.read(run_id) in (None, record), place


def test_numbers_and_keys_of_every_kind_keep_their_digest(tmp_path):
    store = Store(tmp_path)
    odd = {"x": {10: 1e-310, 9: -0.0, True: 2**70}, "y": (1, 2), "z": "ü\ud800",
           "train_info": {"metrics": [{"updates": 0}]}}
    store.commit("a" * 16, Result(odd))
    assert store.read("a" * 16)["x"]["10"] == 1e-310 and broken(store) == []
    with pytest.raises(ValueError, match="JSON compliant"):
        store.commit("b" * 16, Result({**odd, "nan": float("nan")}))
    assert not store.folder("b" * 16).exists() and len(list(store.folder("b" * 16).parent.iterdir())) == 0
