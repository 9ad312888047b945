"""One parquet file with the records of all runs: derived from the run folders, checked against them, never needed.

A row is used while the record's time of change and size are those of the row; anything else is read from the folder.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from portability.store.atomic import replacing
from portability.store.records import canonical, evaluated, parse

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)
NAME = "index.parquet"
DERIVED = ("schema", "format", "marks", "record")  # columns that follow from the record
BATCH = 2000  # rows (our choice: a few megabytes of records at a time)


class Row(NamedTuple):
    """A run folder: its id, time of change and bytes of its record (None: there is none), and what the index holds."""

    run_id: str
    seen: tuple[int, int] | None
    kept: tuple | None


def schema() -> "pa.Schema":
    """Columns of the index."""
    import pyarrow as pa

    return pa.schema({
        "run_id": pa.string(), "mtime_ns": pa.int64(), "size": pa.int64(), "schema": pa.int64(), "format": pa.int64(),
        "marks": pa.list_(pa.int64()), "record": pa.string(),
    })


def scan(root: Path) -> dict[str, tuple[int, int] | None]:
    """Run id -> (mtime_ns, size) of its record.json, or None where there is none; in one pass over the folders."""
    found: dict[str, tuple[int, int] | None] = {}
    for shard in folders(root / "runs", 2):
        for run_id in folders(root / "runs" / shard, 16):
            if run_id[:2] != shard:  # of no use there; `verify` says so
                found.setdefault(run_id, None)
                continue
            try:
                seen = os.stat(root / "runs" / shard / run_id / "record.json")
                found[run_id] = (seen.st_mtime_ns, seen.st_size)
            except (FileNotFoundError, NotADirectoryError):
                found[run_id] = None
    return {run_id: found[run_id] for run_id in sorted(found)}


def folders(root: Path, length: int) -> list[str]:
    """Names of that length in a folder, drafts left out."""
    try:
        with os.scandir(root) as entries:
            return [entry.name for entry in entries if len(entry.name) == length and not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def rows(root: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Every run folder in the order of ids, with these columns of the index where its row still holds."""
    kept = _indexed(root / NAME, columns)
    row = next(kept, None)
    for run_id, seen in scan(root).items():
        while row is not None and row[0] < run_id:
            row = next(kept, None)
        hit = row is not None and seen is not None and row[:3] == (run_id, *seen)
        yield Row(run_id, seen, row[3:] if hit and row is not None else None)


def _indexed(path: Path, columns: Sequence[str]) -> Iterator[tuple]:
    """Rows (run_id, mtime_ns, size, and these columns); they end where the index is broken."""
    if not path.exists():
        return
    import pyarrow as pa

    try:
        yield from _read(path, ["run_id", "mtime_ns", "size", *columns])
    except (pa.ArrowException, OSError, ValueError) as error:
        log.warning("%s cannot be read (%s); records are read one by one until it is made anew", path, error)


def _read(path: Path, columns: Sequence[str]) -> Iterator[tuple]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        if not file.schema_arrow.equals(schema()):
            raise pa.ArrowInvalid("it has other columns")
        for batch in file.iter_batches(BATCH, columns=columns):
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def unreadable(path: Path) -> str | None:
    """Why an index cannot be read, or None."""
    import pyarrow as pa

    try:
        for _ in _read(path, schema().names):
            pass
    except (pa.ArrowException, OSError, ValueError) as error:
        return str(error)
    return None


def compact(root: Path) -> int:
    """Write the index anew, taking over the rows that hold; gives back how many records were read for it."""
    import pyarrow.parquet as pq

    count = 0
    if not root.is_dir() or _holds(root):
        return 0
    with replacing(root / NAME) as draft, pq.ParquetWriter(
        draft, schema(), compression="zstd", write_page_checksum=True, write_statistics=False
    ) as writer:
        batch: list[tuple] = []
        for row in rows(root, DERIVED):
            count += row.kept is None and row.seen is not None
            kept = row.kept or fresh(root, row.run_id)
            if kept is not None and row.seen is not None:
                batch.append((row.run_id, *row.seen, *kept))
            if len(batch) == BATCH:
                writer.write_batch(_batch(batch))
                batch = []
        writer.write_batch(_batch(batch))
    return count


def _holds(root: Path) -> bool:
    """Whether the index has a row for each run folder that still holds, and no other."""
    found = [row.kept is not None for row in rows(root, DERIVED)]  # all columns: any may be damaged
    if not all(found) or not (root / NAME).exists():
        return False
    return sum(1 for _ in _indexed(root / NAME, [])) == len(found)


def fresh(root: Path, run_id: str) -> tuple | None:
    """The DERIVED columns, read from the folder; None where the record cannot be used."""
    try:
        raw = (root / "runs" / run_id[:2] / run_id / "record.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    record, fault = parse(raw, run_id)
    if record is None or fault is not None:
        return None
    version = record.get("schema")
    return (version if isinstance(version, int) else None, record.get("format", 1), sorted(evaluated(record)),
            canonical(record))


def _batch(batch: list[tuple]) -> "pa.RecordBatch":
    import pyarrow as pa

    columns: Any = list(zip(*batch, strict=True)) or [[] for _ in schema()]
    return pa.record_batch([pa.array(list(part), kind.type) for part, kind in zip(columns, schema(), strict=True)],
                           schema=schema())
