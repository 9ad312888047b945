# PYTHON_ARGCOMPLETE_OK
"""The command `portability`: every command of the package under one name."""

import os
import sys
from argparse import Namespace
from pkgutil import resolve_name

import yaml

from portability.core.command_line import carry_out
from portability.options import COMMANDS, GROUPS, all_parsers, parser, strategies

WORK = {  # of each command the function that does it, which is imported when its words could be read
    "init": "portability.init:work", "run": "portability.run:work", "analyze": "portability.analyze:work",
    "compare": "portability.compare:work", "port": "portability.port:work",
    "derive": "portability.derive:work", "export": "portability.export:work",
    "merge": "portability.merge:work", "list": "portability.cli:list_names",
    "publish": "portability.publish:work", "store": "portability.store.__main__:work",
    "bench": "portability.bench.__main__:work",
}


def list_names(options: Namespace) -> None:
    """Print name and first remark of each file of a group of the configuration, or the strategies' names.

    Raises:
        UserError: a folder of configuration files is not there, or two packages add one strategy.
    """
    from portability.config.compose import folders_of
    from portability.core.plugins import plugins

    ours = strategies()
    found = [] if GROUPS[options.group] else sorted({*ours, *plugins("portability.strategies", ours)})
    for folder in folders_of(options.config_dir) if GROUPS[options.group] else ():
        for path in sorted((folder / GROUPS[options.group]).glob("*.yaml")):
            text = path.read_text(encoding="utf-8")
            remark = next((line.partition("#")[2].strip() for line in text.splitlines()
                           if "#" in line and "@package" not in line), "")
            catalogue = options.group in ("hosts", "data", "inits", "ports")
            names = list(yaml.safe_load(text) or [path.stem]) if catalogue else [path.stem]
            found += [f"{name:22} {remark}".rstrip() for name in names]
    sys.stdout.write("".join(f"{line}\n" for line in found))


def main() -> int:
    """Carry out the command that the first word names; gives back the exit code."""
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what could stand at the cursor
        from portability.completion import complete

        complete()
    words = sys.argv[1:]
    if words and words[0] in COMMANDS:
        return carry_out(parser(words[0]), lambda asked: resolve_name(WORK[words[0]])(asked), words[1:])
    if not words:
        all_parsers().print_help()
        return 2
    return carry_out(all_parsers(), lambda _: None, words)


if __name__ == "__main__":
    sys.exit(main())
