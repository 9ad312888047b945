"""One Parquet file with the records of all runs: derived from the run folders, checked against them, never
needed.

A row is used while the record's time of change and size are those of the row; anything else is read from the
folder.
"""

import logging
from pathlib import Path

import pyarrow as pa

from portability.core.errors import UserError
from portability.store import tables
from portability.store.records import canonical, read_record
from portability.store.store import Store

log = logging.getLogger(__name__)
NAME = "index.parquet"
SCHEMA = pa.schema({  # the run, its record's time of change and bytes, and the record as canonical JSON
    "run_id": pa.string(), "mtime_ns": pa.int64(), "size": pa.int64(), "record": pa.string()})
Texts = dict[tuple, str]  # (run_id, mtime_ns, size) -> record


def texts(store: Store) -> dict[str, str | None]:
    """Every run folder's id, in order, with its record as canonical JSON, or None where the index lacks
    it."""
    known = _known(store.root)
    return {run_id: known.get(seen) if seen else None for run_id, seen in store.scan().items()}


def _known(root: Path) -> Texts:
    """Rows of the index; none where it is not there, or broken, which is warned of."""
    try:
        return load(root / NAME) if (root / NAME).exists() else {}
    except UserError as error:
        log.warning("%s", error)
        return {}


def load(path: Path) -> Texts:
    """Rows of an index.

    Raises:
        UserError: it cannot be read, or lacks a column.
    """
    table = tables.read(path, "records are read one by one until it is made anew", SCHEMA.names)
    *keys, records = (column.to_pylist() for column in table.columns)
    return dict(zip(zip(*keys, strict=True), records, strict=True))


def compact(store: Store) -> int:
    """Write the index anew, taking over the rows that hold; gives back how many records were read for it.

    Raises:
        OSError: the disk is full or not writable; the old index stays.
    """
    known, seen = _known(store.root), [key for key in store.scan().values() if key]
    found = {key: known.get(key) or _fresh(store, key[0]) for key in seen}
    rows = {key: text for key, text in found.items() if text}
    if rows != known:
        table = [dict(zip(SCHEMA.names, (*key, text), strict=True)) for key, text in rows.items()]
        tables.write(store.root / NAME, pa.Table.from_pylist(table, SCHEMA))
    return sum(key not in known for key in seen)


def stale(store: Store) -> list[str]:
    """Runs of which the index has a row that claims to hold and does not agree with the record.

    Raises:
        UserError: the index cannot be read.
    """
    load(store.root / NAME)
    return [run_id for run_id, text in texts(store).items() if text and text != _fresh(store, run_id)]


def _fresh(store: Store, run_id: str) -> str | None:
    """A record as canonical JSON, read from the folder; None where it cannot be used."""
    record, fault = read_record(store.folder(run_id), run_id)
    return None if record is None or fault else canonical(record)
