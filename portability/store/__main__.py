"""The command `python -m portability.store`: verify, merge, pack, compact and tidy studies."""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from portability.core.errors import UserError
from portability.core.wording import counted
from portability.store.store import Store, studies

Asked = argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command; 0 when all is well, 1 when `verify` found something, 2 when the user must change
    something."""
    parser = argparse.ArgumentParser(prog="python -m portability.store", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command, (told, words) in COMMANDS.items():
        one = commands.add_parser(command.__name__.strip("_"), help=told)
        one.set_defaults(command=command)
        for word, said in words.items():
            one.add_argument(word, type=Path, help=said, nargs="+" if word == "shards" else None)
        if command is _verify:
            one.add_argument("--discard", action="store_true",
                             help="move unsound run folders to STUDY/discarded/")
            one.add_argument("--submission", action="store_true",
                             help="whether a packed study can be sent to others (docs/submitting.md)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        count = 0
        for count, line in enumerate(options.command(options), 1):  # noqa: B007
            sys.stdout.write(f"{line}\n")
        return int(options.command is _verify and count > 1)  # the last line is the count
    except (UserError, OSError) as error:
        sys.stderr.write(f"portability: {error}\n")
        return 2


def _verify(asked: Asked) -> Iterator[str]:
    from portability.store.admin import submission, verify

    if asked.submission:
        yield from submission.lines(asked.folder)
    else:
        yield from verify.lines(studies(asked.folder), asked.discard)


def _merge(asked: Asked) -> Iterator[str]:
    from portability.store.admin.merge import merge

    yield from merge(Store(asked.target), [Store(shard) for shard in asked.shards])


def _pack(asked: Asked) -> Iterator[str]:
    from portability.store.admin.archive import pack

    runs, failures = pack(_study(asked), asked.target)
    yield (f"{asked.target}: {counted(runs, 'run')} and {counted(failures, 'failure')} packed, without "
           "modules")


def _compact(asked: Asked) -> Iterator[str]:
    yield f"{asked.study}: {counted(_study(asked).compact(), 'record')} read anew"


def _tidy(asked: Asked) -> Iterator[str]:
    yield f"{asked.study}: {counted(_study(asked).tidy_up(), 'leftover')} removed or put back"


def _study(asked: Asked) -> Store:
    """The study in a folder, which must be one."""
    store = Store(asked.study)
    store.manifests()
    return store


COMMANDS: dict[Callable[[Asked], Iterator[str]], tuple[str, dict[str, str]]] = {
    _verify: ("check every file of a study, or of all studies of a results folder",
              {"folder": "results folder, or one study's folder"}),
    _merge: ("copy the runs of other studies into one; all are checked first",
             {"target": "the study's folder; made where it is not there",
              "shards": "folders of the studies to copy from"}),
    _pack: ("write a study's records and predictions, without modules, for publication",
            {"study": "the study's folder", "target": "a new folder"}),
    _compact: ("bring a study's index up to date", {"study": "the study's folder"}),
    _tidy: ("remove what processes killed more than a day ago left behind", {"study": "the study's folder"}),
}

if __name__ == "__main__":
    sys.exit(main())
