"""A published study: its records, cells and predictions as Parquet files, without modules; read like any
other."""

import contextlib
import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from portability.core.errors import UserError
from portability.store import failures
from portability.store.integrity import Checked
from portability.store.records import Parsed, parse

FOLDER = "published"
RUN, FAILURE = "run", "failure"  # kinds of rows in records.parquet
PREDICTIONS = "predictions.safetensors"
# a row for each finished run (attempt 0) and each failed attempt; `record` is canonical JSON
RECORDS = pa.schema({
    "run_id": pa.string(), "kind": pa.string(), "attempt": pa.int64(), "record": pa.string()})
# a row for each run, mark and test example (numbered from 0), sorted by these; null: a run has no such number
EXAMPLES = pa.schema({
    "run_id": pa.string(), "updates": pa.int64(), "example": pa.int32(), "label": pa.int8(),
    "margin": pa.float32(), "invalid": pa.bool_(), "score": pa.float32()})


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[pq.ParquetFile]:
    """An open file; what keeps it from being read is an error of the user's.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch the published study again") from error


class Published:
    """Reads a published study, as `folders.RunFolders` reads an ordinary one. What was read is held in
    memory.

    Raises:
        UserError: a file cannot be read; of every method.
    """

    def __init__(self, root: Path):
        self._runs: dict[str, str] = {}
        self._failures: dict[tuple[str, int], str] = {}  # by run and attempt
        self.path = root / FOLDER / "predictions.parquet"
        with _reading(root / FOLDER / "records.parquet") as file:
            for row in file.read().to_pylist():
                if row["kind"] == RUN:
                    self._runs[row["run_id"]] = row["record"]
                else:
                    self._failures[row["run_id"], row["attempt"]] = row["record"]
        with _reading(self.path) as file:
            ids, counts = file.read(["run_id"]).column("run_id").value_counts().flatten()  # as rows follow
        places = zip((np.cumsum(counts) - counts).tolist(), counts.to_pylist(), strict=True)
        self._rows = dict(zip(ids.to_pylist(), places, strict=True))

    @cached_property
    def _examples(self) -> pa.Table:
        with _reading(self.path) as file:
            return file.read().drop_columns("run_id")

    def ids(self) -> list[str]:
        """Ids of the finished runs, sorted."""
        return list(self._runs)

    def parsed(self, run_id: str) -> Parsed:
        """A run's record, its fault, or neither where it has no record."""
        return parse(self._runs[run_id], run_id) if run_id in self._runs else (None, None)

    def entries(self) -> Iterator[tuple[str, Parsed]]:
        """Every finished run with its record or fault."""
        return ((run_id, self.parsed(run_id)) for run_id in self._runs)

    def attempts(self, run_id: str) -> int:
        """Number of recorded failures of a run."""
        return sum(failed == run_id for failed, _ in self._failures)

    def failures(self) -> Iterator[tuple[str, int, dict[str, Any] | None]]:
        """Run, number and failure of every attempt (None: it cannot be read)."""
        return ((*key, failures.parse(text, *key)) for key, text in self._failures.items())

    def check(self, run_id: str) -> Checked:
        """Compare a run's predictions, written as the run wrote them, with the digest in its record (of
        format 2)."""
        from safetensors.numpy import save

        found = Checked.of(self.parsed(run_id))
        if found.fault is None and (entry := (found.record or {}).get("files", {}).get(PREDICTIONS)):
            if run_id not in self._rows:
                found.faults.append("its predictions are not there")
            elif hashlib.sha256(save(self.predictions(run_id))).hexdigest() != entry["sha256"]:
                found.faults.append("its predictions differ from the record's digest")
        return found

    def without_record(self) -> list[str]:
        """Runs of which there are predictions and no record."""
        return sorted(self._rows.keys() - self._runs.keys())

    def predictions(self, run_id: str) -> dict[str, np.ndarray]:
        """Predictions as `Store.predictions` gives them, bit for bit.

        Raises:
            UserError: none are there for this run.
        """
        if run_id not in self._rows:
            raise UserError(f"{self.path} has no predictions of run {run_id}")
        table = self._examples.slice(*self._rows[run_id])
        rows = {name: table[name].to_numpy() for name in table.column_names if not table[name].null_count}
        count = 1 + int(rows["example"].max())
        marks = {name: np.ascontiguousarray(values.reshape(-1, count)) for name, values in rows.items()}
        label = {"label": marks["label"][0].copy()} if "label" in marks else {}
        return {"updates": marks["updates"][:, 0].copy(),
                **{name: marks[name] for name in ("margin", "score", "invalid") if name in marks}, **label}
