"""What a prediction is worth: metrics of the evaluate library that live here and need no hub.

A prediction is the margin log p(positive) - log p(negative); it says positive where the margin is above 0, so a tie
counts as negative. All values are fractions in [0, 1] except the loss, which is in nats. Importing this module takes
seconds (evaluate), so only workers do.
"""

from abc import abstractmethod
from typing import ClassVar

import datasets
import evaluate
import numpy as np

ZHOU = "Zhou et al., Batch Calibration, ICLR 2024 (arXiv 2309.17249)"


class PerExample(evaluate.Metric):
    """A number from one column of per-example predictions and the labels.

    `column` names what `compute(predictions=[...], references=[...])` expects: margin (float), nll (float, nats) or
    invalid (bool), (N,), and the labels (N,), 0 negative, 1 positive. One evaluation is one row of the metric's own
    table, because the library encodes rows one by one and a row for each example would take ten times as long.
    """

    column: ClassVar[str] = "margin"
    citation_text: ClassVar[str] = ""

    def _info(self) -> evaluate.MetricInfo:
        kind = "bool" if self.column == "invalid" else "float64"
        kinds = {"predictions": kind, "references": "int64"}
        features = {name: datasets.Sequence(datasets.Value(kind)) for name, kind in kinds.items()}
        return evaluate.MetricInfo(
            description=str(self.__doc__), citation=self.citation_text, features=datasets.Features(features),
            inputs_description=f"predictions: [{self.column} (N,)], references: [labels (N,)]",
        )

    def _compute(self, predictions: list[list[float]], references: list[list[int]]) -> dict[str, float]:
        (column,), (labels,) = predictions, references
        return {"value": float(self.value(np.asarray(column), np.asarray(labels)))}

    @staticmethod
    @abstractmethod
    def value(column: np.ndarray, labels: np.ndarray) -> float:
        """The number, from (N,) predictions and (N,) labels."""


class Accuracy(PerExample):
    """Share of right predictions."""

    @staticmethod
    def value(column: np.ndarray, labels: np.ndarray) -> float:
        """Share of examples whose predicted class is the label."""
        return np.mean((column > 0) == (labels == 1))


class CalibratedAccuracy(PerExample):
    """Accuracy after Batch Calibration: the mean log-odds over the evaluated inputs, unlabelled, is subtracted first.

    The contextual bias is averaged over the batch as in the paper; the mean is taken over log-odds and the batch is
    the whole evaluated set (our choice, DECISIONS.md). It presumes that classes are about balanced.
    """

    citation_text = ZHOU

    @staticmethod
    def value(column: np.ndarray, labels: np.ndarray) -> float:
        """Share of right predictions with the threshold at the mean margin."""
        return Accuracy.value(column - np.mean(column), labels)


class MacroF1(PerExample):
    """Mean of both classes' F1; a class that is neither predicted nor present has F1 0."""

    @staticmethod
    def value(column: np.ndarray, labels: np.ndarray) -> float:
        """Mean over the classes of 2 TP / (2 TP + FP + FN)."""
        predicted, positive = column > 0, labels == 1
        scores = []
        for said, true in ((predicted, positive), (~predicted, ~positive)):
            both = np.sum(said) + np.sum(true)  # 2 TP + FP + FN
            scores.append(2 * np.sum(said & true) / both if both else 0.0)
        return np.mean(scores)


class Loss(PerExample):
    """Mean negative log-likelihood of the right answer, in nats.

    For hosts that score label words, of the word's first token among the whole vocabulary; for hosts with a
    classification head, of the class among the two.
    """

    column = "nll"

    @staticmethod
    def value(column: np.ndarray, labels: np.ndarray) -> float:
        """Mean of the per-example values."""
        return np.mean(column)


class InvalidRate(PerExample):
    """Share of examples for which the best token of the whole vocabulary begins no label word (0 with a head)."""

    column = "invalid"

    @staticmethod
    def value(column: np.ndarray, labels: np.ndarray) -> float:
        """Share of invalid answers."""
        return np.mean(column)


class PositiveShare(PerExample):
    """Share of examples predicted positive."""

    @staticmethod
    def value(column: np.ndarray, labels: np.ndarray) -> float:
        """Share of margins above 0."""
        return np.mean(column > 0)


METRICS: dict[str, type[PerExample]] = {
    "accuracy": Accuracy,
    "accuracy_calibrated": CalibratedAccuracy,
    "f1": MacroF1,
    "loss": Loss,
    "invalid_rate": InvalidRate,
    "positive_share": PositiveShare,
}


def score(margin: np.ndarray, nll: np.ndarray, invalid: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """All metrics of one evaluation, by Trainer's names (eval_accuracy, eval_loss, ...).

    Calls each metric's `value` and not its `compute`, which gives the same number (tested) after 9 ms of tables: 6 % of the
    demo study's time.

    Args:
        margin: (N,) log p(positive) - log p(negative), finite; a tie (0) counts as negative.
        nll: (N,) negative log-likelihood of the right answer, nats, finite.
        invalid: (N,) bool, whether the best token of the whole vocabulary begins no label word.
        label: (N,) 0 negative, 1 positive.

    Raises:
        ValueError: no example, lengths that differ, labels other than 0 and 1, or values that are not finite.

    Example:
        >>> found = score(np.array([2.0, -1.0]), np.array([0.1, 0.3]), np.array([False, True]), np.array([1, 1]))
        >>> found["eval_accuracy"], found["eval_loss"], found["eval_invalid_rate"]
        (0.5, 0.2, 0.5)
    """
    columns = {"margin": np.asarray(margin, np.float64), "nll": np.asarray(nll, np.float64)}
    columns["invalid"], labels = np.asarray(invalid), np.asarray(label)
    _check(columns, labels)
    return {f"eval_{name}": float(metric.value(columns[metric.column], labels)) for name, metric in METRICS.items()}


def score_answers(scores: np.ndarray, nll: np.ndarray, invalid: np.ndarray, scoring: str) -> dict[str, float]:
    """All metrics of one evaluation of answers: eval_accuracy (of exact_match and choice) or eval_rougeL, eval_loss (nats a
    token of the right answer), eval_invalid_rate (share of written answers that do not end).

    Args:
        scores: (N,) in [0, 1], what each answer is worth.
        nll: (N,) negative log-likelihood of a token of the right answer, nats, finite.
        invalid: (N,) bool.
        scoring: a name in spec.SCORINGS.

    Raises:
        ValueError: no example, lengths that differ, or values that are not finite.

    Example:
        >>> score_answers(np.array([1.0, 0.0]), np.array([0.5, 1.5]), np.array([False, False]), "choice")
        {'eval_accuracy': 0.5, 'eval_loss': 1.0, 'eval_invalid_rate': 0.0}
    """
    columns = {"score": np.asarray(scores, np.float64), "nll": np.asarray(nll, np.float64), "invalid": np.asarray(invalid)}
    if len({column.shape for column in columns.values()}) > 1 or not len(scores):
        raise ValueError(f"metrics need columns of one length of at least 1, got {[c.shape for c in columns.values()]}")
    for name in ("score", "nll"):
        if bad := int((~np.isfinite(columns[name])).sum()):
            raise ValueError(f"{name} is not finite for {bad} of {len(scores)} examples")
    name = "eval_rougeL" if scoring == "rouge_l" else "eval_accuracy"
    means = {key: float(column.mean()) for key, column in columns.items()}
    return {name: means["score"], "eval_loss": means["nll"], "eval_invalid_rate": means["invalid"]}


def _check(columns: dict[str, np.ndarray], labels: np.ndarray) -> None:
    shapes = {name: column.shape for name, column in columns.items()} | {"label": labels.shape}
    if set(shapes.values()) != {(labels.size,)} or not labels.size:
        raise ValueError(f"metrics need columns of one length of at least 1, got {shapes}")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {np.unique(labels)[:5]}")
    if columns["invalid"].dtype != np.bool_:
        raise ValueError(f"invalid must be bool, got {columns['invalid'].dtype}")
    for name in ("margin", "nll"):
        bad = int((~np.isfinite(columns[name])).sum())
        if bad:
            raise ValueError(f"{name} is not finite for {bad} of {labels.size} examples")
