"""Every table by name: the function that makes it, how it is laid out, and what stands under it."""

from collections.abc import Iterable

import pandas as pd

from portability.analysis.context import StudyContext
from portability.analysis.contrast_arm import say
from portability.analysis.measures import (
    changed_hosts,
    comparisons,
    costs,
    curves,
    equal_compute,
    paper_values,
    port_choice,
    port_measures,
    predictors,
    primary_contrasts,
    robustness,
    special_studies,
    summaries,
)
from portability.analysis.stats.pairing import EXTRACTED
from portability.analysis.tables import captions, views
from portability.analysis.tables.captions import Table, TableSpec

OVER_BUDGETS = ("method", "init", "budget")
WON = (
    "How often the row beats the column at the largest budget, ties half, paired in all other coordinates "
    "and seeds. In square brackets: 95 % with seeds as trials (Jeffreys); in brackets: pairs done/asked "
    "for, seeds. A win by little counts like a win by much. {behind}")

TABLES: dict[str, TableSpec] = {
    "init_by_method": TableSpec(
        summaries.init_by_method, "Init by method", "{label} after {budget} updates on the receiving host.",
        ("quantity", "init"), "method", best=True),
    "zero_shot": TableSpec(
        summaries.zero_shot, "Zero-shot",
        "{label} before any update on the receiving host; lift is over the bare host (with the cell's own "
        "head, where the host needs one).",
        ("receiving", "quantity", "init"), "method", best=True, cells="start"),
    "origin_by_receiving": TableSpec(
        summaries.origin_by_receiving, "Origin by receiving host",
        "{label} after {budget} updates: rows are origins, columns receiving hosts; the diagonal is native, "
        "trained on the receiving host itself, at its largest mark.",
        ("method", "relation", "quantity", "origin"), "receiving"),
    "init_by_budget": TableSpec(
        summaries.init_by_budget, "Init by budget",
        "{label} by updates on the receiving host (0: zero-shot).",
        ("method", "quantity", "init"), "budget", best=True, cells="arms"),
    "by_relation": TableSpec(
        summaries.by_relation, "By relation", "{label} after {budget} updates, by {saw}.",
        ("relation", "origin_data", "quantity", "init"), "method", best=True),
    "all_metrics": TableSpec(
        summaries.all_metrics, "All metrics", "Every metric, zero-shot and after {budget} updates.",
        ("method", "budget", "init"), "quantity"),
    "completeness": TableSpec(
        summaries.completeness, "Completeness",
        "Cells asked for and what became of them; seeds are counted, not listed.",
        notes="{whole} of {count} points are whole and stand in the CSV file only.", view=views.completeness),
    "primary": TableSpec(
        primary_contrasts.primary, "Primary contrasts",
        "What was declared before the runs, with the test that decides each.", view=views.primary, notes=(
            "Differences with 95 % intervals of new seeds{examples}; p of the t test after Holm's "
            "correction for all contrasts of this table, which decides. By exchange: labels exchanged "
            "within seeds, and the least p that these seeds could give. Detectable: the true difference "
            "that would be found four times in five at the first step of the correction. {lacking_pairs}"),
        applies=primary_contrasts.has_contrasts),
    "iterates": TableSpec(
        primary_contrasts.iterates, "Primary contrasts under both iterates",
        "{label}: the declared contrasts of what a mark evaluates, and of its last iterate alone.",
        view=views.iterates, notes=(
            "Both over seeds only, for no predictions of last iterates are kept; so intervals are not "
            "those of the primary contrasts. {turns}"),
        applies=primary_contrasts.has_iterates),
    "rates": TableSpec(
        special_studies.rates, "Learning rates",
        "{label} of every start at its own best learning rate, beside the common one.",
        view=views.learning_rates, notes=(
            "Means in {symbol}, over directions, relations and seeds. Common gain: {arm} minus this start, "
            "both at the method's own rate; gain of bests: each at its best factor. The best of several is "
            "chosen on the same runs, which flatters whatever scatters most. {rates}"),
        applies=special_studies.has_rates),
    "extraction": TableSpec(
        special_studies.extraction, "Extraction",
        "{label} of every start by student, task and relation of the seed examples, at every budget, with "
        "{arm} minus each other start.",
        ("method", "receiving", "relation", "quantity", "init"), "budget", best=True, cells="arms",
        keys=("data", "method", "receiving", "relation", "budget", "init"), notes=(
            "{spread} {counts} {replicates} {gains} Seed examples, same − other: pairs of one seed and the "
            "same test examples; this decides whether a gain is knowledge of the task or comes of any cut. "
            "Holm's correction is for the {task} of these alone. Relation same: seed examples of the task "
            "itself; any other: those of another task. A start that uses no seed examples has one run for "
            "all relations. Before any update extracted is the bare host by construction, so differences "
            "begin with the first budget. {faults} {ahead}"),
        applies=lambda context: context.arm == EXTRACTED),
    "comparisons": TableSpec(
        comparisons.comparisons, "Comparisons", "{label}: {arm} minus every other init at every budget.",
        cells="arms", view=views.comparisons, notes=(
            "{levels} d: mean by spread of seeds. Detectable: the true difference that a study like this "
            "one would find 4 times in 5. Shown are the levels all and method; relations and directions "
            "stand in the CSV file.")),
    "by_direction": TableSpec(
        summaries.by_direction, "Gains by direction",
        "{label}: gain by origin and receiving host at every budget, over all methods and relations; each "
        "method and relation by itself stands in the CSV file of the comparisons.",
        ("quantity", "origin", "receiving"), "budget", cells="arms"),
    "ties": TableSpec(
        comparisons.tie_groups, "Tie groups",
        "{label}: inits within every method and over all of them, and methods within every init.",
        cells="arms", keys=("method", "init", "budget"), view=views.ties, notes=(
            "Means in {symbol}, the {best} first. What shares a letter is not told apart by a paired t "
            "test over seeds and test examples, p ≤ 0.05 after Holm's correction for the tests of its "
            "line; that is no proof of equality. {replicates} {lacking_cells} {ahead}")),
    "interactions": TableSpec(
        comparisons.interactions, "Interactions",
        "{label}: does the gain of {arm} depend on direction, method, kind of hosts or data?",
        view=views.interactions, cells="arms", needs_tests=True, notes=(
            "In square brackets: 95 % of new seeds{examples}, on these hosts and data sets. {stars} for "
            "the {family} differences of this table. The gain in the item minus the gain in what it is "
            "held against, of one seed; cells weigh alike on each side. Pairs: hosts of one lineage "
            "against hosts of other sizes, where the study's manifests say which are which. "
            "{lacking_pairs} {ahead}")),
    "lift": TableSpec(
        port_measures.lift, "Lift over the bare host",
        "{label} before any update minus that of the bare host.", ("receiving", "init"), "method",
        cells="start", needs_tests=True, notes=(
            "The bare host has no seed: it is the same at all of them. In square brackets: 95 % of new "
            "seeds{covers}, on these hosts and data sets; ± where there is no spread to make one. "
            "{counts} {stars} for the {family} lifts of this table. {behind}")),
    "area": TableSpec(
        curves.area, "Area under the budget curve",
        "{label}: mean height of its curve over updates from zero-shot to {budget}, linear between marks. "
        "Only curves with all their marks have an area; an init that was not asked for at every budget of "
        "its method has no row.",
        ("quantity", "init"), "method", cells="arms"),
    "updates_to_match": TableSpec(
        curves.updates_to_match, "Updates to match scratch",
        "{label}: the first mark at which a run is at least as good as its scratch twin is at the largest "
        "budget.",
        view=views.updates_to_match, cells="arms", keys=OVER_BUDGETS, needs_better=True, notes=(
            "As good: to within one point. Runs are seen at marks only, so a time lies after one and by "
            "the next, and nothing is interpolated. What is never as good is censored at the largest "
            "budget (median > it where more than half are; ≥ for that reason), so all of this is within "
            "that budget. Saved: scratch's own time, which noise can bring before its last mark, minus "
            "the run's; the true mean lies between the two ends, and the interval holds it wherever "
            "between them it is. {all_seeds} {behind}")),
    "take_off": TableSpec(
        curves.take_off, "Take-off",
        "{label}: the share of runs that are at least halfway to native, by updates.",
        view=views.take_off, cells="arms", keys=OVER_BUDGETS, needs_better=True, notes=(
            "Halfway is from the bare host to the native run at its largest mark. In square brackets: 95 "
            "% of new seeds. Half took off: between which marks, > the largest budget where fewer than "
            "half did. In brackets: cells done/asked for, seeds. {behind}")),
    "recovered": TableSpec(
        port_measures.recovered, "Recovered fraction of native",
        "{label}: ({arm} − scratch) / (native − scratch), native at its largest mark.",
        view=views.recovered, cells="arms", keys=OVER_BUDGETS, needs_better=True, notes=(
            "Ratio of means over seeds with Fieller's interval. {all_seeds} No ratio where native − "
            "scratch is within noise (its own interval holds 0), or where native is the scratch run "
            "itself at that mark. {behind}")),
    "equal_compute": TableSpec(
        equal_compute.equal_compute, "Equal compute",
        "{label} of {starts} that train, minus scratch with as many updates more.",
        view=views.equal_compute, cells="arms", keys=("method", "budget"), notes=(
            "After b updates {arm} stands against scratch after b and the port's own. Scratch is read at "
            "that mark, or linearly between the two marks around it, where the upper is at most three times "
            "the lower; a curve that flattens lies above such a line, which then favours {arm}. Where "
            "scratch has no such marks there is no pair. {batches} What else a port costs stands in the "
            "table of costs. In square brackets: 95 % of new seeds{examples}. {stars} for the {family} "
            "differences of this table. {lacking_pairs}"),
        applies=equal_compute.has_trained),
    "cost": TableSpec(
        costs.cost, "Cost", "What runs cost on each receiving host: medians over distinct runs.",
        view=views.cost, cells="arms", keys=OVER_BUDGETS, notes=(
            "Seconds are a run's share of its stack's wall time: they depend on how many runs were "
            "trained together and on the machine, so compare tokens and updates. {origins} beside {arm}. "
            "{behind}")),
    "break_even": TableSpec(
        costs.break_even, "Break-even",
        "What {start} saves against scratch on each receiving host when the module is there already, and "
        "how many {starts} pay {its} back.",
        view=views.break_even, cells="arms", keys=OVER_BUDGETS, needs_better=True, notes=(
            "Saved as in updates to match scratch; origin over saved, rounded up, at both ends of the "
            "interval. Where {starts} do not get there within the largest budget, less is saved than "
            "stands here (≤, ≥). Tuning and {itself} itself are not counted. {behind}")),
    "predictors": TableSpec(
        predictors.predictors, "What goes with a gain",
        "{label}: correlation of {arm}'s mean gain after {budget} updates with the similarity of the hosts "
        "and with what was carried.",
        view=views.predictors, notes=(
            "Units are pairs of hosts (similarity: gains are averaged over both directions) or directions "
            "(what was carried), never runs; over all methods, ranks are centred within each. The test "
            "exchanges whole hosts, because pairs that share a host are alike, in every order that lays "
            "all units on units: few hosts or few pairs give no small p. Holm's correction is for the "
            "{family} correlations of the CSV file, at all budgets. A correlation over a few chosen hosts "
            "says nothing of why. {gone}"),
        applies=predictors.can_correlate),
    "changed_hosts": TableSpec(
        changed_hosts.changed_hosts, "Lift by how the host was changed",
        "{label} of {arm} before any update minus that of the bare host, on hosts that were made from the "
        "origin by a recipe.",
        view=views.changed_hosts, cells="start", keys=("method", "receiving"), notes=(
            "In square brackets: 95 % of new seeds{examples}, as in the table of lifts. Updates: those of "
            "all changes. Weight distance: |difference| / |both| over the matrices that both hosts have, "
            "layer by layer. CKA: of what matched layers make of training texts. Rotation: how far the "
            "embeddings are turned, 0 to 1. Loss of bare: of the test answers, in nats. {lacking_pairs}"),
        applies=changed_hosts.has_changes),
    "left_out": TableSpec(
        changed_hosts.left_out, "What could have told the lift",
        "{label}: how far off the lift is that each predictor gives for hosts of a kind of change that it "
        "was not fitted on.",
        view=views.left_out, cells="start", keys=("method",), notes=(
            "Each kind of change is left out in turn; its hosts' lifts are predicted by a straight line "
            "through the predictor's ranks on all other hosts, and by these hosts' mean where a host has no "
            "such number. Error: mean of |predicted − observed| over hosts. In square brackets: 95 % of "
            "new seeds (jackknife), on these hosts; a predictor is of use where the error that it saves "
            "against the mean of the others is above 0. Updates and weight distance are what anybody would "
            "look at first. Kinds are few, so this says little of other kinds."),
        applies=changed_hosts.has_changes),
    "port_choice": TableSpec(
        port_choice.port_choice, "How far each port is behind the best",
        "{label} of {arm}: the best port less each port, the best chosen on half of the seeds and both "
        "scored on the others.",
        view=views.port_choice, cells="arms", keys=("port", "budget"), needs_better=True, notes=(
            "The best is chosen for every method, direction and relation by itself, on every half of the "
            "seeds in turn; a port that is never better chosen otherwise stands at 0, one that the halves "
            "were wrong to pass over below it. In square brackets: 95 % of new seeds (jackknife), on these "
            "hosts and data sets. Chosen: the share of halves in which this port was the best. Ports that "
            "were not asked for in all of a row's directions are left out of it."),
        applies=port_choice.has_ports),
    "win_rate_inits": TableSpec(
        port_measures.win_rate, "Win rates of inits", "{label}: every two inits, by method.",
        ("method", "init"), "against", WON, show=views.win_entry,
        view=lambda frame: views.with_diagonal(frame, "init"), needs_better=True),
    "win_rate_methods": TableSpec(
        lambda context: port_measures.win_rate(context, "method"), "Win rates of methods",
        "{label}: every two methods, by init.", ("init", "method"), "against", WON, show=views.win_entry,
        view=lambda frame: views.with_diagonal(frame, "method"), needs_better=True),
    "interquartile": TableSpec(
        robustness.interquartile, "Interquartile means",
        "Interquartile mean of {label} over all tasks and seeds.",
        view=views.interquartile, cells="arms", keys=("init", "budget"), notes=(
            "In {symbol}: a quarter of the scores is cut on each side. Scores are those of {scores}; a "
            "task is a method in a direction and relation, so a run that several origins share stands in "
            "several. In square brackets: 95 %, whole seeds drawn anew (bootstrap, n − 1 of n). In "
            "brackets: cells done/asked for. This describes the runs at hand and is no test: that "
            "interval is too short at few seeds, and claims rest on the paired comparisons. {replicates} "
            "{lacking_cells} {ahead}")),
    "mixed": TableSpec(
        robustness.mixed_effects, "Mixed-effects models",
        "{label}: {arm}'s gains once more, by a mixed-effects model of each budget.",
        view=views.mixed_effects, cells="arms", keys=("budget", "init"), notes=(
            "Model: gain ~ method + direction + relation, seeds and the baselines' runs within them "
            "random (REML); all in {points}. In square brackets: its 95 % Wald interval, which is too "
            "short at few seeds, and the paired interval of the comparisons, which covers test examples "
            "too. They agree where both means have one sign and the intervals overlap. Spread: standard "
            "deviations of seeds, baselines' runs and the rest. Terms are deviations from the mean of "
            "their levels and stand in the CSV file; a factor's last level is minus the sum of the "
            "others. {replicates} {lacking_pairs} {ahead}")),
    "published": TableSpec(
        paper_values.beside, "Published figures",
        "What the papers behind this project state, beside this study.", view=views.paper_values, notes=(
            "{published} Comparable is only what has the same hosts, data, method, init and quantity; a "
            "figure lies within where our 95 % interval holds it (a claim in words: where our whole "
            "interval lies on its side of 0). How each was read, and where, stands in the CSV file.")),
}


def build(context: StudyContext, names: Iterable[str] | None = None) -> list[Table]:
    """The named tables of a study; by default all that are of such a study."""
    names = [name for name, spec in TABLES.items() if spec.applies(context)] if names is None else names
    return [build_table(name, context) for name in names]


def build_table(name: str, context: StudyContext) -> Table:
    """One table of a study: its numbers by the function that TABLES names, and how a reader sees them."""
    spec, study, budget = TABLES[name], context.study, context.arms["budget"].max()
    frame = spec.make(context)
    lead, _, more = say(spec.lead, context.arm, label=context.metric.title,
                        budget="no" if pd.isna(budget) else budget).partition(". ")
    rows = (*(key for key in ("data", "port") if key in frame and spec.column), *spec.rows)
    best = spec.best and context.metric.better is not None
    notes = [more, captions.notes(spec, context, frame), *captions.decontamination(study.facts),
             captions.BEST if best else "", *captions.too_long(study.parts["too_long"]),
             *captions.protocol(study.protocol)]
    made = {"lead": f"{lead.rstrip('.')}.", "notes": " ".join(filter(None, notes)), "rows": rows,
            "best": best}
    shown = spec.view(frame).rename(columns=lambda column: say(column, context.arm))
    return Table(**vars(spec) | made, name=name, frame=frame, shown=shown, metric=context.metric)
