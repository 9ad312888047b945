"""The primary contrasts of a study: those that its sweep declared before the runs, with the one test that decides each."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from analysis.entries import interval, number
from analysis.evidence import Evidence, once
from analysis.inference import Design, bare_pairs, designs, pairs_of, tested, with_bare
from analysis.intervals import ALPHA, detectable
from analysis.metrics import UNITS, Metric
from analysis.permutation import Exchanged, exchange, holm, rotations
from portability.core.contrasts import PAIRS, Contrast, all_alike, kinds, selects
from portability.core.specs import BARE

COLUMNS = ["name", "words", "arm", "baseline", "budget", "unit", "mean", "low", "high", "p", "p_holm", "family", "p_exchange",
           "smallest_p", "mdd", "se", "df", "effect", "seeds", "examples", "expected", "n", "failed", "missing", "mark",
           "verdict", "note"]
OPEN = "open"
SENTENCE = (
    "{words}: {side}{size} {symbol} {between} ({tests}; {seeds} seeds{examples}{lacks}).{found}"
)


@once
def primary(found: Evidence) -> pd.DataFrame:
    """One row for each declared contrast, in the order of the sweep; no row where none, or not the same ones, are declared.

    Returns:
        COLUMNS: `name` as declared, `words` what it is in words, `mean`, `low`, `high` (95 % of new seeds and new test
        examples) in `unit`; `p` of the t test, `p_holm` over the `family` of all primary contrasts, which decides; `p_exchange`
        with labels exchanged within seeds (permutation.rotations; the sign of a seed for a difference of differences, against
        the bare host, and where runs of the arm stand in several pairs) and the `smallest_p` that these seeds could give by it;
        `mdd`, the true difference that this study would find 4 times in 5 at the first step of Holm's correction (0.05 /
        family); `seeds` that have all cells, `examples`; pairs `expected`, `n` done, `failed`, `missing`, `mark`; `verdict`:
        "ahead", "behind" (by the metric's better side; "higher", "lower" where neither is) or "open"; `note`.
    """
    declared = all_alike(found.study.facts) or []
    rows = [_row(found, contrast) for contrast in declared]
    frame = pd.DataFrame(rows, columns=[name for name in COLUMNS if name not in ("p_holm", "family", "mdd", "verdict")])
    p = frame["p"].to_numpy(float)  # a declared contrast without a test stays in the family, with the largest p there is
    frame["p_holm"], frame["family"] = np.where(np.isnan(p), np.nan, holm(np.nan_to_num(p, nan=1.0))), len(declared)
    se, df = (frame[name].to_numpy(float) for name in ("se", "df"))
    frame["mdd"] = detectable(se, df, ALPHA / max(1, len(declared)))
    frame["verdict"] = [verdict(mean, p, found.metric) for mean, p in zip(frame["mean"], frame["p_holm"], strict=True)]
    return frame[COLUMNS]


def verdict(mean: float, p: float, metric: Metric) -> str:
    """In one word, what a test says: which side the arm is on where p is at most 0.05, else "open".

    Example:
        >>> from analysis.metrics import METRICS
        >>> verdict(-0.1, 0.04, METRICS["eval_loss"]), verdict(-0.1, 0.04, METRICS["eval_accuracy"])
        ('ahead', 'behind')
        >>> verdict(3.0, 0.06, METRICS["eval_accuracy"]), verdict(3.0, float("nan"), METRICS["eval_accuracy"])
        ('open', 'open')
    """
    if not p <= ALPHA:
        return OPEN
    if metric.better is None:
        return "higher" if mean > 0 else "lower"
    return "ahead" if (mean > 0) == (metric.better == "higher") else "behind"


def sentence(row: pd.Series, metric: Metric) -> str:
    """A row of `primary` as one sentence."""
    words, unit = row["words"][0].upper() + row["words"][1:], UNITS[metric.difference]
    if pd.isna(row["p_holm"]):
        return f"{words}: no test ({row['note']}; {row['n']} of {row['expected']} pairs are done)."
    tests = f"p {p_words(row['p_holm'])} after Holm's correction for {row['family']}"
    if pd.notna(row["p_exchange"]):
        tests += f", by exchange p {p_words(row['p_exchange'])} where {row['smallest_p']:.2g} is the smallest possible"
    size = number(row["mdd"], unit).lstrip("+")
    more = f" A true difference of {size} {unit.symbol} would have been found four times in five."
    more = more if row["verdict"] == OPEN and pd.notna(row["mdd"]) else ""
    return SENTENCE.format(
        words=words, side="left open, " if row["verdict"] == OPEN else f"{row['verdict']}, ", size=number(row["mean"], unit),
        symbol=unit.symbol, between=interval(row["low"], row["high"], unit), tests=tests, seeds=row["seeds"],
        examples=f", {row['examples']:,} test examples" if row["examples"] else ", not over test examples",
        lacks=f", † {row['n']} of {row['expected']} pairs" if row["mark"] else "", found=more,
    )


def p_words(value: float) -> str:
    """A p value in print.

    Example:
        >>> p_words(0.0321), p_words(0.00004)
        ('= 0.032', '< 0.001')
    """
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


# ---- one contrast


def _row(found: Evidence, contrast: Contrast) -> dict[str, object]:
    sides = [_side(found, contrast, side) for side in contrast.sides]
    sides = [side.assign(weight=side["sign"] / max(1, side["task"].nunique())) for side in _signed(sides)]
    pairs = pd.concat(sides, ignore_index=True).assign(one=0)
    answers = with_bare(pairs, found.answers) if contrast.baseline == BARE else found.answers
    design = next(designs(pairs, ["one"], answers, found.metric.scale), Design(np.zeros(0), [], 0))
    estimated = tested(iter([design]))[0]
    exchanged = _exchanged(pairs, design, contrast)
    done, failed = int(pairs["value"].notna().sum()), int((pairs["status"] == "failed").sum())
    counts = {"expected": len(pairs), "n": done, "failed": failed, "missing": len(pairs) - done - failed}
    return estimated | counts | {
        "name": contrast.name, "words": _words(contrast), "arm": contrast.arm, "baseline": contrast.baseline,
        "budget": contrast.budget, "unit": found.metric.difference, "seeds": estimated["blocks"],
        "mark": "†" if done < len(pairs) or design.lacking else "", "p_exchange": exchanged.p,
        "smallest_p": exchanged.smallest, "note": "; ".join(filter(None, (str(estimated["note"]), exchanged.note))),
    }


def _signed(sides: list[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Sides with the `sign` they enter with, and tasks that are no other side's."""
    for sign, first, side in zip((1.0, -1.0), (0, sum(map(len, sides))), sides, strict=False):
        yield side.assign(sign=sign, task=side["task"] + first)


def _side(found: Evidence, contrast: Contrast, narrowed: Mapping[str, list[str]]) -> pd.DataFrame:
    """The pairs of one side: as of inference.pairs_of."""
    arms = found.arms[found.arms["budget"] == contrast.budget]
    if contrast.baseline == BARE:
        pairs = bare_pairs(arms[arms["init"] == contrast.arm], found.metric.scale)
    else:
        pairs = pairs_of(arms, "init", (contrast.arm, contrast.baseline), found.metric.scale)
    known = kinds(found.study.facts)
    named = [known.get(pair, "") for pair in zip(pairs["origin"], pairs["receiving"], strict=True)]
    held = [selects(narrowed, place) for place in pairs.assign(**{PAIRS: named}).to_dict("records")]
    return pairs[np.array(held, bool)]


def _exchanged(pairs: pd.DataFrame, design: Design, contrast: Contrast) -> Exchanged:
    """The test by exchange, over the seeds that the estimate is over; of whole seeds where a run of the arm is in several."""
    if contrast.less is not None or contrast.baseline == BARE or pairs["arm_id"].duplicated().any():
        return exchange([np.array([value, -value]) for value in design.differences])
    tasks = pairs["task"].nunique()
    whole = [own for _, own in pairs.dropna(subset="value").groupby("seed", sort=False) if len(own) == tasks]
    runs = pd.Series(pairs["run_id"].unique()).reset_index().set_index(0)["index"]  # of sets, in the order of the pairs
    return exchange([rotations(own["value"].to_numpy(float), runs.loc[own["run_id"]].to_numpy(), own["weight"].to_numpy(float))
                     for own in whole])


def _words(contrast: Contrast) -> str:
    """What is compared, in words."""
    when = f"after {contrast.budget:,} updates" if contrast.budget else "before any update"
    text = f"{contrast.arm} against {'the bare host' if contrast.baseline == BARE else contrast.baseline} {when}"
    sides = [", ".join(_narrowed(key, names) for key, names in side.items()) for side in contrast.sides]
    text += f", {sides[0]}" if sides[0] else ""
    return text if contrast.less is None else f"{text}, less the same for {sides[1] or 'all cells'}"


def _narrowed(key: str, names: list[str]) -> str:
    either = " or ".join(names)
    return {PAIRS: f"{either} pairs", "origin": f"from {either}", "receiving": f"to {either}", "relation": f"{either} data",
            "data": f"on {either}"}.get(key, either)
