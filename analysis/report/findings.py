"""What a study found, by question: the tables, charts and sentences that answer each, for the page and for
report.md."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from portability.analysis.context import StudyContext, once
from portability.analysis.contrast_arm import say
from portability.analysis.figures import charts
from portability.analysis.figures.svg import Chart, budget_words
from portability.analysis.formatting import interval, no_number, number, p_text
from portability.analysis.measures.predictors import why_no_correlation
from portability.analysis.measures.primary_contrasts import OPEN, has_contrasts, primary
from portability.analysis.metrics import PREFIX, UNITS, Metric, metric_of
from portability.analysis.tables.captions import Table, protocol, turns
from portability.analysis.tables.registry import TABLES, build_table
from portability.core.contrasts import all_alike, declared_metric
from portability.core.wording import counted

FEW = 3  # numbers at the head of a report, and contrasts that are left open that its sentence names
NEAR = 0.02  # of a port's effect on the logits: equal to within what bisection leaves (our choice)
NOTHING = "The study has no two starts to compare."
SIDES = {"ahead": "ahead", "behind": "behind", "higher": "higher", "lower": "lower", OPEN: "left open"}
SENTENCE = "{words}: {side}, {size} {symbol} {between} ({tests}; {seeds} seeds{examples}{lacks}).{detectable}"


@dataclass(frozen=True)
class Number:
    """One difference as a reader meets it: of what, its size, 95 % interval and corrected p, and what its
    test says."""

    name: str
    words: str
    size: str
    between: str
    p: str
    verdict: str


@once
def _exploratory(context: StudyContext) -> pd.DataFrame:
    """The arm against every other init over everything, after any update; scratch first."""
    frame = context.levels["all"]
    frame = frame[frame["budget"] > 0]
    frame = frame.sort_values("baseline", key=lambda names: names != "scratch", kind="stable")
    names = [f"{row['arm']} − {row['baseline']} {budget_words(int(row['budget']))}"
             + "".join(f", {row[key]}" for key in context.strata) for _, row in frame.iterrows()]
    return frame.assign(name=names, words=names, verdict="exploratory", unit=context.metric.difference)


def numbers(context: StudyContext) -> list[Number]:
    """The primary contrasts in the order of the sweep; where none was declared, the exploratory differences
    over everything."""
    frame = primary(context) if has_contrasts(context) else _exploratory(context)
    unit = UNITS[context.metric.difference]
    return [Number(row["name"], row["words"],
                   no_number(row) if pd.isna(row["mean"]) else f"{number(row['mean'], unit)} {unit.symbol}",
                   "" if pd.isna(row["low"]) else interval(row["low"], row["high"], unit),
                   p_text(row["p_holm"]), row["verdict"]) for _, row in frame.iterrows()]


def headline_numbers(context: StudyContext) -> list[Number]:
    """The three at the head of a report: the first that were declared, whatever came of them; else against
    scratch early and late, and against another init late."""
    rows = numbers(context)
    if has_contrasts(context) or not rows:
        return rows[:FEW]
    frame = _exploratory(context).reset_index(drop=True)
    last = [own.index[-1] for _, own in frame.groupby("baseline", sort=False)]
    return [rows[i] for i in dict.fromkeys([0, *last])][:FEW]


def verdict_words(context: StudyContext) -> str:
    """The study in one sentence: which declared contrasts are ahead, behind or open; or, said to be so, what
    is exploratory."""
    rows = numbers(context)
    if not rows:
        return NOTHING
    if not has_contrasts(context):
        explored = "; ".join(f"{row.words} {row.size} {row.between}".rstrip()
                             for row in headline_numbers(context))
        return ("No contrast was declared before the runs, so nothing is decided; exploratory, over "
                f"everything: {explored}.")
    parts = []
    for side, words in SIDES.items():
        if own := [f"{row.name} {row.size}" for row in rows if row.verdict == side]:
            named = "" if side == OPEN and len(own) > FEW else f" ({', '.join(own)})"
            parts.append(f"{len(own)} {'is' if len(own) == 1 else 'are'} {words}{named}")
    by = ""
    if name := declared_metric(context.study.facts):
        other = PREFIX + name != context.metric.name
        by = f" by {context.metric.label}" + (", which was not to decide" if other else "")
    return f"Of {counted(len(rows), 'contrast')} declared before the runs{by}, {', '.join(parts)}."


def declared_sentences(context: StudyContext) -> list[str]:
    """Whether the last iterate alone says the same, and every declared contrast in a sentence."""
    return [*turns(context), *(sentence(row, context.metric) for _, row in primary(context).iterrows())]


def sentence(row: pd.Series, metric: Metric) -> str:
    """A row of `primary` as one sentence."""
    words, unit = row["words"][0].upper() + row["words"][1:], UNITS[metric.difference]
    if pd.isna(row["p_holm"]):
        left_out = f", {row['unpaired']} are left out by the grid" if row["unpaired"] else ""
        return f"{words}: no test ({row['note']}; {row['n']} of {row['expected']} pairs are done{left_out})."
    tests = f"p {_p(row['p_holm'])} after Holm's correction for {row['family']}"
    if pd.notna(row["p_exchange"]):
        smallest = f"{row['smallest_p']:.2g} is the smallest possible"
        tests += f", by exchange p {_p(row['p_exchange'])} where {smallest}"
    size = number(row["mdd"], unit).lstrip("+")
    more = f" A true difference of {size} {unit.symbol} would have been found four times in five."
    return SENTENCE.format(
        words=words, side=SIDES[row["verdict"]], size=number(row["mean"], unit), symbol=unit.symbol,
        tests=tests, between=interval(row["low"], row["high"], unit), seeds=row["seeds"],
        examples=f", {row['examples']:,} test examples" if row["examples"] else ", not over test examples",
        lacks=f", † {row['n']} of {row['expected']} pairs" if row["mark"] else "",
        detectable=more if row["verdict"] == OPEN and pd.notna(row["mdd"]) else "")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


# ---- what limits them


def caveats(context: StudyContext) -> list[str]:
    """What limits the findings: the protocol, cells that lack, and what intervals leave out."""
    cells, facts, lines = context.cells, context.study.facts, protocol(context.study.protocol)
    lacking = cells[cells["status"] != "done"]["status"].value_counts()
    if len(lacking):
        words = ", ".join(f"{count:,} {status}" for status, count in lacking.items())
        lines.append(f"{len(cells) - int(lacking.sum()):,} of {len(cells):,} cells are done ({words}); "
                     "numbers that lack cells carry the mark †.")
    seeds = context.arms["seed"].nunique()
    undeclared = not has_contrasts(context)
    decides = PREFIX + name if (name := declared_metric(facts)) else context.metric.name
    said = {
        f"The study declared before its runs that {metric_of(decides).label} decides; by "
        f"{context.metric.label} all is exploratory.": decides != context.metric.name,
        f"Intervals are over seeds only, not over test examples: {context.why}.": context.why,
        "The study's commands declare different primary contrasts or metrics, so it has none: all is "
        "exploratory.": all_alike(facts) is None,
        "No primary contrast was declared before the runs: all is exploratory.":
            undeclared and all_alike(facts) is not None,
        "Sentences shared between data sets were kept (overlap: keep).":
            any(fact.get("overlap") == "keep" for fact in facts),
        "There is one seed, so nothing is said of comparisons: what differs between its runs is no new seed.":
            seeds < 2,
    }
    return [*lines, *_unmatched(context), *(sentence for sentence, holds in said.items() if holds),
            f"Intervals speak of new seeds ({seeds} here) on these hosts and data sets, not of other hosts."]


def _unmatched(context: StudyContext) -> list[str]:
    """A sentence on inits that no scale makes move the logits as much as the port does."""
    matched = pd.to_numeric(context.study.runs["effect"], errors="coerce").dropna()
    off = matched[(matched - 1).abs() > NEAR]
    reached = " to ".join(dict.fromkeys(f"{100 * value:.0f}" for value in (off.min(), off.max())))
    return [] if off.empty else [
        f"{counted(len(off), 'start')} that should move the logits as much as a port cannot at any scale; "
        f"the nearest gives {reached} % of it."]


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
             (charts.contrasts,), declared_sentences),
    Question("Starts", "Is a start from {origin} ahead of the others?",
             ("comparisons", "init_by_method", "init_by_budget", "take_off", "area"),
             (charts.by_method, charts.differences, charts.take_offs)),
    Question("Directions", "Does it matter from which host to which, and which data {origin} saw?",
             ("by_direction", "interactions", "origin_by_receiving", "by_relation"),
             (charts.by_direction, charts.every_curve)),
    Question("First steps", "What does a module do before any update?", ("lift", "zero_shot")),
    Question("Costs", "What does {start} save, and what does it cost on each host?",
             ("updates_to_match", "break_even", "recovered", "cost")),
    Question("Ports", "How far is each way of porting behind the best?", ("port_choice",)),
    Question("Equal compute", "Is a port that trains ahead of scratch with as many updates more?",
             ("equal_compute",)),
    Question("Extraction", "Is what was cut out knowledge of the task?", ("extraction",)),
    Question("Rates", "Would other learning rates change the comparison?", ("rates",)),
    Question("Changes", "What is a module worth on a host that was changed?", ("changed_hosts", "left_out")),
    Question("Hosts", "What goes with a gain?", ("predictors",), (), why_no_correlation),
    Question("Checks", "Do other measures and other estimators say the same?",
             ("all_metrics", "win_rate_inits", "win_rate_methods", "ties", "interquartile", "mixed",
              "published")),
    Question("Whole", "Is every cell there?", ("completeness",)),
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
