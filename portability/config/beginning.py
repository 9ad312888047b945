"""A new study's file: what a data file holds, a part of it put aside to test on, and the text with its
comments."""

import json
import os
import random
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from portability.core.errors import UserError
from portability.core.paths import bundled
from portability.core.seeds import stream_seed
from portability.core.specs import MOST_LABELS, TaskSpec
from portability.data.examples import FORMS, TWO
from portability.data.files import rows_of
from portability.planning.grid import Grid
from portability.planning.study import Study

TEXTS = {"text": "text_pair", "sentence": "", "review": "", "content": "", "premise": "hypothesis",
         "sentence1": "sentence2", "question1": "question2"}  # usual names of texts, and of a second one
LABELS = ("label", "labels", "class", "category", "sentiment", "intent", "stars", "target")
ASIDE = 5  # one of so many examples is put aside (our choice)
ANSWERS = {"scoring": "exact_match", "new_tokens": 32, "max_length": 512}  # of answers to write (our choice)


def entry_of(files: Sequence[Path], text: str | None, label: str | None) -> dict[str, Any]:
    """What an entry of `data` says of the rows in files, beside their place: columns, labels, scoring.

    Args:
        text, label: names of the columns of texts with labels; None: one of the usual ones.

    Raises:
        UserError: a column that is not there or not found, or labels that are none.
    """
    _, first = next(rows_of(files[0]), ("", None))
    if not isinstance(first, dict):
        raise UserError(f"{files[0]} holds no examples with named columns")
    if text is label is None and ("messages" in first or {"prompt", "answer"} <= first.keys()):
        answers = {"scoring": "choice"} if "choices" in first else ANSWERS
        used = [key for key in ("prompt", "choices", "answer") if key in first]
        named = frozenset(first) in FORMS or "messages" in first
        return {"answers": answers} | ({} if named else {"columns": {key: key for key in used}})
    text = _column(text, tuple(TEXTS), first, files[0], "text")
    label = _column(label, LABELS, first, files[0], "label")
    labels = _labels(files, label)
    pair = TEXTS.get(text) if TEXTS.get(text) in first else None
    said = {"text_column": (text, "text"), "label_column": (label, "label"), "pair_column": (pair, None),
            "labels": (labels, None)}
    return {key: value for key, (value, usual) in said.items() if value != usual}


def _column(said: str | None, usual: Sequence[str], first: Mapping[str, Any], path: Path, what: str) -> str:
    found = [said] if said else [name for name in usual if name in first]
    if not found or found[0] not in first:
        raise UserError(f"{path}: which column holds the {what}? It has {', '.join(map(repr, first))}; say "
                        f"--{what}-column NAME")
    return found[0]


def _labels(files: Sequence[Path], column: str) -> list[Any] | None:
    """The names of the labels in order; None where they are the numbers 0 and 1."""
    held = set()
    for where, row in (placed for file in files for placed in rows_of(file, [column])):
        value = row.get(column) if isinstance(row, dict) else None
        if type(value) not in (int, str):
            raise UserError(f"{where}: the label in column {column!r} must be a text or a whole number, got "
                            f"{reprlib.repr(value)}; mend it, or say --label-column NAME")
        held.add(value)
    if held <= {*TWO}:
        return None
    if len(held) > MOST_LABELS or len(set(map(type, held))) > 1:
        raise UserError(f"column {column!r} of {files[0]} holds {len(held)} different values, some texts and "
                        f"some numbers or more than {MOST_LABELS} in all, and so no labels; say "
                        "--label-column NAME")
    return sorted(held)


def put_aside(path: Path, folder: Path, label: str | None) -> dict[str, Path]:
    """Two new files, for training and for tests, with the rows of one: a fifth, drawn once, is for tests.

    Args:
        label: column whose figures are numbers.

    Raises:
        UserError: there are too few rows, or a file of that name.
        OSError: one cannot be written; then there is none of the two.
    """
    rows = [row for _, row in rows_of(path, [label] if label else [])]
    if len(rows) < 2 * ASIDE:
        raise UserError(f"{path} holds {len(rows)} examples, too few to put some aside; give a file to test "
                        "on (--test FILE)")
    drawn = set(random.Random(stream_seed("put-aside")).sample(range(len(rows)), len(rows) // ASIDE))
    parts = {"train": [row for place, row in enumerate(rows) if place not in drawn],
             "test": [row for place, row in enumerate(rows) if place in drawn]}
    found = {split: folder / f"{path.stem}-{split}.jsonl" for split in parts}
    for split, place in found.items():
        if place.exists():
            raise UserError(f"{place} is there already, and a part of {path} would be written there; give it "
                            f"as --{split}, or delete it")
    try:
        for split, place in found.items():
            place.write_text("".join(json.dumps(row, ensure_ascii=False, default=str) + "\n"
                                     for row in parts[split]), encoding="utf-8")
    except BaseException:
        for place in found.values():
            place.unlink(missing_ok=True)
        raise
    return found


def host_set_of(names: Sequence[str]) -> str | None:
    """The host set of conf on all of whose hosts rates were tried, or None."""
    for path in sorted((bundled("conf") / "host_set").glob("*.yaml")):
        tried = yaml.safe_load(path.read_text())["host_set"].get("tried") or {}
        if {*names} <= {*tried.get("hosts", ())}:
            return path.stem
    return None


def study_text(file: Path, held: Mapping[str, Any], study: Study | None = None) -> str:
    """A study's file, with comments.

    Args:
        file: as the user named it.
        held: its hosts, data and methods, and perhaps host_set and origin.
        study: what became of these; then the file says the question, rates, seeds and budgets, too.
    """
    lines = [
        "# A study in one file; paths count from its folder.",
        f"# to see what it would do: portability run {file} mode=plan (all settings: --cfg job in its place)",
        f"# to try it: portability run {file} --limit 20; to do it: portability run {file}",
        f"# to read it: portability analyze results/{held['study']}",
        f"study: {_value(held['study'])}",
    ]
    if "host_set" in held:
        lines += ["", f"host_set: {held['host_set']}  # of these hosts: its question and rates"]
    single = "origin" in held and len(held["hosts"]) == 1
    lines += ["", "hosts:  # " + ("they receive the module" if single else "the first is the origin, where "
                                  "modules are trained; the others receive them")]
    lines += [_line(name, value, 2) for name, value in held["hosts"].items()]
    if "origin" in held:
        lines += ["", "origin:", _line("module", held["origin"]["module"], 2) + "  # trained already"]
    ((name, entry),) = held["data"].items()
    asked = study.grid.task_of(study.grid.data[0]) if study else None
    lines += ["", "data:", f"  {_value(name)}:"] + [_line(key, one, 4) for key, one in (entry or {}).items()]
    if isinstance(asked, TaskSpec) and entry:
        lines += _asked(asked, 4)
    methods = dict(held["methods"])
    if study is not None:
        methods = {one.name: {**(methods[one.name] or {}), "learning_rate": one.learning_rate}
                   for one in study.grid.methods}
    lines += ["", "methods:  # more of them: portability list methods"]
    lines += [_line(name, value, 2) for name, value in methods.items()]
    if study and isinstance(asked, TaskSpec) and not entry and name not in study.grid.tasks:
        lines += ["", *_asked(asked, 0)]
    return "\n".join(lines + (_axes(study.grid) if study else [])) + "\n"


def _asked(task: TaskSpec, indent: int) -> list[str]:
    return [f"{' ' * indent}task:  # how a text is asked about", _line("template", task.template, indent + 2),
            _line("label_words", list(task.label_words), indent + 2) + "  # their first tokens must differ",
            _line("max_length", task.max_length, indent + 2) + "  # tokens; longer texts are cut"]


def _axes(grid: Grid) -> list[str]:
    return ["", "grid:",
            _line("inits", [init.name for init in grid.inits], 2) + "  # how a receiving module starts",
            _line("seeds", list(grid.seeds), 2),
            _line("budgets", list(grid.budgets), 2) + "  # updates on the receiving host"]


def _line(name: str, value: Any, indent: int) -> str:
    return f"{' ' * indent}{_value(name)}:" + ("" if value is None else f" {_value(value)}")


def _value(value: Any) -> str:
    """A value in YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_value(key)}: {_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_.~/][\w./~@-]*", value)
    if plain and isinstance(yaml.safe_load(value), str):
        return value
    return json.dumps(value, ensure_ascii=False)


def beside(words: str, folder: Path) -> str:
    """A path as it counts from a study's folder; as it was given where it is absolute or of the home
    folder."""
    if Path(words).is_absolute() or words.startswith("~"):
        return words
    return os.path.relpath(words, folder)
