"""What the two papers behind this project state, and how a study compares with it."""

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from portability.analysis.context import StudyContext
from portability.analysis.stats.blocks import LEVELS, build_blocks
from portability.analysis.stats.blocks import compare as compare_pairs
from portability.analysis.stats.intervals import Estimate, estimate
from portability.analysis.stats.pairing import EXTRACTED, PORTED, bare_pairs

FILE = Path(__file__).with_name("paper_values.csv")
SETTING = ("receiving", "origin", "data", "method", "init", "variant")  # what must agree; "a;b" pools both
HOSTS = {"receiving": "receiving host", "origin": "origin host"}
ARMS = (PORTED, "sampled", "scratch")  # inits of the first paper
OF_SECOND = (EXTRACTED, "scratch")  # of the second, which states scores, by task
RANGE = ["value", "low", "high"]
# as it names ours
SCORES = {"eval_accuracy": ("accuracy 0-shot", "exact match"), "eval_rougeL": ("ROUGE-L",)}


def load() -> pd.DataFrame:
    """One row per published figure, in the order of the file.

    Returns:
        `value` as float, all others as text: `paper`; `place`, the table or figure; SETTING ("" where there
        is none); `quantity`; `unit`: percent, count, rank (1: the best) or sign (a claim in words: 1, it is
        above zero; -1, below); `read`, how the number was read; `source`; `note`.
    """
    rows = pd.read_csv(FILE, dtype=str, keep_default_na=False)
    return rows.assign(value=rows["value"].astype(float))


def compare(study: pd.DataFrame, published: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every published figure with the study's number in the same setting, or with the reason why there is
    none.

    Comparable is only what has the same hosts, data, method, init, variant and quantity. The embedded hosts
    are not the papers' hosts, so a study of them compares with nothing, and every row says so.

    Args:
        study: the columns of SETTING (`variant` may be left out) and quantity, value, unit ("fraction", or a
            published one), low and high: the interval of the value. Several names in one field are joined by
            ";".
        published: as `load` gives it; by default the file of the project.

    Returns:
        One row per published figure: its columns; `ours`, `low`, `high` in its unit, `difference` (ours -
        published, NaN for a sign); `within`, whether the published value lies in our interval (a sign:
        whether our whole interval lies on its side), None where nothing is comparable; and `says`, the same
        in a sentence.

    Raises:
        ValueError: two rows of the study have one setting, or a unit is another than the published.
    """
    published = load() if published is None else published
    ours = study if "variant" in study else study.assign(variant="")
    ours = ours.assign(**{name: ours[name].map(_plain) for name in SETTING})
    keys = [*SETTING, "quantity"]
    if ours.duplicated(keys).any():
        twice = ours.loc[ours.duplicated(keys), keys]
        raise ValueError(f"the study has several rows of one setting:\n{twice}")
    rows = {tuple(row[key] for key in keys): row for row in ours.to_dict("records")}
    plain = published.assign(**{name: published[name].map(_plain) for name in SETTING})[keys]
    found = [_compared(row, wanted, rows.get(tuple(wanted.values())), ours) for row, wanted in zip(
        published.to_dict("records"), plain.to_dict("records"), strict=True)]
    return pd.concat([published.reset_index(drop=True), pd.DataFrame(found)], axis=1)


def _plain(names: Any) -> str:
    """Names in alphabetical order, "" for none."""
    return "" if names is None or pd.isna(names) else ";".join(sorted(str(names).split(";")))


def _compared(row: dict[str, Any], wanted: dict[str, str], mine: dict[str, Any] | None,
              study: pd.DataFrame) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(("ours", "low", "high", "difference"), math.nan) | {"within": None}
    if mine is None:
        return found | {"says": f"not comparable: {_why(wanted, study)}"}
    scale = 1.0 if row["unit"] in (mine["unit"], "sign") else 100.0  # a sign is the same in every unit
    if scale == 100.0 and (row["unit"], mine["unit"]) != ("percent", "fraction"):
        units = f"published in {row['unit']}, and the study has it in {mine['unit']}"
        raise ValueError(f"{row['quantity']} is {units}")
    value, low, high = (scale * float(mine[name]) for name in RANGE)
    if not math.isfinite(value + low + high):
        return found | {"says": "not comparable: the study has no number, or no interval, in this setting"}
    found |= {"ours": value, "low": low, "high": high}
    interval, off = f"our interval [{low:.2f}, {high:.2f}]", value - row["value"]
    if row["unit"] == "sign":
        side, within = ("above", low > 0) if row["value"] > 0 else ("below", high < 0)
        there = "is" if within else "is not wholly"
        says = f"published: {side} zero; ours {value:+.2f}, {interval} {there} {side} zero"
        return found | {"within": within, "says": says}
    within = low <= row["value"] <= high
    says = (f"ours {value:.2f}, published {row['value']:.2f} {row['unit']}, difference {off:+.2f}: "
            f"{'within' if within else 'outside'} {interval}")
    return found | {"difference": off, "within": within, "says": says}


def _why(wanted: dict[str, str], study: pd.DataFrame) -> str:
    """The first part of the setting that none of the study's rows shares, in words."""
    for name, names in wanted.items():
        if names not in set(study[name]):
            have = ", ".join(one.replace(";", " with ") or "none" for one in sorted(set(study[name])))
            names = names.replace(";", " with ") or "(none)"
            return f"the study has no {HOSTS.get(name, name)} {names}, but {have or 'nothing'}"
    return "the study has every part of this setting, but no row with all of them"


# ---- a study in the papers' settings


def beside(context: StudyContext) -> pd.DataFrame:
    """`compare` for a study: of each paper only what a study with ported, or with extracted, could answer."""
    figures, inits = load(), set(context.arms["init"])
    first = figures["init"].str.split(";").map(lambda names: PORTED in names)
    kept = (first & (context.arm == PORTED)) | (~first & (EXTRACTED in inits))
    return compare(of_study(context), figures[kept].reset_index(drop=True))


def of_study(context: StudyContext) -> pd.DataFrame:
    """What a study has of the quantities that were published: of the first paper's pooled over all its hosts,
    methods and data sets, of the second's (`_scores`) by teacher, student, data set and method.

    Returns:
        As `compare` takes it. "train/test runs": done cells of ARMS at the largest budget; gains: the level
        "all" at the largest budget; "zero-shot lift": ported minus bare before any update, over seeds only;
        "rank of gain over scratch" of each method, from the first to the last that its interval allows beside
        the other methods' (our choice). Several ports: each by itself, named in `variant`; several receiving
        sets are pooled over seeds only.
    """
    rows = list(_scores(context)) if EXTRACTED in set(context.arms["init"]) else []
    arms = context.arms[context.arms["init"].isin(ARMS)]
    ports = arms.loc[arms["init"] == PORTED, "port"].unique()
    for port in () if context.arm != PORTED or arms.empty else ports if len(ports) else [None]:
        part = arms[(arms["port"] == port) | ~arms["port"].isin(ports)]
        names = {name: part[name] for name in ("receiving", "origin", "method")}
        names["data"] = pd.concat([part["data"], part["origin_data"]])
        setting = {name: ";".join(sorted(set(values))) for name, values in names.items()}
        setting["variant"] = f"port: {port}" if len(ports) > 1 else ""
        rows += [setting | row for row in _quantities(context, part)]
    return pd.DataFrame(rows, columns=[*SETTING, "quantity", "unit", *RANGE])


def _scores(context: StudyContext) -> Iterator[dict[str, Any]]:
    """Scores of extracted and of scratch at the largest budget, with t intervals over distinct runs (new
    seeds only); prompts have no examples in them. Where the seed examples are the task's own it is the main
    result too, which has no variant."""
    top = context.largest[context.largest["init"].isin(OF_SECOND) & (context.largest["status"] == "done")]
    keys = ["init", "method", "receiving", "data", "origin", "origin_data"]
    lone = top.assign(**{name: top[name].mask(top["init"] == "scratch", "") for name in keys[-2:]})
    for names, own in lone.drop_duplicates([*keys, "run_id"]).groupby(keys, sort=False):
        setting = dict(zip(keys, names, strict=True))
        seeds, init = setting.pop("origin_data"), setting.pop("init")
        variants = {f"seeds of {seeds}" if seeds else "", *([""] if seeds == setting["data"] else [])}
        for name, quantities in SCORES.items():
            mean = estimate(own[name].dropna().to_numpy(float))
            for quantity, variant in product(quantities if mean.blocks else (), sorted(variants)):
                yield setting | {"variant": variant} | _row(init, quantity, "fraction", mean)


def _quantities(context: StudyContext, arms: pd.DataFrame) -> list[dict[str, Any]]:
    top = arms[arms["budget"] == arms["budget"].max()]
    done, points = int((top["status"] == "done").sum()), context.metric.difference
    inits = ";".join(sorted(set(top["init"])))
    rows: list[dict[str, Any]] = [_row(inits, "train/test runs", "count", Estimate(done, done, done))]
    if context.metric.name != "eval_accuracy":  # what was published are accuracies
        return rows
    whole, methods = (_level(context, top, name) for name in ("all", "method"))
    rows += [_row(PORTED, f"gain over {row.baseline}", points, row) for row in whole.itertuples()]
    methods = methods[(methods["baseline"] == "scratch") & methods["low"].notna()]
    for row in methods.itertuples():
        rank, first = 1 + (methods["mean"] > row.mean).sum(), 1 + (methods["low"] > row.high).sum()
        last = (methods["high"] > row.low).sum()  # its own is among them
        ranks = _row(PORTED, "rank of gain over scratch", "rank", Estimate(rank, first, last))
        rows.append(ranks | {"method": row.method})
    start = arms[(arms["init"] == PORTED) & (arms["budget"] == 0)]
    for block in build_blocks(bare_pairs(start, context.metric.scale), ["budget"]):
        rows.append(_row(PORTED, "zero-shot lift", points, estimate(block.differences)))
    return rows


def _level(context: StudyContext, top: pd.DataFrame, name: str) -> pd.DataFrame:
    """A level of comparisons at the largest budget, of one port, over all data sets together."""
    if top["data"].nunique() > 1:  # one name for all sets; those of other test examples stay other tasks
        pooled = top.assign(origin_data=top["origin_data"] + " to " + top["data"], data="all")
        return compare_pairs(pooled, LEVELS[name], None, context.metric.scale)
    frame = context.levels[name]
    frame = frame[(frame["budget"] == top["budget"].max()) & frame["baseline"].isin(ARMS)]
    return frame[frame["port"].isin(top.loc[top["init"] == PORTED, "port"])] if "port" in frame else frame


def _row(init: str, quantity: str, unit: str, found: Any) -> dict[str, Any]:
    """A row of the study, of what has a mean, low and high."""
    return {"init": init, "quantity": quantity, "unit": unit, "value": found.mean, "low": found.low,
            "high": found.high}
