"""The tables of what porting is worth: how each quantity is laid out and written, and what stands under it."""

import math
from collections.abc import Callable

import pandas as pd

from analysis import captions, curves, quantities
from analysis.arms import say
from analysis.costs import break_even, cost
from analysis.entries import interval, number
from analysis.evidence import Evidence
from analysis.means import start
from analysis.metrics import UNITS, Unit
from analysis.predictors import predictors, telling
from analysis.recipe import Recipe
from analysis.stats import apart

NOTHING = "–"
ITSELF = "itself"  # status of a diagonal entry, of the view alone
SHARE, COUNT = Unit(100.0, 0, "%"), Unit(1.0, 0, "updates", signed=True)
NOT_DEFINED = "Not defined for this metric: neither a high nor a low {label} is better."
SEEDS = "Intervals are 95 % of new seeds on these hosts and data sets."
HEADS = {"module": "module, bytes"}
Words = Callable[[Evidence, pd.DataFrame], str]


# ---- one row as a reader sees it


def win_entry(row: pd.Series) -> str:
    """A win rate with its interval.

    Example:
        >>> win_entry(pd.Series({"mean": 0.7, "low": 0.35, "high": 0.93, "n": 5, "expected": 5, "blocks": 5, "mark": "",
        ...                      "status": "complete"}))
        '70 % [35, 93] (5/5, 5)'
    """
    if row["status"] == ITSELF:
        return NOTHING
    if row["n"] == 0:
        return f"{row['status']}† {_pairs(row)}"
    return f"{number(row['mean'], SHARE)} % {interval(row['low'], row['high'], SHARE)}{row['mark']} {_pairs(row)}"


def _pairs(row: pd.Series) -> str:
    return f"({row['n']}/{row['expected']}, {int(row['blocks'])})"


def _plain(value: float, digits: int = 0) -> str:
    return NOTHING if math.isnan(value) else f"{value:,.{digits}f}".replace("-", "−")


def _between(value: float, low: float, high: float, unit: Unit) -> str:
    if math.isnan(value):
        return NOTHING
    return number(value, unit) if math.isnan(low) else f"{number(value, unit)} {interval(low, high, unit)}"


def _counts(row: pd.Series) -> str:
    """Pairs done of asked for and seeds, with the fault where there is no pair."""
    return f"{'' if row['n'] else row['status']}{row['mark']} {_pairs(row)}".strip()


# ---- views


def _keys(frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    return frame[[name for name in ("data", "port", *names) if name in frame]].copy()


def _by_method(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of level "method", one method after the other."""
    place = {name: i for i, name in enumerate(frame["method"].unique())}
    own = frame[frame["level"] == "method"]
    return own.sort_values("method", key=lambda names: names.map(place), kind="stable")


def _updates_view(frame: pd.DataFrame) -> pd.DataFrame:
    own = _by_method(frame)
    shown = _keys(own, "method", "init")
    rows = [row for _, row in own.iterrows()]
    late = [row["censored"] > 0 for row in rows]
    shown["reached"] = [NOTHING if not row["n"] else f"{row['reached']:.0f} of {row['runs']:.0f} runs" for row in rows]
    shown["median updates"] = [NOTHING if not row["n"] else _ends(row, "median_") for row in rows]
    shown["mean updates"] = [f"{'≥ ' if more and row['n'] else ''}{_ends(row)}" for row, more in zip(rows, late, strict=True)]
    shown["saved"] = [NOTHING if math.isnan(row["saved"]) else
                      f"{number(row['saved_least'], COUNT)} to {number(row['saved_most'], COUNT)}" for row in rows]
    shown["95 %"] = [NOTHING if math.isnan(row["low"]) else interval(row["low"], row["high"], COUNT) for row in rows]
    shown["pairs"] = [_counts(row) for row in rows]
    return shown


def _ends(row: pd.Series, prefix: str = "") -> str:
    """Between which marks: one number where both are one, > the largest budget where it is beyond that."""
    after, by = row[f"{prefix}after"], row[f"{prefix}by"]
    if math.isnan(by):
        return f">{row['largest']:,.0f}" if row.get("runs") else NOTHING
    return _plain(by) if after == by else f"{_plain(after)} to {_plain(by)}"


def _saved(row: pd.Series, name: str) -> str:
    """What is saved, with ≤ where some are censored."""
    text = _between(row[name], row["low"], row["high"], COUNT)
    return text if text == NOTHING else f"{'≤' if row['censored'] else ''}{text}"


def _take_off_view(frame: pd.DataFrame) -> pd.DataFrame:
    if frame.empty:
        return frame
    keys = list(_keys(frame, "method", "init").columns)
    rows = [row for _, row in frame.iterrows()]
    own = frame.assign(text=[f"{row['status']}†" if math.isnan(row["mean"]) else
                             f"{_between(row['mean'], row['low'], row['high'], SHARE)}{row['mark']}" for row in rows])
    wide = own.pivot(index=keys, columns="budget", values="text").fillna(NOTHING)
    wide.columns = [f"at {budget}, %" for budget in wide.columns]
    last = own[own["budget"] == own.groupby("method")["budget"].transform("max")]
    last = last.assign(largest=last["budget"], runs=last["n"])
    last["half took off"] = [_ends(row, "median_") for _, row in last.iterrows()]
    last["cells"] = [_pairs(row) for _, row in last.iterrows()]
    return own[keys].drop_duplicates().join(wide, on=keys).merge(last[[*keys, "half took off", "cells"]], on=keys, how="left")


def _recovered_view(frame: pd.DataFrame) -> pd.DataFrame:
    own = _by_method(frame)
    shown = _keys(own, "method", "budget")
    rows = [row for _, row in own.iterrows()]
    units = [UNITS[row["unit_of_means"]] for row in rows]
    nan = float("nan")
    shown["{arm} − scratch"] = [_between(row["numerator"], nan, nan, unit) for row, unit in zip(rows, units, strict=True)]
    shown["native − scratch"] = [_between(row["denominator"], row["denominator_low"], row["denominator_high"], unit)
                                 for row, unit in zip(rows, units, strict=True)]
    shown["recovered, %"] = [row["note"] or _between(row["mean"], row["low"], row["high"], SHARE) for row in rows]
    shown["pairs"] = [_counts(row) for row in rows]
    return shown


def _cost_view(frame: pd.DataFrame) -> pd.DataFrame:
    keys = list(_keys(frame, "method", "receiving", "init").columns)
    place = {name: i for i, name in enumerate(frame["method"].unique())}
    own = frame.sort_values("method", key=lambda names: names.map(place), kind="stable")
    own = own.assign(text=[NOTHING if not row["n"] else f"{row['median']:,.3g}" if row["unit"] == "s" else
                           _plain(row["median"]) for _, row in own.iterrows()])
    order = own["quantity"].unique()
    wide = own.pivot(index=keys, columns="quantity", values="text").reindex(columns=order).fillna(NOTHING)
    runs = own[own["quantity"] == "updates"].set_index(keys)
    done = runs["expected"] - runs["failed"] - runs["missing"]
    counts = done.astype(str) + "/" + runs["expected"].astype(str) + runs["mark"]
    shown = own.drop_duplicates(keys)[keys].join(wide, on=keys).join(counts.rename("runs"), on=keys)
    return shown.rename(columns=HEADS)


def _break_even_view(frame: pd.DataFrame) -> pd.DataFrame:
    names = list(_keys(frame, "method", "receiving").columns)
    own, tokens = (frame[frame["unit"] == unit] for unit in ("updates", "tokens"))
    shown = _keys(own, "method", "receiving")
    rows = [row for _, row in own.iterrows()]
    shown["updates saved"] = [_saved(row, "saved") for row in rows]
    shown = shown.join(tokens.set_index(names)["saved"].map(_plain).rename("tokens saved"), on=names)
    shown["origin, updates"] = own["origin_cost"].map(_plain)
    shown["{starts} to pay back"] = [_ports(row) for row in rows]
    shown["not reached"] = [f"{row['censored']:.0f} of {row['reached'] + row['censored']:.0f}" if row["n"] else NOTHING
                            for row in rows]
    shown["pairs"] = [_counts(row) for row in rows]
    return shown


def _ports(row: pd.Series) -> str:
    """How many ports, from the upper to the lower end of what is saved."""
    if math.isnan(row["ports"]):
        return NOTHING
    least, middle, most = ("never" if math.isinf(x) else _plain(x) for x in (row["ports_low"], row["ports"], row["ports_high"]))
    text = f"{'≥' if row['censored'] and middle != 'never' else ''}{middle}"
    return text if NOTHING in (least, most) else f"{text} [{least}, {most}]"


def _predictors_view(frame: pd.DataFrame) -> pd.DataFrame:
    known = frame[frame["note"] != "not recorded"]
    own = known[known["budget"] == known["budget"].max()]
    shown = _keys(own, "method", "baseline", "predictor")
    rows = [row for _, row in own.iterrows()]
    shown["Spearman"] = [row["note"] or _plain(row["spearman"], 2) for row in rows]
    shown["Pearson"] = own["pearson"].map(lambda value: _plain(value, 2))
    shown["p"] = own["p"].map(lambda value: _plain(value, 3))
    shown["p after Holm"] = own["p_holm"].map(lambda value: _plain(value, 3))
    shown["smallest p"] = own["smallest_p"].map(lambda value: _plain(value, 3))
    shown["units"] = [f"{row['n']}/{row['expected']}{row['mark']}" for row in rows]
    return shown


def _with_diagonal(axis: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A view of win rates with an empty entry for each against itself, so that rows and columns have one order."""

    def view(frame: pd.DataFrame) -> pd.DataFrame:
        keys = [name for name in ("data", "port", "init", "method") if name in frame]
        own = frame.drop_duplicates(keys)
        return pd.concat([own.assign(against=own[axis], status=ITSELF), frame], ignore_index=True)

    return view


# ---- captions


def _under(text: str, cells: Callable[[Evidence], pd.DataFrame], *keys: str, better: bool = True) -> Words:
    """A caption: the text, what replicates differ in, what is not whole, and arms that had more updates."""

    def words(found: Evidence, frame: pd.DataFrame) -> str:
        if better and found.metric.better is None:
            return NOT_DEFINED.format(label=found.metric.label)
        behind, told = cells(found), [*apart(found.cells), *keys]
        faults = captions.faults(frame) if "unpaired" in frame else None
        said = [say(text, found.arm), captions.replicates(behind, told), *([faults] if faults else [])]
        return " ".join([*said, *captions.ahead(behind)])

    return words


def _largest(found: Evidence) -> pd.DataFrame:
    return found.largest


def _arms(found: Evidence) -> pd.DataFrame:
    return found.arms


def _lift_words(found: Evidence, frame: pd.DataFrame) -> str:
    text = "There is no lift, so there is no test."
    if frame["p"].notna().any():
        why = found.why or "the bare runs' predictions are not among the study's cells"
        examples = "and new test examples" if (frame["examples"] > 0).any() else f"(not of new test examples: {why})"
        text = LIFTED.format(examples=examples, counts=captions.COUNTS, stars=captions.STARS, family=int(frame["family"].max()))
    return _under(text, start, "method", "receiving", "init", better=False)(found, frame)


def _predictor_words(found: Evidence, frame: pd.DataFrame) -> str:
    most = frame.groupby("predictor", sort=False)["n"].max()
    gone = [name.replace("_", " ") for name in most.index[most == 0]]
    text = EXCHANGED.format(family=int(frame["family"].max()) if len(frame) else 0)
    return f"{text} Not recorded: {', '.join(gone)}." if gone else text


LIFTED = (
    "The bare host has no seed: it is the same at all of them. In square brackets: 95 % of new seeds {examples}, on these "
    "hosts "
    "and data sets; ± where there is no spread to make one. {counts} {stars} for the {family} lifts of this table."
)
MATCHED = (
    "As good: to within one point. Runs are seen at marks only, so a time lies after one and by the next, and nothing is "
    "interpolated. "
    "What is never as good is censored at the largest budget (median > it where more than half are; ≥ for that reason), so "
    "all of "
    "this is within that budget. Saved: scratch's own time, which noise can bring before its last mark, minus the run's; "
    "the true "
    f"mean lies between the two ends, and the interval holds it wherever between them it is. {SEEDS}"
)
FLOWN = (
    "Halfway is from the bare host to the native run at its largest mark. In square brackets: 95 % of new seeds. Half took "
    "off: "
    "between which marks, > the largest budget where fewer than half did. In brackets: cells done/asked for, seeds."
)
RECOVERED = (
    f"Ratio of means over seeds with Fieller's interval. {SEEDS} No ratio where native − scratch is within noise (its own "
    "interval holds 0), or where native is the scratch run itself at that mark."
)
SPENT = (
    "Seconds are a run's share of its stack's wall time: they depend on how many runs were trained together and on the "
    "machine, so compare tokens and updates. {origins} beside {arm}."
)
PAID = (
    "Saved as in updates to match scratch; origin over saved, rounded up, at both ends of the interval. Where {starts} do not "
    "get there within the largest budget, less is saved than stands here (≤, ≥). Tuning and {itself} itself are not counted."
)
EXCHANGED = (
    "Units are pairs of hosts (similarity: gains are averaged over both directions) or directions (what was carried), never "
    "runs; over all methods, ranks are centred within each. The test exchanges whole hosts, because pairs that share a host "
    "are alike, in every order that lays all units on units: few hosts or few pairs give no small p. Holm's correction is for "
    "the {family} correlations of the CSV file, at all budgets. A correlation over a few chosen hosts says nothing of why."
)
WON = (
    "How often the row beats the column at the largest budget, ties half, paired in all other coordinates and seeds. In "
    "square brackets: 95 % with seeds as trials (Jeffreys); in brackets: pairs done/asked for, seeds. "
    "A win by little counts like a win by much."
)
RECIPES: dict[str, Recipe] = {
    "lift": Recipe(
        quantities.lift, "Lift over the bare host", "{label} before any update minus that of the bare host.",
        ("receiving", "init"), "method", behind=start, words=_lift_words,
    ),
    "area": Recipe(
        curves.area, "Area under the budget curve",
        "{label}: mean height of its curve over updates from zero-shot to {budget}, linear between marks. Only curves with all "
        "their marks have an area; an init that was not asked for at every budget of its method has no row.",
        ("quantity", "init"), "method", behind=_arms,
    ),
    "updates_to_match": Recipe(
        curves.updates_to_match, "Updates to match scratch",
        "{label}: the first mark at which a run is at least as good as its scratch twin is at the largest budget.",
        view=_updates_view, words=_under(MATCHED, _arms, "method", "init", "budget"),
    ),
    "take_off": Recipe(
        curves.take_off, "Take-off", "{label}: the share of runs that are at least halfway to native, by updates.",
        view=_take_off_view, words=_under(FLOWN, _arms, "method", "init", "budget"),
    ),
    "recovered": Recipe(
        quantities.recovered, "Recovered fraction of native",
        "{label}: ({arm} − scratch) / (native − scratch), native at its largest mark.",
        view=_recovered_view, words=_under(RECOVERED, _arms, "method", "init", "budget"),
    ),
    "cost": Recipe(
        cost, "Cost", "What runs cost on each receiving host: medians over distinct runs.",
        view=_cost_view, words=_under(SPENT, _arms, "method", "init", "budget", better=False),
    ),
    "break_even": Recipe(
        break_even, "Break-even",
        "What {start} saves against scratch on each receiving host when the module is there already, and how many {starts} pay "
        "{its} back.",
        view=_break_even_view, words=_under(PAID, _arms, "method", "init", "budget"),
    ),
    "predictors": Recipe(
        predictors, "What goes with a gain", "{label}: correlation of {arm}'s mean gain after {budget} updates with the "
        "similarity of the hosts and with what was carried.", view=_predictors_view, words=_predictor_words, of=telling,
    ),
    "win_rate_inits": Recipe(
        quantities.win_rate, "Win rates of inits", "{label}: every two inits, by method.", ("method", "init"), "against",
        show=win_entry, view=_with_diagonal("init"), words=_under(WON, _largest, "method", "init"),
    ),
    "win_rate_methods": Recipe(
        lambda found: quantities.win_rate(found, "method"), "Win rates of methods", "{label}: every two methods, by init.",
        ("init", "method"), "against", show=win_entry, view=_with_diagonal("method"),
        words=_under(WON, _largest, "method", "init"),
    ),
}
