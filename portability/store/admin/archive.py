"""Pack a study for publication: its records, failures, cells and predictions as parquet files, without modules."""

import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from portability.core.errors import UserError
from portability.store import failures
from portability.store import host_pairs as pairs
from portability.store.atomic import draft_folder, replacing
from portability.store.index import scan
from portability.store.manifests import place_of
from portability.store.published import FAILURE, FOLDER, RUN, predictions_schema, records_schema
from portability.store.records import canonical
from portability.store.study import Store

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

SCORE = {"score": "float32"}
ROWS = 500_000  # of a row group, at least: what is read to find one run (our choice: a few megabytes)


def pack(store: Store, target: Path) -> tuple[int, int]:
    """Write the published copy of a study to a folder; gives back its numbers of runs and of failures.

    Raises:
        UserError: the target is not empty, or a run of this one is broken, foreign or unsound, or its
            predictions are of other types than a published copy keeps.
    """
    store.manifests()
    if store.published:
        raise UserError(f"{store.root} is a published copy already; copy the folder")
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} is not empty; choose another folder")
    draft = draft_folder(target)
    try:
        (draft / FOLDER).mkdir()
        counts = _write_records(store, draft / FOLDER / "records.parquet")
        answers = any(_answers(store, run_id) for run_id in scan(store.root))
        _write_parquet(draft / FOLDER / "predictions.parquet", predictions_schema(answers), _predictions(store, answers))
        cells_of(store).to_parquet(draft / FOLDER / "cells.parquet", index=False, compression="zstd")
        shutil.copytree(store.root / "manifests", draft / "manifests", ignore=shutil.ignore_patterns(".*"))
        pairs.copy(store.root, draft)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return counts


def _write_records(store: Store, path: Path) -> tuple[int, int]:
    """Rows by run id, a run's record before its failures, those by attempt."""
    runs, failed = scan(store.root), failures.names(store.root / "failures")
    _write_parquet(path, records_schema(), _records(store, runs, failed))
    return len(runs), sum(map(len, failed.values()))


def cells_of(store: Store) -> "pd.DataFrame":
    """A row per cell that was asked for: its coordinates, run and mark, whether it is done, and the metrics of both iterates at
    its mark (null where it is not done)."""
    import pandas as pd

    found = [(record["schema"], record["run_id"], mark) for record in store.records()
             for mark in record["train_info"]["metrics"]]
    newest = max((schema for schema, _, _ in found), default=None)  # the study's protocol, as analysis has it; never pooled
    metrics = {(run_id, mark["updates"]): {k: v for k, v in mark.items() if k != "updates"}
               for schema, run_id, mark in found if schema == newest}
    rows = {(place_of(row), row["run_id"]): row for manifest in store.manifests() for row in manifest["cells"]}
    cells = [{**row, "done": key in metrics, **metrics.get(key, {})}
             for row in rows.values() for key in [(row["run_id"], row["mark"])]]
    return pd.DataFrame(cells)


def _records(store: Store, runs: Collection[str], failed: Mapping[str, list[int]]) -> "Iterator[pa.Table]":
    import pyarrow as pa
    from tqdm import tqdm

    folder = store.root / "failures"
    for run_id in tqdm(sorted({*runs, *failed}), desc="records", unit="run", disable=None):
        rows = [{"run_id": run_id, "kind": RUN, "attempt": 0, "record": _record(store, run_id)}] if run_id in runs else []
        for attempt in failed.get(run_id, []):
            if (failure := failures.load(folder, run_id, attempt)) is None:
                raise UserError(f"{failures.path_of(folder, run_id, attempt)} is no failure; remove it and pack again")
            rows.append({"run_id": run_id, "kind": FAILURE, "attempt": attempt, "record": canonical(failure)})
        yield pa.Table.from_pylist(rows, records_schema())


def _record(store: Store, run_id: str) -> str:
    """A run's canonical record; every file of the run was read."""
    if (fault := store.sound(run_id)) is not None:
        raise UserError(f"run {run_id} cannot be published: {fault}; see `python -m portability.store verify {store.root}`")
    return canonical(store.read(run_id))


def _predictions(store: Store, answers: bool) -> "Iterator[pa.Table]":
    from tqdm import tqdm

    for run_id in tqdm(scan(store.root), desc="predictions", unit="run", disable=None):
        if (store.folder(run_id) / "predictions.safetensors").exists():
            yield _examples(run_id, store.predictions(run_id), predictions_schema(answers))


def _answers(store: Store, run_id: str) -> bool:
    """Whether a run answers prompts."""
    record = store.read(run_id) or {}
    return "scoring" in record.get("spec", {}).get("task", {})


def _examples(run_id: str, found: "dict[str, np.ndarray]", schema: "pa.Schema") -> "pa.Table":
    """A run's predictions, an example a row, mark by mark."""
    import numpy as np
    import pyarrow as pa

    kinds = {name: str(array.dtype) for name, array in found.items()}
    label = {"margin": "float32", "label": "int8"}
    if kinds not in [{"updates": "int64", "invalid": "bool", **rest} for rest in (label, SCORE, SCORE | {"margin": "float32"})]:
        raise UserError(f"the predictions of run {run_id} are of the types {kinds}, which a published copy does not keep")
    marks, count = found["invalid"].shape
    columns = {"run_id": pa.array([run_id]).take(np.zeros(marks * count, int)), "updates": found["updates"].repeat(count),
               "example": np.tile(np.arange(count, dtype=np.int32), marks)}
    columns |= {name: np.tile(value, marks) if name == "label" else value.reshape(-1)
                for name, value in found.items() if name != "updates"}
    nothing = {field.name: pa.nulls(marks * count, field.type) for field in schema}
    return pa.table(nothing | columns, schema=schema)


def _write_parquet(path: Path, schema: "pa.Schema", runs: "Iterator[pa.Table]") -> None:
    """Write tables given run by run, so that no run crosses a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    with replacing(path) as draft, pq.ParquetWriter(
        draft, schema, compression="zstd", write_page_checksum=True, write_statistics=False,
        use_dictionary=[field.name for field in schema if field.name not in floats], use_byte_stream_split=floats,
    ) as writer:
        waiting: list[pa.Table] = []
        for found in runs:
            waiting.append(found)
            if sum(map(len, waiting)) >= ROWS:
                writer.write_table(pa.concat_tables(waiting), row_group_size=ROWS + len(found))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting), row_group_size=ROWS + len(waiting[-1]))
