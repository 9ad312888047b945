"""The command `python -m portability.analyze results/`: tables, charts and a report for every study below a
folder.

The path of a number: `main` -> `_analyse` -> analysis.report.sections.sections ->
analysis.tables.registry.build_table -> the function that makes the table (analysis.measures), which
registry.TABLES names.
"""

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

from portability.analysis.context import StudyContext, gather
from portability.analysis.figures.charts import headline
from portability.analysis.figures.svg import Chart, svg_file
from portability.analysis.measures.primary_contrasts import has_contrasts
from portability.analysis.metrics import METRICS
from portability.analysis.report.findings import caveats, headline_numbers, numbers, sections, verdict_words
from portability.analysis.report.html import page
from portability.analysis.report.markdown import count_words, report
from portability.analysis.report.run_details import details
from portability.analysis.tables.captions import Table
from portability.analysis.tables.render import FORMS
from portability.core.errors import UserError
from portability.store import Store, studies

WIDE = 100  # columns of the printed text
NAMED = 10  # problems of one kind that the terminal names; the report names all


def main(arguments: Sequence[str] | None = None) -> int:
    """Analyse every study below a results folder.

    Returns:
        0 when tables were written, 2 when the user must change something.
    """
    parser = argparse.ArgumentParser(prog="python -m portability.analyze",
                                     description=__doc__.partition("\n")[0])
    parser.add_argument("results", nargs="?", default="results", help="results folder, or one study's folder")
    parser.add_argument(
        "--metric",
        help=f"one of: {', '.join(METRICS)}, or eval_NAME of a study's own; by default accuracy where all "
        f"runs "
        "have it, else ROUGE-L where all have that, else the score, which is either, else the first that all "
        "have; what a record lacks is computed from its predictions where they give it")
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
    context, root = gather(store, metric), store.root
    gc.freeze()  # statsmodels collects garbage at every correction: what is here by now is none
    head, parts = headline(context), sections(context)
    write_tables([table for part in parts for table in part.tables], root)
    write_charts([*head, *(chart for part in parts for chart in part.charts)], root)
    (root / "report.md").write_text(report(context, parts, head), encoding="utf-8")
    path = root / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    path.write_text(page(context, parts, head, details(store, context)), encoding="utf-8")
    if console is not None:
        say(context, console)
    sys.stdout.write(f"Written: {path}, {root / 'report.md'}, {root / 'tables'}, {root / 'plots'}\n")


def say(context: StudyContext, console: Console) -> None:
    """The verdict and its numbers, what limits them, and what is wrong with the study."""
    study = context.study
    rows = numbers(context) if has_contrasts(context) else headline_numbers(context)
    console.print(f"Study {study.name}: {count_words(study)}.", markup=False)
    console.print(verdict_words(context), markup=False)
    shown = Rows(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("contrast", overflow="fold")
    for name in ("difference", "95 %", "p (Holm)", "verdict"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(escape(row.name), row.size, row.between.strip("[]"), row.p, row.verdict)
    if rows:
        console.print(shown)
    for line in caveats(context):
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
        (folder / f"{chart.name}.svg").write_text(svg_file(chart), encoding="utf-8")


if __name__ == "__main__":
    gc.set_threshold(100_000, 50,
                     100)  # many objects and few cycles: 7 % of the time went into looking for cycles
    sys.exit(main())
