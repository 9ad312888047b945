"""A whole grid from an empty store: the naive loop against the command, and what each of the command's means saves."""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from portability.bench.children import ALL_CORES, ChildFailed, once
from portability.bench.tables import grid as columns
from portability.bench.workload import Workload
from portability.store import Store

SMALL = ("+sweep=demo", "method=[adapter,lora]", "grid.pairs=[[nano-raw-base,nano-tuned-base]]")
ALONE = ("engine.workers=1", "engine.stack=1")
LEVELS: tuple[tuple[str, tuple[str, ...]], ...] = (  # each line adds one thing to the line before it; "-" lines stand apart
    ("sharing: each run once", ALONE),
    ("+ stacks", ("engine.workers=1",)),
    ("+ one worker a core", ()),
    ("- the same in bf16", ("precision=bf16",)),
    ("- the same, all padded to the longest", ("train.bucket_batches=1000000",)),
)
ALIKE = {"mean": 0.02, "mean_absolute": 0.04}  # of accuracies of the same cells by the naive loop and by us: over some
# hundred updates a difference of rounding grows to points for single cells, in either direction (D-41)


def command(overrides: Sequence[str], results: Path, device: str) -> float:
    """Wall seconds of one command of the project on "cpu" or "cuda".

    Raises:
        ChildFailed: it did not end well.
    """
    words = [sys.executable, "-m", "portability.run", *overrides, f"results={results}", f"engine.device={device}",
             "tracking.wandb=disabled"]
    began = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise ChildFailed((done.stderr.strip() or done.stdout.strip()).splitlines()[-1][:200])
    return time.perf_counter() - began


def start_up(overrides: Sequence[str], device: str) -> float:
    """Seconds of a command that trains next to nothing: processes, imports, hosts, data."""
    little = ("grid.seeds=[0]", "grid.inits=[scratch]", "grid.budgets=[1]", "eval.limit=8", "engine.workers=1")
    with tempfile.TemporaryDirectory() as folder:
        return command([*(word for word in overrides if not re.match(r"grid\.(seeds|inits|budgets)=", word)), *little],
                       Path(folder), device)


def measure(work: Workload, overrides: Sequence[str], seeds: int) -> dict[str, Any]:
    """Seconds of the naive loop over the cells of the first `seeds` seeds, scaled to all seeds, and of each level."""
    naive = once(replace(work, kind="naive", overrides=tuple(overrides), seeds=seeds), ALL_CORES, "naive")
    whole = naive["seconds"] / naive["share_of_seeds"]
    start, rows = start_up(overrides, work.device), []
    for name, more in LEVELS:
        with tempfile.TemporaryDirectory() as folder:
            seconds = command([*overrides, *more], Path(folder), work.device)
            store = Store(next(Path(folder).iterdir()))
            rows.append({"name": name, "seconds": seconds, "naive_over_this": whole / seconds,
                         "without_start": whole / max(1e-9, seconds - start),
                         "difference": _difference(store, naive["accuracy"]) if not more else None})
    alike = all(abs(row["difference"][kind]) <= bound for row in rows if row["difference"] for kind, bound in ALIKE.items())
    return {"overrides": list(overrides), "naive": naive | {"whole_s": whole}, "start_s": start, "rows": rows, "passed": alike}


def _difference(store: Store, accuracy: Mapping[str, float]) -> dict[str, float]:
    """Mean and mean absolute difference over cells of our accuracy minus the naive loop's."""
    found = []
    for name, reached in accuracy.items():
        run_id, _, mark = name.partition("@")
        record = store.read(run_id)
        assert record is not None
        marks = {found["updates"]: found["eval_accuracy"] for found in record["train_info"]["metrics"]}
        found.append(marks[int(mark)] - reached)
    return {"mean": sum(found) / len(found), "mean_absolute": sum(map(abs, found)) / len(found)}


def show(found: Mapping[str, Any]) -> str:
    """The grid's lines."""
    naive, rows = found["naive"], found["rows"]
    lines = [[row["name"], f"{row['seconds']:.1f}", f"{row['naive_over_this']:.2f}", f"{row['without_start']:.2f}",
              "-" if row["difference"] is None else "{mean:+.2%} ({mean_absolute:.2%})".format(**row["difference"])]
             for row in rows]
    scaled = "" if naive["share_of_seeds"] == 1 else f", scaled from {naive['share_of_seeds']:.0%} of the seeds"
    return "\n".join([
        f"grid: {' '.join(found['overrides'])}",
        f"naive loop: {naive['whole_s']:.1f} s for every cell by itself, {naive['threads']} thread(s){scaled}; its imports and "
        f"loading are left out ({naive['setup_s']:.1f} s to load)",
        f"our start-up (in the seconds below): {found['start_s']:.1f} s",
        columns(["from an empty store", "seconds", "naive / this", "without start-up", "accuracy, mean (absolute)"], lines),
        f"accuracy of the same cells by both: {'alike' if found['passed'] else 'DIFFERS'}",
    ])
