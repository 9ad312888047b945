"""The metrics a record holds, and how each is shown."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """How a number is shown: multiplied by `scale`, with `digits` decimals, `symbol` behind the name of its row."""

    scale: float
    digits: int
    symbol: str
    signed: bool = False


UNITS: dict[str, Unit] = {
    "fraction": Unit(100.0, 1, "%"),
    "pp": Unit(1.0, 1, "pp", signed=True),
    "loss": Unit(1.0, 3, "nats"),
    "loss difference": Unit(1.0, 3, "nats", signed=True),
}


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation; a difference of two is multiplied by `scale` and then has unit `difference`."""

    name: str
    label: str
    unit: str = "fraction"
    difference: str = "pp"
    scale: float = 100.0
    better: str | None = "higher"  # "lower", or None where neither is better


METRICS: dict[str, Metric] = {
    "eval_accuracy": Metric("eval_accuracy", "accuracy"),
    "eval_accuracy_calibrated": Metric("eval_accuracy_calibrated", "calibrated accuracy"),
    "eval_f1": Metric("eval_f1", "F1"),
    "eval_loss": Metric("eval_loss", "loss", "loss", "loss difference", 1.0, "lower"),
    "eval_invalid_rate": Metric("eval_invalid_rate", "invalid answers", better="lower"),
    "eval_positive_share": Metric("eval_positive_share", "share predicted positive", better=None),
}
