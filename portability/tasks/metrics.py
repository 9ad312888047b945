"""The metrics of one evaluation: those shipped (portability/core/measures.py), and files of the user's own
for the evaluate library, which is imported where such a file is given, because that takes seconds."""

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from portability.core.errors import UserError
from portability.core.measures import (
    ALWAYS,
    ALWAYS_OF_MORE,
    MEASURES,
    Undefined,
    label_count,
    name_of,
    own,
    probabilities,
    said,
)
from portability.core.specs import METRICS as ASKED

if TYPE_CHECKING:
    import evaluate

# that code of the user's own may raise: it ends neither a command nor a worker
ANYTHING = (Exception, SystemExit)
INPUTS = ("predictions", "references", "prediction_scores")  # what a metric of the user's own may take


def score(
    margin: np.ndarray, nll: np.ndarray, invalid: np.ndarray, label: np.ndarray, asked: Sequence[str] = ASKED,
) -> dict[str, float | str]:
    """The metrics of one evaluation, by Trainer's names (eval_accuracy, eval_loss, ...); in words, why there
    is no number.

    Args:
        margin: (N,) log p(1) - log p(0), finite; of C > 2 labels (N, C - 1) log-odds against label 0
            (core.measures).
        nll: (N,) negative log-likelihood of the right answer, nats, finite.
        invalid: (N,) bool, whether the best token of the whole vocabulary begins no label word.
        label: (N,) from 0 to C - 1.
        asked: of measures.metric_names; measures.ALWAYS, or ALWAYS_OF_MORE, come with them.

    Raises:
        ValueError: no example, lengths that differ, other labels, or values that are not finite.

    Example:
        >>> columns = np.array([2.0, -1.0]), np.array([0.1, 0.3]), np.array([False, True]), np.array([1, 1])
        >>> found = score(*columns, ["auc"])
        >>> found["eval_auc"], found["eval_loss"], found["eval_invalid_rate"]
        ('AUC needs both classes, and all 2 labels are 1', 0.2, 0.5)
    """
    columns, labels = _columns(nll, invalid, margin=margin, label=label), np.asarray(label)
    count, found = label_count(columns["margin"]), dict[str, float | str]()
    if not np.isin(labels, range(count)).all():
        raise ValueError(f"labels must be {_range(count)}, got {np.unique(labels)[:5]}")
    for name, measure in MEASURES.items():
        if name in asked or name in (ALWAYS if count == 2 else ALWAYS_OF_MORE):
            try:
                found[f"eval_{name}"] = float(measure.value(columns[measure.column], labels))
            except Undefined as error:
                found[f"eval_{name}"] = str(error)
    for path in own(asked):
        for key, value in _own_values(path, columns["margin"], labels).items():
            found[key] = f"another metric gives {key} too" if key in found else value
    return found


# ---- metrics of the user's own


@functools.cache
def own_metric(path: str, count: int = 2) -> "evaluate.Metric":
    """A metric out of a file of the user's own, loaded by the library and tried on 64 invented examples of so
    many labels.

    Raises:
        UserError: the library cannot load it, it would load code from elsewhere, takes what is not there, or
            fails.
    """
    import evaluate
    from evaluate.loading import get_imports

    name = f"metric '{name_of(path)}' of eval.metrics"
    if any(kind == "external" for kind, *_ in get_imports(path)):
        raise UserError(f"{name} imports code from an address, which is not run; copy that code beside it")
    try:
        metric = evaluate.load(path, module_type="metric", keep_in_memory=True)
        wanted = metric._feature_names()
    except ANYTHING as error:  # the file is the user's: it may raise anything
        raise UserError(f"{name} cannot be loaded: {_words(error)}") from error
    if foreign := [key for key in wanted if key not in INPUTS]:
        scores = "log-odds of the positive label" if count == 2 else "of every label its probability"
        raise UserError(f"{name} takes {', '.join(foreign)}; there is: predictions ({_range(count)}), "
                        f"references ({_range(count)}) and prediction_scores ({scores})")
    invented = np.linspace(-2, 2, 64)
    try:
        _compute(metric, invented if count == 2 else np.outer(invented, np.arange(1, count)),
                 np.arange(64) // 3 % count)
    except ANYTHING as error:
        every = "both" if count == 2 else f"{count}"
        raise UserError(f"{name} fails on 64 invented examples of {every} labels: {_words(error)}") from error
    return metric


def _range(count: int) -> str:
    return "0 or 1" if count == 2 else f"0 to {count - 1}"


def _own_values(path: str, margin: np.ndarray, labels: np.ndarray) -> dict[str, float | str]:
    """The numbers by their names in a record; in words, why there is none."""
    try:
        found = _compute(own_metric(path, label_count(margin)), margin, labels)
    except ANYTHING as error:  # of the user's code: it costs this number and not the run
        return {f"eval_{name_of(path)}": _words(error)}
    return {"eval_" + (key if key == name_of(path) else f"{name_of(path)}_{key}"):
            value if math.isfinite(value) else f"it is {value}" for key, value in found.items()}


def _compute(metric: "evaluate.Metric", margin: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    given = {"predictions": said(margin), "references": labels.astype(int),
             "prediction_scores": margin if margin.ndim == 1 else probabilities(margin)}
    found = metric.compute(**{name: given[name].tolist() for name in metric._feature_names()})
    if not isinstance(found, dict) or not found:
        raise TypeError(f"it gives {found!r} and no number by name")
    for key, value in found.items():
        if np.ndim(value) or isinstance(value, str | bytes) or value is None:
            raise TypeError(f"it gives for '{key}' {value!r}, which is no single number")
    return {str(key): float(value) for key, value in found.items()}


def _words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


# ---- answers


def score_answers(scores: np.ndarray, nll: np.ndarray, invalid: np.ndarray, scoring: str) -> dict[str, float]:
    """All metrics of one evaluation of answers: eval_accuracy (of exact_match and choice) or eval_rougeL,
    eval_loss (nats a token of the right answer), eval_invalid_rate (share of written answers that do not
    end).

    Args:
        scores: (N,) in [0, 1], what each answer is worth.
        nll: (N,) negative log-likelihood of a token of the right answer, nats, finite.
        invalid: (N,) bool.
        scoring: a name in specs.SCORINGS.

    Raises:
        ValueError: no example, lengths that differ, or values that are not finite.

    Example:
        >>> score_answers(np.array([1.0, 0.0]), np.array([0.5, 1.5]), np.array([False, False]), "choice")
        {'eval_accuracy': 0.5, 'eval_loss': 1.0, 'eval_invalid_rate': 0.0}
    """
    name = "eval_rougeL" if scoring == "rouge_l" else "eval_accuracy"
    names = {"score": name, "nll": "eval_loss", "invalid": "eval_invalid_rate"}
    columns = _columns(nll, invalid, score=scores)
    return {names[key]: float(columns[key].mean()) for key in names}


def _columns(nll: np.ndarray, invalid: np.ndarray, **others: np.ndarray) -> dict[str, np.ndarray]:
    """The columns by name, in double precision, if they can be scored."""
    if np.asarray(invalid).dtype != np.bool_:
        raise ValueError(f"invalid must be bool, got {np.asarray(invalid).dtype}")
    columns = {name: np.asarray(value, np.float64) for name, value in {**others, "nll": nll}.items()}
    columns["invalid"] = np.asarray(invalid)
    shapes = {name: column.shape for name, column in columns.items()}
    lengths = {shape[:1] if name == "margin" and shape[1:] > (1,) else shape  # of more than two labels
               for name, shape in shapes.items()}
    if lengths != {(columns["nll"].size,)} or not columns["nll"].size:
        raise ValueError(f"metrics need columns of one length of at least 1, got {shapes}")
    for name, column in columns.items():
        if bad := int((~np.isfinite(column.reshape(len(column), -1)).all(1)).sum()):
            raise ValueError(f"{name} is not finite for {bad} of {column.size} examples")
    return columns
