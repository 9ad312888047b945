"""Synthetic studies whose curves, and whose runs' facts, a test writes itself."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file
from scipy import stats

from support.synthetic import Axes, Synthetic, build, write
from support.synthetic import record as whole_record

SMALL = Axes(methods=("lora",), pairs=(("base", "large"), ("tuned", "large")), relations=("same",),
             seeds=(0, 1, 2))


def entry(frame: pd.DataFrame, **keys: object) -> pd.Series:
    """The one row with these keys."""
    for key, value in keys.items():
        frame = frame[frame[key] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0]


def rewrite(study: Synthetic, **curves: object) -> None:
    """Give every run of an init a curve: init -> values by seed, each a list over the budgets."""
    for cell in study.cells:
        if cell.init in curves:
            change(study, cell.run_id, dict(zip(study.axes.budgets, curves[cell.init][cell.seed],
                                                strict=True)))


def change(study: Synthetic, run_id: str, values: dict[int, float], **more: object) -> None:
    """Put other numbers, or other facts, into a record."""
    record = json.loads(study.path(run_id).read_text())
    marks = {mark["updates"]: mark for mark in record["train_info"]["metrics"]}
    for mark, value in values.items():
        marks.setdefault(mark, {"updates": mark}).update(eval_accuracy=value, eval_loss=1 - value)
    record["train_info"]["metrics"] = list(marks.values())
    for key, value in more.items():
        record[key] = {**(record[key] or {}), **value} if isinstance(value, dict) else value
    study.path(run_id).write_text(json.dumps(record))


def spend(study: Synthetic) -> None:
    """Facts for every run, and an origin for every ported one."""
    for cell in study.pick(budget=0):
        facts = {"spec": {"train": {"updates": 500}}, "run_info": {"total_time": 10.0 + cell.seed}}
        facts["train_info"] = {"tokens": 500_000, "num_trainable_params": 64, "file_size": 256}
        if cell.init == "ported":
            origin = study.pick(origin=cell.origin, seed=cell.seed)[0].native_id
            facts |= {"spec": {"train": {"updates": 500}, "origin": origin}, "port_info": {"seconds": 0.5}}
        change(study, cell.run_id, {}, **facts)
        change(study, cell.native_id, {}, spec={"train": {"updates": 500}}, train_info={"tokens": 7})


# ---- answers instead of labels

SETS = {"sums": "exact_match", "quiz": "choice", "notes": "rouge_l"}  # data set -> how its answers are scored
STARTS = ("extracted", "scratch", "extracted_random", "pissa")
CUT = Axes(("lora_all",), (("large", "base"),), inits=STARTS, budgets=(0, 50, 100), data=("sums", "quiz"))
SIX = replace(CUT, seeds=(0, 1, 2, 3, 4, 5))
EXAMPLES = 40  # test examples of a set
LEVELS = {"scratch": 0.3, "extracted_random": 0.4, "pissa": 0.5, "same": 0.75, "different": 0.55,
          "bare": 0.05}


def answered(root: Path, axes: Axes = CUT, levels: Mapping[str, float] = LEVELS) -> Synthetic:
    """A study of answers: every start is the bare host, and then runs' scores are drawn around a level by
    init, of extracted by relation."""
    study = build(root, axes)
    heights = {run_id: (cell, height) for cell in study.cells for run_id, height in (
        (cell.run_id, level(cell, levels)), (cell.native_id, 0.8), (cell.bare_id, levels["bare"]))}
    for run_id, (cell, height) in heights.items():
        kind = SETS[cell.data]
        scores = draw(run_id, study.runs[run_id], kind, height) | draw(cell.bare_id, [0], kind,
                                                                       levels["bare"])
        answer(study, run_id, kind, scores)
    return study


def level(cell: object, levels: Mapping[str, float]) -> float:
    """The level around which a cell's scores are drawn after its first update."""
    return levels[cell.relation if cell.init == "extracted" else cell.init]


def draw(run_id: str, marks: Sequence[int], scoring: str, height: float) -> dict[int, np.ndarray]:
    """Scores (EXAMPLES,) at every mark: 0 or 1, or of ROUGE-L between them; each run has its own random
    numbers."""
    random = np.random.default_rng(int(run_id, 16))
    own = float(np.clip(height + random.normal(0, 0.03), 0.01, 0.99))
    found = {mark: random.beta(4 * own, 4 * (1 - own), EXAMPLES) for mark in marks}
    if scoring != "rouge_l":
        found = {mark: (random.random(EXAMPLES) < own).astype(float) for mark in marks}
    return {mark: scores.astype(np.float32) for mark, scores in found.items()}


def answer(study: Synthetic, run_id: str, scoring: str, scores: Mapping[int, np.ndarray]) -> None:
    """Put a record of answers, and their predictions, where the store keeps them."""
    name, marks = "eval_rougeL" if scoring == "rouge_l" else "eval_accuracy", sorted(scores)
    found = whole_record(run_id, {})
    found["train_info"]["metrics"] = [
        {"updates": mark, "eval_loss": 1.0, "eval_invalid_rate": 0.0,
         name: float(scores[mark].mean(dtype=np.float64))}
        for mark in marks]
    found["spec"] = {"task": {"scoring": scoring}}
    write(study.store, run_id, found)
    table = np.stack([scores[mark] for mark in marks])
    tensors = {"updates": np.array(marks), "score": table, "invalid": np.zeros(table.shape, bool)}
    if scoring == "choice":
        tensors["margin"] = (2 * table - 1).astype(np.float32)
    save_file(tensors, study.store.folder(run_id) / "predictions.safetensors")


def scores(study: Synthetic, mark: int, **keys: object) -> np.ndarray:
    """(seeds, EXAMPLES) scores of the runs with these coordinates, in points, from their files."""
    runs = [study.pick(seed=seed, budget=mark, **keys)[0].run_id for seed in study.axes.seeds]
    saved = [study.store.predictions(run_id) for run_id in runs]
    return 100 * np.stack([one["score"][one["updates"].tolist().index(mark)] for one in saved]).astype(float)


def crossed(table: np.ndarray) -> tuple[float, float]:
    """The interval of the mean of differences by seed and test example, (B, M): both are drawn anew; written
    down again."""
    blocks, count = table.shape
    means, columns = table.mean(axis=1), table.mean(axis=0)
    rest = table - means[:, None] - columns + table.mean()
    of_rest = (rest**2).sum() / ((blocks - 1) * (count - 1)) / table.size
    of_blocks, of_columns = means.var(ddof=1) / blocks, columns.var(ddof=1) / count
    parts, degrees = np.array([of_blocks, max(0.0, of_columns - of_rest)]), np.array([blocks - 1, count - 1])
    below = of_blocks**2 / (blocks - 1)
    if parts[1] > 0:
        below += of_columns**2 / (count - 1) + of_rest**2 / ((blocks - 1) * (count - 1))
    together = stats.t.ppf(0.975, parts.sum() ** 2 / below) * np.sqrt(parts.sum())
    quadrature = np.sqrt((stats.t.ppf(0.975, degrees) ** 2 * parts).sum())
    half = (together + quadrature) / 2
    return table.mean() - half, table.mean() + half
