"""A study's data: named by content alone, remembered between commands, and refused when it changed under
way."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from portability.core.errors import UserError
from portability.core.hashing import file_digest
from portability.core.specs import EvalSpec
from portability.data import splits as data
from portability.data.splits import DataSource, data_spec, rows, rows_digest, study_data

TEST = EvalSpec("test", 0, 8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PORTABILITY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch) -> list[tuple[str, str]]:
    """The splits that were read from files so far."""
    seen, real = [], data.read_split

    def counting(source: DataSource, split: str) -> list:
        seen.append((source.name, split))
        return real(source, split)

    monkeypatch.setattr(data, "read_split", counting)
    return seen


def write(folder: Path, prefix: str = "film", size: int = 20) -> DataSource:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        lines = [json.dumps({"text": f"{prefix} {split} {i}", "label": i % 2}) for i in range(size)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return DataSource(folder.name, path=str(folder))


def edit(source: DataSource, split: str, old: str, new: str) -> None:
    path = Path(str(source.path)) / f"{split}.jsonl"
    path.write_text(path.read_text().replace(old, new, 1))


def digests(source: DataSource, limit: int = 0) -> tuple[str, str]:
    spec = data_spec(study_data([source], "drop"), source.name, EvalSpec("test", limit, 8))
    return spec.train_digest, spec.eval_digest


# ---- digests


@pytest.mark.parametrize("limit", [0, 7])
def test_the_same_content_elsewhere_has_the_same_digests(tmp_path, limit):
    one = write(tmp_path / "here" / "one")
    shutil.copytree(tmp_path / "here" / "one", tmp_path / "there" / "two")
    assert digests(one, limit) == digests(DataSource("two", path=str(tmp_path / "there" / "two")), limit)


@pytest.mark.parametrize("old, new", [("film train 4", "film train 4 "),
                                      ('19", "label": 1', '19", "label": 0')])
def test_one_byte_or_one_label_of_training_gives_another_digest(tmp_path, old, new):
    source = write(tmp_path / "one")
    before = digests(source)
    edit(source, "train", old, new)
    after = digests(source)
    assert before[0] != after[0] and before[1] == after[1]


@pytest.mark.parametrize("old, new", [("film test 4", "film test 5"), ('4", "label": 0', '4", "label": 1')])
def test_one_byte_or_one_label_of_the_test_split_gives_another_digest(tmp_path, old, new):
    source = write(tmp_path / "one")
    before = digests(source)
    edit(source, "test", old, new)
    after = digests(source)
    assert before[0] == after[0] and before[1] != after[1]


def test_a_leak_changes_the_name_of_the_training_set(tmp_path):
    one, two = write(tmp_path / "one"), write(tmp_path / "two", "meal")
    edit(one, "train", "film train 4", "meal test 4")
    drop, keep = (data_spec(study_data([one, two], overlap), "one", TEST) for overlap in ("drop", "keep"))
    assert drop.train_digest != keep.train_digest
    assert (drop.counts["train"], drop.counts["dropped"], keep.counts["train"]) == (19, 1, 20)


def test_a_digest_is_pinned():
    assert rows_digest([("fine film", 1), ("dull", 0)]) == "a5a5f98bedf4a71d"


# ---- what is evaluated


def test_a_limit_takes_the_same_examples_every_time(tmp_path):
    study = study_data([write(tmp_path / "one")], "drop")
    some, again, every = (rows(study, "one", "test", limit) for limit in (7, 7, 0))
    assert some == again and len(some) == 7
    assert set(some) < set(every) and some != every[:7]
    spec = data_spec(study, "one", EvalSpec("test", 7, 8))
    assert spec.counts["eval"] == 7
    assert spec.eval_digest == rows_digest(some)


def test_a_limit_above_the_size_is_all_in_order(tmp_path):
    study = study_data([write(tmp_path / "one")], "drop")
    assert rows(study, "one", "test", 99) == rows(study, "one", "test", 0)
    assert data_spec(study, "one", EvalSpec("test", 99, 8)) == data_spec(study, "one", TEST)


def test_bad_requests_are_refused(tmp_path):
    source = write(tmp_path / "one")
    partial = DataSource("partial", path=source.path, splits={"train": "train", "test": "test"})
    study = study_data([partial], "drop")
    for name, split, limit, message in (
        ("two", "test", 0, "unknown data set 'two'"), ("partial", "train", 0, "unknown eval.split"),
        ("partial", "validation", 0, "has no validation split"), ("partial", "test", -1, "eval.limit"),
    ):
        with pytest.raises(UserError, match=message):
            data_spec(study, name, EvalSpec(split, limit, 8))
    with pytest.raises(UserError, match="distinct data sets"):
        study_data([source, source], "drop")
    with pytest.raises(UserError, match="unknown overlap 'none'"):
        study_data([source], "none")


def test_a_study_travels_to_a_worker(tmp_path):
    study = study_data([write(tmp_path / "one")], "drop")
    arrived = pickle.loads(pickle.dumps(study))
    assert arrived == study and len(rows(arrived, "one", "train", 0)) == 20


def test_data_that_changed_since_planning_is_refused(tmp_path):
    source = write(tmp_path / "one")
    study = study_data([source], "drop")
    edit(source, "train", "film train 4", "film train X")
    with pytest.raises(UserError, match="train split of data set 'one' changed since the study was planned"):
        rows(study, "one", "train", 0)


# ---- what is remembered


def test_planning_again_reads_nothing(tmp_path, reads):
    one, two = write(tmp_path / "one"), write(tmp_path / "two", "meal")
    spec = data_spec(study_data([one, two], "drop"), "one", EvalSpec("test", 7, 8))
    assert len(reads) == 7  # three splits each, and the test split once more for its first seven
    assert data_spec(study_data([one, two], "drop"), "one", EvalSpec("test", 7, 8)) == spec
    assert len(reads) == 7


def test_another_file_order_or_rule_is_read_anew(tmp_path, reads):
    one, two = write(tmp_path / "one"), write(tmp_path / "two", "meal")
    for sources, overlap in (([one, two], "drop"), ([two, one], "drop"), ([one, two], "keep"),
                             ([one], "drop")):
        before = len(reads)
        study_data(sources, overlap)
        assert len(reads) == before + 3 * len(sources)
    edit(one, "validation", "film", "movie")
    study_data([one], "drop")
    assert len(reads) == before + 6


@pytest.mark.parametrize("broken", ["", "{", '{"value": 1}', '{"value": {}, "digest": "0"}', "[]", "\x00"])
def test_a_broken_entry_is_computed_anew(tmp_path, cache, reads, broken):
    source = write(tmp_path / "one")
    study = study_data([source], "drop")
    (entry,) = (cache / "data").iterdir()
    whole = entry.read_text()
    entry.write_text(broken)
    assert study_data([source], "drop") == study
    assert len(reads) == 6 and entry.read_text() == whole


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, cache, reads, caplog):
    cache.write_text("a file where the folder should be")
    source = write(tmp_path / "one")
    assert study_data([source], "drop") == study_data([source], "drop")
    assert len(reads) == 6 and "cannot keep" in caplog.text


@pytest.mark.system
def test_planning_needs_neither_torch_nor_transformers(tmp_path):
    folder = write(tmp_path / "one").path
    code = (
        "import sys; from portability.data.splits import *; from portability.core.specs import EvalSpec\n"
        f"study = study_data([DataSource('one', path={folder!r})], 'drop')\n"
        "data_spec(study, 'one', EvalSpec('test', 3, 8))\n"
        "sys.exit(' '.join({'torch', 'transformers', 'datasets'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kept", [b"\xff\xfe{", b"", b"x" * 64, b"a" * 63])
def test_a_digest_that_was_kept_and_is_damaged_is_made_anew(cache, tmp_path, kept):
    file = tmp_path / "weights"
    file.write_text("words")
    for _ in range(2):  # the second time it is there
        assert file_digest(file) == hashlib.sha256(b"words").hexdigest()
        (entry,) = (cache / "digests").iterdir()
        assert json.loads(entry.read_text())["value"] == file_digest(file)
        entry.write_bytes(kept)


def test_a_cache_that_is_no_folder_costs_time_alone(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("words")
    monkeypatch.setenv("PORTABILITY_CACHE", str(tmp_path / "file"))
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"words").hexdigest()
    assert "cannot keep digests in" in caplog.text
