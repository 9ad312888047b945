"""What could stand at the cursor of a command line when the Tab key is pressed in bash: argcomplete asks, the
configuration's files and schema answer.
"""

import argparse
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import argcomplete
import yaml
from argcomplete.completers import FilesCompleter

from portability.config.compose import ALWAYS, CATALOGUES, folders_of, names_of
from portability.config.schema import Config
from portability.core.paths import bundled
from portability.options import LAYER_MAPS, METRICS, all_parsers, strategies

AXES = {"grid.data": "data", "grid.study_data": "data", "grid.inits": "init", "grid.ports": "port",
        "grid.pairs": "host", "origin": "host", "origin.host": "host", "receiving": "host"}


def complete() -> None:
    """Answer the shell, and end the process."""
    parser = all_parsers()
    commands: Any = next(one.choices for one in parser._actions if one.nargs == argparse.PARSER)
    for (command, option), completer in COMPLETERS.items():
        action: Any = next(one for one in commands[command]._actions if one.dest == option)
        action.completer = completer
    argcomplete.autocomplete(parser)


def settings(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Words of `portability run`: files of studies, keys as KEY=, and behind one its names, in a list, too.

    Args:
        prefix: what stands before the cursor of the word.
    """
    groups = names_of(folders_of(getattr(parsed_args, "config_dir", None) or []))
    key, equals, value = prefix.partition("=")
    if not equals:
        studies = FilesCompleter(("yaml", "yml"))(prefix)
        return [*studies, *(f"{one}=" for one in ("+sweep", *ALWAYS, "origin", *_keys(Config)))]
    begun = re.match(r"(.*[\[,])?", value)
    return [f"{key}={begun[0] if begun else ''}{name}" for name in _names(key.lstrip("+"), groups)]


def _keys(cls: type, above: str = "") -> Iterator[str]:
    """Keys of the configuration that hold a value."""
    for name, kind in get_type_hints(cls).items():
        if is_dataclass(kind):
            yield from _keys(kind, f"{above}{name}.")  # type: ignore[arg-type]
        elif name not in (*CATALOGUES, "method", "known_methods") or above:
            yield f"{above}{name}"


def _names(key: str, groups: dict[str, list[str]]) -> list[str]:
    """What a key can hold, as far as that has names."""
    if key in groups:
        return groups[key]
    if key in AXES:
        return groups[AXES[key]] + (_roles() if AXES[key] == "host" else [])
    kind: Any = Config
    for part in key.split("."):
        kind = get_type_hints(kind).get(part) if is_dataclass(kind) else None
    if get_origin(kind) is Literal:
        return [str(one) for one in get_args(kind)]
    return ["true", "false"] if kind is bool else []


def _roles() -> list[str]:
    """Roles that host sets fill."""
    held = yaml.safe_load((bundled("conf") / "host_set" / "nano.yaml").read_text(encoding="utf-8"))
    return [*held["host_set"]["roles"]]


def _hosts(**_: Any) -> list[str]:
    return names_of([bundled("conf")])["host"]


def _methods(**_: Any) -> list[str]:
    return names_of([bundled("conf")])["method"]


def _metrics(**_: Any) -> list[str]:
    return [f"eval_{name}" for name in METRICS]


def _derived(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Hosts that have a recipe."""
    return [path.stem for folder in folders_of(parsed_args.config_dir or [])
            for path in (folder / "host").glob("*.yaml") if "derive:" in path.read_text(encoding="utf-8")]


def _runs(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    return [path.name for path in Path(parsed_args.study).glob("runs/??/*")]


COMPLETERS: dict[tuple[str, str], Callable[..., Any]] = {  # by command and option
    ("run", "words"): settings, ("bench", "grid"): settings, ("derive", "words"): _derived,
    ("init", "method"): _methods, ("init", "origin"): _hosts, ("init", "receiving"): _hosts,
    ("init", "train"): lambda **_: names_of([bundled("conf")])["data"],
    ("port", "to"): _hosts, ("port", "origin"): _hosts, ("bench", "host"): _hosts,
    ("port", "strategy"): lambda **_: strategies(), ("port", "layer_map"): lambda **_: LAYER_MAPS,
    ("analyze", "metric"): _metrics, ("compare", "metric"): _metrics,
    ("compare", "against"): lambda **_: names_of([bundled("conf")])["init"], ("bench", "method"): _methods,
    ("export", "run"): _runs, ("merge", "run"): _runs,
}
