"""The command `portability init`: five questions, and a study in one file with comments, which runs as it
is."""

import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from portability.config.beginning import beside, entry_of, host_set_of, put_aside, study_text
from portability.core.command_line import carry_out
from portability.core.errors import UserError, validate_choice
from portability.core.paths import bundled
from portability.data.files import ENDINGS, is_data_file
from portability.data.sources import DataSource, files
from portability.hosts.hub import commit_of
from portability.hosts.resolve import HUB_ID
from portability.options import QUESTIONS, parser
from portability.run import compose

T = TypeVar("T")
RATE = 1.0e-3  # of an adapter from elsewhere, whose folder does not say it (that of conf/host_set/own.yaml)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file; gives back the exit code."""
    return carry_out(parser("init"), work, arguments)


def work(options: Namespace) -> None:
    """Write the file, and say what to do with it.

    Raises:
        UserError: as of `write`.
    """
    file = write(options)
    sys.stdout.write(f"wrote {file}\n  what it would do: portability run {file} mode=plan\n"
                     f"  try it:           portability run {file} --limit 20\n"
                     f"  do it:            portability run {file}\n")


def write(options: Namespace) -> Path:
    """Ask what the options leave open, write the study's file and give it back.

    Raises:
        UserError: an answer that does not work, a file that is there; nothing is written then.
    """
    file, made = options.file, list[Path]()
    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"{file}: a study's file ends in .yaml")
    if file.exists():
        raise UserError(f"{file} is there already; name another (portability init other.yaml), or delete it")
    if not file.parent.is_dir():
        raise UserError(f"{file.parent}: there is no such folder")
    held = _held(options, file)
    draft = file.with_name(f".{file.name}.draft.yaml")
    try:
        held["data"] = _data(options, file.parent, made)
        draft.write_text(study_text(file, held), encoding="utf-8")
        draft.write_text(study_text(file, held, compose([str(draft)])), encoding="utf-8")
        draft.replace(file)
    except BaseException:
        for path in (draft, *made):
            path.unlink(missing_ok=True)
        raise
    return file


def _ask(options: Namespace, name: str, read: Callable[[str], T], default: str | None = None) -> T:
    """An answer out of the options, from the user, or the default; at a terminal one that does not work is
    asked for again."""
    text, usual = QUESTIONS[name]
    usual = usual if default is None else default
    given = getattr(options, name)
    if given is not None or options.yes:
        return read(" ".join(given) if isinstance(given, list) else given if given is not None else usual)
    while True:
        sys.stdout.write(f"{text}{f' [{usual}]' if usual else ''}: ")
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            raise UserError(f"no answer to '{text}': give --{name}, or --yes for defaults")
        try:
            return read(line.strip() or usual)
        except UserError as error:
            if not sys.stdin.isatty():
                raise
            sys.stdout.write(f"  {error}\n")


def _held(options: Namespace, file: Path) -> dict[str, Any]:
    """Method, hosts and what follows from them."""
    folder = file.parent
    methods = _ask(options, "method", lambda words: _method(words, folder))
    module = next((entry["from"] for entry in methods.values() if entry), None)
    base = "" if module else None  # an adapter's folder names its base
    origin = _ask(options, "origin", lambda words: _hosts(words, folder) if words else {}, base)
    receiving = _ask(options, "receiving", lambda words: _hosts(words, folder))
    hosts = dict(origin)
    for name, place in receiving.items():
        _add(hosts, name, place)
    held: dict[str, Any] = {"study": file.stem, "hosts": hosts, "methods": methods}
    if module:
        held["origin"] = {"module": module}
    elif len(hosts) < 2:
        raise UserError(f"'{next(iter(hosts))}' is both hosts; name another one that receives (--receiving)")
    known = all(entry is None for entry in hosts.values())
    return held | ({"host_set": found} if known and (found := host_set_of(list(hosts))) else {})


def _names(group: str) -> list[str]:
    return sorted(path.stem for path in (bundled("conf") / group).glob("*.yaml"))


def _last(path: Path) -> str:
    """The name of a folder, "." and links too."""
    return os.path.basename(os.path.abspath(path.expanduser()))


def _method(words: str, folder: Path) -> dict[str, dict[str, Any] | None]:
    there = Path(words).expanduser()
    if words in _names("method") and not there.is_dir():
        return {words: None}
    if there.is_dir() and not (there / "adapter_config.json").is_file():
        raise UserError(f"{words} holds no adapter_config.json: it is no folder of an adapter")
    if not there.is_dir() and "/" not in words:
        validate_choice(words, _names("method"), "method or folder of an adapter")
    place = beside(words, folder) if there.is_dir() else words
    name = re.sub(r"[^\w-]", "-", _last(Path(words.partition("@")[0])))
    name += "-adapter" if name in _names("method") else ""
    return {name: {"from": place, "learning_rate": RATE}}


def _hosts(words: str, folder: Path) -> dict[str, str | None]:
    """Names of hosts, and where they are; None of those that conf has."""
    found: dict[str, str | None] = {}
    for word in [words] if Path(words).expanduser().is_dir() else words.split():
        there, plain = Path(word).expanduser(), word.removeprefix("embedded:")
        if there.is_dir():
            if not (there / "config.json").is_file():
                raise UserError(f"{word} holds no config.json: it is no folder of a host")
            _add(found, _last(there), beside(word, folder))
        elif plain in _names("host"):
            _add(found, plain, None)
        elif "/" in word and HUB_ID.fullmatch(word):
            hub, _, revision = word.partition("@")
            _add(found, hub.rpartition("/")[2], f"{hub}@{revision or commit_of(hub)}")
        else:
            validate_choice(word, _names("host"), "host or folder")
    return found


def _add(found: dict[str, str | None], name: str, place: str | None) -> None:
    """A host more, under a number where another has its name."""
    numbers = (name if number == 1 else f"{name}-{number}" for number in range(1, len(found) + 2))
    found[next(one for one in numbers if found.get(one, place) == place)] = place


def _data(options: Namespace, folder: Path, made: list[Path]) -> dict[str, Any]:
    """The data set's name and entry; files that are written for it are added to `made`."""
    words = _ask(options, "train", _checked)
    there, columns = Path(words).expanduser(), (options.text_column, options.label_column)
    if there.is_file():
        test = _ask(options, "test", lambda words: words and _checked(words, file=True))
        used = [there, *([Path(test).expanduser()] if test else [])]
        entry = entry_of(used, *columns)
        if test:
            places = {"train": beside(words, folder), "test": beside(test, folder)}
        else:
            label = None if "answers" in entry else entry.get("label_column", "label")
            written = put_aside(there, folder, label)
            made += written.values()
            places = {split: path.name for split, path in written.items()}
        return {re.sub(r"\W", "_", there.stem): places | entry}
    if options.test is not None:
        raise UserError(f"--test goes with a file to train on, and {words} has its own")
    if words in _names("data"):
        return {words: None}
    splits = {"train": "train", "test": "test"}
    found = files(DataSource(there.name, path=words, splits=splits))
    entry = {"path": beside(words, folder)} | entry_of([*found.values()], *columns)
    return {re.sub(r"\W", "_", _last(there)): entry | {"splits": {**splits, "validation": None}}}


def _checked(words: str, file: bool = False) -> str:
    """The name of a data file, of a folder, or of a set that conf has."""
    there = Path(words).expanduser()
    words = words if there.exists() else words.removeprefix("embedded:")
    if there.is_file() and not is_data_file(there.name):
        raise UserError(f"{words}: a data file ends in one of {ENDINGS}")
    if is_data_file(words) and not there.is_file() or file and not there.is_file():
        raise UserError(f"there is no file {words}")
    if not there.exists():
        validate_choice(words, _names("data"), "data set, file or folder")
    return words


if __name__ == "__main__":
    sys.exit(main())
