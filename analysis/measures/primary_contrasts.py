"""The primary contrasts of a study: those that its sweep declared before the runs, with the one test that
decides each."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from portability.analysis.context import StudyContext, once
from portability.analysis.metrics import LAST, PREFIX, Metric, metric_of
from portability.analysis.stats.blocks import Block, build_blocks, estimate_block
from portability.analysis.stats.exchange import Exchanged, exchange, rotations
from portability.analysis.stats.intervals import ALPHA, detectable
from portability.analysis.stats.multiple_comparisons import holm
from portability.analysis.stats.pairing import bare_pairs, pairs_of, with_bare
from portability.core.contrasts import PAIRS, Contrast, all_alike, selects
from portability.core.specs import BARE

COLUMNS = [
    "name", "words", "arm", "baseline", "budget", "unit", "mean", "low", "high", "p", "p_holm", "family",
    "p_exchange", "smallest_p", "mdd", "se", "df", "effect", "seeds", "examples", "expected", "n", "failed",
    "missing", "unpaired", "mark", "verdict", "note"]
OPEN = "open"


@once
def primary(context: StudyContext) -> pd.DataFrame:
    """One row for each declared contrast, in the order of the sweep; no row where none, or not the same ones,
    are declared.

    Returns:
        COLUMNS: `name` as declared, `words` what it is in words, `mean`, `low`, `high` (95 % of new seeds and
        new test examples) in `unit`; `p` of the t test, `p_holm` over the `family` of all primary contrasts,
        which decides; `p_exchange` with labels exchanged within seeds (exchange.rotations; the sign of a seed
        for a difference of differences, against the bare host, and where runs of the arm stand in several
        pairs) and the `smallest_p` that these seeds could give by it; `mdd`, the true difference that this
        study would find 4 times in 5 at the first step of Holm's correction (0.05 / family); `seeds` that
        have all cells, `examples`; pairs `expected`, `n` done, `failed`, `missing`, of these `unpaired` (no
        baseline in the grid), `mark`; `verdict`: "ahead", "behind" (by the metric's better side; "higher",
        "lower" where neither is) or "open"; `note`.

    Source: our choice (D-119).
    """
    contrasts = all_alike(context.study.facts) or []
    frame = pd.DataFrame([_row(context, contrast) for contrast in contrasts], columns=COLUMNS)
    p = frame["p"].to_numpy(float)  # a contrast without a test stays in the family, with p = 1
    frame["p_holm"] = np.where(np.isnan(p), np.nan, holm(np.nan_to_num(p, nan=1.0)))
    se, df = (frame[name].to_numpy(float) for name in ("se", "df"))
    frame["family"], frame["mdd"] = len(contrasts), detectable(se, df, ALPHA / max(1, len(contrasts)))
    frame["verdict"] = [verdict(mean, p, context.metric)
                        for mean, p in zip(frame["mean"], frame["p_holm"], strict=True)]
    return frame


def verdict(mean: float, p: float, metric: Metric) -> str:
    """In one word, what a test says: which side the arm is on where p is at most 0.05, else "open".

    Example:
        >>> from portability.analysis.metrics import METRICS
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


# ---- both iterates


def has_contrasts(context: StudyContext) -> bool:
    """Whether the study has primary contrasts."""
    return not primary(context).empty


def has_iterates(context: StudyContext) -> bool:
    """Whether primary contrasts are there, and beside them numbers of last iterates that are others than
    their own."""
    cells, last = context.cells, _last(context)
    own = cells[context.metric.name].rename(last)
    return has_contrasts(context) and last in cells and not cells[last].equals(own)


def _last(context: StudyContext) -> str:
    return LAST + context.metric.name.removeprefix(PREFIX)


@once
def iterates(context: StudyContext) -> pd.DataFrame:
    """The primary contrasts of what a mark evaluates (`mean`, `low`, ...) and of its last iterate alone
    (`last_mean`, ...), both over seeds only, for there are no predictions of last iterates; `turns` where the
    verdicts differ."""
    study, name = context.study, _last(context)
    last = replace(study, cells=study.cells.assign(value=study.cells[name]), metric=name)
    one, other = (primary(each) for each in (StudyContext(study, context.metric),
                                             StudyContext(last, metric_of(name))))
    kept = ["mean", "low", "high", "p_holm", "verdict", "mark"]
    own = other[kept].add_prefix(LAST)
    return one[["name", "words", "budget", "unit",
                *kept]].join(own).assign(turns=one["verdict"] != other["verdict"])


# ---- one contrast


def _row(context: StudyContext, contrast: Contrast) -> dict[str, object]:
    sides = [_side(context, contrast, narrowed).assign(side=sign)
             for sign, narrowed in zip((1.0, -1.0), contrast.sides, strict=False)]
    pairs = pd.concat(sides, ignore_index=True)
    weight = pairs["side"] / pairs.groupby("side")["task"].transform("nunique")
    pairs = pairs.assign(one=0, weight=weight, task=pairs.groupby(["side", "task"]).ngroup())
    answers = with_bare(pairs, context.answers) if contrast.baseline == BARE else context.answers
    block = next(build_blocks(pairs, ["one"], answers, context.metric.scale), Block(np.zeros(0), [], 0))
    estimated = estimate_block(block)
    exchanged = _exchanged(pairs, block, contrast)
    done, failed = int(pairs["value"].notna().sum()), int((pairs["status"] == "failed").sum())
    counts = {"expected": len(pairs), "n": done, "failed": failed, "missing": len(pairs) - done - failed,
              "unpaired": int((pairs["status"] == "unpaired").sum())}
    return {
        **estimated, **counts,
        "name": contrast.name, "words": _words(contrast), "arm": contrast.arm, "baseline": contrast.baseline,
        "budget": contrast.budget, "unit": context.metric.difference, "seeds": estimated["blocks"],
        "mark": "†" if done < len(pairs) or block.lacking else "", "p_exchange": exchanged.p,
        "smallest_p": exchanged.smallest,
        "note": "; ".join(filter(None, (str(estimated["note"]), exchanged.note))),
    }


def _side(context: StudyContext, contrast: Contrast, narrowed: Mapping[str, list[str]]) -> pd.DataFrame:
    """The pairs of one side: as of pairing.pairs_of."""
    arms = context.arms[context.arms["budget"] == contrast.budget]
    if contrast.baseline == BARE:
        pairs = bare_pairs(arms[arms["init"] == contrast.arm], context.metric.scale)
    else:
        pairs = pairs_of(arms, "init", (contrast.arm, contrast.baseline), context.metric.scale)
    named = [context.kinds.get(pair, "") for pair in zip(pairs["origin"], pairs["receiving"], strict=True)]
    held = [selects(narrowed, place) for place in pairs.assign(**{PAIRS: named}).to_dict("records")]
    return pairs[np.array(held, bool)]


def _exchanged(pairs: pd.DataFrame, block: Block, contrast: Contrast) -> Exchanged:
    """The test by exchange, over the seeds that the estimate is over; of whole seeds where a run of the arm
    is in several."""
    if contrast.less is not None or contrast.baseline == BARE or pairs["arm_id"].duplicated().any():
        return exchange([np.array([value, -value]) for value in block.differences])
    tasks = pairs["task"].nunique()
    whole = [own for _, own in pairs.dropna(subset="value").groupby("seed", sort=False) if len(own) == tasks]
    sets = {run: i for i, run in enumerate(pairs["run_id"].unique())}  # in the order of the pairs
    return exchange([rotations(own["value"].to_numpy(float), own["run_id"].map(sets).to_numpy(),
                               own["weight"].to_numpy(float)) for own in whole])


def _words(contrast: Contrast) -> str:
    """What is compared, in words."""
    when = f"after {contrast.budget:,} updates" if contrast.budget else "before any update"
    baseline = "the bare host" if contrast.baseline == BARE else contrast.baseline
    text = f"{contrast.arm} against {baseline} {when}"
    sides = [", ".join(_narrowed(key, names) for key, names in side.items()) for side in contrast.sides]
    text += f", {sides[0]}" if sides[0] else ""
    return text if contrast.less is None else f"{text}, less the same for {sides[1] or 'all cells'}"


def _narrowed(key: str, names: list[str]) -> str:
    either = " or ".join(names)
    return {PAIRS: f"{either} pairs", "origin": f"from {either}", "receiving": f"to {either}",
            "relation": f"{either} data", "data": f"on {either}"}.get(key, either)
