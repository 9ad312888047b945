"""What Hydra and OmegaConf refuse, in our words: what is wrong, in which file, and what to write instead."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from yaml import YAMLError

from portability.core.errors import UserError, validate_choice

WHERE = re.compile(r"In '([^']+)': ")
OURS = (  # their words, and ours
    (r"Could not override '([^']+)'", "there is no group '{0}' to override, only method, engine, host_set "
     "and protocol, as in 'override /engine: ray'"),
    (r"Multiple values for ([\w/]+)", "{0} is chosen already; its defaults must say 'override /{0}: NAME'"),
    (r"Interpolation key '([^']+)' not found", "'${{{0}}}' stands for a key, and there is no '{0}'; name one "
     "of conf/config.yaml"),
    (r"Missing mandatory value: (\S+)", "'{0}' is ???, which stands for a value that is still missing; give "
     "one"),
    (r"Could not delete '([^']+)'", "'~{0}' takes nothing out, as something of {0} has to be chosen; choose "
     "another one: {0}=NAME"),
)


def own_words(
    error: Exception, folders: Sequence[Path] = (), typed: Mapping[str, str] | None = None
) -> UserError:
    """An error of a composition in one sentence. What is not known here is kept as it is said there: all of
    YAML's, which names the place last, of the others the first line.

    Args:
        folders: of configuration files.
        typed: file among them, without its ending -> what the user calls it, where that is another name.
    """
    text, typed = str(error), typed or {}
    where = f"{typed.get(found[1], f'{found[1]}.yaml')}: " if (found := WHERE.match(text)) else ""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return _unknown(name, error.options, f"{group} in the defaults of a file")
    for theirs, ours in OURS:
        if said := re.search(theirs, text):
            return UserError(where + ours.format(*said.groups()))
    if found and "raised while composing config" in text:
        return UserError(_clash(found[1], folders, typed))
    if isinstance(error, YAMLError):
        return UserError("configuration: " + " ".join(text.split()))
    return UserError("configuration: " + text.strip().partition("\n")[0].rstrip(".:"))


def _unknown(name: str, known: Sequence[str], what: str) -> UserError:
    try:
        validate_choice(name, known, what)
    except UserError as error:
        return error
    return UserError(f"{what} '{name}' cannot be read")


def _clash(name: str, folders: Sequence[Path], typed: Mapping[str, str]) -> str:
    """Which key of a file has a list where conf/config.yaml has a mapping, or the other way round."""
    path = next(path for folder in reversed(folders) if (path := folder / f"{name}.yaml").is_file())
    ours, held = OmegaConf.load(folders[0] / "config.yaml"), OmegaConf.load(path)
    key, wanted = _first_clash(ours, held, "")
    where = typed.get(name, path)
    if not wanted:  # a clash with another chosen file
        return f"{where} has a list in a mapping's place, or the other way round; see conf/config.yaml"
    return f"{where}: {key or 'what it holds'} must be a {wanted}, as in conf/config.yaml"


def _first_clash(ours: Any, held: Any, key: str) -> tuple[str, str]:
    kinds: dict[type, str] = {DictConfig: "mapping", ListConfig: "list"}
    if type(ours) is not type(held) and {type(ours), type(held)} == {*kinds}:
        return key, kinds[type(ours)]
    if isinstance(ours, DictConfig) and isinstance(held, DictConfig):
        for name in set(ours) & set(held):
            found = _first_clash(ours._get_node(name), held._get_node(name), f"{key}.{name}".strip("."))
            if found[1]:
                return found
    return "", ""
