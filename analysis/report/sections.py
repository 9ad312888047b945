"""A study by question: the tables and charts that answer each, made from one list, for the page and for
report.md alike."""

from collections.abc import Callable
from dataclasses import dataclass

from portability.analysis.context import StudyContext
from portability.analysis.contrast_arm import say
from portability.analysis.figures import curves, forest
from portability.analysis.figures.svg import Chart
from portability.analysis.measures.predictors import why_no_correlation
from portability.analysis.report.findings import declared_sentences
from portability.analysis.tables.registry import TABLES, build_table
from portability.analysis.tables.spec import Table


@dataclass(frozen=True)
class Question:
    """A question with what answers it: names of tables, the first of them shown at once, functions that make
    charts, and sentences. `short` stands in the page's navigation."""

    short: str
    words: str
    tables: tuple[str, ...]
    charts: tuple[Callable[[StudyContext], list[Chart]], ...] = ()
    said: Callable[[StudyContext], list[str]] = lambda context: []


@dataclass(frozen=True)
class Section:
    """A question of one study, answered."""

    short: str
    title: str
    said: list[str]
    charts: list[Chart]
    tables: list[Table]


QUESTIONS = (
    Question("Declared", "What was declared before the runs, and what came of it?", ("primary", "iterates"),
             (forest.contrasts,), declared_sentences),
    Question("Starts", "Is a start from {origin} ahead of the others?",
             ("comparisons", "init_by_method", "init_by_budget", "take_off", "area"),
             (curves.by_method, forest.differences, curves.take_offs)),
    Question("Directions", "Does it matter from which host to which, and which data {origin} saw?",
             ("by_direction", "interactions", "origin_by_receiving", "by_relation"),
             (curves.by_direction, curves.every_curve)),
    Question("First steps", "What does a module do before any update?", ("lift", "zero_shot")),
    Question("Costs", "What does {start} save, and what does it cost on each host?",
             ("updates_to_match", "break_even", "recovered", "cost")),
    Question("Extraction", "Is what was cut out knowledge of the task?", ("extraction",)),
    Question("Rates", "Would other learning rates change the comparison?", ("rates",)),
    Question("Hosts", "What goes with a gain?", ("predictors",), (), why_no_correlation),
    Question("Checks", "Do other measures and other estimators say the same?",
             ("all_metrics", "win_rate_inits", "win_rate_methods", "ties", "interquartile", "mixed",
              "published")), Question("Whole", "Is every cell there?", ("completeness",)),
)


def sections(context: StudyContext) -> list[Section]:
    """The questions that this study has something on, in order."""
    made = []
    for question in QUESTIONS:
        tables = [build_table(name, context) for name in question.tables if TABLES[name].applies(context)]
        charts = [chart for make in question.charts for chart in make(context)]
        title = say(question.words, context.arm)
        made.append(Section(question.short, title, question.said(context), charts, tables))
    return [section for section in made if section.said or section.charts or section.tables]
