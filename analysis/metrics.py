"""The metrics a record holds, and how each is shown."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Unit:
    """How a number is shown: multiplied by `scale`, with `digits` decimals, `symbol` behind the name of its
    row."""

    scale: float
    digits: int
    symbol: str
    signed: bool = False


UNITS: dict[str, Unit] = {
    "fraction": Unit(100.0, 1, "%"), "pp": Unit(1.0, 1, "pp", signed=True), "loss": Unit(1.0, 3, "nats"),
    "loss difference": Unit(1.0, 3, "nats", signed=True), "number": Unit(1.0, 3, "no unit"),
    "number difference": Unit(1.0, 3, "no unit", signed=True),
}


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation; a difference of two is multiplied by `scale` and then has unit
    `difference`."""

    name: str
    label: str
    unit: str = "fraction"
    difference: str = "pp"
    scale: float = 100.0
    better: str | None = "higher"  # "lower", or None where neither is better

    @property
    def title(self) -> str:
        """The label at the head of a figure or sentence."""
        return self.label[0].upper() + self.label[1:]

    @property
    def sign(self) -> float:
        """1.0 where higher is better, -1.0 where lower is; NaN where neither is."""
        return {"higher": 1.0, "lower": -1.0}.get(self.better or "", math.nan)


METRICS: dict[str, Metric] = {
    "eval_accuracy": Metric("eval_accuracy", "accuracy"),
    "eval_accuracy_calibrated": Metric("eval_accuracy_calibrated", "calibrated accuracy"),
    "eval_f1": Metric("eval_f1", "F1"),
    "eval_loss": Metric("eval_loss", "loss", "loss", "loss difference", 1.0, "lower"),
    "eval_invalid_rate": Metric("eval_invalid_rate", "invalid answers", better="lower"),
    "eval_positive_share": Metric("eval_positive_share", "share predicted positive", better=None),
    "eval_largest_share": Metric("eval_largest_share", "share of the label predicted most", better=None),
    "eval_auc": Metric("eval_auc", "AUC"),
    "eval_matthews_correlation": Metric(
        "eval_matthews_correlation", "Matthews correlation", "number", "number difference", 1.0),
    "eval_rougeL": Metric("eval_rougeL", "ROUGE-L"), "eval_score": Metric("eval_score", "score"),
}
OF_LABELS = tuple(METRICS)[:6]  # what a record of texts with labels holds unless other metrics are asked for
PREFIX, LAST = "eval_", "last_"  # of a record's metrics: of what a mark evaluates, of its last iterate
SCORE, PARTS = "eval_score", ("eval_accuracy",
                              "eval_rougeL")  # a score is the first of its parts that a record holds
AUC = "eval_auc"
OVER_EXAMPLES = (*PARTS, SCORE, AUC)  # means over test examples of a number that the predictions give


def metric_of(name: str) -> Metric:
    """How a metric is shown. Of one that was the study's own nobody knows whether more of it is better.

    Example:
        >>> metric_of("eval_auc").label, metric_of("eval_mine").label, metric_of("eval_mine").better
        ('AUC', 'mine', None)
        >>> metric_of("last_accuracy").label
        'accuracy of the last iterate'
    """
    if name.startswith(LAST):
        averaged = metric_of(PREFIX + name.removeprefix(LAST))
        return replace(averaged, name=name, label=f"{averaged.label} of the last iterate")
    return METRICS.get(name) or Metric(name, name.removeprefix(PREFIX), "number", "number difference", 1.0,
                                       None)


def names_of(held: Iterable[str]) -> list[str]:
    """The metrics that are known and those of the study's own among what its records, or its cells, hold."""
    others = sorted(set(held) - set(METRICS))
    return [*METRICS, *(name for prefix in (PREFIX, LAST) for name in others if name.startswith(prefix))]


def value_of(mark: Mapping[str, Any], name: str) -> Any:
    """A metric of one mark of a record, None where it does not hold it.

    Example:
        >>> value_of({"eval_rougeL": 0.5}, "eval_score"), value_of({"eval_rougeL": 0.5}, "eval_accuracy")
        (0.5, None)
    """
    return next((mark[part] for part in (PARTS if name == SCORE else (name,)) if part in mark), None)


def shown(cells: pd.DataFrame, chosen: str) -> list[str]:
    """The metrics of a study that a reader sees: those that its cells have, and the chosen one, in the order
    of METRICS, and its own last; of the last iterate only where that is chosen.

    The score is left out where it is the accuracy, or ROUGE-L, of every cell, and not chosen. Without any
    number: OF_LABELS.

    Args:
        cells: a tidy frame (load.tidy).
    """
    names = [name for name in names_of(cells.columns) if not name.startswith(LAST) or name == chosen]
    there = [name for name in names if name != SCORE and cells[name].notna().any()] or list(OF_LABELS)
    mixed = set(PARTS) <= set(there)
    return [name for name in names if name in there or name == chosen or (name == SCORE and mixed)]
