"""A study by question: the tables and charts that answer each, made from one list, for the page and for report.md alike."""

from collections.abc import Callable
from dataclasses import dataclass

from analysis import plots
from analysis.arms import say
from analysis.charts import Chart
from analysis.evidence import Evidence
from analysis.predictors import why_not
from analysis.recipe import Table
from analysis.tables import TABLES, build
from analysis.verdict import said


def _nothing(_: Evidence) -> list[str]:
    return []


@dataclass(frozen=True)
class Question:
    """A question with what answers it: names of tables, the first of them shown at once, functions that make charts, and
    sentences. `short` stands in the page's navigation."""

    short: str
    words: str
    tables: tuple[str, ...]
    charts: tuple[Callable[[Evidence], list[Chart]], ...] = ()
    said: Callable[[Evidence], list[str]] = _nothing


@dataclass(frozen=True)
class Section:
    """A question of one study, answered."""

    short: str
    title: str
    said: list[str]
    charts: list[Chart]
    tables: list[Table]


QUESTIONS = (
    Question("Declared", "What was declared before the runs, and what came of it?", ("primary", "iterates"), (plots.decided,),
             said),
    Question("Starts", "Is a start from {origin} ahead of the others?",
             ("comparisons", "init_by_method", "init_by_budget", "take_off", "area"),
             (plots.by_method, plots.differences, plots.flights)),
    Question("Directions", "Does it matter from which host to which, and which data {origin} saw?",
             ("by_direction", "interactions", "origin_by_receiving", "by_relation"), (plots.by_direction, plots.every_curve)),
    Question("First steps", "What does a module do before any update?", ("lift", "zero_shot")),
    Question("Costs", "What does {start} save, and what does it cost on each host?",
             ("updates_to_match", "break_even", "recovered", "cost")),
    Question("Extraction", "Is what was cut out knowledge of the task?", ("extraction",)),
    Question("Rates", "Would other learning rates change the comparison?", ("rates",)),
    Question("Hosts", "What goes with a gain?", ("predictors",), (), why_not),
    Question("Checks", "Do other measures and other estimators say the same?",
             ("all_metrics", "win_rate_inits", "win_rate_methods", "ties", "interquartile", "mixed", "published")),
    Question("Whole", "Is every cell there?", ("completeness",)),
)


def sections(found: Evidence) -> list[Section]:
    """The questions that this study has something on, in order."""
    made = [_section(found, question) for question in QUESTIONS]
    return [section for section in made if section.said or section.charts or section.tables]


def _section(found: Evidence, question: Question) -> Section:
    names = [name for name in question.tables if TABLES[name].of(found)]
    charts = [chart for make in question.charts for chart in make(found)]
    return Section(question.short, say(question.words, found.arm), question.said(found), charts, build(found, names))
