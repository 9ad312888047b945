"""What the words on the command line ask for: Hydra composes them; what it refuses or passes over is said in
one sentence.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import portability
from portability.config.own import draft, is_study_file
from portability.config.schema import KEYS
from portability.core.errors import UserError, validate_choice
from portability.core.paths import bundled

CATALOGUES = {"host": "grid.pairs", "data": "grid.data", "init": "grid.inits", "port": "grid.ports"}
# ... are conf groups that are loaded whole, with the axis that names their entries
ALWAYS = ("method", "engine", "host_set", "protocol")  # defaults; others are added with a plus
FROM = re.compile(r"method\.([\w-]+)\.from")  # a method of an adapter's folder
SEVERAL = ("an axis of a study takes a list, as in 'grid.seeds=[0,1]' or 'method=[lora,prefix]'; anything "
           "else takes one value: repeat the command for another, with study=NAME")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m portability.run",
        usage="%(prog)s [STUDY.yaml] [+sweep=NAME] [key=value ...] [options]",
        description=str(portability.__doc__).splitlines()[0], add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*", metavar="key=value",
                        help="a study's file, as portability init writes it; settings: key=value, key=[a,b], "
                             "'~key' to take an entry out; see --cfg job")
    parser.add_argument("-h", "--help", action="store_true", help="show this, and the names in every group")
    parser.add_argument("--version", action="store_true", help="show the version")
    parser.add_argument("-cd", "--config-dir", action="append", default=[], metavar="DIR", type=Path,
                        help="a folder of your own host/, data/, method/, init/, port/ or sweep/ files")
    parser.add_argument("--limit", type=_count, metavar="N",
                        help="for trying out: at most N examples of each set to train on, and N to evaluate "
                             "(of a fixed shuffle); results lie apart, in a study called NAME-limit-N")
    parser.add_argument("-c", "--cfg", choices=["job"], help="show the configuration, and do nothing")
    parser.add_argument("-p", "--package", metavar="KEY", help="with --cfg: this part of it")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: with all references filled in")
    return parser


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"must be a whole number of examples from 1 on, got {text!r}")
    return int(text)


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """The options and words of a command line; a study's file stands as ``+sweep=FILE``, and a limit as the
    settings that make it, too.

    Raises:
        UserError: an option that there is not.

    Example:
        >>> asked = options(["study=a", "--config-dir", "mine", "mode=plan"])
        >>> asked.words, asked.config_dir
        (['study=a', 'mode=plan'], [PosixPath('mine')])
    """
    asked, unknown = _parser().parse_known_intermixed_args(arguments)
    if {"-m", "--multirun"} & set(unknown):
        raise UserError(f"there is no --multirun, a command does one study: {SEVERAL}")
    if unknown:
        raise UserError(f"there is no option {unknown[0]}; --help lists the options")
    if (asked.package or asked.resolve) and not asked.cfg:
        raise UserError("--package and --resolve say what --cfg shows; add --cfg job")
    asked.words = [f"+sweep={_quoted(word)}" if is_study_file(word) else word for word in asked.words]
    if asked.limit:
        asked.words += [f"grid.train_examples={asked.limit}", f"eval.limit={asked.limit}"]
    return asked


def _quoted(text: str) -> str:
    """A value in Hydra's quotes, where it needs them."""
    return text if re.fullmatch(r"[\w./-]+", text) else "'" + text.replace("'", "\\'") + "'"


def shown(asked: argparse.Namespace) -> str:
    """What the options ask to show instead of doing something; else nothing."""
    if asked.help:
        axes = {group: f" ({axis})" for group, axis in CATALOGUES.items()}
        title = "groups, chosen with GROUP=NAME, +sweep=NAME, or named by an axis:"
        return "\n".join([_parser().format_help(), title,
                          *(f"  {group}{axes.get(group, '')}: {', '.join(names)}"
                            for group, names in _groups(_folders(asked)).items())])
    if asked.version:
        return f"portability {portability.__version__}"
    if not asked.cfg:
        return ""
    cfg = composed(asked)
    if asked.package:
        _check_key(cfg, asked.package)
        cfg = OmegaConf.select(cfg, asked.package)
    return OmegaConf.to_yaml(cfg, resolve=asked.resolve).rstrip() if OmegaConf.is_config(cfg) else str(cfg)


def composed(asked: argparse.Namespace) -> DictConfig:
    """The configuration that these words ask for: Hydra puts together what is chosen of the groups, and the
    other words are set in that. Every catalogue is loaded whole, so that the axes can name any entry.

    Raises:
        UserError: a word that cannot be read, names what there is not, or would change nothing.
    """
    folders = _folders(asked)
    groups = _groups(folders)
    words = [_read(word, groups) for word in asked.words]
    _check_files(folders)
    folders_of = {found[1]: word for word in words if (found := FROM.fullmatch(word.key_or_group))}
    own_only = folders_of and not any(word.key_or_group == "method" for word in words)
    with tempfile.TemporaryDirectory() as drafts:
        chosen = ["method=[]"] if own_only else []
        kept = dict(groups)
        for word in words:
            if word.key_or_group == "sweep" and not word.is_delete():
                names = [draft(name, folders, kept, Path(drafts)) for name in _listed(word.value())]
                chosen.append(f"+sweep=[{','.join(names)}]")
            elif word.key_or_group in groups:
                chosen.append(str(word.input_line))
        # before sweeps, so that what these say of an entry wins
        chosen = [*(f"+{group}=[{','.join(kept[group])}]" for group in CATALOGUES), *chosen]
        places = json.dumps([f"file://{folder}" for folder in (*folders[1:], drafts)], ensure_ascii=False)
        try:
            with hydra.initialize_config_dir(str(folders[0]), version_base="1.3"):
                cfg = hydra.compose("config", overrides=[*chosen, f"hydra.searchpath={places}"])
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
            raise UserError(_sentence(error)) from error
    OmegaConf.set_struct(cfg, False)
    cfg.known_methods = groups["method"] + [name for name, held in (cfg.get("method") or {}).items()
                                            if held and {"library", "config"} <= held.keys()
                                            and name not in groups["method"]]
    _read_methods(cfg, folders_of)
    for word in words:
        if word.key_or_group not in groups and word not in folders_of.values():
            _set(cfg, word, groups)
    if asked.limit:
        _limit(cfg, asked.limit)
    return cfg


def _limit(cfg: DictConfig, count: int) -> None:
    """A study of few examples lies in a folder of its own, and holds for sets that say how many they take."""
    raw: Any = OmegaConf.to_container(cfg)
    cfg.study = f"{raw['study']}-limit-{count}"
    for name, held in (raw["data"] or {}).items():
        if isinstance(held, dict) and "train_examples" in held:
            cfg.data[name].train_examples = count


def _read_methods(cfg: DictConfig, words: Mapping[str, Override]) -> None:
    """Put in what the folders say of methods that name one, by a word or in their file; what stands beside
    the folder's name wins."""
    cfg.setdefault("method", {})
    for name, word in words.items():
        if "library" in (held := cfg.method.get(name) or {}):
            raise UserError(f"'{word.input_line}': {name} is a method of its own file; give the folder's "
                            "another name")
        cfg.method[name] = {**held, "from": str(word.value())}
    for name, held in cfg.method.items():
        if held and "from" in held:
            from portability.config.folders import method_of  # with torch

            entry = OmegaConf.create(method_of(held.pop("from"), str(name)))
            if "target_modules" in (held.get("settings") or {}):
                entry.settings.pop("sites", None)
            cfg.method[name] = OmegaConf.merge(entry, held)
            cfg.known_methods.append(name)


def _folders(asked: argparse.Namespace) -> list[Path]:
    """Folders of configuration files: ours, and those of --config-dir."""
    for folder in asked.config_dir:
        if not folder.is_dir():
            raise UserError(f"--config-dir {folder}: there is no such folder")
    return [bundled("conf"), *(folder.resolve() for folder in asked.config_dir)]


def _groups(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Names of the files of every conf group."""
    found: dict[str, set[str]] = {}
    for group in (group for folder in folders for group in folder.iterdir()):
        for path in group.glob("**/*.yaml"):
            found.setdefault(group.name, set()).add(path.relative_to(group).with_suffix("").as_posix())
    return {group: sorted(names) for group, names in sorted(found.items())}


def _read(word: str, groups: Mapping[str, Sequence[str]]) -> Override:
    """A word of the command line. Refused are several values, what is Hydra's own, and unknown files."""
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
    for name in _listed(found.value()):
        if not (group == "sweep" and is_study_file(name)):
            validate_choice(name, groups[group], group)
    return found


def _listed(value: Any) -> list[str]:
    return [*map(str, value if isinstance(value, list) else [value])]


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
            raise UserError(f"{path}: {_sentence(error)}") from error
        if not isinstance(held, dict) or list(held) != [path.stem]:
            raise UserError(f"{path} must hold one method under the file's own name, {path.stem}:, "
                            f"and holds {', '.join(map(str, held or [])) or 'nothing'}")


def _sentence(error: Exception) -> str:
    """The first line of what Hydra says, and of its cause; all of what YAML says: it names the place last."""
    if isinstance(error, YAMLError):
        return "configuration: " + " ".join(str(error).split())
    told = [str(one or "").strip().partition("\n")[0].rstrip(".:") for one in (error, error.__cause__)]
    return ": ".join(["configuration", *filter(None, told)])


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
        _check_key(cfg, key, groups)
    try:
        held = OmegaConf.select(cfg, key)
        if word.is_add() and not isinstance(value, dict | list) and held is not None:
            raise UserError(f"'{line}' is written {line[1:]}: {key} is a setting already")
        if word.is_delete() and value not in (None, held):
            raise UserError(f"'{line}' takes nothing out: {key} is {held}")
        if word.is_delete():
            del (OmegaConf.select(cfg, parent) if parent else cfg)[last]
        else:
            OmegaConf.update(cfg, key, value, merge=added or key != "grid.relations", force_add=True)
    except (OmegaConfBaseException, LookupError, TypeError) as error:
        raise UserError(f"'{line}': {str(error).partition(chr(10))[0]}") from error


def _check_key(cfg: DictConfig, key: str, groups: Iterable[str] = ()) -> None:
    """Refuse a key that the configuration does not have.

    Raises:
        UserError: names the level that lacks it, and what was probably meant.
    """
    known: Any = OmegaConf.to_container(cfg)
    deeper = {f"{top}.{last}" for top, below in known.items() if isinstance(below, dict)
              for last in below if last == key.partition(".")[0]}
    others, above = {*groups, *deeper} - {"known_methods"}, ""
    for part in key.split("."):
        if isinstance(known, list):
            return
        if not isinstance(known, dict):
            raise UserError(f"{above} holds {known!r} and no keys, so there is no '{key}'")
        validate_choice(part, {*map(str, known), *others} - {"known_methods"},
                        f"key in {above}" if above else "key")
        known, others, above = known[part], set(), f"{above}.{part}".strip(".")
