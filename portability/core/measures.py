"""What predictions of labels are worth: formulas with numpy alone, and which of them a study asks for.

A prediction is the margin log p(positive) - log p(negative); it says positive where the margin is above 0, so
a tie counts as negative. All values are fractions in [0, 1] except the Matthews correlation, in [-1, 1], and
the loss, in nats.
"""

import ast
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from portability.core.errors import UserError


class Undefined(ValueError):
    """Says why a measure has no number for these predictions."""


def accuracy(margin: np.ndarray, labels: np.ndarray) -> float:
    """Share of right predictions."""
    return np.mean((margin > 0) == (labels == 1))


def accuracy_calibrated(margin: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy after Batch Calibration (Zhou et al., ICLR 2024, arXiv 2309.17249): the mean log-odds over the
    evaluated inputs, unlabelled, is subtracted first.

    The contextual bias is averaged over the batch as in the paper; the mean is taken over log-odds and the
    batch is the whole evaluated set (our choice, D-12). It presumes that classes are about balanced.
    """
    return accuracy(margin - np.mean(margin), labels)


def macro_f1(margin: np.ndarray, labels: np.ndarray) -> float:
    """Mean of both classes' F1 = 2 TP / (2 TP + FP + FN); a class that is neither predicted nor present has
    F1 0.
    """
    predicted, positive = margin > 0, labels == 1
    scores = []
    for said, true in ((predicted, positive), (~predicted, ~positive)):
        both = np.sum(said) + np.sum(true)  # 2 TP + FP + FN
        scores.append(2 * np.sum(said & true) / both if both else 0.0)
    return np.mean(scores)


def loss(nll: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the right answer, in nats.

    For hosts that score label words, of the word's first token among the whole vocabulary; for hosts with a
    classification head, of the class among the two.
    """
    return np.mean(nll)


def invalid_rate(invalid: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples for which the best token of the whole vocabulary begins no label word (0 with a
    head).
    """
    return np.mean(invalid)


def positive_share(margin: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples predicted positive."""
    return float(np.mean(margin > 0))


def auc(margin: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve (Hanley and McNeil, Radiology 143, 1982): the share of pairs of a positive and
    a negative example in which the positive one has the larger margin; equal margins count half. No threshold
    enters, so a constant added to all margins changes nothing.

    Raises:
        Undefined: all labels are of one class, so there is no pair.
    """
    _both(labels, "AUC")
    positive, negative = margin[labels == 1], np.sort(margin[labels == 0])
    below, not_above = (np.searchsorted(negative, positive, side) for side in ("left", "right"))
    return (below.sum() + not_above.sum()) / (2 * len(positive) * len(negative))


def matthews_correlation(margin: np.ndarray, labels: np.ndarray) -> float:
    """Correlation of predicted classes and labels (Matthews, Biochimica et Biophysica Acta 405, 1975),
    (TP TN - FP FN) / sqrt((TP+FP) (TP+FN) (TN+FP) (TN+FN)); 0, the limit of the formula, where one class only
    is predicted.

    Raises:
        Undefined: all labels are of one class.
    """
    _both(labels, "the Matthews correlation")
    said, true = margin > 0, labels == 1
    sizes = [int(part.sum()) for part in (said, ~said, true, ~true)]
    hits, rejections = int((said & true).sum()), int((~said & ~true).sum())
    both = hits * rejections - (sizes[0] - hits) * (sizes[1] - rejections)
    return both / math.sqrt(math.prod(sizes)) if all(sizes) else 0.0


def _both(labels: np.ndarray, what: str) -> None:
    if len(kinds := np.unique(labels)) < 2:
        raise Undefined(f"{what} needs both classes, and all {labels.size} labels are {kinds[0]}")


class Measure(NamedTuple):
    """A shipped number: its formula of (N,) values and (N,) labels, 0 negative, 1 positive, and the column of
    predictions that it takes: margin (float), nll (float, nats) or invalid (bool).
    """

    value: Callable[[np.ndarray, np.ndarray], float]
    column: str = "margin"


MEASURES: dict[str, Measure] = {
    "accuracy": Measure(accuracy),
    "accuracy_calibrated": Measure(accuracy_calibrated),
    "f1": Measure(macro_f1),
    "loss": Measure(loss, "nll"),
    "invalid_rate": Measure(invalid_rate, "invalid"),
    "positive_share": Measure(positive_share),
    "auc": Measure(auc),
    "matthews_correlation": Measure(matthews_correlation),
}
# Kept whatever is asked: they show a one-sided host.
ALWAYS = ("accuracy_calibrated", "loss", "invalid_rate", "positive_share")
TAKEN = (*MEASURES, "rougeL", "score")  # names that a metric of the user's own cannot have


def metric_names(values: Sequence[object]) -> tuple[str, ...]:
    """What eval.metrics asks for: shipped names as they are, metrics of the user's own as the absolute path
    of their file. Nothing of a file is run here.

    Args:
        values: shipped names, folders that hold NAME/NAME.py, or such files themselves.

    Raises:
        UserError: one is neither, cannot be read or has a name that is taken, or none or one twice is asked
            for.
    """
    found = tuple(str(value) if value in MEASURES else _file(str(value)) for value in values)
    names = [name_of(one) for one in found]
    if not names or len(set(names)) < len(names):
        raise UserError("eval.metrics must name at least one metric and none twice, got: "
                        f"{', '.join(names) or 'none'}")
    return found


def name_of(metric: str) -> str:
    """The name of one of `metric_names` in records: the shipped one, or that of the file, never its place.

    Example:
        >>> name_of("auc"), name_of("/home/me/my_metric/my_metric.py")
        ('auc', 'my_metric')
    """
    return Path(metric).stem


def own(metrics: Sequence[str]) -> list[str]:
    """Those of `metric_names` that are files of the user's own."""
    return [metric for metric in metrics if metric not in MEASURES]


def _file(value: str) -> str:
    given = Path(value).expanduser().absolute()
    path = given if given.suffix == ".py" else given / f"{given.name}.py"
    if not path.is_file():
        raise UserError(f"unknown metric '{value}' in eval.metrics; shipped are: {', '.join(MEASURES)}; one "
                        "of your own is a folder NAME with a file NAME.py, or that file, on this disk (no "
                        "code of a hub is run)")
    if not path.stem.isidentifier() or path.stem in TAKEN:
        why = "the name of a shipped one" if path.stem in TAKEN else "no name of letters, digits, underscores"
        raise UserError(f"metric '{path.stem}' of eval.metrics is {why}; give its file another name")
    try:
        ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError) as error:
        raise UserError(f"metric '{path.stem}' of eval.metrics cannot be read as Python: {error}") from error
    return str(path)
