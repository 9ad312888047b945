"""The command `portability store`: verify, merge, pack, compact and tidy studies."""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence

from portability.core.command_line import carry_out
from portability.core.wording import counted
from portability.options import parser
from portability.store.store import Store, studies


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command; gives back the exit code."""
    return carry_out(parser("store"), work, arguments)


def work(asked: Namespace) -> int:
    """Carry out one command; 1 where `verify` found something.

    Raises:
        UserError: a folder is no study, or what is in it does not go together.
    """
    count = 0
    for count, line in enumerate(COMMANDS[asked.what](asked), 1):  # noqa: B007
        sys.stdout.write(f"{line}\n")
    return int(asked.what == "verify" and count > 1)  # the last line is the count


def _verify(asked: Namespace) -> Iterator[str]:
    from portability.store.admin import submission, verify

    if asked.submission:
        yield from submission.lines(asked.results)
    else:
        yield from verify.lines(studies(asked.results), asked.discard)


def _merge(asked: Namespace) -> Iterator[str]:
    from portability.store.admin.merge import merge

    yield from merge(Store(asked.target), [Store(shard) for shard in asked.shards])


def _pack(asked: Namespace) -> Iterator[str]:
    from portability.store.admin.archive import pack

    runs, failures = pack(_study(asked), asked.out)
    yield (f"{asked.out}: {counted(runs, 'run')} and {counted(failures, 'failure')} packed, without "
           "modules")


def _compact(asked: Namespace) -> Iterator[str]:
    yield f"{asked.study}: {counted(_study(asked).compact(), 'record')} read anew"


def _tidy(asked: Namespace) -> Iterator[str]:
    yield f"{asked.study}: {counted(_study(asked).tidy_up(), 'leftover')} removed or put back"


def _study(asked: Namespace) -> Store:
    """The study in a folder, which must be one."""
    store = Store(asked.study)
    store.manifests()
    return store


COMMANDS: dict[str, Callable[[Namespace], Iterator[str]]] = {
    "verify": _verify, "merge": _merge, "pack": _pack, "compact": _compact, "tidy": _tidy,
}

if __name__ == "__main__":
    sys.exit(main())
