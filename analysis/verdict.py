"""What a study decided: one sentence, its numbers, the declared contrasts under both iterates, and what limits all of it."""

from dataclasses import dataclass, replace

import pandas as pd

from analysis import captions
from analysis.contrasts import chance, counted, short, view, with_interval
from analysis.entries import interval, number
from analysis.evidence import Evidence, once
from analysis.look import budget_words
from analysis.metrics import LAST, PREFIX, UNITS, metric_of
from analysis.primary import OPEN, primary, sentence
from analysis.recipe import Recipe
from portability.core.contrasts import all_alike
from portability.core.wording import counted as items

DECIDED = "Of {count} declared before the runs, {parts}."
EXPLORATORY = "No contrast was declared before the runs, so nothing is decided; exploratory, over everything: {parts}."
NEAR = 0.02  # of a port's effect on the logits: as much, to within what bisection leaves (our choice)
NOTHING = "The study has no two starts to compare."
SIDES = {"ahead": "ahead", "behind": "behind", "higher": "higher", "lower": "lower", OPEN: "left open"}


@dataclass(frozen=True)
class Number:
    """One difference as a reader meets it: what it is of, its size, 95 % interval and corrected p, and what its test says."""

    name: str
    words: str
    size: str
    between: str
    p: str
    verdict: str


@once
def _exploratory(found: Evidence) -> pd.DataFrame:
    """The arm against every other start over everything, after any update."""
    frame = found.levels["all"]
    frame = frame[frame["budget"] > 0]
    frame = frame.sort_values("baseline", key=lambda names: names != "scratch", kind="stable")
    names = [f"{row['arm']} − {row['baseline']} {budget_words(int(row['budget']))}" + "".join(
        f", {row[key]}" for key in ("data", "port") if key in row) for _, row in frame.iterrows()]
    return frame.assign(name=names, words=names, verdict="exploratory", unit=found.metric.difference)


def declared(found: Evidence) -> bool:
    """Whether the study has primary contrasts."""
    return not primary(found).empty


def numbers(found: Evidence) -> list[Number]:
    """The primary contrasts in the order of the sweep; where none was declared, the exploratory differences over everything."""
    frame = primary(found) if declared(found) else _exploratory(found)
    unit = UNITS[found.metric.difference]
    return [Number(row["name"], row["words"],
                   "no whole seed" if pd.isna(row["mean"]) else f"{number(row['mean'], unit)} {unit.symbol}",
                   "" if pd.isna(row["low"]) else interval(row["low"], row["high"], unit), chance(row["p_holm"]),
                   row["verdict"]) for _, row in frame.iterrows()]


def chief(found: Evidence) -> list[Number]:
    """The three at the head of a report: the first that were declared; else against scratch early and late, and against another
    start late."""
    rows = numbers(found)
    if declared(found) or not rows:
        return rows[:3]
    own, frame = [], _exploratory(found).reset_index(drop=True)
    for baseline, part in frame.groupby("baseline", sort=False):
        own += [part.index[0]] * (baseline == frame["baseline"].iloc[0]) + [part.index[-1]]
    return [rows[i] for i in dict.fromkeys(own)][:3]


def verdict_words(found: Evidence) -> str:
    """The study in one sentence: which declared contrasts are ahead, behind or open; or, said to be so, what is exploratory."""
    rows = numbers(found)
    if not rows:
        return NOTHING
    if not declared(found):
        return EXPLORATORY.format(parts="; ".join(f"{row.words} {row.size} {row.between}".rstrip() for row in chief(found)))
    parts = []
    for side, words in SIDES.items():
        own = [f"{row.name} {row.size}" for row in rows if row.verdict == side]
        if own:
            parts.append(f"{len(own)} {'is' if len(own) == 1 else 'are'} {words} ({', '.join(own)})")
    return DECIDED.format(count=items(len(rows), "contrast"), parts=", ".join(parts))


def said(found: Evidence) -> list[str]:
    """Whether the last iterate alone says the same, and every declared contrast in a sentence."""
    return [*turns(found), *(sentence(row, found.metric) for _, row in primary(found).iterrows())]


def turns(found: Evidence) -> list[str]:
    """Which verdicts of primary contrasts turn with the iterate that is scored, in a sentence."""
    if not twofold(found):
        return []
    frame = iterates(found)
    names = frame.loc[frame["turns"], "name"].tolist()
    if not names:
        return [f"Under the last iterate alone all {len(frame)} verdicts are the same."]
    return [f"Under the last iterate alone {len(names)} of {len(frame)} verdicts turn: {', '.join(names)}."]


# ---- both iterates


def twofold(found: Evidence) -> bool:
    """Whether primary contrasts are there, and beside them numbers of last iterates that are others than their own."""
    cells, last = found.cells, _last(found)
    return declared(found) and last in cells and not cells[last].equals(cells[found.metric.name].rename(last))


def _last(found: Evidence) -> str:
    return LAST + found.metric.name.removeprefix(PREFIX)


@once
def iterates(found: Evidence) -> pd.DataFrame:
    """The primary contrasts of what a mark evaluates (`mean`, `low`, ...) and of its last iterate alone (`last_mean`, ...),
    both over seeds only, for there are no predictions of last iterates; `turns` where the verdicts differ."""
    study, name = found.study, _last(found)
    cells = study.cells.assign(value=study.cells[name])
    last = Evidence(replace(study, cells=cells, metric=name), metric_of(name))
    one, other = (primary(each) for each in (Evidence(study, found.metric), last))
    kept = ["mean", "low", "high", "p_holm", "verdict", "mark"]
    own = other[kept].add_prefix(LAST)
    return one[["name", "words", "budget", "unit", *kept]].join(own).assign(turns=one["verdict"] != other["verdict"])


# ---- what a reader sees


def _difference(row: pd.Series, prefix: str = "") -> str:
    mean, low, high = (row[f"{prefix}{name}"] for name in ("mean", "low", "high"))
    return with_interval(mean, low, high, UNITS[row["unit"]]) + row[f"{prefix}mark"]


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    return view(
        frame, [], contrast="words", difference=_difference, p=lambda row: chance(row["p_holm"]), verdict="verdict",
        p_by_exchange=lambda row: f"{chance(row['p_exchange'])} (least {chance(row['smallest_p'])})",
        detectable=lambda row: short(row["mdd"], f".{UNITS[row['unit']].digits}f"), seeds="seeds", pairs=counted)


def _shown_iterates(frame: pd.DataFrame) -> pd.DataFrame:
    return view(frame, [], contrast="words", average=_difference, verdict="verdict",
                last_iterate=lambda row: _difference(row, LAST), its_verdict=f"{LAST}verdict",
                turns=lambda row: "turns" if row["turns"] else "same")


WORDS = (
    "Differences with 95 % intervals of new seeds{examples}; p of the t test after Holm's correction for all contrasts of this "
    "table, which decides. By exchange: labels exchanged within seeds, and the least p that these seeds could give. "
    "Detectable: the true difference that would be found four times in five at the first step of the correction. {mark}"
)
BOTH = (
    "Both over seeds only, for no predictions of last iterates are kept; so intervals are not those of the primary contrasts."
)
RECIPES: dict[str, Recipe] = {
    "primary": Recipe(
        primary, "Primary contrasts", "What was declared before the runs, with the test that decides each.", view=_shown,
        words=lambda found, frame: WORDS.format(examples=" only" if found.why else " and new test examples", mark=(
            "† Some pairs lack." if (frame["mark"] != "").any() else "")).strip(), of=declared,
    ),
    "iterates": Recipe(
        iterates, "Primary contrasts under both iterates",
        "{label}: the declared contrasts of what a mark evaluates, and of its last iterate alone.", view=_shown_iterates,
        words=lambda found, _: " ".join([BOTH, *turns(found)]), of=twofold,
    ),
}


# ---- what limits them


def caveats(found: Evidence) -> list[str]:
    """What limits the findings: the protocol, cells that lack, and what intervals leave out."""
    cells, lines = found.cells, captions.protocol(found.study.schema)
    lacking = cells[cells["status"] != "done"]["status"].value_counts()
    if len(lacking):
        words = ", ".join(f"{count:,} {status}" for status, count in lacking.items())
        lines.append(f"{len(cells) - int(lacking.sum()):,} of {len(cells):,} cells are done ({words}); numbers that lack cells "
                     "carry the mark †.")
    lines += _unmatched(found)
    if found.why:
        lines.append(f"Intervals are over seeds only, not over test examples: {found.why}.")
    if all_alike(found.study.facts) is None:
        lines.append("The study's commands declare different primary contrasts, so it has none: all is exploratory.")
    elif not declared(found):
        lines.append("No primary contrast was declared before the runs: all is exploratory.")
    if any(fact.get("overlap") == "keep" for fact in found.study.facts):
        lines.append("Sentences shared between data sets were kept (overlap: keep).")
    seeds = found.arms["seed"].nunique()
    if seeds < 2:
        lines.append("There is one seed, so nothing is said of comparisons: what differs between its runs is no new seed.")
    lines.append(f"Intervals speak of new seeds ({seeds} here) on these hosts and data sets, not of other hosts.")
    return lines


def _unmatched(found: Evidence) -> list[str]:
    """A sentence on starts that no scale makes move the logits as much as the port does."""
    matched = pd.to_numeric(found.study.runs["effect"], errors="coerce").dropna()
    off = matched[(matched - 1).abs() > NEAR]
    if off.empty:
        return []
    reached = " to ".join(dict.fromkeys(f"{100 * value:.0f}" for value in (off.min(), off.max())))
    return [f"{items(len(off), 'start')} that should move the logits as much as a port cannot at any scale; the nearest gives "
            f"{reached} % of it."]
