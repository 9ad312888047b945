"""Data sets as they stand in local files or on the hub: read and checked row by row, never trusted."""

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portability.core.errors import UserError, choose
from portability.core.hub import look_for_hub, remedy
from portability.core.paths import EMBEDDED
from portability.core.specs import SCORINGS, TOO_LONG, AnswerSpec
from portability.data.answer_scores import LIKELIHOODS, NORMALISERS
from portability.data.decontamination import LabelledText, Rows
from portability.data.examples import FORMS, Example, check_kinds, example_of, kind, parsed, read_examples

if TYPE_CHECKING:
    from datasets import DatasetDict

SHIPPED = EMBEDDED / "data"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class DataSource:
    """Where a data set comes from: exactly one of a local folder and a hub id; and what it holds: texts with
    labels, or prompts with answers.

    Attributes:
        path: folder of SPLIT.jsonl files, ``embedded:NAME`` for a set shipped with the package.
        hub: hub id (owner/name); needs `revision`, 40 hex digits.
        config: configuration of the hub's data set, for example "sst2" of nyu-mll/glue.
        splits: train, validation, test -> the split of the source that serves as it; validation may be
            missing.
        answers: of a set of prompts, how answers are scored (`answer_spec`); None for texts with labels.
        columns: of a set of prompts, the keys of its rows (tasks.examples.FORMS) -> their names at the
            source, where these are others or there are more of them.
    """

    name: str
    path: str | None = None
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    splits: Mapping[str, str | None] = field(default_factory=lambda: {split: split for split in SPLITS})
    answers: Mapping[str, Any] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def check(source: DataSource) -> dict[str, str]:
    """The source's splits that exist: train, validation, test -> name at the source.

    Raises:
        UserError: not exactly one place, no pinned revision, or splits that are unknown, missing or used
            twice.
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
    if source.columns and (source.answers is None or frozenset(source.columns) not in FORMS):
        forms = " or ".join(", ".join(sorted(form)) for form in FORMS)
        raise UserError(f"{where}: columns name the keys {forms} of a set with answers, got "
                        f"{dict(source.columns)}")
    return used


def answer_spec(source: DataSource, max_length: int) -> AnswerSpec | None:
    """How a set's answers are scored, or None for a set of texts with labels.

    Args:
        max_length: tokens, where the set does not say.

    Raises:
        UserError: an unknown scoring, normaliser, likelihood or key, or a number that is none from 1 on.
    """
    if source.answers is None:
        return None
    given, where = dict(source.answers), f"data.{source.name}.answers"
    scoring = choose(str(given.pop("scoring", None)), SCORINGS, f"{where}.scoring (the type of task)")
    written = scoring != "choice"
    known = {"exact_match": ("normaliser", "new_tokens", "too_long"), "rouge_l": ("new_tokens", "too_long"),
             "choice": ("likelihood",)}[scoring]
    for key in given:
        choose(str(key), (*known, "max_length"), f"key in {where}, scored by {scoring},")
    numbers = {"max_length": given.get("max_length", max_length)} | ({"new_tokens": given.get("new_tokens")}
                                                                     if written else {})
    for key, value in numbers.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{where}.{key} must be a whole number of tokens from 1 on, got {value!r}")
    spec = AnswerSpec(
        scoring=scoring, new_tokens=numbers.get("new_tokens"), max_length=numbers["max_length"],
        normaliser=str(given.get("normaliser", "squad")) if scoring == "exact_match" else None,
        likelihood=None if written else str(given.get("likelihood", "sum")),
        too_long=choose(str(given.get("too_long", TOO_LONG[0])), TOO_LONG, f"{where}.too_long"),
    )
    choose(spec.normaliser or "squad", NORMALISERS, f"{where}.normaliser")
    choose(spec.likelihood or "sum", LIKELIHOODS, f"{where}.likelihood")
    if written and spec.max_length <= (spec.new_tokens or 0):
        raise UserError(f"{where}: new_tokens {spec.new_tokens} leave no room for a prompt in max_length "
                        f"{spec.max_length}; raise max_length")
    return spec


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
        raise UserError(f"data set '{source.name}': no folder {folder}; set data_root=FOLDER, or its path in "
                        "conf/data")
    paths = {split: folder / f"{name}.jsonl" for split, name in used.items()}
    for split, path in paths.items():
        if not path.is_file():
            raise UserError(f"data set '{source.name}': no file {path} for its {split} split")
    return paths


def read(source: DataSource) -> "DatasetDict":
    """All splits of a set, with columns text (str) and label (0 negative, 1 positive), or prompt, answer and
    choices.

    Raises:
        UserError: anything wrong with the source, its files, or one of its rows.
    """
    from datasets import Dataset, DatasetDict

    found = {}
    for split in check(source):
        found[split] = Dataset.from_dict(as_columns(read_split(source, split)))
    return DatasetDict(found)


def as_columns(rows: Rows) -> dict[str, list[Any]]:
    """Rows as columns: text and label, or prompt, answer and choices."""
    if all(isinstance(row, Example) for row in rows):
        return {name: [getattr(row, name) for row in rows] for name in ("prompt", "answer", "choices")}
    texts = [row for row in rows if not isinstance(row, Example)]
    return {name: [row[place] for row in texts] for place, name in enumerate(("text", "label"))}


def read_split(source: DataSource, split: str) -> Rows:
    """The rows of one split, in the source's order.

    Raises:
        UserError: anything wrong with the source, the file, or one of its rows; no row, or rows of one class
            only; answers to write where the scoring wants choices, or the other way round.
    """
    used = check(source)
    if split not in used:
        raise UserError(f"data set '{source.name}' has no {split} split; name one in its splits (conf/data)")
    path = files(source).get(split)
    where = str(path) if path else f"{source.hub} split {used[split]}"
    if source.answers is not None:
        return _examples(source, path, used[split], where)
    rows = _file_rows(source, path) if path else _hub_rows(source, used[split], where)
    labels = {label for _, label in rows}
    if not rows:
        raise UserError(f"{where} holds no examples")
    if len(labels) == 1:
        raise UserError(f"{where} holds only examples of label {labels.pop()}; both 0 and 1 are needed")
    return list(rows)


def _examples(source: DataSource, path: Path | None, split: str, where: str) -> Rows:
    """The examples of a set of prompts."""
    if path is not None:
        found = read_examples(path, source.columns)
    else:
        rows = _hub_split(source, split)
        found = [example_of(row, f"{where} row {number}", source.columns)
                 for number, row in enumerate(rows, start=1)]
        if not found:
            raise UserError(f"{where} holds no examples")
        check_kinds(found, f"{where} row")
    answers = source.answers or {}
    scoring = choose(str(answers.get("scoring")), SCORINGS, f"data.{source.name}.answers.scoring (the type "
                     "of task)")
    if (kind(found) == "choice") != (scoring == "choice"):
        have = "choices" if scoring != "choice" else "no choices"
        raise UserError(f"{where} has {have}, but data.{source.name}.answers.scoring is {scoring}; answers "
                        "to write are scored by exact_match or rouge_l, choices by choice")
    normalise = NORMALISERS.get(str(answers.get("normaliser", "squad")))
    for number, example in enumerate(found, start=1):
        if scoring == "exact_match" and normalise is not None and not normalise(example.answer):
            raise UserError(f"{where}, example {number}: the normaliser leaves nothing of the answer "
                            f"{example.answer[:60]!r}; choose another one "
                            f"(data.{source.name}.answers.normaliser)")
    return list(found)


def _file_rows(source: DataSource, path: Path) -> list[LabelledText]:
    try:
        with path.open("rb") as file:
            return [_line(line, source, f"{path} line {number}") for number, line in enumerate(file, start=1)]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _line(line: bytes, source: DataSource, where: str) -> tuple[str, int]:
    value = parsed(line, where)
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a JSON object with {source.text_column!r} and "
                        f"{source.label_column!r}")
    return _row(value, source, where)


def _row(value: Mapping[str, Any], source: DataSource, where: str) -> tuple[str, int]:
    for column in (source.text_column, source.label_column):
        if column not in value:
            raise UserError(f"{where} has no {column!r}")
    text, label = value[source.text_column], value[source.label_column]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: {source.text_column!r} must be a text that is not blank, got "
                        f"{reprlib.repr(text)}")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise UserError(f"{where}: {source.text_column!r} holds half a surrogate pair, which is no character")
    if type(label) is not int or label not in (0, 1):
        meaning = "the number 0 (negative) or 1 (positive)"
        raise UserError(f"{where}: {source.label_column!r} must be {meaning}, got {reprlib.repr(label)}")
    return text, label


def _hub_rows(source: DataSource, split: str, where: str) -> list[LabelledText]:
    values = _hub_split(source, split, (source.text_column, source.label_column))
    return [_row(value, source, f"{where} row {number}") for number, value in enumerate(values, start=1)]


def _hub_split(source: DataSource, split: str, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of a hub's split, with these columns only, or all."""
    look_for_hub()
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        found = datasets.load_dataset(str(source.hub), source.config, revision=source.revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        why = remedy(error, f"datasets/{source.hub}")
        raise UserError(f"data set '{source.name}': cannot fetch {source.hub}@{str(source.revision)[:8]}: "
                        f"{why}, or a local folder (path in conf/data)") from error
    choose(split, found, f"split of {source.hub}")
    for column in columns:
        choose(column, found[split].column_names, f"column of {source.hub}")
    return (found[split].select_columns(list(columns)) if columns else found[split]).to_list()


def embedded() -> list[str]:
    """Names of the sets shipped with the package."""
    return sorted(path.name for path in SHIPPED.iterdir() if path.is_dir())
