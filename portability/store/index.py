"""One Parquet file with the records of all runs: derived from the run folders, checked against them, never needed.

A row is used while the record's time of change and size are those of the row; anything else is read from the folder.
"""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from portability.store.atomic import replacing
from portability.store.folders import folder_of, scan
from portability.store.records import canonical, read_record

log = logging.getLogger(__name__)
NAME = "index.parquet"
SCHEMA = pa.schema({  # the run, its record's time of change and bytes, and the record as canonical JSON
    "run_id": pa.string(), "mtime_ns": pa.int64(), "size": pa.int64(), "record": pa.string()})
Rows = list[dict[str, Any]]


def texts(root: Path) -> dict[str, str | None]:
    """Every run folder's id, in order, with its record as canonical JSON, or None where the index does not hold it."""
    known = _by_state(_rows(root))
    return {run_id: known.get((run_id, seen)) for run_id, seen in scan(root).items()}


def _by_state(rows: Rows) -> dict[tuple, str]:
    return {(row["run_id"], (row["mtime_ns"], row["size"])): row["record"] for row in rows}


def _rows(root: Path) -> Rows:
    """Rows of the index; none where it is not there, or broken, which is warned of."""
    try:
        return load(root / NAME) if (root / NAME).exists() else []
    except ValueError as error:
        log.warning("%s cannot be read (%s); records are read one by one until it is made anew", root / NAME, error)
        return []


def load(path: Path) -> Rows:
    """Rows of an index.

    Raises:
        ValueError: it cannot be read, or lacks a column.
    """
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        return table.select(SCHEMA.names).cast(SCHEMA).to_pylist()
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(str(error)) from error


def compact(root: Path) -> int:
    """Write the index anew, taking over the rows that hold; gives back how many records were read for it.

    Raises:
        OSError: the disk is full or not writable; the old index stays.
    """
    old, rows, count = _rows(root), [], 0
    known = _by_state(old)
    for run_id, seen in scan(root).items():
        if seen is not None:
            text = known.get((run_id, seen))
            count += text is None
            if text := text or fresh(root, run_id):
                rows.append(dict(zip(SCHEMA.names, (run_id, *seen, text), strict=True)))
    if rows != old:
        with replacing(root / NAME) as draft:
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), draft, compression="zstd", write_page_checksum=True,
                           write_statistics=False)
    return count


def fresh(root: Path, run_id: str) -> str | None:
    """A record as canonical JSON, read from the folder; None where it cannot be used."""
    record, fault = read_record(folder_of(root, run_id), run_id)
    return None if record is None or fault else canonical(record)
