"""An ordinary study and a packed one are read through the same interface."""

import pytest

from portability.store import Store
from portability.store.admin.archive import pack
from portability.store.atomic import replacing, write_json
from portability.store.published import Published
from support.store_parts import grow, study


def test_both_readers_say_the_same(tmp_path):
    store = study("format2", tmp_path / "study")
    (run_id,) = grow(store, range(7, 8))
    store.fail("f" * 16, {"error": "x"})
    pack(store, tmp_path / "copy")
    one, two = store, Store(tmp_path / "copy")
    assert type(one) is Store and type(two) is Published
    assert one.ids() == two.ids() and list(one.entries()) == list(two.entries())
    assert list(one.failed()) == list(two.failed()) and one.attempts("f" * 16) == two.attempts("f"
                                                                                                   * 16) == 1
    assert one.inspect(run_id).fault is two.inspect(run_id).fault is None
    assert one.inspect("0" * 16).fault == two.inspect("0"
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
