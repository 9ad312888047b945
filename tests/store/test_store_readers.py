"""An ordinary study and a packed one are read through the same interface."""

import inspect

import pytest

from portability.store import Store
from portability.store.admin.archive import pack
from portability.store.atomic import replacing, write_json
from portability.store.folders import RunFolders
from portability.store.published import Published
from support.store_parts import grow, study


def public(cls):
    return {name: list(inspect.signature(method).parameters) for name, method in vars(cls).items()
            if name[0] != "_"}


def test_a_packed_study_has_every_method_of_an_ordinary_one():
    assert public(RunFolders).items() <= public(Published).items()


def test_both_readers_say_the_same(tmp_path):
    store = study("format2", tmp_path / "study")
    (run_id,) = grow(store, range(7, 8))
    store.fail("f" * 16, {"error": "x"})
    pack(store, tmp_path / "copy")
    one, two = store.reader, Store(tmp_path / "copy").reader
    assert isinstance(one, RunFolders) and isinstance(two, Published)
    assert one.ids() == two.ids() and list(one.entries()) == list(two.entries())
    assert list(one.failures()) == list(two.failures()) and one.attempts("f" * 16) == two.attempts("f"
                                                                                                   * 16) == 1
    assert one.check(run_id).fault is two.check(run_id).fault is None
    assert one.check("0" * 16).fault == two.check("0"
                                                  * 16).fault == "its record is not there or does not parse"


def test_a_file_that_must_be_new_is_written_once_and_leaves_no_draft(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1}, anew=True)
    with pytest.raises(FileExistsError):
        write_json(tmp_path / "a.json", {"x": 2}, anew=True)
    with pytest.raises(KeyError), replacing(tmp_path / "b.json") as draft:
        draft.write_text("half")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and "1" in (tmp_path
                                                                                / "a.json").read_text()
