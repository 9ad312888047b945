"""The command `python -m portability.store`: verify, merge, pack, compact and tidy studies."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from portability.core.errors import UserError
from portability.core.wording import counted
from portability.store.store import Store, studies


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command; 0 when all is well, 1 when `verify` found something, 2 when the user must change
    something."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return int(options.command(options) or 0)
    except (UserError, OSError) as error:
        sys.stderr.write(f"portability: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m portability.store", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser(
        "verify", help="check every file of a study, or of all studies of a results folder")
    one.add_argument("folder", type=Path, help="results folder, or one study's folder")
    one.add_argument("--discard", action="store_true", help="move unsound run folders to STUDY/discarded/")
    one.set_defaults(command=_verify)
    one = commands.add_parser("merge", help="copy the runs of other studies into one; all are checked first")
    one.add_argument("target", type=Path, help="the study's folder; made where it is not there")
    one.add_argument("shards", type=Path, nargs="+", help="folders of the studies to copy from")
    one.set_defaults(command=_merge)
    one = commands.add_parser(
        "pack", help="write a study's records and predictions, without modules, for publication")
    one.add_argument("study", type=Path)
    one.add_argument("target", type=Path, help="a new folder")
    one.set_defaults(command=_pack)
    one = commands.add_parser("compact", help="bring a study's index up to date")
    one.add_argument("study", type=Path)
    one.set_defaults(command=_compact)
    one = commands.add_parser("tidy", help="remove what processes killed more than a day ago left behind")
    one.add_argument("study", type=Path)
    one.set_defaults(command=_tidy)
    return parser


def _study(folder: Path) -> Store:
    """The study in a folder, which must be one."""
    Store(folder).manifests()
    return Store(folder)


def _verify(options: argparse.Namespace) -> bool:
    from portability.store.admin.verify import Tally, lines

    count = 0
    for count, line in enumerate(lines(studies(options.folder), Tally(), options.discard)):  # noqa: B007
        _say(line)
    return count > 0  # the last line is the count


def _merge(options: argparse.Namespace) -> None:
    from portability.store.admin.merge import merge

    for line in merge(Store(options.target), [Store(shard) for shard in options.shards]):
        _say(line)


def _pack(options: argparse.Namespace) -> None:
    from portability.store.admin.archive import pack

    runs, failures = pack(_study(options.study), options.target)
    what = f"{counted(runs, 'run')} and {counted(failures, 'failure')}"
    _say(f"{options.target}: {what} packed, without modules")


def _compact(options: argparse.Namespace) -> None:
    _say(f"{options.study}: {counted(_study(options.study).compact(), 'record')} read anew")


def _tidy(options: argparse.Namespace) -> None:
    _say(f"{options.study}: {counted(_study(options.study).tidy_up(), 'leftover')} removed or put back")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
