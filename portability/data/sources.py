"""Data sets as they stand in local files or on the hub: read and checked row by row, never trusted."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from portability.core.errors import UserError, validate_choice
from portability.core.hub import look_for_hub, remedy
from portability.core.paths import EMBEDDED
from portability.core.schema import Count, build
from portability.core.specs import (
    MOST_LABELS,
    OWN_TEMPLATE,
    SCORINGS,
    SECOND,
    TOO_LONG,
    AnswerSpec,
    TaskSpec,
)
from portability.data.answer_scores import LIKELIHOODS, NORMALISERS
from portability.data.examples import FORMS, KEYS, TWO, Rows, read_rows
from portability.data.files import READERS, is_data_file, rows_of
from portability.data.templates import columns_of

SPLITS = ("train", "validation", "test")
MOST_LISTED = 8  # labels that a question lists (our choice)
WRITTEN = {"new_tokens": None, "too_long": TOO_LONG[0], "chat": None}
# by scoring: what a set's answers may say, and what holds where they do not
ANSWERS: Mapping[str, Mapping[str, Any]] = {
    "exact_match": {**WRITTEN, "normaliser": "squad"}, "rouge_l": WRITTEN,
    "choice": {"likelihood": "sum", "chat": None},
}
KNOWN = {"too_long": TOO_LONG, "normaliser": NORMALISERS, "likelihood": LIKELIHOODS}


@dataclass(frozen=True)
class DataSource:
    """Where a data set comes from, a local folder or a hub id (neither where all of its splits are files by
    themselves), and what it holds: texts with labels, or prompts with answers.

    Attributes:
        path: folder of SPLIT.jsonl, .csv or .parquet files, ``embedded:NAME`` for a set shipped with the
            package.
        hub: hub id (owner/name); needs `revision`, 40 hex digits.
        config: configuration of the hub's data set, for example "sst2" of nyu-mll/glue.
        pair_column: of pairs of texts, the column of the second one.
        labels: what labels 0, 1, ... are called in the rows: texts, of which a row may also hold the number,
            or whole numbers.
        task: what `task_spec` is to take instead of the study's (template, label_words, max_length).
        splits: train, validation, test -> the split of the source that serves as it, or a data file by
            itself (files.READERS), of prompts beside a folder or the hub with rows named as ours; validation
            may be missing.
        answers: of a set of prompts, how answers are scored (`answer_spec`); None for texts with labels.
        columns: of a set of prompts, the keys of its rows (tasks.examples.FORMS) -> their names at the
            source, where these are others or there are more of them.
        lettered: whether choices stand in the prompt behind letters, which are then what is chosen.
        templates: words around prompt and answer: Jinja over the source's columns, `prompt` and `answer`.
        train_examples: so many training examples are used (splits.drawn); None: all.
    """

    name: str
    path: str | None = None
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    pair_column: str | None = None
    labels: tuple[str | int, ...] = (0, 1)
    task: Mapping[str, Any] | None = None
    splits: Mapping[str, str | None] = field(default_factory=lambda: {split: split for split in SPLITS})
    answers: Mapping[str, Any] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    lettered: bool = False
    templates: Mapping[str, str] = field(default_factory=dict)
    train_examples: Count | None = None


def check(source: DataSource) -> dict[str, str]:
    """The source's splits that exist: train, validation, test -> name at the source.

    Raises:
        UserError: not exactly one place, no pinned revision, or splits that are unknown, missing or used
            twice.
    """
    for split in source.splits:
        validate_choice(str(split), SPLITS, f"split of data set '{source.name}'")
    used = {split: str(source.splits[split]) for split in SPLITS if source.splits.get(split)}
    hub, given = source.hub, dict(source.splits)
    named, pinned = r"[\w.-]+/[\w.-]+", r"[0-9a-f]{40}"
    columns = not source.columns or source.answers is not None and frozenset(source.columns) in FORMS
    _check_words(source)
    places, alone = [place for place in (source.path, hub) if place], all(map(is_data_file, used.values()))
    of_texts = source.labels == TWO and source.task is None and source.pair_column is None
    names = [str(name).strip() for name in source.labels]
    for right, says in (
        (len(places) == 1 or alone and not places,
         f"give either a path or a hub id (got path={source.path}, hub={hub})"),
        ({"train", "test"} <= used.keys(), f"splits must name a train and a test split, got {given}"),
        (len(set(used.values())) == len(used), f"one split of the source cannot serve twice, got {given}"),
        (hub is None or re.fullmatch(named, hub), f"a hub id reads owner/name, got {hub!r}"),
        (hub is None or re.fullmatch(pinned, source.revision or ""),
         f"pin {hub} to a revision of 40 hex digits, got {source.revision!r}"),
        (columns, f"columns name the keys {KEYS} of a set with answers, got {dict(source.columns)}"),
        (of_texts or source.answers is None, "labels, pair_column and task are of texts with labels, and "
         "answers of prompts; leave one out"),
        (2 <= len(names) == len(set(names)) <= MOST_LABELS and all(names),
         f"labels must name from 2 to {MOST_LABELS} labels, none twice and none blank, got {names}"),
    ):
        if not right:
            raise UserError(f"data set '{source.name}': {says}")
    return used


def _check_words(source: DataSource) -> None:
    """Refuse letters and templates that cannot be used."""
    where = f"data set '{source.name}'"
    try:
        columns_of(source.templates)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if source.templates and source.answers is None:
        raise UserError(f"{where}: templates are of prompts with answers (answers); texts with labels have "
                        "task.template")
    if source.lettered and (source.answers or {}).get("scoring") != "choice":
        raise UserError(f"{where}: lettered is of answers to choose; set answers.scoring=choice, or leave it "
                        "out")


def answer_spec(source: DataSource, max_length: int) -> AnswerSpec | None:
    """How a set's answers are scored, or None for a set of texts with labels.

    Args:
        max_length: tokens, where the set does not say.

    Raises:
        UserError: an unknown scoring, normaliser, likelihood or key, or a number that is none from 1 on.
    """
    if source.answers is None:
        return None
    where = f"data.{source.name}.answers"
    scoring = validate_choice(str(source.answers.get("scoring")), SCORINGS, f"{where}.scoring (the type of "
                              "task)")
    found = {"scoring": scoring, "max_length": max_length, **ANSWERS[scoring]}
    for key in source.answers:
        validate_choice(str(key), found, f"key in {where}, scored by {scoring},")
    found |= source.answers
    for key, value in found.items():
        if key in KNOWN:
            validate_choice(str(value), KNOWN[key], f"{where}.{key}")
        elif key == "chat":
            if value not in (None, OWN_TEMPLATE) and "messages" not in str(value):
                raise UserError(f"{where}.chat must be '{OWN_TEMPLATE}', for each host's chat template, or a "
                                f"Jinja template that reads messages, got {value!r}")
        elif key != "scoring" and (type(value) is not int or value < 1):
            raise UserError(f"{where}.{key} must be a whole number of tokens from 1 on, got {value!r}")
    spec = AnswerSpec(**{"normaliser": None, "likelihood": None, "new_tokens": None, **found})
    if spec.max_length <= (spec.new_tokens or 0):
        raise UserError(f"{where}: new_tokens {spec.new_tokens} leave no room for a prompt; raise max_length")
    return spec


def labels_named(task: TaskSpec) -> TaskSpec:
    """The same task with its label words where the template has {labels}; too many are not listed.

    Example:
        >>> labels_named(TaskSpec("{text} {labels}?", ("ham", "spam"), 64)).template
        '{text} ham or spam?'
    """
    listed = " or ".join(task.label_words) if len(task.label_words) <= MOST_LISTED else "which one"
    return replace(task, template=task.template.replace("{labels}", listed))


def task_spec(source: DataSource, task: TaskSpec) -> TaskSpec:
    """How a set's texts are asked: as the study's, but for what the set says itself. Names of labels are
    their label words, unless it says others.

    Args:
        task: the study's.

    Raises:
        UserError: not as many label words as labels, a bad value, or a template that does not take a pair
            where the set has pairs, or takes one where it has none.
    """
    where, own = f"data.{source.name}.task", dict(source.task or {})
    words = {} if source.labels == TWO else {"label_words": [str(name) for name in source.labels]}
    spec = labels_named(build(TaskSpec, asdict(task) | words | own, where))
    labels = ", ".join(map(str, source.labels))
    if len(spec.label_words) != len(source.labels):
        raise UserError(f"data set '{source.name}' has {len(source.labels)} labels ({labels}) and "
                        f"{len(spec.label_words)} label words ({', '.join(spec.label_words)}); name the "
                        f"labels in data.{source.name}.labels, or as many words in {where}.label_words")
    if spec.pairs and source.pair_column is None:
        raise UserError(f"data set '{source.name}' has single texts, and its template {spec.template!r} asks "
                        f"about pairs; name the second text's column in data.{source.name}.pair_column")
    if source.pair_column is not None and not spec.pairs:
        raise UserError(f"data set '{source.name}' has pairs of texts, and its template {spec.template!r} "
                        f"has no place for the second one; put {SECOND} into {where}.template")
    return spec


def files(source: DataSource, splits: Collection[str] = SPLITS) -> dict[str, Path]:
    """The file of each of these splits that has one; of a hub source, those that are files by themselves.

    Raises:
        UserError: no such folder or file.
    """
    used = {split: name for split, name in check(source).items() if split in splits}
    paths = {split: Path(name).expanduser() for split, name in used.items() if is_data_file(name)}
    if source.path is not None:
        folder = Path(source.path).expanduser()
        if source.path.startswith("embedded:"):
            folder = EMBEDDED / "data" / source.path.removeprefix("embedded:")
        if not folder.is_dir():
            raise UserError(f"data set '{source.name}': no folder {folder}; set data.{source.name}.path="
                            "FOLDER, or data_root=FOLDER")
        paths = {split: paths.get(split) or _in(folder, name, source) for split, name in used.items()}
    for split, path in paths.items():
        if not path.is_file():
            raise UserError(f"data set '{source.name}': no file {path} for its {split} split; write it, or "
                            f"name another in data.{source.name}.splits")
    return paths


def _in(folder: Path, name: str, source: DataSource) -> Path:
    """The file of a split in a folder, whatever its ending."""
    there = [path for ending in READERS if (path := folder / f"{name}{ending}").is_file()]
    if len(there) > 1:
        raise UserError(f"data set '{source.name}': {folder} holds "
                        f"{' and '.join(path.name for path in there)}; leave one of them")
    return there[0] if there else folder / f"{name}.jsonl"


def read_split(source: DataSource, split: str) -> Rows:
    """The rows of one split, in the source's order.

    Raises:
        UserError: anything wrong with the source, the file, or one of its rows; no row, or rows of one class
            only; answers to write where the scoring wants choices, or the other way round.
    """
    used = check(source)
    if split not in used:
        raise UserError(f"data set '{source.name}' has no {split} split; name one in its splits (conf/data)")
    labelled, path = source.answers is None, files(source, [split]).get(split)
    columns = {"text": source.text_column, "label": source.label_column} if labelled else source.columns
    if is_data_file(used[split]) and not labelled and (source.path or source.hub):
        columns = {}
    if source.pair_column is not None:
        columns = {**columns, "text_pair": source.pair_column}
    where = str(path) if path else f"{source.hub} split {used[split]}"
    figures = [source.label_column] if labelled else []
    values = rows_of(path, figures) if path else _hub_rows(source, used[split], columns, where)
    rows = read_rows(values, columns, source.labels if labelled else None, source.lettered, source.templates)
    labels = {label for _, label in rows} if labelled else ()
    if not rows:
        raise UserError(f"{where} holds no examples")
    if len(labels) == 1:
        name, others = source.labels[labels.pop()], "both {} and {} are".format(*source.labels)
        raise UserError(f"{where} holds only examples of label {name}; "
                        f"{others if len(source.labels) == 2 else 'another one is'} needed: add some to the "
                        "file")
    if not labelled:
        _check_answers(source, rows, where, split)
    return rows


def _check_answers(source: DataSource, rows: Rows, where: str, split: str) -> None:
    """See that the examples can be scored as the source says; what is trained on needs no choices."""
    spec, chosen = answer_spec(source, 2**31), rows[0].choices is not None
    assert spec is not None
    if chosen != (spec.scoring == "choice") and (chosen or split != "train"):
        have = "choices" if chosen else "no choices"
        raise UserError(f"{where} has {have}, but data.{source.name}.answers.scoring is {spec.scoring}; "
                        "answers to write are scored by exact_match or rouge_l, choices by choice")
    normalise = NORMALISERS[spec.normaliser or "plain"]
    for number, example in enumerate(rows, start=1):
        if not normalise(example.answer):
            raise UserError(f"{where}, example {number}: the normaliser leaves nothing of the answer "
                            f"{example.answer[:60]!r}; set another data.{source.name}.answers.normaliser")


def _hub_rows(
    source: DataSource, split: str, columns: Mapping[str, str], where: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and content of each row of a hub's split, of these columns only, or of all."""
    look_for_hub()
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        found = datasets.load_dataset(str(source.hub), source.config, revision=source.revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        why = remedy(error, f"datasets/{source.hub}")
        raise UserError(f"data set '{source.name}': cannot fetch {source.hub}@{str(source.revision)[:8]}: "
                        f"{why}, or a local folder (path in conf/data)") from error
    part = found[validate_choice(split, found, f"split of {source.hub}")]
    named = list(dict.fromkeys([*columns.values(), *sorted(columns_of(source.templates))]))
    for column in named:
        validate_choice(column, part.column_names, f"column of {source.hub}")
    for number, row in enumerate(part.select_columns(named if columns else part.column_names), start=1):
        yield f"{where} row {number}", row
