"""CSV and Parquet hold what JSON lines hold, and a bad file or row is named."""

import json
from pathlib import Path

import pandas as pd
import pytest

from portability.core.errors import UserError
from portability.data.files import ENDINGS, rows_of
from portability.data.sources import DataSource, files, read_split
from portability.data.splits import rows_digest, study_data

ROWS = [{"text": 'fine, "very" fine\nfilm', "label": 1}, {"text": "NA", "label": 0},
        {"text": "007", "label": 0}, {"text": "café", "label": 1}]


def write(folder: Path, ending: str, rows: list = ROWS, name: str = "train") -> Path:
    """Rows in a file, written by pandas where they are no JSON."""
    path, table = folder / f"{name}{ending}", pd.DataFrame(rows)
    if ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    return path


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_the_same_rows_are_the_same_data_in_every_format(tmp_path, ending):
    for split, rows in (("train", ROWS), ("test", ROWS[::-1])):
        for one in (".jsonl", ending):
            (tmp_path / one).mkdir(exist_ok=True)
            write(tmp_path / one, one, rows, split)
    splits = {"train": "train", "test": "test"}
    plain, other = (DataSource("films", path=str(tmp_path / one), splits=splits)
                    for one in (".jsonl", ending))
    found = read_split(other, "train")
    assert found == read_split(plain, "train") == [(row["text"], row["label"]) for row in ROWS]
    assert study_data([plain], "keep").digests == study_data([other], "keep").digests
    assert rows_digest(found) == study_data([other], "keep").digests["films"]["train"]


def test_a_spreadsheets_mark_of_its_encoding_is_no_part_of_the_first_column(tmp_path):
    (tmp_path / "a.csv").write_bytes("\ufefftext,label\ncafé,1\n".encode())
    assert [row for _, row in rows_of(tmp_path / "a.csv", ["label"])] == [{"text": "café", "label": 1}]
    assert next(rows_of(tmp_path / "a.csv"))[1] == {"text": "café", "label": "1"}


def test_labels_in_csv_may_be_names_or_figures(tmp_path):
    for name, labels in (("stars", [1, 2, 3]), ("topics", ["law", "art", "law"])):
        rows = [{"text": f"text {place}", "label": label} for place, label in enumerate(labels)]
        parts = {split: str(write(tmp_path, ".csv", rows, f"{name}-{split}")) for split in ("train", "test")}
        names = tuple(sorted(set(labels)))
        found = read_split(DataSource(name, splits=parts, labels=names), "test")
        assert [label for _, label in found] == [names.index(label) for label in labels]


def test_columns_of_prompts_may_have_other_names_in_files_of_their_own(tmp_path):
    rows = [{"question": "2 + 2 =", "reply": "4", "number": 7}]
    parts = {split: str(write(tmp_path, ".parquet", rows, split)) for split in ("train", "test")}
    source = DataSource("sums", splits=parts, columns={"prompt": "question", "answer": "reply"},
                        answers={"scoring": "exact_match", "new_tokens": 4})
    assert [(one.prompt, one.answer) for one in read_split(source, "train")] == [("2 + 2 =", "4")]


@pytest.mark.parametrize(("text", "says"), [
    (b"text,label\na,1\nb\n", "line 3 has more or fewer values than the header's 2 columns"),
    (b"text,label\na,1,2\n", "line 2 has more or fewer values"),
    (b"text,text\na,1\n", "names a column twice"),
    (b"text;label\na;1\n", r"line 2 has no 'text', only text;label; rename it, or name it"),
    (b"text,label\ncaf\xe9,1\n", "is not CSV in UTF-8"), (b'text,label\n"a"b,1\n', "line 2 is not CSV"),
    (b"text,label\na,1.0\n", "line 2: the label must be the number 0 or 1"),
    (b"text,label\n", "holds no examples"), (b"", "holds no examples"),
    (b"text,label\n,1\n", "line 2: the text must be a text that is not blank"),
])
def test_a_bad_csv_is_named_with_its_line(tmp_path, text, says):
    (tmp_path / "a.csv").write_bytes(text)
    other = str(write(tmp_path, ".csv"))
    source = DataSource("films", splits={"train": str(tmp_path / "a.csv"), "test": other})
    with pytest.raises(UserError, match=says) as error:
        read_split(source, "train")
    assert "a.csv" in str(error.value) and "\n" not in str(error.value)


def test_a_bad_parquet_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"a\.parquet is not Parquet that can be read"):
        list(rows_of(tmp_path / "a.parquet"))
    path = write(tmp_path, ".parquet", [{"text": "a", "label": 1}, {"text": None, "label": 0}])
    source = DataSource("films", splits={"train": str(path), "test": str(tmp_path / "b.csv")})
    with pytest.raises(UserError, match=r"train\.parquet row 2: the text must be a text .* got None"):
        read_split(source, "train")


def test_a_folder_holds_a_split_once_and_another_ending_is_no_data(tmp_path):
    write(tmp_path, ".csv"), write(tmp_path, ".parquet")
    with pytest.raises(UserError, match=r"holds train\.csv and train\.parquet; leave one of them"):
        files(DataSource("films", path=str(tmp_path)), ["train"])
    with pytest.raises(UserError, match=f"a data file ends in one of {ENDINGS}"):
        rows_of(tmp_path / "a.tsv")
