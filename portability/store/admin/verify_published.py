"""Check a published study: each record by its own digest, each run's predictions by the digest in its record."""

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from portability.store.integrity import Checked
from portability.store.published import FAILURE, FOLDER, RUN, Published
from portability.store.records import parse
from portability.store.study import Store

if TYPE_CHECKING:
    from portability.store.admin.verify import Finding, Tally

FETCH = "fetch the published study again"
PREDICTIONS = "predictions.safetensors"


def published_findings(store: Store, tally: "Tally") -> "Iterator[Finding]":
    """Everything that is wrong with the packed records, failures and predictions."""
    from portability.core.errors import UserError
    from portability.store.admin.verify import Finding

    tally.files += 3
    try:
        copy = Published(store.root)
        for run_id, fault in _faults(copy, tally):
            yield Finding(f"run {run_id}: {fault}", FOLDER, FETCH)
        if not _cells_follow(store):
            yield Finding("cells.parquet is not what the records and manifests say", FOLDER, FETCH)
    except UserError as error:
        yield Finding(str(error), FOLDER, FETCH)


def _cells_follow(store: Store) -> bool:
    """Whether the table of cells is what the records and manifests say."""
    import pandas as pd

    from portability.store.admin.archive import cells_of

    try:
        return pd.read_parquet(store.root / FOLDER / "cells.parquet").equals(cells_of(store))
    except (OSError, ValueError):
        return False


def _faults(copy: Published, tally: "Tally") -> Iterator[tuple[str, str]]:
    from tqdm import tqdm

    from portability.store.admin.verify import foreign, run_faults

    seen: set[str] = set()
    for row in tqdm(copy.rows(RUN), desc=FOLDER, unit="run", disable=None):
        run_id = row["run_id"]
        tally.runs += 1
        record, fault = parse(row["record"], run_id)
        found = Checked(record=record, foreign=fault if record else None, faults=[fault] if fault and not record else [])
        faults = [*found.faults, *foreign(found), *run_faults(run_id, found, tally)]
        if record is not None and not faults:
            faults += _predictions(copy, record, run_id)
        yield from ((run_id, one) for one in faults)
        seen.add(run_id)
        if not faults:
            tally.sound.add(run_id)
    for table in copy.predicted.groups():
        lost = dict.fromkeys(run_id for run_id in table.column("run_id").to_pylist() if run_id not in seen)
        yield from ((run_id, "there are predictions without a record") for run_id in lost)
    for row in copy.rows(FAILURE):
        if not _is_failure(row):
            yield row["run_id"], f"its failure {row['attempt']} cannot be read"


def _predictions(copy: Published, record: dict[str, Any], run_id: str) -> list[str]:
    """Whether predictions, written as the run wrote them, have the digest that the record names (format 2)."""
    from safetensors.numpy import save

    entry = record.get("files", {}).get(PREDICTIONS)
    if entry is None:
        return []
    if not len(copy.predicted.of(run_id)):
        return ["its predictions are not there"]
    same = hashlib.sha256(save(copy.predictions(run_id))).hexdigest() == entry["sha256"]
    return [] if same else ["its predictions differ from the record's digest"]


def _is_failure(row: dict[str, Any]) -> bool:
    try:
        failure = json.loads(row["record"])
    except ValueError:
        return False
    return isinstance(failure, dict) and (failure.get("run_id"), failure.get("attempt")) == (row["run_id"], row["attempt"])
