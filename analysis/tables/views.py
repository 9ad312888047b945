"""What a reader sees of the frames that are no grid of means: rows, columns and their texts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from portability.analysis.formatting import (
    NOTHING,
    done_of,
    interval,
    no_number,
    number,
    p_text,
    plain,
    with_interval,
)
from portability.analysis.metrics import LAST, UNITS, Unit

LEVELS = ("all", "method")  # of comparisons, those that a reader sees; the CSV files hold all
ITSELF = "itself"  # status of a diagonal entry, of the view alone
EDGE = "at the edge"
SHARE, COUNT = Unit(100.0, 0, "%"), Unit(1.0, 0, "updates", signed=True)
Columns = Mapping[str, str | Callable[[pd.Series], object]]

_between = partial(with_interval, none=NOTHING, alone="")


def view(frame: pd.DataFrame, keys: Sequence[str], columns: Columns,
         where: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame) -> pd.DataFrame:
    """Of the rows that `where` gives the keys, several data sets and ports first, and columns: a function of
    a row each, or the name of a column."""
    rows = where(frame)
    made = {name: rows[make] if isinstance(make, str) else [make(row) for _, row in rows.iterrows()]
            for name, make in columns.items()}
    return rows[_keys(rows, *keys)].assign(**made)


def _keys(frame: pd.DataFrame, *names: str) -> list[str]:
    return [name for name in ("data", "port", *names) if name in frame]


def _across(frame: pd.DataFrame, keys: list[str], column: str,
            text: Callable[[pd.Series], str]) -> pd.DataFrame:
    """The keys down, the values of a column across, and the text of each row."""
    own = frame.assign(text=[text(row) for _, row in frame.iterrows()])
    wide = own.pivot(index=keys, columns=column, values="text").fillna(NOTHING)
    return frame[keys].drop_duplicates().join(wide, on=keys)


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """One method after the other, in the order in which they come."""
    place = {name: i for i, name in enumerate(frame["method"].unique())}
    return frame.sort_values("method", key=lambda names: names.map(place), kind="stable")


def _of_methods(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of level "method"."""
    return _ordered(frame)[lambda rows: rows["level"] == "method"]


def _where(column: str, text: Callable[[pd.Series], str]) -> Callable[[pd.Series], str]:
    """The text where a column has a number (of `n`: where it is not 0), else NOTHING."""
    return lambda row: NOTHING if pd.isna(row[column]) or (column == "n" and not row["n"]) else text(row)


def _difference(row: pd.Series, prefix: str = "", p: str = "", none: str = "none") -> str:
    """A difference with its interval and marks."""
    mean, low, high = (row[prefix + name] for name in ("mean", "low", "high"))
    text = with_interval(mean, low, high, UNITS[row["unit"]], row[p] if p else math.nan, none)
    return text if "†" in text else text + row[f"{prefix if prefix == LAST else ''}mark"]


def _counts(row: pd.Series) -> str:
    """Pairs done of asked for and seeds, with the fault where there is no pair."""
    return f"{'' if row['n'] else row['status']}{row['mark']} {_pairs(row)}".strip()


def _pairs(row: pd.Series) -> str:
    return f"({row['n']}/{row['expected']}, {int(row['blocks'])})"


def _detectable(row: pd.Series) -> str:
    return plain(row["mdd"], f".{UNITS[row['unit']].digits}f")


# ---- contrasts


TESTED: Columns = {
    "difference": lambda row: _difference(row, p="p_holm", none=f"{no_number(row, 'no pair')}†"),
    "p": lambda row: p_text(row["p"]), "p Holm": lambda row: p_text(row["p_holm"]),
}
primary = partial(view, keys=(), columns={
    "contrast": "words", "difference": lambda row: _difference(row, none=no_number(row, "none")),
    "p": lambda row: p_text(row["p_holm"]),
    "verdict": "verdict",
    "p by exchange": lambda row: f"{p_text(row['p_exchange'])} (least {p_text(row['smallest_p'])})",
    "detectable": _detectable, "seeds": "seeds", "pairs": done_of})
iterates = partial(view, keys=(), columns={
    "contrast": "words", "average": _difference, "verdict": "verdict",
    "last iterate": lambda row: _difference(row, LAST), "its verdict": f"{LAST}verdict",
    "turns": lambda row: "turns" if row["turns"] else "same"})
comparisons = partial(
    view, keys=("method", "budget"), where=lambda frame: frame[frame["level"].isin(LEVELS)], columns={
        "against": "baseline", **TESTED, "d": lambda row: plain(row["effect"], ".2f"),
        "detectable": _detectable, "pairs": done_of, "seeds": "blocks"})


interactions = partial(view, keys=("axis", "item", "against", "baseline", "budget"), columns={
    **TESTED, "pairs": done_of, "seeds": lambda row: row["blocks"]})


def ties(frame: pd.DataFrame) -> pd.DataFrame:
    """One line per group, best first: means, and the letters of what they are not told apart from."""

    def item(row: pd.Series) -> str:
        mean = "none" if pd.isna(row["mean"]) else number(row["mean"], UNITS[row["unit"]])
        return f"{row['item']} {mean}{row['mark']} {row['letters']}".rstrip()

    keys = _keys(frame, "compared", "within", "budget")
    rows = [(*names, "; ".join(item(row) for _, row in group.iterrows()),
             done_of(group[["n", "expected", "failed"]].sum()))
            for names, group in frame.groupby(keys, sort=False)]
    return pd.DataFrame(rows, columns=[*keys, "best first", "cells"])


# ---- measures of a port


def _ends(row: pd.Series, prefix: str = "") -> str:
    """Between which marks: one number where both are one, > the largest budget where it is beyond that."""
    after, by = row[f"{prefix}after"], row[f"{prefix}by"]
    if math.isnan(by):
        return f">{row['largest']:,.0f}" if row.get("runs") else NOTHING
    return plain(by) if after == by else f"{plain(after)} to {plain(by)}"


updates_to_match = partial(view, keys=("method", "init"), where=_of_methods, columns={
    "reached": _where("n", lambda row: f"{row['reached']:.0f} of {row['runs']:.0f} runs"),
    "median updates": _where("n", lambda row: _ends(row, "median_")),
    "mean updates": lambda row: f"{'≥ ' if row['censored'] > 0 and row['n'] else ''}{_ends(row)}",
    "saved": _where("saved", lambda row: " to ".join(
        number(row[name], COUNT) for name in ("saved_least", "saved_most"))),
    "95 %": _where("low", lambda row: interval(row["low"], row["high"], COUNT)), "pairs": _counts})


def _scratch_at(row: pd.Series) -> str:
    """After how many updates scratch is read, and between which marks."""
    if pd.isna(row["below"]):
        return f"no mark near {row['at']:.0f}"
    between = "" if row["below"] == row["above"] else f", between {row['below']:.0f} and {row['above']:.0f}"
    return f"{row['at']:.0f}{between}"


equal_compute = partial(view, keys=("method",), columns={
    "hosts": "pairs", "updates": "budget", "port's own": lambda row: plain(row["more"]),
    "scratch at": _scratch_at,
    "{arm}": lambda row: NOTHING if pd.isna(row["own"]) else number(row["own"], UNITS[row["unit_of_means"]]),
    "scratch": lambda row: NOTHING if pd.isna(row["own"]) else number(
        row["scratch"], UNITS[row["unit_of_means"]]),
    **TESTED, "pairs": done_of, "seeds": "blocks"})


def take_off(frame: pd.DataFrame) -> pd.DataFrame:
    """Inits down, budgets across."""

    def share(row: pd.Series) -> str:
        text = _between(row["mean"], row["low"], row["high"], SHARE)
        return f"{row['status']}†" if math.isnan(row["mean"]) else f"{text}{row['mark']}"

    if frame.empty:
        return frame
    last = frame[frame["budget"] == frame.groupby("method")["budget"].transform("max")]
    last = view(last.assign(largest=last["budget"], runs=last["n"]), ["method", "init"], {
        "half took off": lambda row: _ends(row, "median_"), "cells": _pairs})
    keys = _keys(frame, "method", "init")
    wide = _across(frame, keys, "budget", share)
    return wide.rename(columns=lambda name: name if name in keys else f"at {name}, %").merge(
        last, on=keys, how="left")


def _of_means(name: str) -> Callable[[pd.Series], str]:
    def text(row: pd.Series) -> str:
        low, high = (row.get(f"{name}_{end}", math.nan) for end in ("low", "high"))
        return _between(row[name], low, high, UNITS[row["unit_of_means"]])

    return text


recovered = partial(view, keys=("method", "budget"), where=_of_methods, columns={
    "{arm} − scratch": _of_means("numerator"), "native − scratch": _of_means("denominator"),
    "recovered, %": lambda row: row["note"] or _between(row["mean"], row["low"], row["high"], SHARE),
    "pairs": _counts})


def cost(frame: pd.DataFrame) -> pd.DataFrame:
    """Quantities across."""

    def median(row: pd.Series) -> str:
        return plain(row["median"], ",.3g" if row["unit"] == "s" else ",.0f")

    keys, own = _keys(frame, "method", "receiving", "init"), _ordered(frame)
    runs = own[own["quantity"] == "updates"].set_index(keys)
    done = runs["expected"] - runs["failed"] - runs["missing"]
    counts = done.astype(str) + "/" + runs["expected"].astype(str) + runs["mark"]
    wide = _across(own, keys, "quantity", median)[[*keys, *own["quantity"].unique()]]
    return wide.join(counts.rename("runs"), on=keys).rename(columns={"module": "module, bytes"})


def break_even(frame: pd.DataFrame) -> pd.DataFrame:
    """What is saved, in updates and in tokens, and what pays it back."""
    own, tokens = (frame[frame["unit"] == unit] for unit in ("updates", "tokens"))
    names = _keys(frame, "method", "receiving")
    own = own.join(tokens.set_index(names)["saved"].rename("tokens"), on=names)
    return view(own, ["method", "receiving"], {
        "updates saved": _where("saved", lambda row: ("≤" if row["censored"] else "")
                                + _between(row["saved"], row["low"], row["high"], COUNT)),
        "tokens saved": lambda row: plain(row["tokens"]),
        "origin, updates": lambda row: plain(row["origin_cost"]),
        "{starts} to pay back": _where("ports", _ports), "not reached": _where(
            "n", lambda row: f"{row['censored']:.0f} of {row['reached'] + row['censored']:.0f}"),
        "pairs": _counts})


def _ports(row: pd.Series) -> str:
    """How many ports, from the upper to the lower end of what is saved; ≥ where runs are censored."""
    ends = (row["ports_low"], row["ports"], row["ports_high"])
    least, middle, most = ("never" if math.isinf(count) else plain(count) for count in ends)
    text = f"{'≥' if row['censored'] and middle != 'never' else ''}{middle}"
    return text if NOTHING in (least, most) else f"{text} [{least}, {most}]"


def _recorded(frame: pd.DataFrame) -> pd.DataFrame:
    """What is recorded, at the largest budget."""
    known = frame[frame["note"] != "not recorded"]
    return known[known["budget"] == known["budget"].max()]


def _digits(name: str, digits: int) -> Callable[[pd.Series], str]:
    return lambda row: plain(row[name], f",.{digits}f")


predictors = partial(view, keys=("method", "baseline", "predictor"), where=_recorded, columns={
    "Spearman": lambda row: row["note"] or plain(row["spearman"], ".2f"), "Pearson": _digits("pearson", 2),
    "p": _digits("p", 3), "p after Holm": _digits("p_holm", 3), "smallest p": _digits("smallest_p", 3),
    "units": lambda row: f"{row['n']}/{row['expected']}{row['mark']}"})


def _difference_of(mean: str, low: str, high: str, signed: bool = True) -> Callable[[pd.Series], str]:
    """Three columns as a number with its interval."""
    return lambda row: with_interval(row[mean], row[low], row[high],
                                     replace(UNITS[row["unit"]], signed=signed))


def _share(row: pd.Series) -> str:
    return f"{row['known']}/{row['hosts']}"


port_choice = partial(view, keys=("pairs", "origin", "receiving", "budget"), columns={
    "behind the best": _difference_of("mean", "low", "high"),
    "chosen": lambda row: number(row["chosen"], SHARE) + " %", "units": "units", "seeds": "seeds"})


changed_hosts = partial(view, keys=("method", "receiving"), columns={
    "change": "changes", "lift": _difference, "bare": lambda row: plain(100 * row["bare"], ".1f"),
    "updates": _digits("changed_updates", 0), "weight distance": _digits("weight_distance", 4),
    "CKA": _digits("cka", 3), "rotation": _digits("rotation", 2), "loss of bare": _digits("bare_loss", 3),
    "pairs": _counts})
left_out = partial(view, keys=("method", "predictor"), columns={
    "error": _difference_of("mean", "low", "high", signed=False),
    "less than the mean's": _difference_of("less", "less_low", "less_high"),
    "hosts that have it": _share, "kinds": "kinds", "seeds": "seeds"})


def win_entry(row: pd.Series) -> str:
    """A win rate with its interval.

    Example:
        >>> win_entry(pd.Series({"mean": 0.7, "low": 0.35, "high": 0.93, "n": 5, "expected": 5, "blocks": 5,
        ...                      "mark": "", "status": "complete"}))
        '70 % [35, 93] (5/5, 5)'
    """
    if row["status"] == ITSELF:
        return NOTHING
    if row["n"] == 0:
        return f"{row['status']}† {_pairs(row)}"
    share, ends = number(row["mean"], SHARE), interval(row["low"], row["high"], SHARE)
    return f"{share} % {ends}{row['mark']} {_pairs(row)}"


def with_diagonal(frame: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Win rates with an empty entry for each against itself, so that rows and columns have one order."""
    own = frame.drop_duplicates(_keys(frame, "init", "method"))
    return pd.concat([own.assign(against=own[axis], status=ITSELF), frame], ignore_index=True)


# ---- checks


def learning_rates(frame: pd.DataFrame) -> pd.DataFrame:
    """The factors across, the best, and the gains at the common and at the best rates."""

    def text(name: str, unit: str = "unit") -> Callable[[pd.Series], str]:
        return _where(name, lambda row: number(row[name], UNITS[row[unit]]))

    factors = [name for name in frame if name[0] == "x" and name[1:].replace(".", "").isdigit()]
    return view(frame, ["method", "budget", "init"], {
        **{f"at ×{name[1:]}": text(name) for name in factors},
        "best": _where("factor", lambda row: f"×{row['factor']:g}{f', {EDGE}' if row['edge'] else ''}"),
        "common gain": text("gain_common", "difference"), "gain of bests": text("gain_best", "difference"),
        "cells": lambda row: f"{row['n']}/{row['expected']}"})


def interquartile(frame: pd.DataFrame) -> pd.DataFrame:
    """Inits down, budgets across."""

    def text(row: pd.Series) -> str:
        mean = with_interval(row["iqm"], row["low"], row["high"], UNITS[row["unit"]])
        return f"{mean}{row['mark']} ({done_of(row)})"

    names = {budget: f"{budget} updates" for budget in frame["budget"]} | {0: "zero-shot"}
    return _across(frame, _keys(frame, "init"), "budget", text).rename(columns=names)


def _spreads(row: pd.Series) -> str:
    form = f".{UNITS[row['unit']].digits}f"
    return " / ".join(plain(row[name], form) for name in ("seed_sd", "run_sd", "rest_sd"))


mixed_effects = partial(
    view, keys=("budget",), columns={
        "against": "baseline", "model": _difference, "paired": lambda row: _difference(row, "paired_"),
        "agree": "agree", "spread of seeds runs rest": _spreads, "pairs": done_of,
        "fit": lambda row: row["words"].split("; ")[-1]},
    where=lambda frame: frame[frame["term"] == "overall"].rename(columns={"value": "mean"}))


def paper_values(frame: pd.DataFrame) -> pd.DataFrame:
    """What was published, and what this study has in the same setting."""

    def stated(row: pd.Series) -> str:
        if row["unit"] == "sign":
            return f"{'above' if row['value'] > 0 else 'below'} 0"
        return f"{row['value']:g}{' %' if row['unit'] == 'percent' else ''}"

    return frame[["paper", "place"]].assign(
        method=frame["method"].str.replace(";", ", "), quantity=frame["quantity"],
        published=[stated(row) for _, row in frame.iterrows()], here=frame["says"])


def completeness(frame: pd.DataFrame) -> pd.DataFrame:
    """The points of the grid that lack cells, without the coordinates that never differ."""
    part = frame[frame["done"] != frame["expected"]]
    return part.drop(columns=[key for key in ("data", "port") if frame[key].nunique() < 2])
