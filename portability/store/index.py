"""One Parquet file with the records of all runs: derived from the run folders, checked against them, never
needed.

A row is used while the record's time of change and size are those of the row; anything else is read from the
folder.
"""

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from portability.store.atomic import replacing
from portability.store.folders import folder_of, scan
from portability.store.records import canonical, read_record

log = logging.getLogger(__name__)
NAME = "index.parquet"
SCHEMA = pa.schema({  # the run, its record's time of change and bytes, and the record as canonical JSON
    "run_id": pa.string(), "mtime_ns": pa.int64(), "size": pa.int64(), "record": pa.string()})
Texts = dict[tuple, str]  # (run_id, mtime_ns, size) -> record


def texts(root: Path) -> dict[str, str | None]:
    """Every run folder's id, in order, with its record as canonical JSON, or None where the index lacks
    it."""
    known = _known(root)
    return {run_id: known.get(seen) if seen else None for run_id, seen in scan(root).items()}


def _known(root: Path) -> Texts:
    """Rows of the index; none where it is not there, or broken, which is warned of."""
    try:
        return load(root / NAME) if (root / NAME).exists() else {}
    except ValueError as error:
        log.warning("%s cannot be read (%s); records are read one by one until it is made anew",
                    root / NAME, error)
        return {}


def load(path: Path) -> Texts:
    """Rows of an index.

    Raises:
        ValueError: it cannot be read, or lacks a column.
    """
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        *keys, records = (column.to_pylist() for column in table.select(SCHEMA.names).cast(SCHEMA).columns)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(str(error)) from error
    return dict(zip(zip(*keys, strict=True), records, strict=True))


def compact(root: Path) -> int:
    """Write the index anew, taking over the rows that hold; gives back how many records were read for it.

    Raises:
        OSError: the disk is full or not writable; the old index stays.
    """
    known, seen = _known(root), [key for key in scan(root).values() if key]
    found = {key: known.get(key) or fresh(root, key[0]) for key in seen}
    rows = {key: text for key, text in found.items() if text}
    if rows != known:
        columns = [*(list(column) for column in zip(*rows, strict=True)), list(rows.values())]
        table = pa.table(columns, schema=SCHEMA) if rows else SCHEMA.empty_table()
        with replacing(root / NAME) as draft:
            pq.write_table(table, draft, compression="zstd", write_page_checksum=True, write_statistics=False)
    return sum(key not in known for key in seen)


def stale(root: Path) -> list[str]:
    """Runs of which the index has a row that claims to hold and does not agree with the record.

    Raises:
        ValueError: the index cannot be read.
    """
    load(root / NAME)
    return [run_id for run_id, text in texts(root).items() if text and text != fresh(root, run_id)]


def fresh(root: Path, run_id: str) -> str | None:
    """A record as canonical JSON, read from the folder; None where it cannot be used."""
    record, fault = read_record(folder_of(root, run_id), run_id)
    return None if record is None or fault else canonical(record)
