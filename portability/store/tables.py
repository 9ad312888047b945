"""Parquet files with checksums, written whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from portability.core.errors import UserError
from portability.store.atomic import replacing


def read(path: Path, remedy: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The columns of a table; all of them, where none are named.

    Raises:
        UserError: the file cannot be read or lacks a column; ends with the remedy.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(columns)
        return table.select(columns or table.column_names)
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}") from error


def write(path: Path, table: pa.Table) -> None:
    """Write a table as small as it goes, with checksums.

    Raises:
        OSError: the disk is full or not writable; what was there stays.
    """
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    with replacing(path) as draft:
        pq.write_table(table, draft, compression="zstd", write_page_checksum=True, write_statistics=False,
                       use_dictionary=[name for name in table.column_names if name not in floats],
                       use_byte_stream_split=floats)
