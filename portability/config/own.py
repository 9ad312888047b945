"""A study in one file: hosts, data and methods stand in it in short forms, which become here what the groups
of conf would hold.

    hosts: {small: ../models/small, large: ../models/large}
    data: {reviews: {train: reviews.csv, test: reviews-test.csv}}
    methods: [lora_peft]

Paths count from the file's own folder. A sweep may have short forms, too; paths in it count, as all of
conf's do, from where the command is started.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from portability.config.schema import KEYS
from portability.core.errors import UserError, validate_choice
from portability.core.paths import PORTABLE
from portability.data.files import is_data_file
from portability.data.sources import SPLITS

SHORT = ("hosts", "methods")  # keys that only a study's file has
PLACES = {"path", "hub", "package", "derive", "splits", *SPLITS}  # keys that say where something comes from
Entries = dict[str, dict[str, Any] | None]  # name -> what a file of a group would hold; None: what it holds
Written = tuple[dict[str, Any], dict[str, set[str]]]  # a study, and by group the names that it takes over


def is_study_file(word: str) -> bool:
    """Whether a word names a study's file, and no sweep of conf.

    Example:
        >>> is_study_file("studies/mine.yaml"), is_study_file("full"), is_study_file("study=mine.yaml")
        (True, False, False)
    """
    return "=" not in word and Path(word).suffix in (".yaml", ".yml")


def read_study(path: Path) -> dict[str, Any]:
    """What a study's file holds.

    Raises:
        UserError: there is no such file, it is not YAML in UTF-8, names a key twice, or has an unknown one.
    """
    try:
        held = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"study file {path} cannot be read: {error.strerror}; portability init {path} writes "
                        "one") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start + 1}); save it as UTF-8") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(held, dict) or not held:
        raise UserError(f"{path} must hold a mapping of settings, such as hosts, data and methods")
    for key in held:
        validate_choice(str(key), {*KEYS, *SHORT, "defaults"} - {"known_methods"}, f"key in {path.name}")
    return {str(key): value for key, value in held.items()}


def draft(name: str, folders: Sequence[Path], known: dict[str, list[str]], drafts: Path) -> str:
    """The name of a sweep, or of a study's file, as it stands among drafts for Hydra, without short forms.

    Args:
        folders: of configuration files, where sweeps are.
        known: names in each group of conf, out of which those that the study replaces are taken.

    Raises:
        UserError: as of `read_study` and `written`.
    """
    alone = is_study_file(name)
    places = [folder / "sweep" / f"{name}.yaml" for folder in folders]
    path = Path(name).expanduser() if alone else next(path for path in places if path.is_file())
    found, replaced = written(read_study(path), path, known, path.stem if alone else None)
    for group, names in replaced.items():
        known[group] = [one for one in known[group] if one not in names]
    drafts = drafts / "sweep"
    drafts.mkdir(exist_ok=True)
    file = re.sub(r"[^\w-]", "_", path.stem) + f"-{len(list(drafts.iterdir()))}"
    text = f"# @package _global_\n{OmegaConf.to_yaml(OmegaConf.create(found))}"
    (drafts / f"{file}.yaml").write_text(text, encoding="utf-8")
    return file


def written(
    held: Mapping[str, Any], path: Path, known: Mapping[str, Sequence[str]], name: str | None
) -> Written:
    """The same study without short forms, and, by group, the names of conf whose entries the file's own take
    the place of.

    Args:
        path: of the file; relative paths count from its folder.
        known: names in each group of conf.
        name: of a study that says none; None: a sweep, whose paths count from where the command is
            started, and whose data sets in full stay as they are.

    Raises:
        UserError: an entry that is none, with its place.
    """
    kinds = {"host": ("hosts", _host), "data": ("data", _data), "method": ("methods", _method)}
    if name is None:
        path = Path(path.name)
        if not _is_short(held.get("data")):
            del kinds["data"]
    found = {key: value for key, value in held.items() if key not in {key for key, _ in kinds.values()}}
    found = ({"study": name} if name else {}) | found
    entries = {group: _entries(held, key, known[group], path, read) for group, (key, read) in kinds.items()}
    own = {group: {name: entry for name, entry in named.items() if entry is not None}
           for group, named in entries.items()}
    if name:
        found |= {group: _from_here(found[group], path) for group in kinds
                  if isinstance(found.get(group), dict)}
    found |= {group: _mapping(found, group) | named for group, named in own.items() if named}
    for group in ("host_set", "engine", "protocol"):
        if isinstance(found.get(group), str):
            _choose(found, group, validate_choice(found.pop(group), known[group], group))
    if isinstance(found.get("origin"), str):
        found["origin"] = {"host": found["origin"]}
    if name and (module := _mapping(found, "origin").get("module")):
        found["origin"] = found["origin"] | {"module": _from(path, module)}
    if entries["host"]:
        _choose(found, "host_set", "own")
        _pair(found, list(entries["host"]))
    if entries.get("data"):
        found["grid"] = {"data": list(entries["data"])} | _mapping(found, "grid")
        found["host_set"] = {"study_data": []} | _mapping(found, "host_set")
    if entries["method"]:
        _choose(found, "method", [name for name in entries["method"] if name in known["method"]])
    return found, {group: {name for name, entry in own.get(group, {}).items() if entry.keys() & PLACES}
                   for group in ("host", "data")}


def _from_here(entries: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Entries in full, as files of conf have them; their paths count from the study's folder."""
    places = {"path": _absolute, "from": _from}
    return {name: {key: places[key](path, one) if key in places else one for key, one in entry.items()}
            if isinstance(entry, dict) else entry for name, entry in entries.items()}


def _mapping(held: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = held.get(key) or {}
    if not isinstance(found, dict):
        raise UserError(f"{key} must be a mapping, got {found!r}")
    return found


def _is_short(data: Any) -> bool:
    """Whether any data set stands in a short form."""
    entries = data.values() if isinstance(data, dict) else [data]
    return any(entry.keys() & {*SPLITS} if isinstance(entry, dict) else entry is not None
               for entry in entries)


def _choose(found: dict[str, Any], group: str, value: Any) -> None:
    """Choose of a group of conf, unless the file's defaults do."""
    defaults = found.get("defaults") or ["_self_"]
    named = [key for one in defaults if isinstance(one, dict) for key in one]
    if not any(re.fullmatch(rf"override\s+/?{group}", str(key)) for key in named):
        found["defaults"] = [{f"override /{group}": value}, *defaults]


def _pair(found: dict[str, Any], names: list[str]) -> None:
    """The first host is the origin, and the others receive, unless the file names a host for either."""
    origin, grid = _mapping(found, "origin"), _mapping(found, "grid")
    if "receiving" in found or "host" in origin or "pairs" in grid:
        return
    first, *others = names
    if len(others) > 1:
        found["grid"] = grid | {"pairs": [[first, other] for other in others]}
        return
    found["receiving"] = names[-1]
    if others:
        found["origin"] = origin | {"host": first}


def _entries(
    held: Mapping[str, Any], key: str, known: Sequence[str], path: Path,
    read: Callable[[Any, Path, str], dict[str, Any]],
) -> Entries:
    """The entries under a key: a mapping of names, or a list of names of conf and of places, which are called
    by the last part of their path.

    Args:
        read: words of an entry, the file and the entry's place -> the entry.
    """
    value = held.get(key)
    if isinstance(value, list):
        for one in map(str, value):
            if "/" not in one and ":" not in one and not (path.parent / one).exists():
                validate_choice(one, known, f"name in {key} of {path.name}")
        plain = [str(one).removeprefix("embedded:") for one in value]
        named = [(name, None) if name in known else (Path(name.partition("@")[0]).name, str(one))
                 for name, one in zip(plain, value, strict=True)]
        if len(dict(named)) < len(named):
            raise UserError(f"{key} in {path.name} gives {', '.join(name for name, _ in named)} and so one "
                            f"name twice; say names, as in {key}: {{NAME: ...}}")
        value = dict(named)
    if not isinstance(value, dict | None):
        raise UserError(f"{key} in {path.name} must be a mapping of names, or a list, got {value!r}")
    found: Entries = {}
    for name, words in (value or {}).items():
        where = f"{key}.{name} in {path.name}"
        if isinstance(words, str) and words in known and not (path.parent / words).exists():
            raise UserError(f"{where}: conf has {words}: name it without more words ({key}: {{{words}: }})")
        found[str(name)] = None if words is None else read(words, path, where)
        if words is None:
            validate_choice(str(name), known, f"name in {key} of {path.name}")
    return found


def _absolute(path: Path, words: Any) -> Any:
    """A path as it counts from the study's folder."""
    if not isinstance(words, str) or "${" in words or words.startswith(PORTABLE):
        return words
    return os.path.abspath(path.parent / Path(words).expanduser())


def _from(path: Path, words: Any) -> Any:
    """The folder of an adapter, or as it is an id of the hub."""
    found = _absolute(path, words)
    return found if isinstance(found, str) and os.path.exists(found) else words


def _place(words: Any, path: Path, where: str, what: str) -> dict[str, Any]:
    """A folder, or a pinned id of the hub."""
    if isinstance(words, str):
        hub, at, revision = words.partition("@")
        if at and "/" in hub and "${" not in words:
            return {"hub": hub, "revision": revision}
        if (folder := _absolute(path, words)) == words or os.path.isdir(folder):
            return {"path": folder}
    raise UserError(f"{where}: {words!r} is no folder (paths count from the file's own); {what} is a folder, "
                    "embedded:NAME, owner/name@REVISION of the hub with the 40 digits of a commit, or a "
                    "mapping as in conf")


def _host(words: Any, path: Path, where: str) -> dict[str, Any]:
    if isinstance(words, dict):
        return words | ({"path": _absolute(path, words["path"])} if "path" in words else {})
    return _place(words, path, where, "a host")


def _data(words: Any, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(words, dict):
        if isinstance(words, str) and is_data_file(words):
            raise UserError(f"{where}: {words} is one file, and a study trains on one and tests on another; "
                            f"write {{train: {words}, test: FILE}}")
        return _place(words, path, where, "a data set")
    found = {key: value for key, value in words.items() if key not in SPLITS}
    if splits := {split: words[split] for split in SPLITS if words.get(split)}:
        if "splits" in found:
            raise UserError(f"{where} has splits, and {', '.join(splits)} besides; leave one of the two")
        found["splits"] = {"validation": None} | splits
    if isinstance(found.get("splits"), dict):
        found["splits"] = {split: _absolute(path, name) if is_data_file(str(name)) else name
                           for split, name in found["splits"].items()}
    return found | ({"path": _absolute(path, found["path"])} if "path" in found else {})


def _method(words: Any, path: Path, where: str) -> dict[str, Any]:
    if isinstance(words, str):
        words = {"from": words}
    if isinstance(words, int | float) and not isinstance(words, bool):
        words = {"learning_rate": words}
    if not isinstance(words, dict):
        raise UserError(f"{where} must be a learning rate, the folder of an adapter, or a mapping as in "
                        f"conf/method, got {words!r}")
    return words | ({"from": _from(path, words["from"])} if "from" in words else {})
