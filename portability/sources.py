"""Data sets as they stand in local files or on the hub: read and checked row by row, never trusted."""

import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portability.errors import UserError, choose
from portability.hub import INSTEAD, look_for_hub
from portability.overlap import Rows
from portability.paths import EMBEDDED

if TYPE_CHECKING:
    from datasets import DatasetDict

SHIPPED = EMBEDDED / "data"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class DataSource:
    """Where a sentiment set comes from: exactly one of a local folder and a hub id.

    Attributes:
        path: folder of SPLIT.jsonl files, ``embedded:NAME`` for a set shipped with the package.
        hub: hub id (owner/name); needs `revision`, 40 hex digits.
        config: configuration of the hub's data set, for example "sst2" of nyu-mll/glue.
        splits: train, validation, test -> the split of the source that serves as it; validation may be missing.
    """

    name: str
    path: str | None = None
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    splits: Mapping[str, str | None] = field(default_factory=lambda: {split: split for split in SPLITS})


def check(source: DataSource) -> dict[str, str]:
    """The source's splits that exist: train, validation, test -> name at the source.

    Raises:
        UserError: not exactly one place, no pinned revision, or splits that are unknown, missing or used twice.
    """
    where = f"data set '{source.name}'"
    if (source.path is None) == (source.hub is None):
        raise UserError(f"{where}: give either a path or a hub id (got path={source.path}, hub={source.hub})")
    for split in source.splits:
        choose(str(split), SPLITS, f"split of {where}")
    used = {split: str(source.splits[split]) for split in SPLITS if source.splits.get(split)}
    if not {"train", "test"} <= used.keys():
        raise UserError(f"{where}: splits must name a train and a test split, got {dict(source.splits)}")
    if len(set(used.values())) < len(used):
        raise UserError(f"{where}: one split of the source cannot serve twice, got {dict(source.splits)}")
    if source.hub is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", source.hub):
        raise UserError(f"{where}: a hub id reads owner/name, got {source.hub!r}")
    if source.hub is not None and not re.fullmatch(r"[0-9a-f]{40}", source.revision or ""):
        raise UserError(f"{where}: pin {source.hub} to a revision of 40 hex digits, got {source.revision!r}")
    return used


def files(source: DataSource) -> dict[str, Path]:
    """The file of each split of a local source; nothing for a hub source.

    Raises:
        UserError: no such folder or file.
    """
    used = check(source)
    if source.path is None:
        return {}
    folder = Path(source.path).expanduser()
    if source.path.startswith("embedded:"):
        folder = SHIPPED / source.path.removeprefix("embedded:")
    if not folder.is_dir():
        raise UserError(f"data set '{source.name}': no folder {folder}; set data_root=FOLDER, or its path in conf/data")
    paths = {split: folder / f"{name}.jsonl" for split, name in used.items()}
    for split, path in paths.items():
        if not path.is_file():
            raise UserError(f"data set '{source.name}': no file {path} for its {split} split")
    return paths


def read(source: DataSource) -> "DatasetDict":
    """All splits of a set, with columns text (str) and label (0 negative, 1 positive).

    Raises:
        UserError: anything wrong with the source, its files, or one of its rows.
    """
    from datasets import Dataset, DatasetDict

    found = {}
    for split in check(source):
        rows = read_split(source, split)
        found[split] = Dataset.from_dict({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
    return DatasetDict(found)


def read_split(source: DataSource, split: str) -> Rows:
    """The rows of one split, in the source's order.

    Raises:
        UserError: anything wrong with the source, the file, or one of its rows; no row, or rows of one class only.
    """
    used = check(source)
    if split not in used:
        raise UserError(f"data set '{source.name}' has no {split} split; name one in its splits (conf/data)")
    if source.path is None:
        where = f"{source.hub} split {used[split]}"
        rows = _hub_rows(source, used[split], where)
    else:
        path = files(source)[split]
        where = str(path)
        rows = _file_rows(source, path)
    labels = {label for _, label in rows}
    if not rows:
        raise UserError(f"{where} holds no examples")
    if len(labels) == 1:
        raise UserError(f"{where} holds only examples of label {labels.pop()}; both 0 and 1 are needed")
    return rows


def _file_rows(source: DataSource, path: Path) -> Rows:
    try:
        with path.open("rb") as file:
            return [_line(line, source, f"{path} line {number}") for number, line in enumerate(file, start=1)]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _line(line: bytes, source: DataSource, where: str) -> tuple[str, int]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 (byte {error.start + 1} of the line)") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a JSON object with {source.text_column!r} and {source.label_column!r}")
    return _row(value, source, where)


def _row(value: Mapping[str, Any], source: DataSource, where: str) -> tuple[str, int]:
    for column in (source.text_column, source.label_column):
        if column not in value:
            raise UserError(f"{where} has no {column!r}")
    text, label = value[source.text_column], value[source.label_column]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: {source.text_column!r} must be a text that is not blank, got {reprlib.repr(text)}")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise UserError(f"{where}: {source.text_column!r} holds half a surrogate pair, which is no character")
    if type(label) is not int or label not in (0, 1):
        meaning = "the number 0 (negative) or 1 (positive)"
        raise UserError(f"{where}: {source.label_column!r} must be {meaning}, got {reprlib.repr(label)}")
    return text, label


def _hub_rows(source: DataSource, split: str, where: str) -> Rows:
    look_for_hub()
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        found = datasets.load_dataset(str(source.hub), source.config, revision=source.revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise UserError(
            f"data set '{source.name}': cannot fetch {source.hub} from the hub, no network or no such data set "
            f"({type(error).__name__}: {_first_line(error)}); {INSTEAD}, or a local folder (path in conf/data)"
        ) from error
    choose(split, found, f"split of {source.hub}")
    for column in (source.text_column, source.label_column):
        choose(column, found[split].column_names, f"column of {source.hub}")
    values = found[split].select_columns([source.text_column, source.label_column]).to_list()
    return [_row(value, source, f"{where} row {number}") for number, value in enumerate(values, start=1)]


def embedded() -> list[str]:
    """Names of the sets shipped with the package."""
    return sorted(path.name for path in SHIPPED.iterdir() if path.is_dir())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
