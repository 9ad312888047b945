"""What the words on the command line ask for: Hydra composes them; what it refuses or passes over is said in
one sentence.
"""

import json
import re
import tempfile
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from portability.config.own import draft, is_study_file
from portability.config.refusals import own_words
from portability.config.schema import KEYS
from portability.core.errors import UnknownName, UserError, closest, validate_choice
from portability.core.paths import bundled
from portability.options import parser
from portability.store.manifests import limited_name

CATALOGUES = {"host": "grid.pairs", "data": "grid.data", "init": "grid.inits", "port": "grid.ports"}
# ... are conf groups that are loaded whole, with the axis that names their entries
ALWAYS = ("method", "engine", "host_set", "protocol")  # defaults; others are added with a plus
FROM = re.compile(r"method\.([\w-]+)\.from")  # a method of an adapter's folder
SEVERAL = ("an axis of a study takes a list, as in 'grid.seeds=[0,1]' or 'method=[lora,prefix]'; anything "
           "else takes one value: repeat the command for another, with study=NAME")


def options(arguments: Sequence[str]) -> Namespace:
    """The options and words of a command line, as of `spelled`.

    Raises:
        UserError: an option that there is not.

    Example:
        >>> asked = options(["study=a", "--config-dir", "mine", "mode=plan"])
        >>> asked.words, asked.config_dir
        (['study=a', 'mode=plan'], [PosixPath('mine')])
    """
    return spelled(parser("run").read(arguments))


def spelled(asked: Namespace) -> Namespace:
    """The same with a study's file as ``+sweep=FILE``.

    Example:
        >>> spelled(Namespace(words=["mine.yaml", "mode=plan"])).words
        ['+sweep=mine.yaml', 'mode=plan']
    """
    words = [f"+sweep={_quoted(word)}" if is_study_file(word) else word for word in asked.words]
    return Namespace(**{**vars(asked), "words": words})


def _quoted(text: str) -> str:
    """A value in Hydra's quotes, where it needs them."""
    return text if re.fullmatch(r"[\w./-]+", text) else "'" + text.replace("'", "\\'") + "'"


def shown(asked: Namespace) -> str:
    """The configuration, or the part of it, that the options ask to show instead of doing something; else
    nothing.

    Raises:
        UserError: the options do not go together, or name what there is not.
    """
    if not asked.cfg:
        if asked.package or asked.resolve:
            raise UserError("--package and --resolve say what --cfg shows; add --cfg job")
        return ""
    cfg = composed(asked)
    if asked.package:
        _check_key(cfg, asked.package)
        cfg = OmegaConf.select(cfg, asked.package)
    return OmegaConf.to_yaml(cfg, resolve=asked.resolve).rstrip() if OmegaConf.is_config(cfg) else str(cfg)


def composed(asked: Namespace) -> DictConfig:
    """The configuration that these words ask for: Hydra puts together what is chosen of the groups, and the
    other words are set in that. Every catalogue is loaded whole, so that the axes can name any entry.

    Raises:
        UserError: a word that cannot be read, names what there is not, or would change nothing.
    """
    folders = folders_of(asked.config_dir)
    groups = names_of(folders)
    words = [_read(word, groups) for word in asked.words]
    sweeps = [word for word in words if word.key_or_group == "sweep" and not word.is_delete()]
    if len(sweeps) > 1:
        both = " and ".join(f"'{word.input_line}'" for word in sweeps)
        raise UserError(f"{both} are two studies; leave one, and repeat the command for the other")
    _check_files(folders)
    adapters = {found[1]: word for word in words if (found := FROM.fullmatch(word.key_or_group))}
    own_only = adapters and not any(word.key_or_group == "method" for word in words)
    chosen = ["method=[]"] if own_only else []
    chosen += [str(word.input_line) for word in words if word.key_or_group in groups and word not in sweeps]
    cfg = _hydras([name for word in sweeps for name in _listed(word)], chosen, folders, groups)
    OmegaConf.set_struct(cfg, False)
    cfg.known_methods = groups["method"] + [name for name, held in (cfg.get("method") or {}).items()
                                            if held and {"library", "config"} <= held.keys()
                                            and name not in groups["method"]]
    _read_methods(cfg, adapters)
    for word in words:
        if word.key_or_group not in groups and word not in adapters.values():
            _set(cfg, word, groups)
    if asked.limit:
        _limit(cfg, asked.limit)
    return cfg


def _hydras(
    sweeps: Sequence[str], chosen: Sequence[str], folders: Sequence[Path], groups: Mapping[str, list[str]]
) -> DictConfig:
    """What Hydra makes of the chosen files; sweeps and studies' files stand among drafts for it."""
    with tempfile.TemporaryDirectory() as drafts:
        kept, typed = dict(groups), dict[str, str]()
        for name in sweeps:
            file = draft(name, folders, kept, Path(drafts))
            typed[f"sweep/{file}"] = name if is_study_file(name) else f"sweep/{name}.yaml"
        # before sweeps, so that what these say of an entry wins
        words = [*(f"+{group}=[{','.join(kept[group])}]" for group in CATALOGUES), *chosen]
        words += [f"+sweep=[{','.join(name.removeprefix('sweep/') for name in typed)}]"] if typed else []
        places = json.dumps([f"file://{folder}" for folder in (*folders[1:], drafts)], ensure_ascii=False)
        try:
            with hydra.initialize_config_dir(str(folders[0]), version_base="1.3"):
                return hydra.compose("config", overrides=[*words, f"hydra.searchpath={places}"])
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
            raise own_words(error, [*folders, Path(drafts)], typed) from error


def _limit(cfg: DictConfig, count: int) -> None:
    """A study of few examples lies in a folder of its own. Where fewer are asked for already, it stays so."""
    raw: Any = OmegaConf.to_container(cfg)
    cfg.study = limited_name(raw["study"], count)
    for key in ("grid.train_examples", "eval.limit"):
        _check_key(cfg, key)
    sets = [(cfg.data[name], "train_examples") for name, held in (raw["data"] or {}).items()
            if isinstance(held, dict) and held.get("train_examples")]
    for part, key in [(cfg.grid, "train_examples"), (cfg.eval, "limit"), *sets]:
        held = part[key] or count  # nothing and 0 are all
        part[key] = min(held, count) if isinstance(held, int) else held


def _read_methods(cfg: DictConfig, words: Mapping[str, Override]) -> None:
    """Put in what the folders say of methods that name one, by a word or in their file; what stands beside
    the folder's name wins."""
    cfg.setdefault("method", {})
    for name, word in words.items():
        cfg.method[name] = {**(cfg.method.get(name) or {}), "from": str(word.value())}
    for name, held in cfg.method.items():
        if held and "from" in held:
            if "library" in held:
                raise UserError(f"method.{name}.from={held['from']}: {name} is a method of its own file; "
                                "give the folder's another name")
            from portability.config.folders import method_of  # with torch

            entry = OmegaConf.create(method_of(held.pop("from"), str(name)))
            if "target_modules" in (held.get("settings") or {}):
                entry.settings.pop("sites", None)
            cfg.method[name] = OmegaConf.merge(entry, held)
            cfg.known_methods.append(name)


def folders_of(own: Sequence[Path]) -> list[Path]:
    """Folders of configuration files: ours, and those of --config-dir.

    Raises:
        UserError: one is not there, or holds files where folders belong.
    """
    ours = bundled("conf")
    for folder in own:
        if not folder.is_dir():
            raise UserError(f"--config-dir {folder}: there is no such folder")
        if [*folder.glob("*.yaml")] and not any((folder / group.name).is_dir() for group in ours.iterdir()):
            raise UserError(f"--config-dir {folder}: files must lie in host/, data/, method/, sweep/, ... of "
                            "it; name the folder above, or move them")
    return [ours, *(folder.resolve() for folder in own)]


def names_of(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Names of the files of every conf group."""
    found: dict[str, set[str]] = {}
    for group in (group for folder in folders for group in folder.iterdir()):
        for path in group.glob("**/*.yaml"):
            found.setdefault(group.name, set()).add(path.relative_to(group).with_suffix("").as_posix())
    return {group: sorted(names) for group, names in sorted(found.items())}


def _read(word: str, groups: Mapping[str, Sequence[str]]) -> Override:
    """A word of the command line. Refused are several values, what is Hydra's own, and unknown files."""
    if "=" not in word and not word.startswith("~"):
        typed = {name: f"{group if group in ALWAYS else f'+{group}'}={name}" for group in (*ALWAYS, "sweep")
                 for name in groups.get(group, ())}
        close = typed.get(closest(word, typed), "")
        raise UserError(f"cannot read '{word}': a setting is key=value"
                        + (f"; did you mean '{close}'?" if close else ""))
    try:
        found = OverridesParser.create().parse_overrides([word])[0]
    except OverrideParseException as error:
        raise UserError(f"cannot read '{word}': a setting is key=value, a list [a,b], a mapping {{a: b}}, "
                        "every bracket and quote is closed, a value with a sign like ~ stands in quotes of "
                        "its own (\"key='~/a'\"), and the whole stands in quotes for the shell") from error
    if found.is_sweep_override():
        raise UserError(f"'{word}' names several values: {SEVERAL}")
    if found.is_hydra_override():
        raise UserError(f"'{word}' is a setting of Hydra, which only puts the configuration together here: "
                        f"leave it out; your own files lie in the folder of --config-dir, and {SEVERAL}")
    group = found.key_or_group
    if group not in groups or found.is_delete():
        return found
    if group in CATALOGUES:
        raise UserError(f"'{word}' chooses nothing, all of {group} is known: name it in {CATALOGUES[group]}"
                        + (", or with origin=NAME and receiving=NAME" if group == "host" else ""))
    plain = word.lstrip("+")
    if (group in ALWAYS) == (plain != word):
        raise UserError(f"'{word}' is written {plain if group in ALWAYS else '+' + plain}")
    if isinstance(found.value(), list) and group not in ("method", "sweep"):
        raise UserError(f"'{word}' chooses several of {group}, which takes one: {group}=NAME")
    for name in _listed(found):
        if not (group == "sweep" and is_study_file(name)):
            validate_choice(name, groups[group], group)
    return found


def _listed(word: Override) -> list[str]:
    """The names that a word chooses of a group."""
    value = word.value()
    return [str(name) for name in (value if isinstance(value, list) else [value])]


def _check_files(folders: Sequence[Path]) -> None:
    """Refuse files that are not UTF-8, and methods that results would show under another name."""
    for path in sorted(path for folder in folders for path in folder.glob("*/**/*.yaml")):
        try:
            text = path.read_text(encoding="utf-8")
            if path.parent.name != "method" or text.startswith("# @package"):
                continue
            held = OmegaConf.to_container(OmegaConf.create(text))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 (byte {error.start + 1}); save it as UTF-8") from error
        except YAMLError as error:
            raise UserError(f"{path}: {own_words(error, folders)}") from error
        if not isinstance(held, dict) or list(held) != [path.stem]:
            raise UserError(f"{path} must hold one method under the file's own name, {path.stem}:, "
                            f"and holds {', '.join(map(str, held or [])) or 'nothing'}")


def _set(cfg: DictConfig, word: Override, groups: Iterable[str]) -> None:
    """Change, add (`+`) or take out (`~`) a key. The relations are an axis with names of its own: named as a
    whole they take the place of the sweep's, as lists do, and a new one needs no plus. `origin` alone is the
    origin's host.
    """
    key, line, value = word.key_or_group, str(word.input_line), word.value()
    if key == "origin" and not isinstance(value, dict):
        key = "origin.host"
    parent, _, last = key.rpartition(".")
    added = word.is_add() or word.is_force_add()
    if added:
        validate_choice(key.partition(".")[0], {*KEYS, *groups}, "key")
    elif parent != "grid.relations" or word.is_delete():
        try:
            _check_key(cfg, key, groups)
        except UnknownName as error:
            if "." in key and key.partition(".")[0] in (*CATALOGUES, "method") and not word.is_delete():
                raise UnknownName(f"{error}; what is new takes a plus: '+{line}'", error.name,
                                  error.close) from error
            raise
    try:
        held = OmegaConf.select(cfg, key)
        if word.is_add() and not isinstance(value, dict | list) and held is not None:
            raise UserError(f"'{line}' is written {line[1:]}: {key} is a setting already")
        if word.is_delete() and value not in (None, held):
            raise UserError(f"'{line}' takes nothing out: {key} is {held}")
        if word.is_delete():
            del (OmegaConf.select(cfg, parent) if parent else cfg)[last]
        else:  # a mapping in a list's place, or the other way round, is refused when types are checked
            merge = isinstance(held, DictConfig) and isinstance(value, dict)
            merge = merge and (added or key != "grid.relations")
            OmegaConf.update(cfg, key, value, merge=merge, force_add=True)
    except (OmegaConfBaseException, LookupError, TypeError) as error:
        there = OmegaConf.select(cfg, parent, throw_on_missing=False)
        raise UserError(f"'{line}' cannot be set: {parent} is {there}; give the whole of it, as in "
                        f"'{parent}={_pattern(there)}'") from error


def _pattern(held: Any) -> str:
    """How a value is written on the command line."""
    return "[a,b]" if isinstance(held, ListConfig) else "{a: b}" if isinstance(held, DictConfig) else "VALUE"


def _check_key(cfg: DictConfig, key: str, groups: Iterable[str] = ()) -> None:
    """Refuse a key that the configuration does not have.

    Raises:
        UserError: names the level that lacks it, and what was probably meant.
    """
    known: Any = OmegaConf.to_container(cfg)
    deeper = {f"{top}.{last}" for top, below in known.items() if isinstance(below, dict)
              for last in below if last == key.partition(".")[0]}
    chosen = {f"+{group}" for group in groups if group not in (*ALWAYS, *CATALOGUES)}
    others, above = {*deeper, *chosen, *(ALWAYS if groups else ())}, ""
    for part in key.split("."):
        if isinstance(known, list):
            return
        if not isinstance(known, dict):
            raise UserError(f"{above} holds {known!r} and no keys, so there is no '{key}'")
        validate_choice(part, {*map(str, known), *others} - {"known_methods"},
                        f"key in {above}" if above else "key")
        known, others, above = known[part], set(), f"{above}.{part}".strip(".")
