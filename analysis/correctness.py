"""Which test examples each run gets right, or how well it answers them, out of its predictions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError

from portability.analysis.metrics import PREFIX
from portability.core.errors import UserError
from portability.core.measures import MEASURES, Measure, Undefined
from portability.store import Store


def correctness(store: Store, cells: pd.DataFrame) -> dict[tuple[str, int], np.ndarray]:
    """Of each done cell, by (run id, mark), which of M test examples it gets right (a tie counts as
    negative): (M,) bool; of answers their scores: (M,) in [0, 1].

    Raises:
        UserError: a run has no predictions, none at a mark of its record, or other labels or another number
        of answers.
    """
    found: dict[tuple[str, int], np.ndarray] = {}
    tested: dict[str, np.ndarray] = {}
    done = cells[cells["status"] == "done"]
    for (run_id, data), marks in done.groupby(["run_id", "data"], sort=True)["mark"]:
        saved = store.predictions(str(run_id))
        examples = saved.get("label")
        if examples is None:
            examples = _questions(store, str(run_id), saved["score"].shape[1])
        if not np.array_equal(tested.setdefault(data, examples), examples):
            raise UserError(f"run {run_id} was tested on other examples of {data} than other runs: no "
                            f"comparison")
        places = {int(mark): i for i, mark in enumerate(saved["updates"])}
        for mark in map(int, marks.unique()):
            if mark not in places:
                raise UserError(f"run {run_id} has no predictions at {mark} updates; run the study again "
                                f"without it")
            at = places[mark]
            right = saved["score"][at] if "score" in saved else (saved["margin"][at] > 0) == (examples == 1)
            found[str(run_id), mark] = right
    return found


def marks_of(store: Store, record: Mapping[str, Any], metric: str | None) -> list[dict[str, Any]]:
    """The marks of a record; a shipped metric of margins that they lack is computed where margins and labels
    are stored.

    Args:
        metric: the one that is looked at, if any.
    """
    train = record["train_info"]
    marks, measure = train["metrics"], MEASURES.get(str(metric).removeprefix(PREFIX))
    if metric is None or measure is None or measure.column != "margin":
        return marks
    if all(metric in mark for mark in marks):
        return marks
    try:
        saved = store.predictions(record["run_id"])
    except (UserError, SafetensorError, OSError):
        return marks
    if "label" not in saved:
        return marks
    margins = dict(zip(saved["updates"].tolist(), saved["margin"].astype(float), strict=True))
    return [mark | _computed(metric, measure, margins.get(mark["updates"]), saved["label"]) for mark in marks]


def _computed(name: str, measure: Measure, margin: np.ndarray | None, labels: np.ndarray) -> dict[str, float]:
    try:
        return {} if margin is None else {name: float(measure.value(margin, labels))}
    except Undefined:
        return {}


def _questions(store: Store, run_id: str, count: int) -> np.ndarray:
    """What tells one test set of prompts from another: how many there are, and the digest that a run was
    planned with."""
    spec = (store.read(run_id) or {}).get("spec", {})
    return np.array([str(count), str(spec.get("data", {}).get("eval_digest"))])
