"""Rows of a data file: lines of JSON, a CSV file with a header, or Parquet; what cannot be read is said with
its place."""

import csv
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from portability.core.errors import UserError

Placed = Iterator[tuple[str, Any]]  # the place of a row in words, and what it holds
LONGEST = 2**31 - 1  # characters of a value in a CSV file


def json_lines(path: Path) -> Placed:
    """What each line of a file holds, after its place in words.

    Raises:
        UserError: names the file, and the line, if it cannot be read or is not JSON in UTF-8.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path} line {number}"
                try:
                    value = json.loads(line)
                    json.dumps(value, ensure_ascii=False).encode()  # not where half a surrogate pair stands
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{where} is not JSON in UTF-8: {error}; each line must be "
                                    "one JSON object") from error
                yield where, value
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def csv_rows(path: Path, figures: Collection[str] = ()) -> Placed:
    """The rows of a CSV file below its header, commas between values, which are texts.

    Args:
        figures: columns whose whole numbers are numbers.

    Raises:
        UserError: names the file, and the line, if it cannot be read, is not UTF-8, or a row has more or
            fewer values than the header.
    """
    csv.field_size_limit(LONGEST)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames or []
            if len({*header}) < len(header):
                raise UserError(f"{path}: the header names a column twice ({', '.join(header)}); rename one")
            for row in reader:
                where = f"{path} line {reader.line_num}"
                if None in row or None in row.values():
                    raise UserError(f"{where} has more or fewer values than the header's {len(header)} "
                                    "columns; put texts that hold commas or quotes into quotes")
                yield where, {key: int(value) if key in figures and re.fullmatch(r"-?\d+", value) else value
                              for key, value in row.items()}
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not CSV in UTF-8: {error}") from error
    except csv.Error as error:
        raise UserError(f"{path} line {reader.reader.line_num} is not CSV: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def parquet_rows(path: Path) -> Placed:
    """The rows of a Parquet file.

    Raises:
        UserError: names the file, if it cannot be read.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{path} row {number}", row
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is not Parquet that can be read: {str(error).splitlines()[0]}") from error


READERS: Mapping[str, Callable[[Path, Collection[str]], Placed]] = {
    ".jsonl": lambda path, _: json_lines(path), ".csv": csv_rows,
    ".parquet": lambda path, _: parquet_rows(path),
}
ENDINGS = ", ".join(READERS)
TABLES = (".csv", ".parquet")  # files that are no lines of text


def is_data_file(name: str) -> bool:
    """Whether a name is that of a file of rows.

    Example:
        >>> is_data_file("films.csv"), is_data_file("validation")
        (True, False)
    """
    return Path(name).suffix in READERS


def rows_of(path: Path, figures: Collection[str] = ()) -> Placed:
    """The rows of a file, each after its place in words.

    Args:
        figures: columns whose whole numbers are numbers where the file knows texts alone.

    Raises:
        UserError: another ending, or as of its reader.
    """
    if not is_data_file(path.name):
        raise UserError(f"{path}: a data file ends in one of {ENDINGS}")
    return READERS[path.suffix](path, figures)
