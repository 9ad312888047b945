"""What a reader sees of the frames that are no grid of means: rows, columns and their texts."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas as pd

from portability.analysis.formatting import NOTHING, done_of, interval, number, p_text, plain, with_interval
from portability.analysis.metrics import LAST, UNITS, Unit

LEVELS = ("all", "method")  # of comparisons, those that a reader sees; the CSV files hold all
ITSELF = "itself"  # status of a diagonal entry, of the view alone
EDGE = "at the edge"
SHARE, COUNT = Unit(100.0, 0, "%"), Unit(1.0, 0, "updates", signed=True)
Columns = Mapping[str, str | Callable[[pd.Series], object]]

_between = partial(with_interval, none=NOTHING, alone="")
_plain2, _plain3 = (partial(plain, form=f",.{digits}f") for digits in (2, 3))


def view(rows: pd.DataFrame, keys: Sequence[str], columns: Columns) -> pd.DataFrame:
    """The keys, several data sets and ports first, and columns: a function of a row each, or the name of a
    column."""
    made = {name: rows[make] if isinstance(make, str) else [make(row) for _, row in rows.iterrows()]
            for name, make in columns.items()}
    return rows[_keys(rows, *keys)].assign(**made)


def _keys(frame: pd.DataFrame, *names: str) -> list[str]:
    return [name for name in ("data", "port", *names) if name in frame]


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


# ---- contrasts


def primary(frame: pd.DataFrame) -> pd.DataFrame:
    """Every declared contrast."""
    return view(frame, [], {
        "contrast": "words", "difference": _difference, "p": lambda row: p_text(row["p_holm"]),
        "verdict": "verdict",
        "p by exchange": lambda row: f"{p_text(row['p_exchange'])} (least {p_text(row['smallest_p'])})",
        "detectable": lambda row: plain(row["mdd"], f".{UNITS[row['unit']].digits}f"), "seeds": "seeds",
        "pairs": done_of})


def iterates(frame: pd.DataFrame) -> pd.DataFrame:
    """Every declared contrast under both iterates."""
    return view(frame, [], {
        "contrast": "words", "average": _difference, "verdict": "verdict",
        "last iterate": lambda row: _difference(row, LAST), "its verdict": f"{LAST}verdict",
        "turns": lambda row: "turns" if row["turns"] else "same"})


TESTED = {
    "difference": lambda row: _difference(row, p="p_holm", none="no pair†"),
    "p": lambda row: p_text(row["p"]), "p Holm": lambda row: p_text(row["p_holm"]),
}


def comparisons(frame: pd.DataFrame) -> pd.DataFrame:
    """Levels all and method."""
    return view(frame[frame["level"].isin(LEVELS)], ["method", "budget"], {
        "against": "baseline", **TESTED, "d": lambda row: plain(row["effect"], ".2f"),
        "detectable": lambda row: plain(row["mdd"], f".{UNITS[row['unit']].digits}f"), "pairs": done_of,
        "seeds": "blocks"})


def interactions(frame: pd.DataFrame) -> pd.DataFrame:
    """Every difference of gains."""
    keys = ["axis", "item", "against", "baseline", "budget"]
    return view(frame, keys, {**TESTED, "pairs": done_of, "seeds": "blocks"}) if len(frame) else frame


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


def updates_to_match(frame: pd.DataFrame) -> pd.DataFrame:
    """Level method."""
    return view(_of_methods(frame), ["method", "init"], {
        "reached": _where("n", lambda row: f"{row['reached']:.0f} of {row['runs']:.0f} runs"),
        "median updates": _where("n", lambda row: _ends(row, "median_")),
        "mean updates": lambda row: f"{'≥ ' if row['censored'] > 0 and row['n'] else ''}{_ends(row)}",
        "saved": _where("saved", lambda row: " to ".join(number(row[f"saved_{end}"], COUNT)
                                                         for end in ("least", "most"))),
        "95 %": _where("low", lambda row: interval(row["low"], row["high"], COUNT)), "pairs": _counts})


def _ends(row: pd.Series, prefix: str = "") -> str:
    """Between which marks: one number where both are one, > the largest budget where it is beyond that."""
    after, by = row[f"{prefix}after"], row[f"{prefix}by"]
    if math.isnan(by):
        return f">{row['largest']:,.0f}" if row.get("runs") else NOTHING
    return plain(by) if after == by else f"{plain(after)} to {plain(by)}"


def take_off(frame: pd.DataFrame) -> pd.DataFrame:
    """Inits down, budgets across."""
    if frame.empty:
        return frame
    keys = _keys(frame, "method", "init")
    own = frame.assign(text=[f"{row['status']}†" if math.isnan(row["mean"]) else
                             f"{_between(row['mean'], row['low'], row['high'], SHARE)}{row['mark']}"
                             for _, row in frame.iterrows()])
    wide = own.pivot(index=keys, columns="budget", values="text").fillna(NOTHING)
    wide.columns = [f"at {budget}, %" for budget in wide.columns]
    last = own[own["budget"] == own.groupby("method")["budget"].transform("max")]
    last = view(last.assign(largest=last["budget"], runs=last["n"]), ["method", "init"], {
        "half took off": lambda row: _ends(row, "median_"), "cells": _pairs})
    return own[keys].drop_duplicates().join(wide, on=keys).merge(last, on=keys, how="left")


def recovered(frame: pd.DataFrame) -> pd.DataFrame:
    """Level method."""

    def of_means(row: pd.Series, name: str) -> str:
        low, high = (row.get(f"{name}_{end}", math.nan) for end in ("low", "high"))
        return _between(row[name], low, high, UNITS[row["unit_of_means"]])

    return view(_of_methods(frame), ["method", "budget"], {
        "{arm} − scratch": lambda row: of_means(row, "numerator"),
        "native − scratch": lambda row: of_means(row, "denominator"),
        "recovered, %": lambda row: row["note"] or _between(row["mean"], row["low"], row["high"], SHARE),
        "pairs": _counts})


def cost(frame: pd.DataFrame) -> pd.DataFrame:
    """Quantities across."""
    keys, own = _keys(frame, "method", "receiving", "init"), _ordered(frame)
    own = own.assign(text=[NOTHING if not row["n"] else f"{row['median']:,.3g}" if row["unit"] == "s" else
                           plain(row["median"]) for _, row in own.iterrows()])
    order = own["quantity"].unique()
    wide = own.pivot(index=keys, columns="quantity", values="text").reindex(columns=order).fillna(NOTHING)
    runs = own[own["quantity"] == "updates"].set_index(keys)
    done = runs["expected"] - runs["failed"] - runs["missing"]
    counts = done.astype(str) + "/" + runs["expected"].astype(str) + runs["mark"]
    shown = own.drop_duplicates(keys)[keys].join(wide, on=keys).join(counts.rename("runs"), on=keys)
    return shown.rename(columns={"module": "module, bytes"})


def break_even(frame: pd.DataFrame) -> pd.DataFrame:
    """What is saved, in updates and in tokens, and what pays it back."""
    own, tokens = (frame[frame["unit"] == unit] for unit in ("updates", "tokens"))
    names = _keys(frame, "method", "receiving")
    tokens = own.join(tokens.set_index(names)["saved"].rename("tokens"), on=names)["tokens"]
    return view(own.assign(tokens=tokens), ["method", "receiving"], {
        "updates saved": _where("saved", lambda row: ("≤" if row["censored"] else "")
                                + _between(row["saved"], row["low"], row["high"], COUNT)),
        "tokens saved": lambda row: plain(row["tokens"]),
        "origin, updates": lambda row: plain(row["origin_cost"]),
        "{starts} to pay back": _where("ports", _ports),
        "not reached": _where("n",
                              lambda row: f"{row['censored']:.0f} of {row['reached'] + row['censored']:.0f}"),
        "pairs": _counts})


def _ports(row: pd.Series) -> str:
    """How many ports, from the upper to the lower end of what is saved; ≥ where runs are censored."""
    ends = (row["ports_low"], row["ports"], row["ports_high"])
    least, middle, most = ("never" if math.isinf(count) else plain(count) for count in ends)
    text = f"{'≥' if row['censored'] and middle != 'never' else ''}{middle}"
    return text if NOTHING in (least, most) else f"{text} [{least}, {most}]"


def predictors(frame: pd.DataFrame) -> pd.DataFrame:
    """What is recorded, at the largest budget."""
    known = frame[frame["note"] != "not recorded"]
    return view(known[known["budget"] == known["budget"].max()], ["method", "baseline", "predictor"], {
        "Spearman": lambda row: row["note"] or _plain2(row["spearman"]),
        "Pearson": lambda row: _plain2(row["pearson"]), "p": lambda row: _plain3(row["p"]),
        "p after Holm": lambda row: _plain3(row["p_holm"]),
        "smallest p": lambda row: _plain3(row["smallest_p"]),
        "units": lambda row: f"{row['n']}/{row['expected']}{row['mark']}"})


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
    keys = _keys(frame, "init")
    texts = [f"{with_interval(row['iqm'], row['low'], row['high'], UNITS[row['unit']])}{row['mark']} "
             f"({done_of(row)})"
             for _, row in frame.iterrows()]
    names = {budget: "zero-shot" if budget == 0 else f"{budget} updates"
             for budget in sorted(frame["budget"].unique())}
    wide = frame.assign(text=texts).pivot(index=keys, columns="budget", values="text").fillna(NOTHING)
    return frame[keys].drop_duplicates().merge(wide.rename(columns=names).reset_index(), on=keys, how="left")


def mixed_effects(frame: pd.DataFrame) -> pd.DataFrame:
    """The overall gain of every fit; its terms stand in the CSV file."""

    def spreads(row: pd.Series) -> str:
        form = f".{UNITS[row['unit']].digits}f"
        return " / ".join(plain(row[name], form) for name in ("seed_sd", "run_sd", "rest_sd"))

    overall = frame[frame["term"] == "overall"].rename(columns={"value": "mean"})
    return view(overall, ["budget"], {
        "against": "baseline", "model": _difference, "paired": lambda row: _difference(row, "paired_"),
        "agree": "agree", "spread of seeds runs rest": spreads, "pairs": done_of,
        "fit": lambda row: row["words"].split("; ")[-1]})


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
