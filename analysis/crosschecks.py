"""Cross-checks of the comparisons: interquartile means, mixed-effects models, and the papers' figures."""

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pandas as pd

from analysis import captions
from analysis.arms import PORTED
from analysis.contrasts import counted, short, view, with_interval
from analysis.evidence import Evidence
from analysis.metrics import UNITS
from analysis.mixed import Mixed, mixed
from analysis.published import beside
from analysis.recipe import Recipe
from analysis.robust import bootstrap, iqm, scores_of
from analysis.stats import apart

FITTED = ["baseline", "budget", "unit", "term", "value", "low", "high", "p", "seed_sd", "run_sd", "rest_sd", "n", "expected",
          "failed", "converged", "words", "paired_mean", "paired_low", "paired_high", "agree", "mark"]


# ---- frames


def interquartile(found: Evidence) -> pd.DataFrame:
    """Interquartile mean of every init at every budget over all tasks (method, direction, relation) and seeds, with its
    bootstrap interval over seeds, in the metric's unit (fractions in [0, 1])."""
    rows = []
    for labels, cells in found.parts():
        for (init, budget), own in cells.groupby(["init", "budget"], sort=False):
            scores = scores_of(own, str(init), int(budget))
            spread = bootstrap(iqm, scores.values)
            n, failed = int(np.isfinite(scores.values).sum()), int((own["status"] == "failed").sum())
            rows.append(labels | {
                "init": init, "budget": budget, "unit": found.metric.unit, "iqm": float(spread.value),
                "low": float(spread.low), "high": float(spread.high), "seeds": len(scores.values), "tasks": len(scores.tasks),
                "n": n, "expected": scores.expected, "failed": failed, "mark": scores.mark,
            })
    columns = ["init", "budget", "unit", "iqm", "low", "high", "seeds", "tasks", "n", "expected", "failed", "mark"]
    return pd.DataFrame(rows, columns=[*apart(found.cells), *columns])


def mixed_effects(found: Evidence) -> pd.DataFrame:
    """The mixed-effects cross-check beside the paired mean: one row per baseline, budget and term, "overall" first.

    `value`, `low`, `high` and `p` are of the term; the spreads, counts and `words` of the whole fit; the columns that begin
    with `paired` those of the level "all"; `agree` says whether both means have one sign and their intervals overlap.
    """
    keys = apart(found.cells)
    paired = found.levels["all"].set_index([*keys, "baseline", "budget"])
    rows: list[dict[str, object]] = []
    for labels, cells in found.parts():
        for baseline in [name for name in cells["init"].unique() if name != found.arm]:
            for budget in sorted(cells["budget"].unique()):
                place = (*labels.values(), baseline, budget)
                if place in paired.index:
                    fit = mixed(cells, baseline, int(budget), found.metric.scale)
                    head = labels | {"baseline": baseline, "budget": budget, "unit": found.metric.difference}
                    rows += [head | row for row in _terms(fit, paired.loc[place])]
    return pd.DataFrame(rows, columns=[*keys, *FITTED])


def _terms(fit: Mixed, paired: pd.Series) -> Iterator[dict[str, object]]:
    """The overall gain and every fixed effect of a fit, with what holds for all of it."""
    value, low, high = fit.overall
    whole = {name: item for name, item in asdict(fit).items() if name not in ("terms", "overall")}
    whole |= {f"paired_{name}": paired[name] for name in ("mean", "low", "high")} | {"failed": paired["failed"]}
    whole |= {"agree": agreement((value, low, high), (paired["mean"], paired["low"], paired["high"])), "mark": paired["mark"]}
    p = fit.terms["p"].iloc[0] if len(fit.terms) else np.nan
    yield {"term": "overall", "value": value, "low": low, "high": high, "p": p} | whole
    for row in fit.terms.iloc[1:].to_dict("records"):
        factor, _, name = row["term"].partition(", Sum)[S.")
        yield row | {"term": f"{factor.removeprefix('C(')} {name.removesuffix(']')}"} | whole


def agreement(one: tuple[float, float, float], other: tuple[float, float, float]) -> str:
    """Whether two means, each with its low and high, have one sign and overlap, in words."""
    if not np.isfinite([*one, *other]).all():
        return "no interval to compare"
    if one[0] * other[0] < 0:
        return "no: other sign"
    return "yes" if max(one[1], other[1]) <= min(one[2], other[2]) else "no: intervals apart"


# ---- what a reader sees


def shown_quartiles(frame: pd.DataFrame) -> pd.DataFrame:
    """Inits down, budgets across."""
    keys = [*(key for key in ("data", "port") if key in frame), "init"]
    texts = [f"{with_interval(row['iqm'], row['low'], row['high'], UNITS[row['unit']])}{row['mark']} ({counted(row)})"
             for _, row in frame.iterrows()]
    names = {budget: "zero-shot" if budget == 0 else f"{budget} updates" for budget in sorted(frame["budget"].unique())}
    wide = frame.assign(text=texts).pivot(index=keys, columns="budget", values="text").fillna("–")
    order = frame[keys].drop_duplicates()
    return order.merge(wide.rename(columns=names).reset_index(), on=keys, how="left")


def shown_mixed(frame: pd.DataFrame) -> pd.DataFrame:
    """The overall gain of every fit; its terms stand in the CSV file."""

    def text(row: pd.Series, names: tuple[str, str, str]) -> str:
        return with_interval(*row[list(names)], UNITS[row["unit"]])

    def spreads(row: pd.Series) -> str:
        unit = UNITS[row["unit"]]
        return " / ".join(short(row[name], f".{unit.digits}f") for name in ("seed_sd", "run_sd", "rest_sd"))

    return view(
        frame[frame["term"] == "overall"], ["budget"], against="baseline",
        model=lambda row: text(row, ("value", "low", "high")) + row["mark"],
        paired=lambda row: text(row, ("paired_mean", "paired_low", "paired_high")) + row["mark"],
        agree="agree", spread_of_seeds_runs_rest=spreads, pairs=counted, fit=lambda row: row["words"].split("; ")[-1],
    )


def shown_published(frame: pd.DataFrame) -> pd.DataFrame:
    """What was published, and what this study has in the same setting."""
    value = [_stated(row) for _, row in frame.iterrows()]
    names = frame["method"].str.replace(";", ", ")
    return frame[["paper", "place"]].assign(method=names, quantity=frame["quantity"], published=value, here=frame["says"])


def _stated(row: pd.Series) -> str:
    if row["unit"] == "sign":
        return f"{'above' if row['value'] > 0 else 'below'} 0"
    return f"{row['value']:g}{' %' if row['unit'] == 'percent' else ''}"


# ---- captions


def quartile_words(found: Evidence, frame: pd.DataFrame) -> str:
    """Under the interquartile means."""
    counts = [f"{int(frame[name].max())} {name}" for name in ("tasks", "seeds")] if len(frame) else []
    return " ".join([QUARTILES.format(symbol=UNITS[found.metric.unit].symbol, counts=" and ".join(counts) or "none"),
                     captions.replicates(found.arms, [*apart(found.cells), "init", "budget"]),
                     *captions.lacking(frame, "cells"), *captions.ahead(found.arms)])


def mixed_words(found: Evidence, frame: pd.DataFrame) -> str:
    """Under the mixed-effects models."""
    keys = [*apart(found.cells), "budget", "init"]
    return " ".join([MIXED.format(symbol=UNITS[found.metric.difference].symbol), captions.replicates(found.arms, keys),
                     *captions.lacking(frame[frame["term"] == "overall"], "pairs"), *captions.ahead(found.arms)])


def published_words(found: Evidence, frame: pd.DataFrame) -> str:
    """Under the published figures."""
    able = int(frame["within"].notna().sum())
    none = " None is: what was published is of other hosts and data sets, so nothing here agrees or disagrees with it."
    words = f"{able} of {len(frame)} published figures are comparable with this study.{'' if able else none}"
    budget = found.arms["budget"].max()
    what = "gains are those after {} updates, at the level all" if found.arm == PORTED else "scores are those after {} updates"
    after = "" if pd.isna(budget) else f" This study's {what.format(budget)}."
    return f"{words}{after} {PUBLISHED}"


QUARTILES = (
    "In {symbol}: a quarter of the scores is cut on each side. Scores are those of {counts}; a task is a method in a direction "
    "and relation, so a run that several origins share stands in several. In square brackets: 95 %, whole seeds drawn anew "
    "(bootstrap, n − 1 of n). In brackets: cells done/asked for. This describes the runs at hand and is no test: that "
    "interval is too short at few seeds, and claims rest on the paired comparisons."
)
MIXED = (
    "Model: gain ~ method + direction + relation, seeds and the baselines' runs within them random (REML); all in {symbol}. In "
    "square brackets: its 95 % Wald interval, which is too short at few seeds, and the paired interval of the comparisons, "
    "which covers test examples too. They agree where both means have one sign and the "
    "intervals overlap. Spread: standard deviations of seeds, baselines' runs and the rest. Terms are deviations from the mean "
    "of their levels and stand in the CSV file; a factor's last level is minus the sum of the others."
)
PUBLISHED = (
    "Comparable is only what has the same hosts, data, method, init and quantity; a figure lies within where our 95 % interval "
    "holds it (a claim in words: where our whole interval lies on its side of 0). How each was read, and where, stands in the "
    "CSV file."
)
RECIPES: dict[str, Recipe] = {
    "interquartile": Recipe(
        interquartile, "Interquartile means", "Interquartile mean of {label} over all tasks and seeds.", view=shown_quartiles,
        words=quartile_words,
    ),
    "mixed": Recipe(
        mixed_effects, "Mixed-effects models", "{label}: {arm}'s gains once more, by a mixed-effects model of each budget.",
        view=shown_mixed, words=mixed_words,
    ),
    "published": Recipe(
        beside, "Published figures", "What the papers behind this project state, beside this study.", view=shown_published,
        words=published_words,
    ),
}
