"""Synthetic studies whose curves, and whose runs' facts, a test writes itself."""

import json

import pandas as pd
from synthetic import Axes, Synthetic

SMALL = Axes(methods=("lora",), pairs=(("base", "large"), ("tuned", "large")), relations=("same",), seeds=(0, 1, 2))


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
            change(study, cell.run_id, dict(zip(study.axes.budgets, curves[cell.init][cell.seed], strict=True)))


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
