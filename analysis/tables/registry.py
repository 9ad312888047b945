"""Every table by name: the function that makes it, how it is laid out, and what stands under it."""

from collections.abc import Iterable

import pandas as pd

from portability.analysis.context import StudyContext
from portability.analysis.contrast_arm import say
from portability.analysis.formatting import NOTHING
from portability.analysis.measures import (
    comparisons,
    costs,
    curves,
    extraction,
    learning_rates,
    paper_values,
    port_measures,
    predictors,
    primary_contrasts,
    robustness,
    summaries,
)
from portability.analysis.metrics import UNITS
from portability.analysis.stats.pairing import EXTRACTED, PORTED
from portability.analysis.tables import captions, views
from portability.analysis.tables.spec import Table, TableSpec

ALL_SEEDS = "Intervals are 95 % of new seeds on these hosts and data sets."
BEHIND = "{s.replicates} {s.faults} {s.ahead}"
OVER_BUDGETS = ("method", "init", "budget")


def _arms(context: StudyContext) -> pd.DataFrame:
    return context.arms


# ---- values of the notes


def _turns(context: StudyContext, _: pd.DataFrame) -> dict[str, object]:
    return {"turns": " ".join(turns(context))}


def turns(context: StudyContext) -> list[str]:
    """Which verdicts of primary contrasts turn with the iterate that is scored, in a sentence."""
    if not primary_contrasts.has_iterates(context):
        return []
    frame = primary_contrasts.iterates(context)
    names = frame.loc[frame["turns"], "name"].tolist()
    if not names:
        return [f"Under the last iterate alone all {len(frame)} verdicts are the same."]
    return [f"Under the last iterate alone {len(names)} of {len(frame)} verdicts turn: {', '.join(names)}."]


def _best(context: StudyContext, _: pd.DataFrame) -> dict[str, object]:
    better = context.metric.better or "highest (neither is better)"
    return {"best": {"lower": "lowest", "higher": "highest"}.get(better, better)}


def _task(context: StudyContext, frame: pd.DataFrame) -> dict[str, object]:
    own = frame[frame["quantity"].astype(str).str.startswith(extraction.CONTRAST)]
    return {"task": int(own["family"].max()) if "family" in own and len(own) else 0}


def _predictors(context: StudyContext, frame: pd.DataFrame) -> dict[str, object]:
    most = frame.groupby("predictor", sort=False)["n"].max()
    gone = [name.replace("_", " ") for name in most.index[most == 0]]
    return {"gone": f"Not recorded: {', '.join(gone)}." if gone else ""}


def _rates(context: StudyContext, frame: pd.DataFrame) -> dict[str, object]:
    edges = frame[frame["edge"]] if len(frame) else frame
    more = "No best rate lies at the edge of those that were tried."
    if len(edges):
        names = dict.fromkeys(f"{row['init']} of {row['method']}" for _, row in edges.iterrows())
        more = (f"A best rate {views.EDGE} of those that were tried, so a better one may lie beyond: "
                f"{', '.join(names)}.")
    if len(frame) and frame[[name for name in frame if name.startswith("x")]].isna().any(axis=None):
        more += (f" {NOTHING} : some of these cells are not done, so the rate has no number and cannot be "
                 "the best.")
    return {"more": more}


def _scores(context: StudyContext, frame: pd.DataFrame) -> dict[str, object]:
    return {"scores": " and ".join(f"{int(frame[name].max())} {name}" for name in ("tasks", "seeds"))
            if len(frame) else "none"}


def _published(context: StudyContext, frame: pd.DataFrame) -> dict[str, object]:
    able, budget = int(frame["within"].notna().sum()), context.arms["budget"].max()
    none = "" if able else NOT_PUBLISHED
    what = f"gains are those after {budget} updates, at the level all" if context.arm == PORTED else (
        f"scores are those after {budget} updates")
    return {"able": able, "count": len(frame), "none": none, "after": "" if pd.isna(budget)
            else f"This study's {what}."}


def _whole(context: StudyContext, frame: pd.DataFrame) -> dict[str, object]:
    return {"whole": int((frame["done"] == frame["expected"]).sum()), "count": len(frame)}


# ---- texts


NOT_PUBLISHED = (
    "None is: what was published is of other hosts and data sets, so nothing here agrees or disagrees with "
    "it.")
WON = (
    "How often the row beats the column at the largest budget, ties half, paired in all other coordinates "
    "and seeds. In square brackets: 95 % with seeds as trials (Jeffreys); in brackets: pairs done/asked for, "
    "seeds. A win by little counts "
    f"like a win by much. {BEHIND}")

TABLES: dict[str, TableSpec] = {
    "init_by_method": TableSpec(
        summaries.init_by_method, "Init by method", "{label} after {budget} updates on the receiving host.",
        ("quantity", "init"), "method", best=True),
    "zero_shot": TableSpec(
        summaries.zero_shot, "Zero-shot",
        "{label} before any update on the receiving host; lift is over the bare host "
        "(with the cell's own head, where the host needs one).", ("receiving", "quantity", "init"), "method",
        best=True, cells=lambda context: context.start),
    "origin_by_receiving": TableSpec(
        summaries.origin_by_receiving, "Origin by receiving host",
        "{label} after {budget} updates: rows are origins, columns receiving hosts; the diagonal is native, "
        "trained on the receiving host itself, at its largest mark.",
        ("method", "relation", "quantity", "origin"), "receiving"),
    "init_by_budget": TableSpec(
        summaries.init_by_budget, "Init by budget",
        "{label} by updates on the receiving host (0: zero-shot).", ("method", "quantity", "init"), "budget",
        best=True, cells=_arms),
    "by_relation": TableSpec(
        summaries.by_relation, "By relation", "{label} after {budget} updates, by {saw}.",
        ("relation", "origin_data", "quantity", "init"), "method", best=True),
    "all_metrics": TableSpec(
        summaries.all_metrics, "All metrics", "Every metric, zero-shot and after {budget} updates.",
        ("method", "budget", "init"), "quantity"),
    "completeness": TableSpec(
        summaries.completeness, "Completeness",
        "Cells asked for and what became of them; seeds are counted, not listed.",
        notes="{whole} of {count} points are whole and stand in the CSV file only.", view=views.completeness,
        values=_whole),
    "primary": TableSpec(
        primary_contrasts.primary, "Primary contrasts",
        "What was declared before the runs, with the test that decides each.", view=views.primary,
        notes=(
            "Differences with 95 % intervals of new seeds{s.examples}; p of the t test after Holm's "
            "correction for all contrasts of this table, which decides. By exchange: labels exchanged within "
            "seeds, and the least p that these seeds could give. Detectable: the true difference that would "
            "be found four times in five at the first step of "
            "the correction. {s.lacking_pairs}"), applies=primary_contrasts.has_contrasts),
    "iterates": TableSpec(
        primary_contrasts.iterates, "Primary contrasts under both iterates",
        "{label}: the declared contrasts of what a mark evaluates, and of its last iterate alone.",
        view=views.iterates,
        notes="Both over seeds only, for no predictions of last iterates are kept; so intervals are not "
        "those of the primary "
        "contrasts. {turns}", values=_turns, applies=primary_contrasts.has_iterates),
    "rates": TableSpec(
        learning_rates.rates, "Learning rates",
        "{label} of every start at its own best learning rate, beside the common one.",
        view=views.learning_rates, notes=(
            "Means in {s.symbol}, over directions, relations and seeds. Common gain: {arm} minus this start, "
            "both at the method's own rate; gain of bests: each at its best factor. The best of several is "
            "chosen on the same runs, which "
            "flatters whatever scatters most. {more}"), values=_rates, applies=learning_rates.has_rates),
    "extraction": TableSpec(
        extraction.extraction, "Extraction",
        "{label} of every start by student, task and relation of the seed examples, at "
        "every budget, with {arm} minus each other start.",
        ("method", "receiving", "relation", "quantity", "init"), "budget", best=True, cells=_arms,
        keys=("data", "method", "receiving", "relation", "budget", "init"),
        notes=(
            "{s.spread} {s.counts} {s.replicates} {s.gains} Seed examples, same − other: pairs of one seed "
            "and the same test examples; this decides whether a gain is knowledge of the task or comes of "
            "any cut. Holm's correction is for the {task} of these alone. Relation same: seed examples of "
            "the task itself; any other: those of another task. A start that uses no seed examples has one "
            "run for all relations. Before any update extracted is the bare host by construction, so "
            "differences begin with the first budget. {s.faults} "
            "{s.ahead}"), values=_task, applies=lambda context: context.arm == EXTRACTED),
    "comparisons": TableSpec(
        comparisons.comparisons, "Comparisons", "{label}: {arm} minus every other init at every budget.",
        cells=_arms, view=views.comparisons,
        notes=(
            "{s.levels} d: mean by spread of seeds. Detectable: the true difference that a study like this "
            "one would find 4 "
            f"times in 5. Shown are the levels {' and '.join(views.LEVELS)}; relations and directions stand "
            f"in the CSV "
            "file.")),
    "by_direction": TableSpec(
        summaries.by_direction, "Gains by direction",
        "{label}: gain by origin and receiving host at every budget, over all methods and relations; each "
        "method and relation by itself stands in the CSV file of the comparisons.",
        ("quantity", "origin", "receiving"), "budget", cells=_arms),
    "ties": TableSpec(
        comparisons.tie_groups, "Tie groups",
        "{label}: inits within every method and over all of them, and methods within "
        "every init.", cells=_arms, keys=("method", "init", "budget"), view=views.ties, values=_best, notes=(
            "Means in {s.symbol}, the {best} first. What shares a letter is not told apart by a paired t "
            "test over seeds and test examples, p ≤ 0.05 after Holm's correction for the tests of its line; "
            "that is no proof of equality. {s.replicates} {s.lacking_cells} {s.ahead}")),
    "interactions": TableSpec(
        comparisons.interactions, "Interactions",
        "{label}: does the gain of {arm} depend on direction, method, kind of hosts or data?",
        view=views.interactions, cells=_arms, needs_tests=True,
        notes=(
            "In square brackets: 95 % of new seeds{s.examples}, on these hosts and data sets. {s.stars} for "
            "the {s.family} differences of this table. The gain in the item minus the gain in what it is "
            "held against, of one seed; cells weigh alike on each side. Pairs: hosts of one lineage against "
            "hosts of other sizes, where the study's manifests say which are which. {s.lacking_pairs} "
            "{s.ahead}")),
    "lift": TableSpec(
        port_measures.lift, "Lift over the bare host",
        "{label} before any update minus that of the bare host.", ("receiving", "init"), "method",
        cells=lambda context: context.start, needs_tests=True,
        notes=(
            "The bare host has no seed: it is the same at all of them. In square brackets: 95 % of new "
            "seeds{s.covers}, on these hosts and data sets; ± where there is no spread to make one. "
            "{s.counts} {s.stars} for the {s.family} lifts of "
            f"this table. {BEHIND}")),
    "area": TableSpec(
        curves.area, "Area under the budget curve",
        "{label}: mean height of its curve over updates from zero-shot to {budget}, linear between marks. "
        "Only curves with all their marks have an area; an init that was not asked for at "
        "every budget of its method has no row.", ("quantity", "init"), "method", cells=_arms),
    "updates_to_match": TableSpec(
        curves.updates_to_match, "Updates to match scratch",
        "{label}: the first mark at which a run is at least as good as its scratch twin is at the largest "
        "budget.", view=views.updates_to_match, cells=_arms, keys=OVER_BUDGETS, needs_better=True,
        notes=(
            "As good: to within one point. Runs are seen at marks only, so a time lies after one and by the "
            "next, and nothing is interpolated. What is never as good is censored at the largest budget "
            "(median > it where more than half are; ≥ for that reason), so all of this is within that "
            "budget. Saved: scratch's own time, which noise can bring before its last mark, minus the run's; "
            "the true mean lies between the two ends, and the interval holds it "
            f"wherever between them it is. {ALL_SEEDS} {BEHIND}")),
    "take_off": TableSpec(
        curves.take_off, "Take-off",
        "{label}: the share of runs that are at least halfway to native, by updates.", view=views.take_off,
        cells=_arms, keys=OVER_BUDGETS, needs_better=True, notes=(
            "Halfway is from the bare host to the native run at its largest mark. In square brackets: 95 % "
            "of new seeds. Half took off: between which marks, > the largest budget where fewer than half "
            "did. In brackets: cells "
            f"done/asked for, seeds. {BEHIND}")),
    "recovered": TableSpec(
        port_measures.recovered, "Recovered fraction of native",
        "{label}: ({arm} − scratch) / (native − scratch), native at its largest mark.", view=views.recovered,
        cells=_arms, keys=OVER_BUDGETS, needs_better=True,
        notes=(
            f"Ratio of means over seeds with Fieller's interval. {ALL_SEEDS} No ratio where native − scratch "
            f"is within noise "
            "(its own interval holds 0), or where native is the scratch run itself at that mark. " + BEHIND)),
    "cost": TableSpec(
        costs.cost, "Cost", "What runs cost on each receiving host: medians over distinct runs.",
        view=views.cost, cells=_arms, keys=OVER_BUDGETS,
        notes=(
            "Seconds are a run's share of its stack's wall time: they depend on how many runs were trained "
            "together and on "
            f"the machine, so compare tokens and updates. {{origins}} beside {{arm}}. {BEHIND}")),
    "break_even": TableSpec(
        costs.break_even, "Break-even",
        "What {start} saves against scratch on each receiving host when the module is there "
        "already, and how many {starts} pay {its} back.", view=views.break_even, cells=_arms,
        keys=OVER_BUDGETS, needs_better=True,
        notes=(
            "Saved as in updates to match scratch; origin over saved, rounded up, at both ends of the "
            "interval. Where {starts} do not get there within the largest budget, less is saved than stands "
            "here (≤, ≥). Tuning and {itself} "
            f"itself are not counted. {BEHIND}")),
    "predictors": TableSpec(
        predictors.predictors, "What goes with a gain",
        "{label}: correlation of {arm}'s mean gain after {budget} updates "
        "with the similarity of the hosts and with what was carried.", view=views.predictors,
        values=_predictors, notes=(
            "Units are pairs of hosts (similarity: gains are averaged over both directions) or directions "
            "(what was carried), never runs; over all methods, ranks are centred within each. The test "
            "exchanges whole hosts, because pairs that share a host are alike, in every order that lays all "
            "units on units: few hosts or few pairs give no small p. Holm's correction is for the {s.family} "
            "correlations of the CSV file, at all budgets. A correlation "
            "over a few chosen hosts says nothing of why. {gone}"), applies=predictors.can_correlate),
    "win_rate_inits": TableSpec(
        port_measures.win_rate, "Win rates of inits", "{label}: every two inits, by method.",
        ("method", "init"), "against", show=views.win_entry,
        view=lambda frame: views.with_diagonal(frame, "init"), needs_better=True, keys=("method", "init"),
        notes=WON),
    "win_rate_methods": TableSpec(
        lambda context: port_measures.win_rate(context, "method"), "Win rates of methods",
        "{label}: every two methods, by init.", ("init", "method"), "against", show=views.win_entry,
        view=lambda frame: views.with_diagonal(frame, "method"), needs_better=True, keys=("method", "init"),
        notes=WON),
    "interquartile": TableSpec(
        robustness.interquartile, "Interquartile means",
        "Interquartile mean of {label} over all tasks and seeds.", view=views.interquartile, cells=_arms,
        keys=("init", "budget"), values=_scores, notes=(
            "In {s.symbol}: a quarter of the scores is cut on each side. Scores are those of {scores}; a "
            "task is a method in a direction and relation, so a run that several origins share stands in "
            "several. In square brackets: 95 %, whole seeds drawn anew (bootstrap, n − 1 of n). In brackets: "
            "cells done/asked for. This describes the runs at hand and is no test: that interval is too "
            "short at few seeds, and claims rest on the paired comparisons. {s.replicates} {s.lacking_cells} "
            "{s.ahead}")),
    "mixed": TableSpec(
        robustness.mixed_effects, "Mixed-effects models",
        "{label}: {arm}'s gains once more, by a mixed-effects model of each budget.",
        view=views.mixed_effects, cells=_arms, keys=("budget", "init"), values=lambda context,
        _: {"points": UNITS[context.metric.difference].symbol}, notes=(
            "Model: gain ~ method + direction + relation, seeds and the baselines' runs within them random "
            "(REML); all in {points}. In square brackets: its 95 % Wald interval, which is too short at few "
            "seeds, and the paired interval of the comparisons, which covers test examples too. They agree "
            "where both means have one sign and the intervals overlap. Spread: standard deviations of seeds, "
            "baselines' runs and the rest. Terms are deviations from the mean of their levels and stand in "
            "the CSV file; a factor's last level is minus the sum of the others. {s.replicates} "
            "{s.lacking_pairs} {s.ahead}")),
    "published": TableSpec(
        paper_values.beside, "Published figures",
        "What the papers behind this project state, beside this study.", view=views.paper_values,
        values=_published, notes=(
            "{able} of {count} published figures are comparable with this study. {none} {after} Comparable "
            "is only what has the same hosts, data, method, init and quantity; a figure lies within where "
            "our 95 % interval holds it (a claim in words: where our whole interval lies on its side of 0). "
            "How each was read, and where, stands in the CSV file.")),
}


def build(context: StudyContext, names: Iterable[str] | None = None) -> list[Table]:
    """The named tables of a study; by default all that are of such a study."""
    names = [name for name, spec in TABLES.items() if spec.applies(context)] if names is None else names
    return [build_table(name, context) for name in names]


def build_table(name: str, context: StudyContext) -> Table:
    """One table of a study: its numbers by the function that TABLES names, and how a reader sees them."""
    spec, study = TABLES[name], context.study
    frame = spec.make(context)
    budget = context.arms["budget"].max()
    budget = "no" if pd.isna(budget) else budget
    lead, _, more = say(spec.lead, context.arm, label=context.metric.title, budget=budget).partition(". ")
    rows = (*(key for key in ("data", "port") if key in frame and spec.column), *spec.rows)
    shown = frame
    if spec.view is not None:
        shown = spec.view(frame).rename(columns=lambda column: say(column, context.arm))
    best = spec.best and context.metric.better is not None
    notes = [more, captions.notes(spec, context, frame), *captions.decontamination(study.facts),
             captions.BEST if best else "", *captions.too_long(study.parts["too_long"]),
             *captions.protocol(study.schema)]
    return Table(name, spec.title, f"{lead.rstrip('.')}.", " ".join(filter(None, notes)), frame, rows,
                 spec.column, best, context.metric, shown, spec.show)
