"""What killed processes leave behind is removed when it is old; a run caught between two renames is put
back."""

import os
import time

import pytest

from portability.store import Result, Store
from portability.store import atomic as writing
from support.store_parts import contents, flip, grow

DAY = 86400


def age(path, seconds=2 * DAY):
    """Make a path that old."""
    os.utime(path, (time.time() - seconds,) * 2)


def litter(store):
    """One of everything that a kill can leave."""
    (shard,) = {path for path in (store.root / "runs").iterdir()}
    folders = [shard / ".draft-0123456789abcdef-1-x"]
    files = [store.root / folder / name for folder, name in (
        ("manifests", ".x.json.1-ab"), ("failures", ".0123456789abcdef-1.json.1-ab"),
        ("checkpoints", ".0123456789abcdef.safetensors.1-ab"), (".", ".index.parquet.1-ab"))]
    for folder in folders:
        folder.mkdir()
        (folder / "record.json").write_text("{}")
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    return [*folders, *files]


def test_old_drafts_go_and_young_ones_and_everything_else_stay(tmp_path):
    store = Store(tmp_path)
    grow(store, range(1))
    store.fail("f" * 16, {"error": "x"})
    store.compact()
    before = contents(tmp_path)
    left = litter(store)
    assert store.tidy_up() == 0 and all(path.exists() for path in left)
    for path in left:
        age(path)
    assert store.tidy_up() == len(left) and contents(tmp_path) == before


@pytest.fixture
def caught(tmp_path):
    """A study whose run is between the two renames: moved aside, and not yet replaced."""
    store = Store(tmp_path)
    (run_id,) = grow(store, range(1))
    final = store.folder(run_id)
    old = final.parent / f".old-{writing.draft_folder(final).name}"
    final.rename(old)
    return store, run_id, old


def test_a_run_caught_between_two_renames_is_put_back(caught):
    store, run_id, old = caught
    age(old)  # its content is old, its renaming is not
    assert store.tidy_up() == 0 and not store.has(run_id)
    assert store.tidy_up(older_than_seconds=0) == 2
    assert store.sound(run_id) is None and store.has(run_id, [0, 2])
    assert [path.name for path in store.folder(run_id).parent.iterdir()] == [run_id]


def test_an_unsound_one_or_one_that_was_replaced_is_not_put_back(caught):
    store, run_id, old = caught
    flip(old / "module.safetensors")
    store.tidy_up(older_than_seconds=0)
    assert not store.folder(run_id).exists() and not old.exists()
    (run_id,) = grow(store, range(1))
    kept = contents(store.folder(run_id))
    draft = writing.draft_folder(store.folder(run_id))
    draft.rename(draft.with_name(f".old-{draft.name}"))
    store.tidy_up(older_than_seconds=0)
    assert contents(store.folder(run_id)) == kept and len(list(store.folder(run_id).parent.iterdir())) == 1


def test_what_is_moved_aside_has_the_name_that_tidying_knows(tmp_path, monkeypatch):
    """A kill right between the two renames of a real commit."""
    store = Store(tmp_path)
    (run_id,) = grow(store, range(1))
    kept = contents(store.folder(run_id))
    rename = type(tmp_path).rename

    class Killed(BaseException):
        pass

    def killed(self, target):
        if self.name.startswith(".draft-") or getattr(killed, "dead", False):
            killed.dead = True
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", killed)
    with pytest.raises(Killed):
        store.commit(run_id, Result({"train_info": {"metrics": [{"updates": 9}]}}))
    monkeypatch.undo()
    assert not store.has(run_id)
    store.tidy_up(older_than_seconds=0)
    assert contents(store.folder(run_id)) == kept
