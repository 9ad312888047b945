"""The command `portability compare results/`: what several studies say, side by side, by method, strategy and
pair of hosts."""

import argparse
import gc
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from portability.analysis.comparison.page import page
from portability.analysis.comparison.rows import LEVELS, Comparison, compared
from portability.analysis.comparison.text import (
    AGAINST,
    Block,
    as_csv,
    as_json,
    gains,
    notes,
    readme,
)
from portability.core.errors import UserError
from portability.core.wording import counted
from portability.store import Store
from portability.store import studies as stores_in
from portability.store.atomic import replacing

WIDE = 100  # columns of the printed text
EXAMPLES = """examples:
  portability compare results/                                  every study of a folder
  portability compare results/a results/b --by pair             two studies, each pair of hosts by itself
  portability compare results/ --page results/index.html        the same as one page with filters
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare studies; 0 when it was said, 2 when the user must change something."""
    parser = argparse.ArgumentParser(
        prog="portability compare", description=__doc__.partition(": ")[2], epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", default=["results"], metavar="STUDY",
                        help="studies' folders, or results folders with several; by default results")
    parser.add_argument("--by", choices=(*LEVELS,), default="strategy",
                        help="a row for each method and strategy (default), or for each pair of hosts too")
    parser.add_argument("--against", default=AGAINST, metavar="START",
                        help="the start that gains are held against; by default scratch")
    parser.add_argument("--metric", help="as of portability analyze")
    parser.add_argument("--published", action="store_true", help="leave out all but published copies")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--csv", action="store_true", help="print all rows as CSV")
    shape.add_argument("--json", action="store_true", help="print studies and all rows as JSON")
    parser.add_argument("--page", type=Path, metavar="FILE",
                        help="write one HTML page with filters and charts")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="write a Markdown page")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        _carry_out(asked)
    except (UserError, OSError) as error:
        sys.stderr.write(f"portability: {error}\n")
        return 2
    return 0


def _carry_out(asked: argparse.Namespace) -> None:
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
        sys.stderr.write(f"Written: {path}\n")


def _stores(folders: Sequence[str], published: bool) -> Iterator[Store]:
    """The studies in these folders."""
    found = [store for folder in folders for store in stores_in(folder) if store.published or not published]
    if not found:
        raise UserError(f"no published copy in {', '.join(folders)}; leave --published out, or make one: "
                        "portability store pack STUDY FOLDER")
    yield from found


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
    """Numbers are never broken, words are where there is no room."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(block.head):
        words = place < block.words
        table.add_column(name, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    for row in block.rows:
        table.add_row(*map(escape, row))
    return table


if __name__ == "__main__":
    sys.exit(main())
