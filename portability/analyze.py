"""The command `python -m portability.analyze results/`: tables, plots and a report for every study below a folder."""

import argparse
import gc
import io
import logging
import sys
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib

from analysis import figures, plots
from analysis.details import details
from analysis.evidence import Evidence, gather
from analysis.findings import caveats, findings
from analysis.load import Study
from analysis.metrics import METRICS
from analysis.page import page
from analysis.render import FORMS, terminal
from analysis.report import counts, report
from analysis.tables import Table, build
from portability.errors import UserError
from portability.store import Store, studies

PLOTS = {**plots.PLOTS, **figures.PLOTS_MORE}
DPI = 150
PRINTED = ("init_by_method", "zero_shot", "extraction")
_GIVEN: list[Evidence] = []  # what a drawing process was given at its start: a fork inherits it, nothing is copied
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
    try:
        for store in studies(options.results):
            _analyse(store, options.metric, quiet=options.quiet)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _analyse(store: Store, metric: str | None, *, quiet: bool) -> None:
    """One study: read, build, write, and say where."""
    found = gather(store, metric)
    with ProcessPoolExecutor(1, initializer=_GIVEN.append, initargs=(found,)) as others:  # drawing is half of the work
        drawing = others.map(_draw_given, PLOTS)
        study, tables, said, limits = found.study, build(found), findings(found), caveats(found)
        each = details(store, found.cells, found.metric.name)
        drawn = {name: pair for figures_of_one in drawing for name, pair in figures_of_one.items()}
    root = store.root
    pictures = write_plots(drawn, root)
    write_tables(tables, root)
    (root / "report.md").write_text(report(study, said, limits, tables, pictures), encoding="utf-8")
    path = root / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    svg = {name: text for name, (_, text) in drawn.items()}
    html = page(study, found.metric, tables, svg, said, limits, each)
    path.write_text(html, encoding="utf-8")
    if not quiet:
        sys.stdout.write(_summary(study, said, tables))
    sys.stdout.write(f"Written: {path}, {root / 'report.md'}, {root / 'tables'}, {root / 'plots'}\n")


def _summary(study: Study, said: Mapping[str, Sequence[str]], tables: list[Table]) -> str:
    """The first findings, the comparison tables, and what is wrong with the study."""
    heading, sentences = next(iter(said.items()))
    parts = [f"Study {study.name}: {counts(study)}", "", heading, ""]
    parts += [textwrap.fill(sentence, 118, initial_indent="- ", subsequent_indent="  ") for sentence in sentences] + [""]
    parts += [terminal(table) for table in tables if table.name in PRINTED]
    kinds = list(dict.fromkeys(problem.kind for problem in study.problems))
    for kind in kinds:
        lines = [" ".join(str(problem).split()) for problem in study.problems if problem.kind == kind]
        more = [f"... and {len(lines) - NAMED} more {kind}, all in report.md"] if len(lines) > NAMED else []
        parts += [*lines[:NAMED], *more]
    return "\n".join([*parts, ""])


def write_tables(tables: Sequence[Table], root: Path) -> None:
    """Write every table in every form below `root`/tables."""
    folder = root / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        for ending, form in FORMS.items():
            (folder / f"{table.name}.{ending}").write_text(form(table), encoding="utf-8")


def draw(name: str, found: Evidence) -> dict[str, tuple[bytes, str]]:
    """The figures of one plot by name, as PNG and as SVG; the same study, the same bytes."""
    drawn = {}
    for title, figure in PLOTS[name](found).items():
        png, svg = io.BytesIO(), io.StringIO()
        figure.set_dpi(DPI)
        if (layout := figure.get_layout_engine()) is not None:  # laid out once; with an engine each file is drawn twice
            layout.execute(figure)
            figure.set_layout_engine(None)
        figure.savefig(png, format="png", dpi=DPI)
        with matplotlib.rc_context({"svg.hashsalt": "portability"}):
            figure.savefig(svg, format="svg", metadata={"Date": None})
        drawn[title] = png.getvalue(), svg.getvalue()
    return drawn


def _draw_given(name: str) -> dict[str, tuple[bytes, str]]:
    """One plot of this process's study."""
    return draw(name, _GIVEN[0])


def write_plots(drawn: Mapping[str, tuple[bytes, str]], root: Path) -> list[str]:
    """Write plots as PNG and SVG below `root`/plots, and give back the PNG paths relative to `root`."""
    folder = root / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    for name, (png, svg) in drawn.items():
        (folder / f"{name}.png").write_bytes(png)
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    return [f"plots/{name}.png" for name in drawn]


if __name__ == "__main__":
    gc.set_threshold(100_000, 50, 100)  # many objects and few cycles: 7 % of the time went into looking for cycles
    sys.exit(main())
