"""What the two papers behind this project state, and how a study compares with it."""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.arms import EXTRACTED, PORTED
from analysis.evidence import Evidence
from analysis.inference import LEVELS, bare_pairs, designs
from analysis.inference import compare as compare_pairs
from analysis.intervals import estimate
from portability.core.errors import UserError

FILE = Path(__file__).with_name("published.csv")
SETTING = ("receiving", "origin", "data", "method", "init", "variant")  # what must agree; "a;b" pools over a and b
COLUMNS = ("paper", "place", "method", "origin", "receiving", "init", "data", "variant", "quantity", "value", "unit", "read",
           "source", "note")
NAMED = ("paper", "place", "receiving", "method", "init", "data", "quantity", "source")  # never empty
UNITS = {  # unit -> which values it has
    "percent": (0.0, 100.0), "count": (1.0, math.inf), "rank": (1.0, math.inf),  # rank 1: the best
    "sign": (-1.0, 1.0),  # a claim in words: 1, it is above zero; -1, below
}
READS = ("table", "image of a table", "pixels of a chart", "text", "second-hand text")
HOSTS = {"receiving": "receiving host", "origin": "origin host"}
INTO_PERCENT = {"percent": 1.0, "fraction": 100.0}
ARMS = (PORTED, "sampled", "scratch")  # inits of the first paper
OF_SECOND = (EXTRACTED, "scratch")  # of the second, which states scores, by task
SCORES = {"eval_accuracy": ("accuracy 0-shot", "exact match"), "eval_rougeL": ("ROUGE-L",)}  # as it names ours


def load(path: Path = FILE) -> pd.DataFrame:
    """One row per published figure, in the order of the file.

    Returns:
        COLUMNS; `value` as float, all others as text: `place` the table or figure, SETTING ("" where there is none),
        `quantity`, `unit` (one of UNITS), `read` (one of READS: how the number was read), `source`, `note`.

    Raises:
        UserError: a row has no source, no number, an unknown unit or way of reading, or stands there twice.
    """
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    if tuple(rows.columns) != COLUMNS:
        raise UserError(f"{path} has the columns {', '.join(rows.columns)}; it needs {', '.join(COLUMNS)}")
    for place, row in enumerate(rows.to_dict("records"), start=2):
        if (fault := _fault(row)) is not None:
            raise UserError(f"{path}, line {place}: {fault}")
    doubled = rows.duplicated(["paper", "place", *SETTING, "quantity"])
    if doubled.any():
        raise UserError(f"{path}, line {int(doubled.to_numpy().argmax()) + 2}: this figure stands there twice")
    return rows.assign(value=rows["value"].astype(float))


def _fault(row: dict[str, Any]) -> str | None:
    """What is wrong with a row of the file, or None."""
    if empty := [name for name in NAMED if not row[name].strip()]:
        return f"it has no {' and no '.join(empty)}"
    if row["unit"] not in UNITS:
        return f"unknown unit '{row['unit']}'; choose one of: {', '.join(UNITS)}"
    if row["read"] not in READS:
        return f"unknown way of reading '{row['read']}'; choose one of: {', '.join(READS)}"
    try:
        value = float(row["value"])
    except ValueError:
        return f"'{row['value']}' is no number"
    low, high = UNITS[row["unit"]]
    if not math.isfinite(value) or not low <= value <= high or (row["unit"] == "sign" and abs(value) != 1):
        return f"{row['value']} is no {row['unit']}"
    return None


def compare(study: pd.DataFrame, published: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every published figure with the study's number in the same setting, or with the reason why there is none.

    Comparable is only what has the same hosts, data, method, init, variant and quantity. The embedded hosts are not the
    papers' hosts, so a study of them compares with nothing, and every row says so.

    Args:
        study: the columns of SETTING (`variant` may be left out) and quantity, value, unit ("fraction", or one of UNITS),
            low and high: the interval of the value. Several names in one field are joined by ";".
        published: as `load` gives it; by default the file of the project.

    Returns:
        One row per published figure: its columns; `ours`, `low`, `high` in its unit, `difference` (ours - published, NaN
        for a sign); `within`, whether the published value lies in our interval (a sign: whether our whole interval lies
        on its side), None where nothing is comparable; and `says`, the same in a sentence.

    Raises:
        UserError: a column is missing, two rows of the study have one setting, or a unit is another than the published.
    """
    published = load() if published is None else published
    ours = study if "variant" in study else study.assign(variant="")
    if missing := [name for name in (*SETTING, "quantity", "value", "unit", "low", "high") if name not in ours]:
        raise UserError(f"the study's frame has no column {', '.join(missing)}")
    ours = ours.assign(**{name: ours[name].map(_plain) for name in SETTING})
    keys = [*SETTING, "quantity"]
    if ours.duplicated(keys).any():
        raise UserError(f"the study's frame has several rows for {_words(ours[ours.duplicated(keys)].iloc[0], keys)}")
    rows = {tuple(row[key] for key in keys): row for row in ours.to_dict("records")}
    found = [_compared(row, rows.get((*(_plain(row[name]) for name in SETTING), row["quantity"])), ours)
             for row in published.to_dict("records")]
    return pd.concat([published.reset_index(drop=True), pd.DataFrame(found)], axis=1)


def _plain(names: Any) -> str:
    """Names in alphabetical order, "" for none."""
    return "" if names is None or pd.isna(names) else ";".join(sorted(str(names).split(";")))


def _words(row: Any, keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {row[key] or 'none'}" for key in keys)


def _compared(row: dict[str, Any], mine: dict[str, Any] | None, study: pd.DataFrame) -> dict[str, Any]:
    nothing = {"ours": math.nan, "low": math.nan, "high": math.nan, "difference": math.nan, "within": None}
    if mine is None:
        return {**nothing, "says": f"not comparable: {_why(row, study)}"}
    scale = _scale(row, mine)
    value, low, high = (scale * float(mine[name]) for name in ("value", "low", "high"))
    found = {"ours": value, "low": low, "high": high, "difference": value - row["value"]}
    interval = f"our interval [{low:.2f}, {high:.2f}]"
    if not math.isfinite(value + low + high):
        return {**nothing, "says": "not comparable: the study has no number, or no interval, in this setting"}
    if row["unit"] == "sign":
        within = low > 0 if row["value"] > 0 else high < 0
        side = "above" if row["value"] > 0 else "below"
        says = f"published: {side} zero; ours {value:+.2f}, {interval} {'is' if within else 'is not wholly'} {side} zero"
        return {**found, "difference": math.nan, "within": within, "says": says}
    within = low <= row["value"] <= high
    says = (f"ours {value:.2f}, published {row['value']:.2f} {row['unit']}, difference {value - row['value']:+.2f}: "
            f"{'within' if within else 'outside'} {interval}")
    return {**found, "within": within, "says": says}


def _scale(row: dict[str, Any], mine: dict[str, Any]) -> float:
    """What turns the study's number into the published unit."""
    if row["unit"] == "percent" and mine["unit"] in INTO_PERCENT:
        return INTO_PERCENT[mine["unit"]]
    if row["unit"] == mine["unit"] or row["unit"] == "sign":  # the sign of a number is the same in every unit
        return 1.0
    raise UserError(f"{row['quantity']} is published in {row['unit']}, the study's frame has it in {mine['unit']}")


def _why(row: dict[str, Any], study: pd.DataFrame) -> str:
    """What the study has not, in words: the first part of the setting that none of its rows shares."""
    for name in (*SETTING, "quantity"):
        wanted = _plain(row[name]) if name in SETTING else row[name]
        have = sorted(set(study[name]))
        if wanted not in have:
            words = ", ".join(one.replace(";", " with ") or "none" for one in have) or "nothing"
            return f"the study has no {HOSTS.get(name, name)} {wanted.replace(';', ' with ') or '(none)'}, but {words}"
    return "the study has every part of this setting, but no row with all of them"


# ---- a study in the papers' settings


def beside(found: Evidence) -> pd.DataFrame:
    """`compare` for a study: of each paper only what a study with ported, or with extracted, could answer."""
    figures, inits = load(), set(found.arms["init"])
    first = figures["init"].str.split(";").map(lambda names: PORTED in names)
    kept = (first & (found.arm == PORTED)) | (~first & (EXTRACTED in inits))
    return compare(of_study(found), figures[kept].reset_index(drop=True))


def of_study(found: Evidence) -> pd.DataFrame:
    """What a study has of the quantities that were published: of the first paper's pooled over all its hosts, methods and data
    sets, of the second's (`_scores`) by teacher, student, data set and method.

    Returns:
        As `compare` takes it. "train/test runs": done cells of ARMS at the largest budget; gains: the level "all" at the
        largest budget; "zero-shot lift": ported minus bare before any update, over seeds only; "rank of gain over scratch"
        of each method, from the first to the last that its interval allows beside the other methods' (our choice).
        Several ports: each by itself, named in `variant`; several receiving sets are pooled over seeds only.
    """
    columns = [*SETTING, "quantity", "value", "unit", "low", "high"]
    rows = list(_scores(found)) if EXTRACTED in set(found.arms["init"]) else []
    arms = found.arms[found.arms["init"].isin(ARMS)]
    ports = arms.loc[arms["init"] == PORTED, "port"].unique()
    for port in () if found.arm != PORTED or arms.empty else ports if len(ports) else [None]:
        part = arms[(arms["port"] == port) | ~arms["port"].isin(ports)]
        names = {name: part[name] for name in ("receiving", "origin", "method")} | {"data": pd.concat([part["data"],
                                                                                                      part["origin_data"]])}
        setting = {name: ";".join(sorted(set(values))) for name, values in names.items()}
        setting["variant"] = f"port: {port}" if len(ports) > 1 else ""
        rows += [setting | row for row in _quantities(found, part)]
    return pd.DataFrame(rows, columns=columns)


def _scores(found: Evidence) -> Iterator[dict[str, Any]]:
    """Scores of extracted and of scratch at the largest budget, with t intervals over distinct runs (new seeds only); prompts
    have no examples in them. Where the seed examples are the task's own it is the main result too, which has no variant."""
    top = found.largest[found.largest["init"].isin(OF_SECOND) & (found.largest["status"] == "done")]
    keys = ["init", "method", "receiving", "data", "origin", "origin_data"]
    lone = top.assign(**{name: top[name].mask(top["init"] == "scratch", "") for name in keys[-2:]})
    for names, own in lone.drop_duplicates([*keys, "run_id"]).groupby(keys, sort=False):
        setting = dict(zip(keys, names, strict=True))
        seeds, init = setting.pop("origin_data"), setting.pop("init")
        variants = {"", f"seeds of {seeds}"} if seeds == setting["data"] else {f"seeds of {seeds}" if seeds else ""}
        for name, quantities in SCORES.items():
            mean = estimate(own[name].dropna().to_numpy(float))
            for quantity, variant in product(quantities if mean.blocks else (), sorted(variants)):
                yield setting | {"variant": variant} | _row(init, quantity, "fraction", mean.mean, mean.low, mean.high)


def _quantities(found: Evidence, arms: pd.DataFrame) -> list[dict[str, Any]]:
    top = arms[arms["budget"] == arms["budget"].max()]
    done = int((top["status"] == "done").sum())
    rows: list[dict[str, Any]] = [_row(";".join(sorted(set(top["init"]))), "train/test runs", "count", done, done, done)]
    if found.metric.name != "eval_accuracy":  # what was published are accuracies
        return rows
    whole, methods = (_level(found, top, name) for name in ("all", "method"))
    for row in whole.itertuples():
        rows.append(_row(PORTED, f"gain over {row.baseline}", found.metric.difference, row.mean, row.low, row.high))
    methods = methods[(methods["baseline"] == "scratch") & methods["low"].notna()]
    for row in methods.itertuples():
        rank, first = 1 + (methods["mean"] > row.mean).sum(), 1 + (methods["low"] > row.high).sum()
        last = (methods["high"] > row.low).sum()  # its own is among them
        rows.append(_row(PORTED, "rank of gain over scratch", "rank", rank, first, last) | {"method": row.method})
    return rows + _lift(found, arms)


def _level(found: Evidence, top: pd.DataFrame, name: str) -> pd.DataFrame:
    """A level of comparisons at the largest budget, of one port, over all data sets together."""
    if top["data"].nunique() > 1:  # one name for all sets; what was tested on other examples stays another task
        pooled = top.assign(origin_data=top["origin_data"] + " to " + top["data"], data="all")
        return compare_pairs(pooled, LEVELS[name], None, found.metric.scale)
    frame = found.levels[name]
    frame = frame[(frame["budget"] == top["budget"].max()) & frame["baseline"].isin(ARMS)]
    return frame[frame["port"].isin(top.loc[top["init"] == PORTED, "port"])] if "port" in frame else frame


def _lift(found: Evidence, arms: pd.DataFrame) -> list[dict[str, Any]]:
    """Ported before any update minus the bare host."""
    start = arms[(arms["init"] == PORTED) & (arms["budget"] == 0)]
    if not len(start):
        return []
    design = next(designs(bare_pairs(start, found.metric.scale), ["budget"], None, 1.0))
    lift = estimate(design.differences)
    return [_row(PORTED, "zero-shot lift", found.metric.difference, lift.mean, lift.low, lift.high)]


def _row(init: str, quantity: str, unit: str, value: float, low: float, high: float) -> dict[str, Any]:
    return {"init": init, "quantity": quantity, "unit": unit, "value": value, "low": low, "high": high}
