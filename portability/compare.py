"""The command `portability compare results/`: what several studies say, side by side, by method, strategy and
pair of hosts."""

import gc
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from portability.analysis.comparison.page import page
from portability.analysis.comparison.rows import Comparison, compared
from portability.analysis.comparison.text import (
    Block,
    as_csv,
    as_json,
    gains,
    notes,
    readme,
)
from portability.core.command_line import carry_out
from portability.core.errors import UserError
from portability.core.wording import counted
from portability.options import parser
from portability.store import Store
from portability.store import studies as stores_in
from portability.store.atomic import replacing
from portability.store.manifests import is_limited

WIDE = 100  # columns of the printed text


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare studies; gives back the exit code."""
    return carry_out(parser("compare"), work, arguments)


def work(asked: Namespace) -> None:
    """Compare studies, print what they say and write the pages that are asked for.

    Raises:
        UserError: a folder is no study, or none has what is asked for; nothing is written then.
    """
    gc.freeze()  # statsmodels collects garbage at every correction: what is here by now is none
    found = compared(_stores(asked.studies, asked.published), asked.metric)
    shown = [*gains(found, asked.by, asked.against)]
    files = {asked.page: page, asked.readme: readme}
    texts = {path: make(found, path.parent, asked.against) for path, make in files.items() if path}
    if asked.csv or asked.json:
        sys.stdout.write(as_csv(found) if asked.csv else as_json(found) + "\n")
    else:
        say(found, shown, asked.against)
    for path, text in texts.items():
        with replacing(path) as draft:
            draft.write_text(text, encoding="utf-8")
        sys.stderr.write(f"written: {path}\n")


def _stores(folders: Sequence[str], published: bool) -> Iterator[Store]:
    """The studies in these folders; of those that only try one (--limit) the ones that are named."""
    found = [store for folder in folders for store in stores_in(folder) if store.published or not published]
    if not found:
        raise UserError(f"no published copy in {', '.join(folders)}; leave --published out, or make one: "
                        "portability store pack STUDY --out FOLDER")
    named = {*map(Path, folders)}
    tried = [store for store in found if store.root not in named and all(map(is_limited, store.manifests()))]
    names = ", ".join(store.root.name for store in tried)
    if len(tried) == len(found):
        raise UserError(f"{', '.join(folders)} has only studies that were tried with --limit ({names}); name "
                        "the folder of one to compare it")
    if tried:
        sys.stderr.write(f"portability: left out: {names}, tried with --limit; name the folder of one to "
                         "compare it\n")
    yield from (store for store in found if store not in tried)


def say(found: Comparison, shown: Sequence[Block], against: str) -> None:
    """Print what each study found, and the gains."""
    console = Console(width=WIDE, highlight=False)
    for study in found.studies:
        counts = study.counts
        console.print(f"{study.name}: {counts['done']:,} of {counted(counts['cells'], 'cell')} done, "
                      f"{counted(counts['seeds'], 'seed')}. {study.verdict}", markup=False)
    for block in shown:
        console.print(f"\n{block.title}.", markup=False)
        console.print(_table(block))
    console.print(" ".join(notes(found, against)), markup=False)


def _table(block: Block) -> Table:
    """Numbers and names of studies are never broken, other words are where there is no room."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(block.head):
        words = place < block.words
        table.add_column(name, justify="left" if words else "right", overflow="fold",
                         no_wrap=not words or name == "study")
    for row in block.rows:
        table.add_row(*map(escape, row))
    return table


if __name__ == "__main__":
    sys.exit(main())
