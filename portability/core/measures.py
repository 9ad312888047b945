"""What predictions of labels are worth: formulas with numpy alone, and which of them a study asks for.

A prediction of two labels is the margin log p(1) - log p(0), (N,); of C > 2 labels it is these log-odds of
label 1, 2, ... against label 0, (N, C - 1). It says the likeliest label, of several the first, so that of two
labels a tie counts as label 0 (negative). All values are fractions in [0, 1] except the Matthews correlation,
in [-1, 1], and the loss, in nats.
"""

import ast
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from portability.core.errors import UserError


class Undefined(ValueError):
    """Says why a measure has no number for these predictions."""


def label_count(margin: np.ndarray) -> int:
    """How many labels predictions (N,) or (N, C - 1) are of."""
    return 2 if margin.ndim == 1 else margin.shape[1] + 1


def log_odds(margin: np.ndarray) -> np.ndarray:
    """Of every label against label 0, whose own are 0: (N, C)."""
    beside = margin.reshape(len(margin), label_count(margin) - 1)
    return np.concatenate([np.zeros_like(beside[:, :1]), beside], axis=1)


def said(margin: np.ndarray) -> np.ndarray:
    """The predicted labels, (N,) int.

    Example:
        >>> said(np.array([0.0, 0.1])).tolist(), said(np.array([[-1.0, -2.0], [3.0, 3.0]])).tolist()
        ([0, 1], [0, 1])
    """
    return log_odds(margin).argmax(1)


def probabilities(margin: np.ndarray) -> np.ndarray:
    """Of the labels among themselves, (N, C)."""
    odds = log_odds(np.asarray(margin, np.float64))
    powers = np.exp(odds - odds.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def accuracy(margin: np.ndarray, labels: np.ndarray) -> float:
    """Share of right predictions."""
    return np.mean(said(margin) == labels)


def accuracy_calibrated(margin: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy after Batch Calibration (Zhou et al., ICLR 2024, arXiv 2309.17249): the mean log-odds over the
    evaluated inputs, unlabelled, is subtracted first.

    The contextual bias is averaged over the batch as in the paper; the mean is taken over log-odds and the
    batch is the whole evaluated set (our choice, D-12). It presumes that classes are about balanced.
    """
    return accuracy(margin - np.mean(margin, axis=0), labels)


def macro_f1(margin: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the labels' F1 = 2 TP / (2 TP + FP + FN); a label that is neither predicted nor present has F1
    0 (scikit-learn's macro average over all labels of the set).
    """
    predicted, scores = said(margin), []
    for label in range(label_count(margin)):
        given, true = predicted == label, labels == label
        both = np.sum(given) + np.sum(true)  # 2 TP + FP + FN
        scores.append(2 * np.sum(given & true) / both if both else 0.0)
    return np.mean(scores)


def loss(nll: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the right answer, in nats.

    For hosts that score label words, of the word's first token among the whole vocabulary; for hosts with a
    classification head, of the class among all.
    """
    return np.mean(nll)


def invalid_rate(invalid: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples for which the best token of the whole vocabulary begins no label word (0 with a
    head).
    """
    return np.mean(invalid)


def positive_share(margin: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples predicted positive.

    Raises:
        Undefined: there are more than two labels.
    """
    if (count := label_count(margin)) > 2:
        raise Undefined(f"the share predicted positive is of two labels, and there are {count}")
    return float(np.mean(said(margin) == 1))


def largest_share(margin: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples that are given the label that is given most often."""
    return float(np.bincount(said(margin)).max() / len(margin))


def auc(margin: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve of each label against all others (Hanley and McNeil, Radiology 143, 1982), and
    of these the mean: the share of pairs of an example of the label and another one in which the first has
    the larger log-odds of it; equal ones count half. No threshold enters, so of two labels, whose curves are
    one, a constant added to all margins changes nothing.

    Raises:
        Undefined: of a label there is no example, so it has no pair.

    Source: scikit-learn's roc_auc_score(multi_class="ovr", average="macro").
    """
    return np.mean([won[there].sum() / (2 * there.sum() * (~there).sum())
                    for there, won in _pairs_won(margin, labels)])


def auc_by_example(margin: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What each example contributes to `auc`: (N,), whose mean is the AUC, and whose differences between two
    predictions of the same examples have, over examples, the variance of the difference of two AUCs.

    For each label AUC + N / N_c (share of pairs that the example wins - AUC), N_c the examples on its side.

    Raises:
        Undefined: as of `auc`.

    Source: the structural components of DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988.

    Example:
        >>> auc_by_example(np.array([-2.0, 1.0, 0.0, 2.0]), np.array([0, 0, 1, 1])).tolist()
        [1.25, 0.25, 0.25, 1.25]
    """
    parts = []
    for there, won in _pairs_won(margin, labels):
        share = np.mean(there)
        won = won / (2 * np.where(there, (~there).sum(), there.sum()))
        parts.append(won[there].mean() + (won - won[there].mean()) / np.where(there, share, 1 - share))
    return np.mean(parts, axis=0)


def _pairs_won(margin: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each label (N,) which examples are of it, and (N,) of how many on the other side each is rightly
    ahead, or behind: 2 for one, 1 for an equal one."""
    count, kinds = label_count(margin), np.unique(labels)
    if lacking := sorted(set(range(count)) - set(kinds.tolist())):
        raise Undefined(f"AUC needs both classes, and all {labels.size} labels are {kinds[0]}" if count == 2
                        else f"AUC needs every label, and none of the {labels.size} examples is of label "
                        f"{lacking[0]}")
    odds = log_odds(margin)
    for label in range(count):  # ranked as by its probability, which would be rounded
        own = odds[:, label] - np.logaddexp.reduce(np.delete(odds, label, axis=1), axis=1)
        there = labels == label
        won = np.empty(len(own), int)
        for side, sign in ((there, 1), (~there, -1)):
            others = np.sort(sign * own[~side])
            won[side] = sum(np.searchsorted(others, sign * own[side], end) for end in ("left", "right"))
        yield there, won


def matthews_correlation(margin: np.ndarray, labels: np.ndarray) -> float:
    """Correlation of predicted and true labels; 0, the limit of the formula, where one label only is
    predicted.

    Raises:
        Undefined: all labels are of one class.

    Source: Matthews, Biochimica et Biophysica Acta 405 (1975), for two labels; Gorodkin, Computational
        Biology and Chemistry 28 (2004), which is the same there, for more.
    """
    count, predicted = label_count(margin), said(margin)
    if len(kinds := np.unique(labels)) < 2:
        raise Undefined(f"the Matthews correlation needs {'both' if count == 2 else 'two'} classes, and all "
                        f"{labels.size} labels are {kinds[0]}")
    given, true = (np.bincount(part, minlength=count) for part in (predicted, labels.astype(int)))
    total, hits = labels.size, int(np.sum(predicted == labels))
    spread = (total**2 - int(given @ given)) * (total**2 - int(true @ true))
    return (hits * total - int(given @ true)) / math.sqrt(spread) if spread else 0.0


class Measure(NamedTuple):
    """A shipped number: its formula of predictions and (N,) labels 0, 1, ..., and the column of predictions
    that it takes: margin (float), nll (float, nats) or invalid (bool).
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
    "largest_share": Measure(largest_share),
    "auc": Measure(auc),
    "matthews_correlation": Measure(matthews_correlation),
}
DECIDING = ("accuracy", "accuracy_calibrated", "f1", "auc", "matthews_correlation")  # of which more is better
# Kept whatever is asked, of two labels and of more: they show a one-sided host.
ALWAYS = ("accuracy_calibrated", "loss", "invalid_rate", "positive_share")
ALWAYS_OF_MORE = (*ALWAYS[:3], "largest_share")
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
