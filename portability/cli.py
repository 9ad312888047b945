"""The command `portability`: every command of the package under one name."""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import yaml

from portability import __version__
from portability.core.errors import UserError, validate_choice
from portability.core.paths import bundled


class Command(NamedTuple):
    """What a word does, and the call that does it, which imports what it needs."""

    help: str
    call: Callable[[], int | None]


def _run() -> None:
    from portability.run import main

    main()


def _init() -> int:
    from portability.init import main

    return main()


def _analyze() -> int | None:
    from portability.analyze import main

    return main()


def _compare() -> int | None:
    from portability.compare import main

    return main()


def _port() -> int | None:
    from portability.port import main

    return main()


def _derive() -> int | None:
    from portability.derive import main

    return main()


def _export() -> int | None:
    from portability.export import main

    return main()


def _merge() -> int | None:
    from portability.merge import main

    return main()


def _publish() -> int | None:
    from portability.publish import main

    return main()


def _store() -> int | None:
    from portability.store.__main__ import main

    return main()


def _bench() -> None:
    from portability.bench.__main__ import main

    main()


def _list() -> int | None:
    try:
        for line in listed(sys.argv[1:]):
            sys.stdout.write(f"{line}\n")
    except UserError as error:
        sys.stderr.write(f"portability: {error}\n")
        return 2
    return 0


COMMANDS = {
    "init": Command("write a study of your own in one file, by five questions", _init),
    "run": Command("carry out a study, or plan it: +sweep=NAME key=value ...", _run),
    "analyze": Command("tables, charts and the report of a study's results", _analyze),
    "compare": Command("what several studies say, side by side", _compare),
    "port": Command("fit somebody's adapter to another base model", _port),
    "derive": Command("make a host out of another: trained further, thinned, narrowed, noised, ...", _derive),
    "export": Command("a module of a study as a folder that its library loads", _export),
    "merge": Command("a host with a run's LoRA in its weights", _merge),
    "list": Command("hosts, data, methods, strategies or sweeps that there are", _list),
    "publish": Command("send a study's records to W&B", _publish),
    "store": Command("look after a study's folder: verify, merge, pack, compact, tidy", _store),
    "bench": Command("how fast modules train here, against other ways", _bench),
}
EXAMPLES = """examples:
  portability run +sweep=demo
  portability init mine.yaml
  portability analyze results/demo
  portability port my-lora --to ../larger-model --out my-lora-on-larger
"""
FOLDERS = {"hosts": "host", "data": "data", "methods": "method", "sweeps": "sweep"}


def listed(words: Sequence[str]) -> list[str]:
    """Name and first remark of each file of a group of the configuration, or the names of the strategies.

    Raises:
        UserError: no such group.
    """
    group = validate_choice(words[0] if len(words) == 1 else " ".join(words), {*FOLDERS, "strategies"},
                            "list")
    if group == "strategies":
        from portability.porting.strategies import GROUP, STRATEGIES, plugins

        return sorted({*STRATEGIES, *plugins(GROUP, tuple(STRATEGIES))})
    found = []
    for path in sorted((bundled("conf") / FOLDERS[group]).glob("*.yaml")):
        text = path.read_text()
        remark = next((line.partition("#")[2].strip() for line in text.splitlines()
                       if "#" in line and "@package" not in line), "")
        names = [path.stem] if group == "sweeps" else list(yaml.safe_load(text) or [path.stem])
        found += [f"{name:22} {remark}".rstrip() for name in names]
    return found


def main() -> int | None:
    """Give the words on to the command that the first of them names; exit codes are its own."""
    words = sys.argv[1:]
    if words == ["--version"]:
        sys.stdout.write(f"portability {__version__}\n")
        return 0
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {name:8}  {command.help}" for name, command in COMMANDS.items()]
        sys.stdout.write("\n".join(["usage: portability COMMAND ... | --version", "", *lines, "", EXAMPLES]))
        return 0 if words else 2
    try:
        command = COMMANDS[validate_choice(words[0], COMMANDS, "command")]
    except UserError as error:
        sys.stderr.write(f"portability: {error}\n")
        return 2
    sys.argv = [f"portability {words[0]}", *words[1:]]
    return command.call()


if __name__ == "__main__":
    sys.exit(main())
