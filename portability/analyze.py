"""The command `portability analyze results/`: tables, charts and a report for every study below a
folder.

The path of a number: `main` -> `_analyse` -> analysis.report.findings.sections ->
analysis.tables.registry.build_table -> the function that makes the table (analysis.measures), which
registry.TABLES names.
"""

import gc
import sys
from argparse import Namespace
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Rows

from portability.analysis.context import StudyContext, gather
from portability.analysis.figures.charts import headline
from portability.analysis.figures.svg import svg_file
from portability.analysis.measures.primary_contrasts import has_contrasts
from portability.analysis.report.findings import caveats, headline_numbers, numbers, sections, verdict_words
from portability.analysis.report.html import page
from portability.analysis.report.markdown import count_words, report
from portability.analysis.report.run_details import details
from portability.analysis.tables.render import FORMS
from portability.core.command_line import carry_out
from portability.options import parser
from portability.store import Store, studies

WIDE = 100  # columns of the printed text
NAMED = 10  # problems of one kind that the terminal names; the report names all


def main(arguments: Sequence[str] | None = None) -> int:
    """Analyse every study below a results folder; gives back the exit code."""
    return carry_out(parser("analyze"), work, arguments)


def work(options: Namespace) -> None:
    """Analyse every study below a results folder.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    gc.set_threshold(100_000, 50, 100)  # many objects, few cycles: 7 % of the time went into looking
    console = None if options.quiet else Console(width=WIDE, highlight=False, soft_wrap=False)
    for store in studies(options.results):
        _analyse(store, options.metric, console)


def _analyse(store: Store, metric: str | None, console: Console | None) -> None:
    """One study: read, build, write, and say where."""
    context, root = gather(store, metric), store.root
    gc.freeze()  # statsmodels collects garbage at every correction: what is here by now is none
    head, parts = headline(context), sections(context)
    files = {f"tables/{table.name}.{ending}": form(table) for part in parts for table in part.tables
             for ending, form in FORMS.items()}
    files |= {f"plots/{chart.name}.svg": svg_file(chart)
              for chart in (*head, *(chart for part in parts for chart in part.charts))}
    files |= {"report.md": report(context, parts, head),
              "report/index.html": page(context, parts, head, details(store, context))}
    for folder in ("tables", "plots", "report"):
        (root / folder).mkdir(exist_ok=True)
    for name, text in files.items():
        (root / name).write_text(text, encoding="utf-8")
    if console is not None:
        say(context, console)
    written = ", ".join(str(root / name) for name in ("report/index.html", "report.md", "tables", "plots"))
    sys.stdout.write(f"written: {written}\n")


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


if __name__ == "__main__":
    sys.exit(main())
