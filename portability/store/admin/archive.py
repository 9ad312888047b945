"""Pack a study for publication: its records, failures, cells and predictions as Parquet files, without
modules."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from tqdm import tqdm

from portability.core.errors import UserError
from portability.store import failures, host_pairs
from portability.store.atomic import replacing_folder
from portability.store.manifests import place_of
from portability.store.published import EXAMPLES, FAILURE, FOLDER, PREDICTIONS, RECORDS, RUN, WIDE
from portability.store.records import canonical
from portability.store.store import Store
from portability.store.tables import write

KINDS = {"updates": "int64", "invalid": "bool", "label": "int8", "margin": "float32", "score": "float32"}


def pack(store: Store, target: Path) -> tuple[int, int]:
    """Write the published copy of a study to a folder; gives back its numbers of runs and of failures.

    Raises:
        UserError: the target is not empty, or a run of this one is broken, unsound or of another version, or
            its predictions are of other types than a published copy keeps.
    """
    store.manifests()
    if store.published:
        raise UserError(f"{store.root} is a published copy already; copy the folder")
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} is not empty; choose another folder")
    with replacing_folder(target) as draft:
        folder = draft / FOLDER
        folder.mkdir()
        records = _records(store)
        write(folder / "records.parquet", records)
        runs = [run_id for run_id in store.ids() if (store.folder(run_id) / PREDICTIONS).exists()]
        parts = [_examples(run_id, store.predictions(run_id))
                 for run_id in tqdm(runs, desc="predictions", unit="run", disable=None)]
        schema = WIDE if any(part.schema == WIDE for part in parts) else EXAMPLES
        parts = [part if part.schema == schema else _widened(part) for part in parts]
        write(folder / "predictions.parquet", pa.concat_tables([schema.empty_table(), *parts]))
        cells_of(store).to_parquet(folder / "cells.parquet", index=False, compression="zstd")
        shutil.copytree(store.root / "manifests", draft / "manifests", ignore=shutil.ignore_patterns(".*"))
        host_pairs.copy(store.root, draft)
    kinds = records.column("kind").to_pylist()
    return kinds.count(RUN), kinds.count(FAILURE)


def _records(store: Store) -> pa.Table:
    """Rows by run, a run's record before its failures, those by attempt. Every file of the runs is read."""
    rows = []
    for run_id in tqdm(store.ids(), desc="records", unit="run", disable=None):
        found = store.inspect(run_id)
        if found.fault is not None:
            raise UserError(f"run {run_id} cannot be published: {found.fault}; "
                            f"see `portability store verify {store.root}`")
        rows.append((run_id, RUN, 0, canonical(found.record)))
    for run_id, attempt, failure in store.failed():
        if failure is None:
            path = failures.path_of(store.root / "failures", run_id, attempt)
            raise UserError(f"{path} is no failure; remove it and pack again")
        rows.append((run_id, FAILURE, attempt, canonical(failure)))
    rows.sort(key=lambda row: (row[0], row[2]))
    return pa.Table.from_pylist([dict(zip(RECORDS.names, row, strict=True)) for row in rows], RECORDS)


def cells_of(store: Store) -> pd.DataFrame:
    """A row for each cell that was asked for: its coordinates, run and mark, whether it is done, and the
    metrics of both iterates at its mark (null where it is not done)."""
    records = list(store.records())
    newest = max((record["schema"] for record in records), default=None)  # schemas are never pooled
    metrics = {(record["run_id"], mark["updates"]): {k: v for k, v in mark.items() if k != "updates"}
               for record in records if record["schema"] == newest
               for mark in record["train_info"]["metrics"]}
    asked = [row for manifest in store.manifests() for row in manifest["cells"]]
    rows = {(place_of(row), row["run_id"]): row for row in asked}.values()
    return pd.DataFrame([{**row, "done": key in metrics, **metrics.get(key, {})}
                         for row in rows for key in [(row["run_id"], row["mark"])]])


def _examples(run_id: str, found: dict[str, np.ndarray]) -> pa.Table:
    """A run's predictions, a row for each example, mark by mark."""
    kinds = {name: str(array.dtype) for name, array in found.items()}
    if not kinds.items() <= KINDS.items() or "score" not in kinds and not {"margin", "label"} <= kinds.keys():
        raise UserError(f"the predictions of run {run_id} are of the types {kinds}, "
                        "which a published copy does not keep")
    marks, count = found["invalid"].shape
    columns = {"run_id": pa.repeat(run_id, marks * count), "updates": found["updates"].repeat(count),
               "example": np.tile(np.arange(count, dtype=np.int32), marks)}
    columns |= {name: np.tile(value, marks) if name == "label" else value.reshape(-1)
                for name, value in found.items() if name != "updates" and value.ndim < 3}
    schema = EXAMPLES
    if (margin := found.get("margin")) is not None and margin.ndim == 3:
        schema, ends = WIDE, np.arange(marks * count + 1, dtype=np.int32) * margin.shape[2]
        columns["margins"] = pa.ListArray.from_arrays(pa.array(ends), pa.array(margin.reshape(-1)))
    nulls = {field.name: pa.nulls(marks * count, field.type) for field in schema}
    return pa.table(nulls | columns, schema=schema)


def _widened(part: pa.Table) -> pa.Table:
    return part.append_column(WIDE.field("margins"), pa.nulls(len(part), WIDE.field("margins").type))
