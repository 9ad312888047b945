"""A published study: its records, cells and predictions as Parquet files, without modules; read like any
other."""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from portability.core.errors import UserError
from portability.store import failures, tables
from portability.store.records import Checked, Parsed, parse
from portability.store.store import Store

FOLDER = "published"
RUN, FAILURE = "run", "failure"  # kinds of rows in records.parquet
PREDICTIONS = "predictions.safetensors"
FETCH = "fetch the published study again"
# a row for each finished run (attempt 0) and each failed attempt; `record` is canonical JSON
RECORDS = pa.schema({
    "run_id": pa.string(), "kind": pa.string(), "attempt": pa.int64(), "record": pa.string()})
# a row for each run, mark and test example (numbered from 0), sorted by these; null: a run has no such number
EXAMPLES = pa.schema({
    "run_id": pa.string(), "updates": pa.int64(), "example": pa.int32(), "label": pa.int8(),
    "margin": pa.float32(), "invalid": pa.bool_(), "score": pa.float32()})
# beside them where a run is of more than two labels: its margins of an example, in place of the one
WIDE = EXAMPLES.append(pa.field("margins", pa.list_(pa.float32())))


class Published(Store):
    """Reads a published study. What was read is held in memory.

    Raises:
        UserError: a file cannot be read; of every method.
    """

    published = True

    def _read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return tables.read(self.root / FOLDER / f"{name}.parquet", FETCH, columns)

    @cached_property
    def _examples(self) -> pa.Table:
        return self._read("predictions")  # older copies have no score

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """First row and number of rows of each run's examples."""
        column = self._read("predictions", ["run_id"])["run_id"]
        ids, counts = column.value_counts().flatten()  # as rows follow
        places = zip((np.cumsum(counts) - counts).tolist(), counts.to_pylist(), strict=True)
        return dict(zip(ids.to_pylist(), places, strict=True))

    @cached_property
    def _kept(self) -> dict[tuple[str, int], str]:
        """Records and failures as text, by run and attempt (0: the record), of a copy that is whole."""
        _ = self._places  # is read, too
        return {(row["run_id"], row["attempt"]): row["record"]
                for row in self._read("records", RECORDS.names).to_pylist()}

    def ids(self) -> list[str]:
        """Ids of the finished runs, sorted."""
        return [run_id for run_id, attempt in self._kept if not attempt]

    def parsed(self, run_id: str) -> Parsed:
        """A run's record, its fault, or neither where it has no record."""
        text = self._kept.get((run_id, 0))
        return (None, None) if text is None else parse(text, run_id)

    def entries(self) -> Iterator[tuple[str, dict[str, Any] | None, str | None]]:
        """Every finished run with its record or fault."""
        return ((run_id, *self.parsed(run_id)) for run_id in self.ids())

    def attempts(self, run_id: str) -> int:
        """Number of recorded failures of a run."""
        return sum(failed == run_id and attempt > 0 for failed, attempt in self._kept)

    def failed(self) -> Iterator[tuple[str, int, dict[str, Any] | None]]:
        """Run, number and failure of every attempt (None: it cannot be read)."""
        return ((*key, failures.parse(text, *key)) for key, text in self._kept.items() if key[1])

    def inspect(self, run_id: str) -> Checked:
        """Compare a run's predictions, written as the run wrote them, with the digest in its record (of
        format 2)."""
        from safetensors.numpy import save

        found = Checked.of(self.parsed(run_id))
        if found.fault is None and (entry := (found.record or {}).get("files", {}).get(PREDICTIONS)):
            if run_id not in self._places:
                found.faults.append("its predictions are not there")
            elif hashlib.sha256(save(self.predictions(run_id))).hexdigest() != entry["sha256"]:
                found.faults.append("its predictions differ from the record's digest")
        return found

    def without_record(self) -> list[str]:
        """Runs of which there are predictions and no record."""
        return sorted(self._places.keys() - set(self.ids()))

    def predictions(self, run_id: str) -> dict[str, np.ndarray]:
        """Predictions as `Store.predictions` gives them, bit for bit.

        Raises:
            UserError: none are there for this run.
        """
        if run_id not in self._places:
            raise UserError(f"{self.root} has no predictions of run {run_id}; {FETCH}")
        table = self._examples.slice(*self._places[run_id]).drop_columns("run_id")
        whole = [name for name in table.column_names if not table[name].null_count]
        rows = {name: table[name].to_numpy() for name in whole if name != "margins"}
        count = 1 + int(rows["example"].max())
        marks = {name: np.ascontiguousarray(values.reshape(-1, count)) for name, values in rows.items()}
        if "margins" in whole:
            flat = table["margins"].combine_chunks().flatten().to_numpy()
            marks["margin"] = flat.reshape(*marks["invalid"].shape, -1)
        label = {"label": marks["label"][0].copy()} if "label" in marks else {}
        return {"updates": marks["updates"][:, 0].copy(),
                **{name: marks[name] for name in ("margin", "score", "invalid") if name in marks}, **label}

    def compact(self) -> int:
        """A published study needs no index."""
        return 0
