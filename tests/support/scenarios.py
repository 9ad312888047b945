"""Studies of every kind that a table or a figure may meet, as evidence."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from portability.analysis.context import StudyContext, gather
from support.synthetic import FACTS, Axes, Synthetic, build, record, write

SMALL = Axes(pairs=(("base", "large"), ("large", "base")), budgets=(0, 100))


def holes(root: Path) -> Synthetic:
    """One direction of lora all failed, one run of prefix missing, and one seed alone in another."""
    study = build(root)
    for cell in study.pick(method="lora", origin="base", relation="same", init="ported", budget=0):
        study.remove(cell.run_id)
        study.store.fail(cell.run_id, {"error": "boom"})
    study.remove(study.pick(method="prefix", init="sampled", seed=1)[0].run_id)
    for cell in study.pick(method="prefix", origin="tuned", relation="different", init="ported",
                           budget=0)[:2]:
        study.remove(cell.run_id)
    return study


def ports(root: Path) -> Synthetic:
    """Every ported module in two ports."""
    study = build(root, SMALL)
    more = [replace(cell, port="repeat", run_id=cell.run_id[::-1]) for cell in study.cells
            if cell.init != "scratch"]
    more += [replace(cell, port="repeat") for cell in study.cells if cell.init == "scratch"]
    for cell in more:
        marks = {mark: value - 0.01 for mark, value in study.runs.get(cell.run_id[::-1], {}).items()}
        if cell.init != "scratch":
            write(study.store, cell.run_id, record(cell.run_id, marks))
    study.store.expect(more, FACTS)
    return study


def sets(root: Path) -> Synthetic:
    """Two receiving data sets."""
    study = build(root, SMALL)
    more = [replace(cell, data="other", run_id=cell.run_id[::-1], native_id=cell.native_id[::-1],
                    bare_id=cell.bare_id[::-1])
            for cell in study.cells]
    for run_id, marks in study.runs.items():
        write(study.store, run_id[::-1], record(run_id[::-1], marks))
    study.store.expect(more, FACTS)
    return study


def nothing(root: Path) -> Synthetic:
    """Asked for, and nothing done."""
    study = build(root, SMALL)
    for run_id in study.runs:
        study.remove(run_id)
    return study


def _axes(**changes: object) -> Callable[[Path], Synthetic]:
    return lambda root: build(root, replace(SMALL, **changes))


STUDIES: dict[str, Callable[[Path], Synthetic]] = {
    "whole": lambda root: build(root),
    "holes": holes,
    "one seed": _axes(seeds=(0,)),
    "one method": _axes(methods=("lora",)),
    "one of all": _axes(methods=("lora",), pairs=(("base", "large"),), relations=("same",), seeds=(0,),
                        budgets=(100,)),
    "bare only": _axes(inits=("bare",), budgets=(0,)),
    "ported only": _axes(inits=("ported",)),
    "no ported": _axes(inits=("sampled", "scratch")),
    "no sampled": _axes(inits=("ported", "scratch")),
    "controls": _axes(inits=("ported", "sampled", "shuffled", "scratch")),
    "ports": ports,
    "sets": sets,
    "nothing": nothing,
}


def evidence(study: Synthetic, metric: str = "eval_accuracy") -> StudyContext:
    """What is known of a study, with invented similarities of its hosts and costs of its runs."""
    found = gather(study.store, metric)
    # none of tuned and large
    hosts = [("base", "large", 0.8, 0.3, 1.0, 0.5, None), ("base", "tuned", 0.9, 0.1, 1.0, 0.2, 0.1)]
    pairs = pd.DataFrame(hosts, columns=list(found.study.pairs.columns))
    place = pd.Series(range(len(found.study.runs)), index=found.study.runs.index)
    runs = found.study.runs.assign(seconds=3.0 + place % 7, trainable=1000 * (1 + place % 3),
                                   carried=0.5 + place % 2 / 4)
    return replace(found, study=replace(found.study, pairs=pairs, runs=runs))
