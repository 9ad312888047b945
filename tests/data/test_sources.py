"""Every bad source, file or row is refused in one sentence that says where."""

import json
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from portability.core.errors import UserError
from portability.core.paths import EMBEDDED
from portability.data.sources import SPLITS, DataSource, check, read_split

GOOD = [{"text": "fine film", "label": 1}, {"text": "dull film", "label": 0}]
PIN = "0" * 40


def write(folder: Path, **splits: list) -> DataSource:
    """A source of lines: bytes as they are, anything else as JSON."""
    folder.mkdir(exist_ok=True)
    for split, rows in ({"train": GOOD, "validation": GOOD, "test": GOOD} | splits).items():
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (folder / f"{split}.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    return DataSource("films", path=str(folder))


def read(source: DataSource) -> dict[str, list]:
    """All splits of a source."""
    return {split: read_split(source, split) for split in check(source)}


def test_a_folder_is_read_in_its_order(tmp_path):
    assert read(write(tmp_path)) == dict.fromkeys(SPLITS, [("fine film", 1), ("dull film", 0)])


def test_the_columns_and_splits_of_a_source_can_have_other_names(tmp_path):
    rows = [{"sentence": "a", "stars": 0}, {"sentence": "b", "stars": 1}]
    source = write(tmp_path, dev=rows, train=rows)
    source = replace(source, text_column="sentence", label_column="stars",
                     splits={"train": "train", "test": "dev"})
    assert read(source)["test"] == [("a", 0), ("b", 1)]
    assert set(read(source)) == {"train", "test"}


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path):
    text = "one\u2028two\x0bthree"
    source = write(tmp_path, test=[json.dumps({"text": text, "label": 0}, ensure_ascii=False).encode(),
                                   GOOD[0]])
    assert read_split(source, "test")[0] == (text, 0)


BAD_ROWS = {
    "broken JSON": (b'{"text": "a", ', "is not JSON"),
    "blank line": (b"", "is not JSON"),
    "endless nesting": (b"[" * 100_000, "is not JSON"),
    "not an object": (["a", 1], "must be a JSON object"),
    "not UTF-8": (b'{"text": "caf\xe9", "label": 1}', "is not JSON in UTF-8"),
    "no text": ({"label": 1}, "has no 'text'"),
    "no label": ({"text": "a"}, "has no 'label'"),
    "blank text": ({"text": " \t", "label": 1}, "must be a text that is not blank"),
    "null text": ({"text": None, "label": 1}, "must be a text that is not blank, got None"),
    "half a surrogate pair": (b'{"text": "a\\ud800", "label": 1}', "surrogate"),
    "label of a third class": ({"text": "a", "label": 2}, "got 2"),
    "hidden label": ({"text": "a", "label": -1}, "got -1"),
    "bool": ({"text": "a", "label": True}, "got True"),
    "string": ({"text": "a", "label": "1"}, "got '1'"),
    "float": ({"text": "a", "label": 1.0}, "got 1.0"),
    "not a number": (b'{"text": "a", "label": NaN}', "got nan"),
}


@pytest.mark.parametrize("bad, message", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_line_is_named_with_its_file_and_number(bad, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        read(write(tmp_path, validation=[*GOOD, bad, *GOOD]))
    assert f"{tmp_path / 'validation.jsonl'} line 3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"test\.jsonl holds no examples"):
        read(write(tmp_path, test=[]))


def test_a_split_of_one_class_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"train\.jsonl holds only examples of label 1"):
        read(write(tmp_path, train=[GOOD[0], GOOD[0]]))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=f"no folder {tmp_path / 'none'}; set data.films.path=FOLDER"):
        read(DataSource("films", path=str(tmp_path / "none")))


def test_a_missing_file_is_named(tmp_path):
    source = write(tmp_path)
    (tmp_path / "validation.jsonl").unlink()
    with pytest.raises(UserError, match=r"no file .*validation\.jsonl for its validation split"):
        read(source)


def test_a_split_that_the_source_lacks_is_refused(tmp_path):
    source = replace(write(tmp_path), splits={"train": "train", "validation": None, "test": "test"})
    with pytest.raises(UserError, match="has no validation split"):
        read_split(source, "validation")


BAD_SOURCES = {
    "no place": ({}, "either a path or a hub id"),
    "two places": ({"path": "a", "hub": "a/b"}, "either a path or a hub id"),
    "no revision": ({"hub": "a/b"}, "pin a/b to a revision of 40 hex digits, got None"),
    "branch for a revision": ({"hub": "a/b", "revision": "main"}, "pin a/b to a revision"),
    "not a hub id": ({"hub": "csv", "revision": PIN}, "owner/name"),
    "unknown split": ({"path": "a", "splits": {"train": "a", "tset": "b"}}, "unknown split"),
    "no test split": ({"path": "a", "splits": {"train": "a"}}, "must name a train and a test split"),
    "test split twice": ({"path": "a", "splits": {"train": "a", "validation": "b", "test": "b"}},
                         "cannot serve twice"),
}


@pytest.mark.parametrize("fields, message", BAD_SOURCES.values(), ids=BAD_SOURCES)
def test_a_bad_source_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        read(DataSource("films", **fields))


# ---- the hub


GLUE = DataSource("glue", hub="nyu-mll/glue", config="sst2", revision=PIN, text_column="sentence",
                  splits={"train": "train", "test": "validation"})


@pytest.fixture
def hub(monkeypatch):
    """Lets the hub answer with these splits, or raise this error; gives back what it was asked."""
    asked = []

    def answer(found):
        def load_dataset(*args, **kwargs):
            asked.append((args, kwargs))
            if isinstance(found, Exception):
                raise found
            return datasets.DatasetDict({split: datasets.Dataset.from_list(rows)
                                         for split, rows in found.items()})

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return answer


def test_a_hub_set_is_read_at_its_revision_without_remote_code(hub):
    rows = [{"sentence": "a", "label": 0, "idx": 0}, {"sentence": "b", "label": 1, "idx": 1}]
    asked = hub({"train": rows, "validation": rows[::-1], "test": rows})
    assert read(GLUE)["test"] == [("b", 1), ("a", 0)]
    assert all(args == ("nyu-mll/glue", "sst2") and kwargs == {"revision": PIN} for args, kwargs in asked)


def test_hidden_labels_of_a_hub_split_are_refused(hub):
    rows = [{"sentence": "a", "label": -1}]
    hub({"train": rows, "validation": rows})
    with pytest.raises(UserError, match="nyu-mll/glue split train row 1: the label must be the number 0"):
        read(GLUE)


def test_a_hub_set_without_the_column_or_split_names_what_there_is(hub):
    hub({"train": [{"text": "a", "label": 0}]})
    with pytest.raises(UserError, match="unknown column of nyu-mll/glue 'sentence'; choose one of: label, "
                       "text"):
        read_split(GLUE, "train")
    with pytest.raises(UserError, match="unknown split of nyu-mll/glue 'validation'; choose one of: train"):
        read_split(GLUE, "test")


@pytest.mark.parametrize("error", [
    ConnectionError("Couldn't reach the Hub"), ValueError("BuilderConfig 'sst3' not found"),
    datasets.exceptions.DatasetGenerationError("broken"),
], ids=lambda error: type(error).__name__)
def test_a_hub_that_does_not_answer_is_named_with_local_alternatives(error, hub):
    hub(error)
    with pytest.raises(UserError, match="cannot fetch nyu-mll/glue.*host_set=nano") as caught:
        read(GLUE)
    assert type(error).__name__ in str(caught.value)


@pytest.mark.parametrize("name", sorted(path.name for path in (EMBEDDED / "data").iterdir()))
def test_the_shipped_sets_are_whole(name):
    answers = {"sums": {"scoring": "exact_match", "new_tokens": 4}, "quiz": {"scoring": "choice"}}.get(name)
    found = read(DataSource(name, path=f"embedded:{name}", answers=answers))
    assert set(found) == {"train", "validation", "test"} and len(found["train"]) > 100
