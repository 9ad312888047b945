"""What a study found, in words: only what its tests bear out is said, with the interval; what they cannot say is a caveat."""

from collections.abc import Iterator

import pandas as pd

from analysis.arms import say
from analysis.costs import break_even_words
from analysis.entries import interval, number
from analysis.evidence import Evidence
from analysis.extraction import SEEDS, seed_sentences
from analysis.inference import LEVELS
from analysis.intervals import ALPHA
from analysis.metrics import UNITS, Metric
from analysis.predictors import predictors
from analysis.primary import p_words, primary, sentence, verdict
from analysis.quantities import lift
from portability.primary import all_alike

HEADINGS = {
    "all": "Over all methods, directions and relations", "pair": "By direction, over all methods and relations",
    "method": "By method", "relation": "By method and relation",
    "direction": "By method, direction and relation",
}
PRIMARY = "Primary contrasts, declared before the runs"
EXPLORATORY = "Exploratory: "
NOTHING = "No comparison is significant after Holm's correction."
LIFT = "Before any update, against the bare host"
PREDICTS = "What goes with the gain"
PAYS = "What {start} saves"
OPEN = "Left open after {budget:,} updates (no finding that they are equal)"


def findings(found: Evidence) -> dict[str, list[str]]:
    """Heading to sentences: the primary contrasts, each with what it says or leaves open; then, headed exploratory, one for
    each thing compared and each baseline, with all budgets at which it is significant.

    Significant is a difference whose t test, that of its 95 % interval, has p ≤ 0.05 after Holm's correction within its level
    (our choice; DECISIONS.md). What the tests leave open at the largest budget is listed with the difference that a study like
    this one would find four times in five.
    """
    decided = [sentence(row, found.metric) for _, row in primary(found).iterrows()]
    said = {HEADINGS[level]: list(_sentences(found, level)) for level in reversed(LEVELS)}
    said = {heading: sentences for heading, sentences in said.items() if sentences}
    said = said or {"Comparisons": [NOTHING]}
    more = {SEEDS: seed_sentences(found), LIFT: list(_lifts(found)), PREDICTS: list(_predicted(found)),
            say(PAYS, found.arm): break_even_words(found)}
    said |= {heading: sentences for heading, sentences in [*more.items(), _left(found)] if sentences}
    return ({PRIMARY: decided} if decided else {}) | {f"{EXPLORATORY}{heading}": lines for heading, lines in said.items()}


def _lifts(found: Evidence) -> Iterator[str]:
    """Inits that are better, or worse, than the bare host before any update."""
    unit = UNITS[found.metric.difference]
    for _, row in significant(lift(found)).iterrows():
        where = _where({key: row[key] for key in ("data", "port", "method") if key in row})
        size = number(abs(row["mean"]), unit).lstrip("+")
        side = verdict(row["mean"], row["p_holm"], found.metric)
        yield (f"{where}{row['init']} on {row['receiving']}: {side} by {size} {unit.symbol} "
               f"{_between(row, found.metric)} (p {p_words(row['p_holm'])}, {row['blocks']} seeds).")


def _predicted(found: Evidence) -> Iterator[str]:
    """What goes with the gain, over pairs of hosts or directions."""
    frame = predictors(found)
    for _, row in frame[frame["p_holm"] <= ALPHA].iterrows():
        when = "before any update" if row["budget"] == 0 else f"after {row['budget']:,} updates"
        less = " (a difference in which less is better)" if found.metric.better == "lower" else ""
        where = _where({key: row[key] for key in ("data", "port", "method") if key in row})
        yield (f"{where}the gain over {row['baseline']} {when}{less} goes with {row['predictor']} "
               f"(rank correlation {row['spearman']:+.2f}, p {p_words(row['p_holm'])}, {row['n']} units).")


def significant(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a frame of comparisons that may be said."""
    return frame[frame["p_holm"] <= ALPHA]


def _sentences(found: Evidence, level: str) -> Iterator[str]:
    rows = significant(found.levels[level])
    if rows.empty or found.arms["seed"].nunique() < 2:  # one seed's pairs are no replicates
        return
    keys = [name for name in found.levels[level].columns[: list(found.levels[level].columns).index("arm")] if name != "budget"]
    for names, group in rows.groupby([*keys, "baseline"], sort=False):
        where = _where(dict(zip(keys, names, strict=False)))
        parts = [_part(row, found.metric) for _, row in group.sort_values("budget").iterrows()]
        yield _sentence(f"{where}{found.arm} against {names[-1]}: {'; '.join(parts)}.", found.arm)


def _sentence(text: str, arm: str) -> str:
    """A sentence with a capital, unless it begins with the name of a method, host or port."""
    return text[0].upper() + text[1:] if text.startswith(arm) else text


def _left(found: Evidence) -> tuple[str, list[str]]:
    """What pooled comparisons, and those by method, leave open at the largest budget."""
    budget, unit, said = found.arms["budget"].max(), UNITS[found.metric.difference], []
    for level in ("all", "method"):
        frame = found.levels[level]
        rows = frame[(frame["budget"] == budget) & frame["low"].notna() & ~frame.index.isin(significant(frame).index)]
        for _, row in rows.iterrows():
            where = _where({key: row[key] for key in ("data", "port", "method") if key in row})
            said.append(_sentence(
                f"{where}{found.arm} against {row['baseline']}: {number(row['mean'], unit)} {unit.symbol} "
                f"{interval(row['low'], row['high'], unit)} (p {p_words(row['p_holm'])}); found four times in five would be "
                f"{number(row['mdd'], unit).lstrip('+')} {unit.symbol}.", found.arm))
    return OPEN.format(budget=0 if pd.isna(budget) else budget), said


def _part(row: pd.Series, metric: Metric) -> str:
    unit = UNITS[metric.difference]
    when = "before any update" if row["budget"] == 0 else f"after {row['budget']:,} updates"
    size = number(abs(row["mean"]), unit).lstrip("+")
    lacks = ", some cells lack †" if row["mark"] else ""
    return (f"{verdict(row['mean'], row['p_holm'], metric)} by {size} {unit.symbol} {_between(row, metric)} {when} "
            f"(p {p_words(row['p_holm'])}, {row['blocks']} seeds{lacks})")


def _between(row: pd.Series, metric: Metric) -> str:
    """The interval of a size as it is printed: for a negative mean with both ends' signs turned, as the mean's is."""
    if pd.isna(row["low"]):
        return "they give no interval"
    low, high = (row["low"], row["high"]) if row["mean"] >= 0 else (-row["high"], -row["low"])
    return interval(low, high, UNITS[metric.difference])


def _where(names: dict[str, object]) -> str:
    """The place of a comparison.

    Example:
        >>> _where({"method": "lora", "origin": "a", "receiving": "b", "relation": "same"})
        'lora, a → b, same data: '
    """
    words = [str(names[key]) for key in ("data", "port", "method") if key in names]
    if "origin" in names:
        words.append(f"{names['origin']} → {names['receiving']}")
    if "relation" in names:
        words.append(f"{names['relation']} data")
    return f"{', '.join(words)}: " if words else ""


def caveats(found: Evidence) -> list[str]:
    """What limits the findings: cells that lack, what intervals leave out, and levels whose tests can show nothing."""
    cells, said = found.cells, []
    lacking = cells[cells["status"] != "done"]["status"].value_counts()
    if len(lacking):
        words = ", ".join(f"{count:,} {status}" for status, count in lacking.items())
        said.append(f"{len(cells) - int(lacking.sum()):,} of {len(cells):,} cells are done ({words}); numbers that lack cells "
                    "carry the mark †.")
    if found.why:
        said.append(f"Intervals are over seeds only, not over test examples: {found.why}.")
    if all_alike(found.study.facts) is None:
        said.append("The study's commands declare different primary contrasts, so it has none: all is exploratory.")
    elif primary(found).empty:
        said.append("No primary contrast was declared before the runs: all is exploratory.")
    if any(fact.get("overlap") == "keep" for fact in found.study.facts):
        said.append("Sentences shared between data sets were kept (overlap: keep).")
    said.append("Each p of what is exploratory is that of a t test over seeds and test examples, after Holm's correction for "
                "all comparisons of its level.")
    seeds = found.arms["seed"].nunique()
    if seeds < 2:
        said.append("There is one seed, so nothing is said of comparisons: what differs between its runs is no new seed.")
    said.append(f"Intervals speak of new seeds ({seeds} here) on these hosts and data sets, not of other hosts.")
    return said
