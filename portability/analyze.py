"""The command `python -m portability.analyze results/`: tables, charts and a report for every study below a folder."""

import argparse
import gc
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Rows

from analysis import plots
from analysis.charts import Chart, file
from analysis.details import details
from analysis.evidence import Evidence, gather
from analysis.metrics import METRICS
from analysis.page import page
from analysis.render import FORMS
from analysis.report import count_words, report
from analysis.sections import sections
from analysis.tables import Table
from analysis.verdict import caveats, chief, declared, numbers, verdict_words
from portability.core.errors import UserError
from portability.store import Store, studies

WIDE = 100  # columns of what is printed
NAMED = 10  # problems of one kind that the terminal names; the report names all


def main(arguments: Sequence[str] | None = None) -> int:
    """Analyse every study below a results folder; 0 when tables were written, 2 when the user must change something."""
    parser = argparse.ArgumentParser(prog="python -m portability.analyze", description=__doc__)
    parser.add_argument("results", nargs="?", default="results", help="results folder, or one study's folder")
    parser.add_argument("--metric", help=f"one of: {', '.join(METRICS)}, or eval_NAME of a study's own; by default accuracy "
                        "where all runs have it, else ROUGE-L where all have that, else the score, which is either, else the "
                        "first that all have; what a record lacks is computed from its predictions where they give it")
    parser.add_argument("--quiet", action="store_true", help="write the files and print only where they are")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    console = Console(width=WIDE, highlight=False, soft_wrap=False)
    try:
        for store in studies(options.results):
            _analyse(store, options.metric, None if options.quiet else console)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _analyse(store: Store, metric: str | None, console: Console | None) -> None:
    """One study: read, build, write, and say where."""
    found, root = gather(store, metric), store.root
    gc.freeze()  # statsmodels collects garbage at every correction: what is here by now is none
    head, parts = plots.headline(found), sections(found)
    write_tables([table for part in parts for table in part.tables], root)
    write_charts([*head, *(chart for part in parts for chart in part.charts)], root)
    (root / "report.md").write_text(report(found, parts, head), encoding="utf-8")
    path = root / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    path.write_text(page(found, parts, head, details(store, found.cells, found.metric.name)), encoding="utf-8")
    if console is not None:
        say(found, console)
    sys.stdout.write(f"Written: {path}, {root / 'report.md'}, {root / 'tables'}, {root / 'plots'}\n")


def say(found: Evidence, console: Console) -> None:
    """The verdict and its numbers, what limits them, and what is wrong with the study."""
    study, rows = found.study, numbers(found) if declared(found) else chief(found)
    console.print(f"Study {study.name}: {count_words(study)}.", markup=False)
    console.print(verdict_words(found), markup=False)
    shown = Rows(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("contrast", overflow="fold")
    for name in ("difference", "95 %", "p (Holm)", "verdict"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(escape(row.name), row.size, row.between.strip("[]"), row.p, row.verdict)
    if rows:
        console.print(shown)
    for line in caveats(found):
        console.print(f"- {line}", markup=False)
    for kind in dict.fromkeys(problem.kind for problem in study.problems):
        lines = [" ".join(str(problem).split()) for problem in study.problems if problem.kind == kind]
        more = [f"... and {len(lines) - NAMED} more {kind}, all in report.md"] if len(lines) > NAMED else []
        sys.stdout.write("\n".join([*lines[:NAMED], *more, ""]))


def write_tables(tables: Iterable[Table], root: Path) -> None:
    """Write every table in every form below `root`/tables."""
    folder = root / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        for ending, form in FORMS.items():
            (folder / f"{table.name}.{ending}").write_text(form(table), encoding="utf-8")


def write_charts(charts: Iterable[Chart], root: Path) -> None:
    """Write every chart as a file of its own below `root`/plots."""
    folder = root / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    for chart in charts:
        (folder / f"{chart.name}.svg").write_text(file(chart), encoding="utf-8")


if __name__ == "__main__":
    gc.set_threshold(100_000, 50, 100)  # many objects and few cycles: 7 % of the time went into looking for cycles
    sys.exit(main())
